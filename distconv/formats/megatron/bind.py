"""Binding the other way round: the files of a Megatron source become full parameters over the pieces in them.

The Hugging Face checkpoint that the source stands for (`blueprint`) is bound and planned under the detected layout, as
if it were to be converted; every tensor of that plan is compared with what the files hold, and a parameter over its
pieces is the inverse of its cut. So the two directions cannot disagree. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from distconv.errors import InputError, counted, named, raise_if
from distconv.formats.megatron.contents import contents_of
from distconv.formats.megatron.detect import detect
from distconv.formats.megatron.expected import expected_checkpoint, unless_absent
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.megatron.names import Targets
from distconv.formats.megatron.plan import MegatronPlan, expert_owner, make_plan
from distconv.formats.megatron.ranks import RankGrid, check_complete
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.layout.layout import CompleteLayout, stage_number
from distconv.layout.predicting import with_embedding
from distconv.layout.request import SourceLayout
from distconv.layout.tied_head import TIED, resolve_head
from distconv.models.bind import bind, make_recipe
from distconv.models.definition import Definition
from distconv.models.names import filled
from distconv.models.parameters import Binding, Parameter, ParameterKey, Recipe, target_name
from distconv.models.rules import TEXT, Rule
from distconv.models.sizes import Sizes
from distconv.tensors.compose import renumbered, strided, substitute
from distconv.tensors.dtypes import FLOATING
from distconv.tensors.operators import OPERATORS
from distconv.tensors.replicas import Replica
from distconv.tensors.stored import Assembled, SourceFile, StoredTensor
from distconv.tensors.virtual import VirtualTensor, invert, whole

_OF_ONE = "are the files of one checkpoint?"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Something in the files that is not carried over, and why: a parameter, or an entry such as the optimizer."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MegatronBinding:
    """A Megatron source as parameters.

    `parameters` are made from the pieces in the files. `over_hf` are the same parameters, in the same order, made
    from the tensors of the Hugging Face checkpoint, which are in no file: inverted, it says what that checkpoint holds.
    `replicas` are the other stored copies of pieces; `absent` the reasons why rules have nothing in the files;
    `unclear` the alternatives of rules of which nothing tells the one that published names are of.
    """

    layout: CompleteLayout
    parameters: Binding
    over_hf: Binding
    replicas: tuple[Replica, ...]
    dropped: tuple[Dropped, ...]
    absent: tuple[str, ...]
    unclear: tuple[str, ...]


def bind_megatron(
    definition: Definition,
    sizes: Sizes,
    index: MegatronIndex,
    given: SourceLayout,
    left_out: Callable[[Rule], str | None],
    reference: Mapping[str, tuple[int, ...] | None] = MappingProxyType({}),
    *,
    tied_head: str = "auto",
) -> MegatronBinding:
    """Bind the files of a source to a definition; `left_out` gives the reason why a rule is not wanted, if it is not.

    `sizes` are those of the reference model, `reference` its tensors, with their shapes where it has weights. The names
    tell alternatives apart that are the same on the Megatron side; without them, `over_hf` has the first, and `unclear`
    says so. The shapes tell the rows of sources that are one parameter there; without them, what config.json does not
    tell is refused. `tied_head`: whether a stored head of a tied model is a copy of the embedding (`auto`), its own
    (`keep`) or of no interest.

    Raises:
        InputError: a layout that cannot be told or is not as given; every tensor of every file that is missing,
            unknown, or of the wrong shape or element type.
    """
    targets = Targets(definition.rules)
    layout, grid = detect(definition, targets, sizes, index, given, reference)
    raise_if(list(_wrong_types(index, targets)))
    contents = contents_of(index, grid, layout, targets, definition.expert_count(sizes))
    reason = unless_absent(definition, contents, left_out)
    absent = tuple(
        dict.fromkeys(why for rule in definition.rules if left_out(rule) is None and (why := reason(rule)) is not None)
    )
    if absent:
        check_complete(index, grid, absent)
    separate_head = TEXT in layout.stages and definition.is_tied(sizes) and layout.keeps_separate_head()
    stored_head = definition.tied is not None and definition.tied.head in contents.examples
    copied_head = separate_head and not (stored_head and tied_head == "keep")
    where = index.directory
    expected, sizes, unclear = expected_checkpoint(
        definition, sizes, layout, contents, reason, reference=reference, without_head=copied_head, where=where
    )
    over_hf = bind(definition, sizes, expected, reason)
    unsplit = replace(over_hf, parameters=_unsplit(over_hf, given))
    expected_head = "auto" if stored_head == copied_head or not separate_head else "keep" if stored_head else "omit"
    unsplit = with_embedding(resolve_head(unsplit, definition, layout, expected_head))
    try:
        plan = make_plan(unsplit, layout)
    except InputError as error:
        raise InputError(f"{where}: source_{problem}" for problem in error.problems) from None
    found = _Comparison(plan, grid, targets, reason, definition.name)
    raise_if(found.problems)
    parameters = tuple(_parameters(found, over_hf, sizes))
    return MegatronBinding(
        layout=layout,
        parameters=replace(over_hf, parameters=parameters),
        over_hf=over_hf,
        replicas=(
            *found.replicas,
            *(() if tied_head in ("omit", "write") else _copies_of_embedding(found, definition, parameters)),
        ),
        dropped=(
            *(
                Dropped(name=filled(target, layer, expert, None), reason=why)
                for target, layer, expert in contents.pieces
                if (why := _left_out(targets, target, reason)) is not None
            ),
            *(Dropped(name=name, reason="training state; only the model is converted") for name in index.others),
        ),
        absent=absent,
        unclear=unclear,
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
    """Why a target is not wanted, if none of its rules is."""
    reasons = [reason(rule) for rule in targets.rules(target)]
    return None if None in reasons else reasons[0]


def _unsplit(over_hf: Binding, given: SourceLayout) -> tuple[Parameter, ...]:
    """The parameters as operands of their own: what is cut and stored, whatever it was made from."""
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
    """What a plan expects in each file against what is there: the pieces of each parameter, and all that is wrong."""

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
                self.problems.append(f"{file.file.path}: {counted(len(names), 'tensor')} {what}: {named(names, 8)}")
            missing = [f"{key}/{name}" for key, name in expected if (key, name) not in file.tensors]
            if missing:
                count = counted(len(missing), "tensor is", "tensors are")
                self.problems.append(f"{file.file.path}: {count} missing: {named(missing, 8)}; {_OF_ONE}")
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
            return f"is {tensor.dtype}, but other pieces of the parameter are {shard.dtype}; {_OF_ONE}"
        recipe = parameter.recipe
        pieces = len(self.plan.shards[recipe])
        return (
            f"has shape {list(tensor.shape)}, expected {list(shard.shape)}"
            + (f", one of {pieces} pieces" if pieces > 1 else "")
            + f" ({recipe.rule.where}); its sizes: {', '.join(dict.fromkeys(recipe.dims))}"
        )

    def pieces_of(self, parameter: Parameter) -> list[Assembled]:
        """The pieces of a parameter, in the order of its shards; each has one source."""
        held = self._pieces[parameter.key]
        return [held[number] for number in range(len(self.plan.shards[parameter.recipe]))]


def _entries(plan: MegatronPlan, pp_rank: int) -> dict[int | None, dict[tuple[str, str], Parameter]]:
    """What a pipeline rank holds, by key and name: on each expert parallel rank, and under `None` on all of them."""
    entries: dict[int | None, dict[tuple[str, str], Parameter]] = {None: {}}
    for virtual_stage, key in enumerate(plan.dictionaries):
        for parameter, layer in plan.placed[stage_number(virtual_stage, pp_rank, plan.layout.pp)]:
            owner, expert = expert_owner(parameter, plan.binding.experts, plan.layout.ep)
            name = target_name(parameter.recipe.rule, layer, expert)
            entries.setdefault(owner, {})[key, name] = parameter
    return entries


def _parameters(found: _Comparison, over_hf: Binding, sizes: Sizes) -> Iterator[Parameter]:
    """The parameters over their pieces, in the order of those that are over_hf."""
    recipes: dict[tuple[object, ...], Recipe] = {}
    for model in over_hf.parameters:
        parameter = found.parameters[model.key]
        pieces = found.pieces_of(parameter)
        # By the identity of the views, of which there are few: a hash would take in every copy.
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


def _copies_of_embedding(
    found: _Comparison, definition: Definition, parameters: tuple[Parameter, ...]
) -> Iterator[Replica]:
    """The pieces of a head that the training side holds beside the embedding that it is tied to."""
    for key in found.parameters.keys() - {each.key for each in parameters}:
        head = found.parameters[key]
        assert definition.tied is not None
        assert head.recipe.rule.target == definition.tied.head
        embedding = next(each for each in parameters if each.recipe.rule.target == definition.tied.embedding)
        for shard, piece in zip(found.plan.shards[head.recipe], found.pieces_of(head), strict=True):
            yield Replica(Assembled(embedding.sources, substitute(shard, [embedding.recipe.tensor])), piece, TIED)
