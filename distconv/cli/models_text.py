"""The table of model definitions, and what became of a first definition, for a person.

Owns its wording. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.errors import counted, printable
from distconv.words import folded, table


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


def skeleton_words(report: Mapping[str, Any]) -> str:
    """The definition itself, or, where a file has it, what is to be done with that."""
    if report["target"] is None:
        return str(report["definition"]).rstrip("\n")
    file = Path(report["target"])
    name, folder = file.stem, file.absolute().parent
    left = counted(report["undecided"], "line has a TODO for you to decide", "lines have a TODO for you to decide")
    place = "" if folder.name == "model" else ", once it is in a folder of the name model"
    use = f"--config-dir {folder.parent} +model={name} is then the definition{place}"
    return "\n".join(folded("", printable(f"wrote {file}; {left if report['undecided'] else 'check it'}. {use}")))
