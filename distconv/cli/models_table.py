"""The README's table of models: what goes between which forms, as definitions and dialects say.

Owns its wording, and the place in the README. `make models` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distconv.models.definition import Definition
from distconv.models.definition_parser import parse_definition
from distconv.models.library import Library
from distconv.models.rules import MODALITIES

_TABLE = re.compile(r"(?<=<!-- models -->\n).*?(?=<!-- end of models -->)", re.DOTALL)
_HEADER = ("model", "`model_type`", "modalities", "cut by", "usual `dialect`", "`dialect` of a `dcp` with `hf` names")


def models_table(library: Library) -> str:
    """The table of the definitions of families, variants beside their families."""
    contents = {name: library.content(name) for name in library.names()}
    definitions = {name: parse_definition(name, content) for name, content in contents.items()}
    held = {name: each["content"] for name, each in library.dialects().items()}
    rows: list[Iterable[str]] = [_HEADER, ["---"] * len(_HEADER)]
    for name, definition in definitions.items():
        if definition.variant_of is None:
            variants = [each.name for each in definitions.values() if each.variant_of == name]
            rows.append(_row(definition, variants, held))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def rewrite(checkout: Path) -> None:
    """Write the table in the README of a checkout."""
    readme, table = checkout / "README.md", models_table(Library.of_package())
    readme.write_text(_TABLE.sub(lambda _: table, readme.read_text(encoding="utf-8")), encoding="utf-8")


def _row(definition: Definition, variants: Iterable[str], dialects: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield ", ".join(f"`{each}`" for each in (definition.name, *variants))
    yield ", ".join(f"`{each}`" for each in definition.model_types)
    yield ", ".join(each for each in MODALITIES if each in definition.modalities)
    axes = ["tp", "pp", "vpp", *(["ep"] if definition.experts else [])]
    on_one = [each.modality for each in definition.restrictions if each.one_stage]
    yield "; ".join([", ".join(f"`{each}`" for each in axes), *(f"{each} on one stage" for each in on_one)])
    yield f"`{definition.dialect}`"
    types = set(definition.model_types)
    yield ", ".join(
        f"`{name}`" for name, each in sorted(dialects.items()) if name != "published" and types & _known(each)
    )


def _known(dialect: Mapping[str, Any]) -> set[str]:
    """The model types that a dialect of published names knows."""
    families = dialect.get("families") or ()
    return {each for family in families for each in family.get("model_types") or ()}
