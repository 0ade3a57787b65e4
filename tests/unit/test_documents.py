"""What ARCHITECTURE.md and CONTRIBUTING.md name is there; commits pass what `make check` runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

import distconv
from distconv.fields import options_of
from distconv.formats.registry import Options
from distconv.models.library import Library
from tests.documents import ROOT, rows, text_of

PACKAGE = Path(distconv.__file__).parent
ARCHITECTURE, CONTRIBUTING = text_of("ARCHITECTURE.md"), text_of("CONTRIBUTING.md")
ROOMS = {name.strip("`"): re.findall(r"`(\w+)`", modules) for name, _, modules in rows(ARCHITECTURE, "room")}
GLOSSARY = [word for word, _ in rows(ARCHITECTURE, "word")]


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", text_of("Makefile"), re.MULTILINE)
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in lines.splitlines()]


@pytest.fixture(scope="module")
def docstrings() -> str:
    """All docstrings of the package, in lower case, a space between any two words."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [
        ast.get_docstring(node) or ""
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, documented)
    ]
    return " ".join(" ".join(found).lower().split())


def test_every_folder_is_a_room():
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")}
    assert ROOMS.keys() == folders - {"."}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_the_modules_that_the_table_names(room):
    there = {path.stem for path in (PACKAGE / room).glob("*.py")}
    assert set(ROOMS[room]) - there == set()


def test_modules_that_the_text_names_by_their_path_are_there():
    rooms = "|".join(ROOMS)
    named = set(re.findall(rf"`((?:{rooms})/\w+(?:/\w+)*)`", ARCHITECTURE))
    assert len(named) > 10
    assert [name for name in sorted(named) if not list(PACKAGE.glob(f"{name}*"))] == []


@pytest.mark.parametrize("word", GLOSSARY)
def test_a_word_of_the_glossary_is_used_in_the_package(word, docstrings):
    assert re.search(rf"\b{word}(s|es)?\b", docstrings)


def test_the_glossary_explains_a_word_once_and_in_one_sentence():
    assert len(set(GLOSSARY)) == len(GLOSSARY) > 14
    for word, meaning in rows(ARCHITECTURE, "word"):
        assert meaning.endswith("."), word
        assert not re.search(r"[.!?] [A-Z]", meaning), word


def test_files_that_contributing_names_are_there():
    named = set(re.findall(r"`((?:distconv|conf|tests)/[\w./]+|[A-Z]+\.md|\w+\.toml)`", CONTRIBUTING))
    assert len(named) > 10
    # Those of what is to be added are there as they are of what was.
    assert [name for name in sorted(named) if "NAME" not in name and not (ROOT / name).exists()] == []


def test_targets_that_contributing_names_are_there():
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", CONTRIBUTING))
    assert {"setup", "check", "test"} <= named <= targets


def test_a_commit_passes_what_make_check_runs():
    (local,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert [hook["entry"] for hook in local["hooks"]] == recipe("check")
    # Everything is looked at, not only what a commit changes.
    assert all(hook["pass_filenames"] is False for hook in local["hooks"])


def test_what_other_converters_call_otherwise_is_said_in_keys_that_there_are():
    """And with models and values that there are."""
    section = text_of("README.md").partition("## From another converter\n")[2].partition("\n## ")[0]
    given = [cell for _, cell in (*rows(section, "mm-convert"), *_of_bridge(section))]
    named = [pair for cell in given for pair in re.findall(r"`(\+?[a-z_.]+)=([\w.-]*)", cell)]
    keys = {key.split(".")[0] for key, _ in named}
    assert len(named) > 30
    assert keys - {"+model"} <= set(options_of(Options))
    assert {value for key, value in named if key == "+model"} <= set(Library.of_package().names())
    choices = {
        "target_format": {"hf", "megatron", "torch_dist", "dcp"},
        "dialect": set(Library.of_package().dialects()),
    }
    assert [pair for pair in named if pair[1] not in choices.get(pair[0], {pair[1]})] == []


def _of_bridge(section: str) -> list[list[str]]:
    (heading,) = re.findall(r"^\| (Megatron-Bridge.*?) \| here \|", section, re.MULTILINE)
    return rows(section, heading)
