"""Paths of the command line are taken as they are, whatever the grammars of Hydra and OmegaConf would make of them."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distconv.cli.values import (
    literal,
    with_expanded_paths,
    with_group_as_value,
    with_literal_path,
    without_wrapping,
)

PARSER = OverridesParser.create()


def read(word: str) -> Any:
    """The value of an option once Hydra and OmegaConf have read it."""
    override = PARSER.parse_override(word)
    content = OmegaConf.create({"source": None, "other": "of another option"})
    OmegaConf.update(content, "source", override.value())
    return OmegaConf.to_container(content, resolve=True)["source"]


# What the two grammars give a meaning, and other text.
SPECIAL = ["\\", "\\\\", "'", '"', "$", "{", "}", "${", "${other}", "\\${", "[", "]", "(", ")", ",", "=", ":", " ",
           "\t", "\n", "\r", "~", "#", "&", "%", "@", "?", "???", "null", "true", "1", "1e-4", "é", "模型"]  # fmt: skip
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=())
TEXTS = st.lists(st.sampled_from(SPECIAL) | st.text(CHARACTERS, max_size=3), max_size=12).map("".join)


@given(TEXTS | st.text(CHARACTERS))
@example("\\")
@example('\\"')
@example("\\\\${other}\\")
@example("${other}")
@example("a\\\n")
def test_a_literal_is_read_as_the_text_that_it_is_made_of(text):
    assert read(f"source={literal(text)}") == (text if text != "???" else "./???")


@given(TEXTS | st.sampled_from("\"'").flatmap(lambda quote: TEXTS.map(lambda text: f"{quote}{text}{quote}")))
@example("'a\\'b'")
@example('"a" and "b"')
def test_a_path_is_taken_as_it_is_unless_it_is_quoted_for_hydra(text):
    word = with_literal_path(f"source={text}")
    if word != f"source={text}":
        assert read(word) == (text if text != "???" else "./???")
    elif text not in ("", "null"):
        quoted = PARSER.parse_override(word).value()
        assert (text[0], text[-1]) in (("'", "'"), ('"', '"'))
        assert isinstance(quoted, str)
        assert len(quoted) <= len(text) - 2


@pytest.mark.parametrize("key", ["source", "target", "reference", "text_source", "report", "++source"])
def test_every_path_is_taken_as_it_is(key):
    assert with_literal_path(f"{key}=lr=1e-4,bs=8/{{name}}") == f'{key}="lr=1e-4,bs=8/{{name}}"'


@pytest.mark.parametrize(
    "word",
    ["source=null", "source=", 'source="a,b"', "source='a,b'", "~source", "layout.tp=2", "name_prefix=a", "sorce=a(b"],
)
def test_other_words_are_left_to_hydra(word):
    assert with_literal_path(word) == word


def test_a_home_and_variables_are_replaced_in_paths_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("CKPT", "/data/x")
    content = {"source": "~/hf", "target": "${CKPT}/mm$CKPT", "reference": None, "report": 3, "name_prefix": "~/$CKPT"}
    expected = {**content, "source": "/home/me/hf", "target": "/data/x/mm/data/x"}
    assert with_expanded_paths(content) == expected
    lists = {"sources": "@~/list", "source": "@~/x", "target": "~/{name}"}
    assert with_expanded_paths(lists) == {"sources": "@/home/me/list", "source": "@~/x", "target": "/home/me/{name}"}
    assert with_expanded_paths({"source": "a/~/$NOT_SET/${not set}"}) == {"source": "a/~/$NOT_SET/${not set}"}


@pytest.mark.parametrize(
    ("word", "arranged"),
    [
        ("dialect=mm_fsdp2", "dialect={name:mm_fsdp2}"),
        ("dialect='a,b'", "dialect={name:'a,b'}"),
        ("dialect=a,b", "dialect={name:a},{name:b}"),
        ("dialect=null", "dialect={name:null}"),
        ("dialect=[a,b]", "dialect={name:[a,b]}"),
        ("source_dialect=mm_fsdp2", "source_dialect=mm_fsdp2"),
        ("dialect", "dialect"),
    ],
)
def test_a_value_that_hydra_would_take_for_a_file_passes_as_a_mapping(word, arranged):
    assert with_group_as_value(word) == arranged


def test_and_is_taken_out_again():
    assert without_wrapping({"dialect": {"name": "x"}, "layout": {"name": "y"}}) == {
        "dialect": "x",
        "layout": {"name": "y"},
    }
    assert without_wrapping({"dialect": "x"}) == {"dialect": "x"}
    # What the user has written so is not an option of this program.
    assert without_wrapping({"dialect": {"nom": "x"}}) == {"dialect": {"nom": "x"}}
