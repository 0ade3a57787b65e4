"""Binding a Megatron source: unsplit parameters as tables over the pieces in the rank files.

Owns the comparison of the files with a plan. The Hugging Face checkpoint expected for the source (`expected`) is bound
and planned under the detected layout, as if it were converted; every planned tensor is compared with the files, and a
parameter over its pieces is the inverse of its cut, so the two directions cannot disagree. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from distconv.errors import InputError, named, raise_if
from distconv.formats.megatron.contents import contents_of
from distconv.formats.megatron.detect import detect
from distconv.formats.megatron.expected import expected_checkpoint, unless_absent
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.megatron.names import Targets
from distconv.formats.megatron.plan import MegatronPlan, expert_owner, make_plan
from distconv.formats.megatron.ranks import RankGrid
from distconv.formats.replicas import Replica
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.layout.layout import CompleteLayout, stage_number
from distconv.layout.request import SourceLayout
from distconv.layout.tied_head import resolve_head
from distconv.models.bind import Binding, Parameter, ParameterKey, Recipe, bind, make_recipe, target_name
from distconv.models.definition import FLOATING, Definition
from distconv.models.names import filled
from distconv.models.rules import TEXT, Rule
from distconv.models.sizes import Sizes
from distconv.tensors.compose import renumbered, strided, substitute
from distconv.tensors.operators import OPERATORS
from distconv.tensors.stored import Assembled, SourceFile, StoredTensor
from distconv.tensors.virtual import VirtualTensor, invert, whole


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A parameter in the files, or an entry such as the optimizer, that is not converted, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MegatronBinding:
    """A Megatron source as parameters, with its detected layout.

    `parameters`: the parameters over the pieces in the files. `over_hf`: the same parameters, in the same order, over
    the published tensors of the expected Hugging Face checkpoint, which are in no file; its inverse gives these
    tensors. `replicas`: pieces that are stored again. `absent`: the reasons why rules have no parameters in the files.
    """

    layout: CompleteLayout
    parameters: Binding
    over_hf: Binding
    replicas: tuple[Replica, ...]
    dropped: tuple[Dropped, ...]
    absent: tuple[str, ...]


def bind_megatron(
    definition: Definition,
    sizes: Sizes,
    index: MegatronIndex,
    given: SourceLayout,
    left_out: Callable[[Rule], str | None],
    reference: Mapping[str, tuple[int, ...] | None] = MappingProxyType({}),
) -> MegatronBinding:
    """Bind the files of a source to a definition; `left_out` gives the reason why a rule is unwanted, or `None`.

    `sizes`: the sizes of the reference model; `reference`: its tensors, name → shape, `None` without weights. Names
    distinguish alternatives with equal parameters; without them, `over_hf` has the first alternative. Shapes give the
    rows of sources that are one parameter; without them, rows that do not follow from config.json are refused.

    Raises:
        InputError: a layout that cannot be detected, or is not the given one; every tensor of every file that is
            missing, unknown, or of the wrong shape or element type.
    """
    targets = Targets(definition.rules)
    layout, grid = detect(definition, targets, sizes, index, given, reference)
    raise_if(list(_wrong_types(index, targets)))
    contents = contents_of(index, grid, layout, targets, definition.expert_count(sizes))
    reason = unless_absent(definition, contents, left_out)
    copied_head = TEXT in layout.stages and definition.is_tied(sizes) and layout.keeps_separate_head()
    expected, sizes = expected_checkpoint(
        definition,
        sizes,
        layout,
        contents,
        reason,
        reference=reference,
        without_head=copied_head,
        where=index.directory,
    )
    over_hf = bind(definition, sizes, expected, reason)
    stored_head = definition.tied is not None and definition.tied.head in contents.examples
    unsplit = replace(over_hf, parameters=_unsplit(over_hf, given))
    unsplit = resolve_head(unsplit, definition, layout, "omit" if copied_head and not stored_head else "auto")
    try:
        plan = make_plan(unsplit, layout)
    except InputError as error:
        raise InputError(f"{index.directory}: source_{problem}" for problem in error.problems) from None
    found = _Comparison(plan, grid, targets, reason, definition.name)
    raise_if(found.problems)
    parameters = tuple(_parameters(found, over_hf, sizes))
    return MegatronBinding(
        layout=layout,
        parameters=replace(over_hf, parameters=parameters),
        over_hf=over_hf,
        replicas=(*found.replicas, *_copied_head(found, definition, parameters)),
        dropped=(
            *(
                Dropped(name=filled(target, layer, expert, None), reason=why)
                for target, layer, expert in contents.pieces
                if (why := _left_out(targets, target, reason)) is not None
            ),
            *(Dropped(name=name, reason="training state; only the model is converted") for name in index.others),
        ),
        absent=tuple(
            dict.fromkeys(
                why for rule in definition.rules if left_out(rule) is None and (why := reason(rule)) is not None
            )
        ),
    )


def _wrong_types(index: MegatronIndex, targets: Targets) -> Iterator[str]:
    for file in index.files:
        for (key, name), tensor in file.tensors.items():
            if tensor.dtype not in FLOATING and targets.find(name) is not None:
                yield (
                    f"{file.file.path}: {key}/{name} is {tensor.dtype}, expected one of {', '.join(FLOATING)}; "
                    "quantised checkpoints cannot be converted"
                )


def _left_out(targets: Targets, target: str, reason: Callable[[Rule], str | None]) -> str | None:
    """The reason why a target is unwanted, `None` if one of its rules is wanted."""
    reasons = [reason(rule) for rule in targets.rules(target)]
    return None if None in reasons else reasons[0]


def _unsplit(over_hf: Binding, given: SourceLayout) -> tuple[Parameter, ...]:
    """The parameters as operands of themselves, with the cuts of `given`: for a plan that ignores their sources."""
    recipes: dict[Recipe, Recipe] = {}
    for each in over_hf.parameters:
        recipe = each.recipe
        if recipe not in recipes:
            rule, unit = recipe.rule, recipe.unit
            if given.vision_qkv == "fused" and OPERATORS[rule.operator].is_by_head:
                rule, unit = replace(rule, tensor_parallel="rows", unit=None), None
            tensor = whole(recipe.tensor.dtype, recipe.tensor.shape)
            recipes[recipe] = replace(
                recipe, rule=rule, unit=unit, tensor=tensor, source_shapes=(tensor.shape,), unused=0
            )
    return tuple(Parameter(recipes[each.recipe], (), each.layer, each.expert) for each in over_hf.parameters)


class _Comparison:
    """A plan compared with the rank files: the pieces of every parameter, the replicas, and all problems."""

    def __init__(
        self, plan: MegatronPlan, grid: RankGrid, targets: Targets, reason: Callable[[Rule], str | None], model: str
    ) -> None:
        self.plan = plan
        self.parameters = plan.binding.by_key()
        self.problems: list[str] = []
        self.replicas: list[Replica] = []
        self._pieces: dict[ParameterKey, dict[int, Assembled]] = {}
        self._views: dict[tuple[object, ...], tuple[tuple[int, ...], VirtualTensor]] = {}
        entries = [_entries(plan, pp_rank) for pp_rank in range(plan.layout.pp)]
        for output in plan.files:
            file = grid.files[output.tp_rank, output.pp_rank, output.ep_rank]
            expected = entries[output.pp_rank][None] | entries[output.pp_rank].get(output.ep_rank, {})
            unknown: dict[str, list[str]] = {}
            for key, name in sorted(file.tensors.keys() - expected.keys()):
                local = targets.find(name)
                if local is None:
                    unknown.setdefault(f"that no rule of model definition {model} knows", []).append(f"{key}/{name}")
                elif _left_out(targets, local.target, reason) is None:
                    what = "that fit a rule, but not the layers, experts and ends of the model on this rank"
                    unknown.setdefault(what, []).append(f"{key}/{name}")
            for what, names in unknown.items():
                self.problems.append(f"{file.file.path}: {len(names)} tensors {what}: {named(names, 8)}")
            missing = [f"{key}/{name}" for key, name in expected if (key, name) not in file.tensors]
            if missing:
                self.problems.append(f"{file.file.path}: {len(missing)} tensors are missing: {named(missing, 8)}")
            for place, parameter in expected.items():
                if (tensor := file.tensors.get(place)) is not None:
                    number = output.tp_rank % len(plan.shards[parameter.recipe])
                    self._take(place, parameter, number, tensor, file.file)

    def _take(
        self,
        place: tuple[str, str],
        parameter: Parameter,
        number: int,
        tensor: ArchivedTensor,
        file: SourceFile,
    ) -> None:
        shard = self.plan.shards[parameter.recipe][number]
        if (tensor.shape, tensor.dtype) != (shard.shape, shard.dtype):
            self.problems.append(f"{file.path}: {'/'.join(place)} {self._mismatch(parameter, shard, tensor)}")
            return
        form = (tensor.dtype, tensor.shape, tensor.strides)
        if form not in self._views:
            contiguous = tensor.shape, whole(tensor.dtype, tensor.shape)
            self._views[form] = contiguous if tensor.is_contiguous else strided(*form)
        shape, view = self._views[form]
        piece = Assembled((StoredTensor(place[1], tensor.dtype, shape, file, tensor.offset),), view)
        first = self._pieces.setdefault(parameter.key, {}).setdefault(number, piece)
        if first is not piece:
            self.replicas.append(Replica(first, piece))

    def _mismatch(self, parameter: Parameter, shard: VirtualTensor, tensor: ArchivedTensor) -> str:
        if tensor.shape == shard.shape:
            return f"is {tensor.dtype}, but other pieces of the parameter are {shard.dtype}"
        recipe = parameter.recipe
        pieces = len(self.plan.shards[recipe])
        return (
            f"has shape {list(tensor.shape)}, expected {list(shard.shape)}"
            + (f", one of {pieces} pieces" if pieces > 1 else "")
            + f" ({recipe.rule.where}); its sizes: {', '.join(dict.fromkeys(recipe.dims))}"
        )

    def pieces_of(self, parameter: Parameter) -> list[Assembled]:
        """The pieces of a parameter, one stored tensor per shard, in the order of its shards."""
        held = self._pieces[parameter.key]
        return [held[number] for number in range(len(self.plan.shards[parameter.recipe]))]


def _entries(plan: MegatronPlan, pp_rank: int) -> dict[int | None, dict[tuple[str, str], Parameter]]:
    """The parameters on a pipeline rank: expert parallel rank, `None` for all → (key, name) in the file → parameter."""
    entries: dict[int | None, dict[tuple[str, str], Parameter]] = {None: {}}
    for virtual_stage, key in enumerate(plan.dictionaries):
        for parameter, layer in plan.placed[stage_number(virtual_stage, pp_rank, plan.layout.pp)]:
            owner, expert = expert_owner(parameter, plan.binding.experts, plan.layout.ep)
            name = target_name(parameter.recipe.rule, layer, expert)
            entries.setdefault(owner, {})[key, name] = parameter
    return entries


def _parameters(found: _Comparison, over_hf: Binding, sizes: Sizes) -> Iterator[Parameter]:
    """The parameters over their pieces, in the order of `over_hf`."""
    recipes: dict[tuple[object, ...], Recipe] = {}
    for model in over_hf.parameters:
        parameter = found.parameters[model.key]
        pieces = found.pieces_of(parameter)
        # By the identity of the views, which are few: their hash would cover every copy of a table.
        key = (parameter.recipe, *(id(piece.tensor) for piece in pieces))
        if key not in recipes:
            recipes[key] = _over_pieces(found.plan, parameter.recipe, pieces, model.recipe, sizes)
        stored = tuple(source for piece in pieces for source in piece.sources)
        yield Parameter(recipes[key], stored, parameter.layer, parameter.expert)


def _over_pieces(plan: MegatronPlan, stored: Recipe, pieces: list[Assembled], model: Recipe, sizes: Sizes) -> Recipe:
    """The recipe of a parameter over its pieces; `model` is its recipe over the published tensors."""
    dtype, shape = stored.tensor.dtype, stored.tensor.shape
    (tensor,) = invert(plan.shards[stored], [(dtype, shape)])
    tensor = substitute(tensor, [renumbered(piece.tensor, number) for number, piece in enumerate(pieces)])
    if stored.rule is not model.rule:
        tensor = substitute(make_recipe(model.rule, dtype, (shape,), sizes, None).tensor, [tensor])
    shapes = tuple(source.shape for piece in pieces for source in piece.sources)
    between = sum(map(prod, shapes)) - sum(piece.tensor.elements for piece in pieces)
    return replace(model, tensor=tensor, source_shapes=shapes, unused=between)


def _copied_head(found: _Comparison, definition: Definition, parameters: tuple[Parameter, ...]) -> Iterator[Replica]:
    """The pieces of a head that training stores although it is tied, as replicas of the embedding."""
    for key in found.parameters.keys() - {each.key for each in parameters}:
        head = found.parameters[key]
        assert definition.tied is not None
        assert head.recipe.rule.target == definition.tied.head
        embedding = next(each for each in parameters if each.recipe.rule.target == definition.tied.embedding)
        for shard, piece in zip(found.plan.shards[head.recipe], found.pieces_of(head), strict=True):
            yield Replica(Assembled(embedding.sources, substitute(shard, [embedding.recipe.tensor])), piece)
