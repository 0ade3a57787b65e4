"""The table of model definitions, for a person.

Owns its wording. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distconv.words import table


def models_text(definitions: Mapping[str, Mapping[str, Any]]) -> str:
    """The model definitions for a person: families, their variants, and their model types."""
    rows = [["model", "variant of", "for model_type in config.json"]]
    for name in sorted(definitions, key=lambda each: (definitions[each].get("variant_of") or each, each)):
        content = definitions[name]
        types = ", ".join(content.get("model_types") or ())
        if content.get("adapters") == "only":
            types += " (adapters: name it with +model)"
        elif content.get("variant_of") is not None:
            types += " (name it with +model)"
        rows.append([name, content.get("variant_of") or "", types])
    return table(rows, align=str.ljust)
