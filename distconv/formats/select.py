"""What of a model a job converts: `select`, `lora_only` and `projector`, as reasons for rules that are not wanted.

Owns the meaning of these keys. Sees rules, never tensors: what is left over for a reason, binding says.
"""

from __future__ import annotations

from collections.abc import Callable

from distconv.errors import InputError, raise_if
from distconv.models.definition import PROJECTOR, Definition
from distconv.models.rules import Rule
from distconv.options import CommonOptions


def selection(config: CommonOptions, definition: Definition) -> Callable[[Rule], str | None]:
    """Why a rule is not wanted, if the configuration says that it is not.

    Raises:
        InputError: it names what the definition does not have.
    """
    for modality in config.select or ():
        if modality not in definition.modalities:
            raise InputError(
                f"select: {definition.name} has no {modality} modality; it has {', '.join(definition.modalities)}"
            )
    if config.lora_only and definition.adapters != "beside":
        raise InputError(f"lora_only=true: {definition.name} is not for sources that hold adapters beside base weights")
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
    """Raise `InputError` if a part is asked for of what is only taken whole."""
    why = "tensors that have their published names are all written as they are; leave it out"
    parts = ("select", "text_source", "projector", "lora_only")
    raise_if([f"{key}: {why}" for key in config.given() if key in parts])
