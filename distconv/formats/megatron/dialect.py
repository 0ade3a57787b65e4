"""The dialect of a Megatron source: recognised by its names, and where dialects differ about a cut, by its shapes.

Owns the choice between dialects of training. Pure; what a dialect says is in `models/parameter_dialect`.
"""

from __future__ import annotations

from dataclasses import replace

from distconv.errors import InputError, named
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.megatron.names import Targets, skeleton
from distconv.models.bind import whole_parameter
from distconv.models.definition import Definition
from distconv.models.parameter_dialect import GROUPED, ParameterDialects, Spoken, speak, whole_on_every_rank
from distconv.models.rules import ANY, Rule
from distconv.models.sizes import Sizes
from distconv.tensors.cuts import TENSOR_PARALLEL_RULES
from distconv.tensors.operators import OPERATORS


def spoken_in(index: MegatronIndex, definition: Definition, dialects: ParameterDialects, given: str | None) -> Spoken:
    """The definition with the names that an index has: of the given dialect, or of the one that knows most of them.

    Of those that know as many it is the usual one of the model, or the one that differs least from the definition.

    Raises:
        InputError: there is no such dialect.
    """
    held = {skeleton(name) for name in {name for file in index.files for _, name in file.tensors}}
    usual = dialects.chosen(definition.dialect, f"model definition {definition.name}: dialect")
    # Names of others may depend on whether there are layers that predict.
    definitions = (definition, definition.without_predicting())[: 1 if definition.predicting is None else 2]
    ordered = dict.fromkeys((usual, *dialects.dialects.values()))
    if given is not None:
        ordered = {dialects.chosen(given, "source_dialect"): None}
    found = [speak(dialect, each) for dialect in ordered for each in definitions]

    def score(spoken: Spoken) -> tuple[int, bool, int, str]:
        known = {skeleton(rule.target.removesuffix(GROUPED)) for rule in spoken.definition.rules}
        dialect = spoken.dialect
        return -len(held & known), dialect is not usual, len(dialect.exchanges), dialect.name

    return min(found, key=score)


def cut_as_found(
    spoken: Spoken, index: MegatronIndex, sizes: Sizes, dialects: ParameterDialects, *, is_given: bool
) -> Spoken:
    """The definition with parameters whole or cut as they are in the files, where dialects differ about it.

    Where no size tells it, such as beside adapters without their base, it is as in the dialect if that `is_given`.

    Raises:
        InputError: nothing tells it.
    """
    ranks = max(file.rank[0] for file in index.files) + 1
    differing = tuple(each for each in dialects.dialects.values() if each.whole)
    open_rules = {
        rule.target: rule for rule, own in spoken.own.items() if any(each.holds_whole(own) for each in differing)
    }
    if ranks == 1 or not open_rules:
        return spoken
    targets = Targets(open_rules.values())
    shapes = {
        local.target: tensor.shape
        for file in index.files
        for (_, name), tensor in file.tensors.items()
        if (local := targets.find(name)) is not None
    }
    changed: dict[Rule, Rule] = {}
    untold = []
    for rule, own in spoken.own.items():
        cut = replace(rule, tensor_parallel=own.tensor_parallel, unit=own.unit)
        is_whole = _is_whole(own, shapes[rule.target], sizes) if rule.target in shapes else None
        if is_whole is not None:
            changed[whole_on_every_rank(rule) if is_whole else cut] = own
            continue
        changed[rule] = own
        if rule.target in shapes:
            untold.append(rule.target)
    if untold and not is_given:
        raise InputError(
            f"{index.directory}: nothing tells whether {named(untold, 2)} are cut or whole on its {ranks} tensor "
            "parallel ranks, which differs between ways to build the model; give source_dialect, or a reference with "
            "the sizes of the model"
        )
    return replace(spoken, definition=replace(spoken.definition, rules=tuple(changed)), own=changed)


def _is_whole(rule: Rule, shape: tuple[int, ...], sizes: Sizes) -> bool | None:
    """Whether a tensor of this shape is all of a parameter, `None` where no size tells it."""
    dim = TENSOR_PARALLEL_RULES[rule.tensor_parallel].dim_of(shape)
    if dim is None:
        return True
    try:
        if not OPERATORS[rule.operator].is_identity:
            return whole_parameter(rule, sizes).shape == shape
        size = rule.sources[0].dims[dim]
        return None if size == ANY else sizes.get(size) == shape[dim]
    except InputError:
        return None
