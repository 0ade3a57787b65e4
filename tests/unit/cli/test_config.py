"""What is made of the table of options is of this table; nobody has to write an option down twice."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from distconv.cli import config
from distconv.cli.config import config_text, help_text, readme_table, rewrite
from distconv.fields import keys_of, option
from distconv.formats import registry
from distconv.formats.registry import Options
from distconv.kinds import Integer

CHECKOUT = Path(__file__).parents[3]


def test_the_files_of_this_checkout_are_made_of_the_table(tmp_path):
    """If not: make options."""
    (tmp_path / "conf").mkdir()
    shutil.copy(CHECKOUT / "README.md", tmp_path)
    rewrite(tmp_path)
    for name in ("conf/config.yaml", "README.md"):
        assert (tmp_path / name).read_text() == (CHECKOUT / name).read_text(), name
    assert readme_table() in (CHECKOUT / "README.md").read_text()


def test_the_defaults_of_the_file_are_those_of_the_record():
    content = yaml.safe_load(config_text())
    given = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
    # The list of models needs neither.
    assert Options.from_content({**given, "action": "models"}) == Options(action="models")
    assert list(given) == list(dict.fromkeys(key.partition(".")[0] for key, _ in keys_of(Options)))


def test_every_key_is_in_every_text():
    for key, _ in keys_of(Options):
        group = re.sub(r"\.(text|vision|audio)$", "", key)
        assert group in help_text(), key
        assert f"`{group}" in readme_table(), key


@pytest.mark.parametrize("text", [help_text(), config_text()])
def test_texts_are_as_wide_as_a_terminal(text):
    assert max(map(len, text.splitlines())) <= 120
    assert "`" not in text.replace("`layout.tp=2`", "").replace("`make options`", "")


def test_rows_of_the_table_have_three_cells():
    for row in readme_table().splitlines():
        assert row.count("|") == 4, row


@dataclass(frozen=True, kw_only=True)
class MoreOptions(Options):
    """A new option is a field."""

    patience: int | None = option(Integer(99), None, "wait for `so` long, in seconds", unset="for ever")


def test_a_new_option_and_a_new_format_are_in_every_text(monkeypatch):
    monkeypatch.setattr(config, "Options", MoreOptions)
    more = SimpleNamespace(name="npy", words="a file for each tensor")
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, more))
    assert "\n  patience=N                   wait for so long, in seconds; left out: for ever\n" in help_text()
    assert "\n# Wait for so long, in seconds; null: for ever.\npatience: null\n" in config_text()
    assert "| `patience` | for ever | wait for `so` long, in seconds |\n" in readme_table()
    for text in (help_text(), config_text().replace("# ", "")):
        assert "npy (a file for each tensor)" in " ".join(text.split())
    assert "`npy` (a file for each tensor)" in readme_table()
