"""The README's table of models is that of the definitions."""

from __future__ import annotations

from distconv.cli.models_table import models_table, rewrite
from distconv.models.library import Library
from tests.documents import rows, text_of

TABLE = models_table(Library.of_package())
ROWS = {row[0]: row for row in rows(TABLE, "model")}


def test_the_readme_has_it():
    """`make models` writes it."""
    assert f"<!-- models -->\n{TABLE}<!-- end of models -->" in text_of("README.md")


def test_all_definitions_are_in_it():
    named = {name.strip("` ") for cell in ROWS for name in cell.split(",")}
    assert named == set(Library.of_package().names())


def test_what_a_row_says():
    assert ROWS["`glm4_1v`"][1:4] == ["`glm4v`", "text, vision", "`tp`, `pp`, `vpp`; vision on one stage"]
    (mixture,) = (row for row in ROWS.values() if row[0].startswith("`qwen3_moe`"))
    assert mixture[3] == "`tp`, `pp`, `vpp`, `ep`"
    assert mixture[4] == "`mcore_local`"
    assert "`transformers5`" in mixture[5]


def test_it_is_written_in_its_place(tmp_path):
    (tmp_path / "README.md").write_text("a\n<!-- models -->\nold\n<!-- end of models -->\nb\n")
    rewrite(tmp_path)
    assert (tmp_path / "README.md").read_text() == f"a\n<!-- models -->\n{TABLE}<!-- end of models -->\nb\n"
