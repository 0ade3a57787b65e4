"""The dialect of a Megatron source: recognised by its names, and where dialects differ about a cut, by its shapes.

Owns the choice between dialects of training. Pure; what a dialect says is in `models/parameter_dialect`.
"""

from __future__ import annotations

from dataclasses import replace

from distconv.errors import InputError
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.megatron.names import Targets, skeleton
from distconv.models.bind import whole_parameter
from distconv.models.definition import Definition
from distconv.models.parameter_dialect import GROUPED, ParameterDialects, Spoken, speak, whole_on_every_rank
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes


def spoken_in(index: MegatronIndex, definition: Definition, dialects: ParameterDialects, given: str | None) -> Spoken:
    """The definition with the names that an index has: of the given dialect, or of the one that knows most of them.

    Of those that know as many it is the usual one of the model, or the one that differs least from the definition.

    Raises:
        InputError: there is no such dialect.
    """
    if given is not None:
        return speak(dialects.chosen(given, "source_dialect"), definition)
    held = {skeleton(name) for name in {name for file in index.files for _, name in file.tensors}}
    usual = dialects.chosen(definition.dialect, f"model definition {definition.name}: dialect")
    found = [speak(each, definition) for each in dict.fromkeys((usual, *dialects.dialects.values()))]

    def score(spoken: Spoken) -> tuple[int, bool, int, str]:
        known = {skeleton(rule.target.removesuffix(GROUPED)) for rule in spoken.definition.rules}
        dialect = spoken.dialect
        return -len(held & known), dialect is not usual, len(dialect.exchanges), dialect.name

    return min(found, key=score)


def cut_as_found(spoken: Spoken, index: MegatronIndex, sizes: Sizes, dialects: ParameterDialects) -> Spoken:
    """The definition with parameters whole or cut as they are in the files, where dialects differ about it."""
    ranks = max(file.rank[0] for file in index.files) + 1
    starts = tuple(start for each in dialects.dialects.values() for start in each.whole)
    open_rules = {rule.target: rule for rule, own in spoken.own.items() if starts and own.target.startswith(starts)}
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
    for rule, own in spoken.own.items():
        if rule.target in shapes:
            is_whole = shapes[rule.target] == _shape_or_none(own, sizes)
            cut = replace(rule, tensor_parallel=own.tensor_parallel, unit=own.unit)
            changed[whole_on_every_rank(rule) if is_whole else cut] = own
        else:
            changed[rule] = own
    return replace(spoken, definition=replace(spoken.definition, rules=tuple(changed)), own=changed)


def _shape_or_none(rule: Rule, sizes: Sizes) -> tuple[int, ...] | None:
    try:
        return whole_parameter(rule, sizes).shape
    except InputError:
        return None
