"""The selection of the rules of a model that a job converts, by the options `select`, `lora_only` and `projector`.

Owns the meaning of these options, as reasons for unwanted rules. Sees rules, never tensors.
"""

from __future__ import annotations

from collections.abc import Callable

from distconv.errors import InputError, raise_if
from distconv.models.definition import PROJECTOR, Definition
from distconv.models.rules import Rule
from distconv.options import CommonOptions


def selection(config: CommonOptions, definition: Definition) -> Callable[[Rule], str | None]:
    """A function from a rule to the reason why it is unwanted, `None` for a wanted rule.

    Raises:
        InputError: an option names a modality, adapters or a projector that the definition does not have.
    """
    for modality in config.select or ():
        if modality not in definition.modalities:
            raise InputError(
                f"select: {definition.name} has no {modality} modality; it has {', '.join(definition.modalities)}"
            )
    if config.lora_only and definition.adapters != "beside":
        raise InputError(
            f"lora_only=true: {definition.name} is not for sources that hold adapters beside base weights; leave it out"
        )
    keep_projector = config.projector == "keep" or (config.projector == "auto" and config.text_source is None)

    def selected(rule: Rule) -> str | None:
        if config.select is not None and rule.modality not in config.select:
            return f"not selected: {rule.modality} (select=[{','.join(config.select)}])"
        if config.lora_only and not rule.is_adapter:
            return "not an adapter (lora_only=true)"
        if rule.section == PROJECTOR and not keep_projector:
            why = "omit" if config.projector == "omit" else "auto, with text_source"
            return f"projector left out (projector={why}); projector=keep keeps it"
        return None

    return selected


def check_taken_whole(config: CommonOptions) -> None:
    """Raise `InputError` for options that select a part of a model without a definition, which is converted whole."""
    why = "tensors that have their published names are all written as they are; leave it out"
    parts = ("select", "text_source", "projector", "lora_only")
    raise_if([f"{key}: {why}" for key in config.given() if key in parts])
