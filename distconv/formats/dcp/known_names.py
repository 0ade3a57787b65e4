"""The tensor names of a model definition and its reference, spelled out over layers and experts.

Used to recognise the prefix that training put in front of names. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from distconv.errors import InputError
from distconv.formats.model import Model, Reference
from distconv.models.adapters import saved_factor
from distconv.models.definition import Definition
from distconv.models.language_model import embeddings
from distconv.models.names import experts_of, filled
from distconv.models.parameter_dialect import ParameterDialects, speak
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes

_NONE = ParameterDialects()


def known_tensors(definition: Definition, reference: Reference) -> set[str]:
    """The names of published tensors in every spelling: those of the reference, or of the rules if it has none.

    For adapters alone they are those of the rules, since the reference is their base model.
    """
    sizes = reference.sizes(definition)
    has_names = reference.is_adapter or definition.adapters != "only"
    names: Iterable[str] = (has_names and reference.shard_files) or {
        filled(source.name, layer, expert, item)
        for rule in definition.rules
        for layer, expert, item in _numbers(rule, definition, sizes)
        for source in rule.sources
    }
    return {spelling for name in names for spelling in _spellings(definition, name)}


def known_published(model: Model) -> set[str]:
    """The published names that a model has, experts in all forms; few of them where there is no more to know.

    Without a definition and without the names of a reference, they are the names that an embedding may have.
    """
    definition, reference = model.definition, model.reference
    if definition is not None:
        names = known_tensors(definition, model.followed)
    else:
        names = set((reference and reference.shard_files) or embeddings())
    return model.spellings.alternatives(names)


def known_parameters(definition: Definition, reference: Reference, dialects: ParameterDialects = _NONE) -> set[str]:
    """The names of Megatron-side parameters in every dialect, with global numbers."""
    spoken = [definition, *(speak(each, definition).definition for each in dialects.dialects.values())]
    rules = {rule.target: rule for each in spoken for rule in each.rules}
    sizes = reference.sizes(definition)
    return {
        filled(target, layer, expert, None)
        for target, rule in rules.items()
        for layer, expert, _ in _numbers(rule, definition, sizes)
    }


def _numbers(rule: Rule, definition: Definition, sizes: Sizes) -> Iterator[tuple[int | None, int | None, int | None]]:
    """Layer, expert and item of the parameters of a rule; none if config.json lacks their numbers."""
    try:
        layers = range(sizes.count(definition.modalities[rule.modality])) if "layer" in rule.placeholders else (None,)
        experts = experts_of(rule, definition, sizes)
    except InputError:
        return
    for layer in layers:
        for expert in experts:
            yield layer, expert, layer


def _spellings(definition: Definition, name: str) -> Iterator[str]:
    """All names of the same tensor: with renamed prefixes, and for a factor as in memory and as PEFT saves it."""
    spelled = definition.spelled(name)
    for each in {name, spelled, saved_factor(spelled)}:
        yield each
        for old, new in definition.renamed_prefixes:
            if each.startswith(new) and not each.startswith(old):
                yield old + each[len(new) :]
