"""A file is read as Hydra reads it, or refused with the line that is wrong; its cost is that of its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distconv.errors import InputError
from distconv.models.definition_file import DefinitionFile, read_definition


class Given:
    """A file that holds a text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return "own.yaml"

    def read_text(self, encoding: str) -> str:
        assert encoding == "utf-8"
        return self._text


def read(text: str) -> DefinitionFile:
    file: Any = Given(text)
    return read_definition(file)


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        read(text)
    (problem,) = caught.value.problems
    return problem


def test_content_and_inheritance_are_told_apart():
    found = read("defaults: [b, _self_, c.yaml]\nx: {defaults: [d]}\n")
    assert found == DefinitionFile(
        path="own.yaml",
        content={"x": {"defaults": ["d"]}},
        parents=("b", "_self_", "c"),
        nodes=11,
        placed=None,
        interpolated=None,
    )


@pytest.mark.parametrize(
    ("text", "parents"),
    [("x: 1", ["_self_"]), ("defaults: []", ["_self_"]), ("defaults: [b]", ["b", "_self_"]), ("# no", ["_self_"])],
)
def test_its_own_content_comes_last_if_nothing_else_is_said(text, parents):
    assert list(read(text).parents) == parents


@pytest.mark.parametrize(
    ("text", "placed"),
    [
        ("# @package a\nx: 1", True),
        ("\n  # @package a\nx: 1", True),
        ("# @other b\n\n#@package a\nx: 1", True),
        # Of these, Hydra takes the second line for a comment.
        ("# A definition.\n# @package a\nx: 1", False),
        ("x: 1\n# @package a", False),
        ("# @other b\nx: 1", False),
    ],
)
def test_a_header_stands_before_everything_else(text, placed):
    assert (read(text).placed == "its header '# @package'") == placed


@given(st.text("0123456789+-._:eExobna~fy ", max_size=9))
@example("1e5")
@example("1.e5")
@example(".5e3")
@example("2001-01-01")
@example("1:20:30")
@example("0x_")
@example(".inf")
@example("on")
@settings(max_examples=1000, deadline=None)
def test_scalars_are_what_hydra_takes_them_for(scalar):
    text = f"a: {scalar}\n"
    try:
        expected = OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, ValueError):
        refused(text)
    else:
        assert repr(read(text).content) == repr(expected)


def test_anchors_and_merge_keys_are_understood():
    found = read("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert found.content == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}
    # Three keys; the mappings and the list; four times x: 1; <<; y: 2.
    assert found.nodes == 1 + 3 + 4 + 1 + 1 + 4 * 2 + 1 + 2


def doubled(times: int) -> str:
    """A list of so many levels: 2 ** times values in so many lines."""
    lines = [f"l{number}: &l{number} [*l{number - 1}, *l{number - 1}]" for number in range(1, times + 1)]
    return "\n".join(["l0: &l0 [a, b]", *lines])


def test_aliases_are_counted_as_often_as_they_stand_for_something():
    assert read(doubled(4)).nodes == 1 + 5 + sum(3 * 2**level + 2**level - 1 for level in range(5))
    assert refused(doubled(30)) == "own.yaml: line 15: more than 50,000 keys and values, aliases written out"
    merged = "\n".join(f"m{number}: &m{number} {{<<: [*m{number - 1}, *m{number - 1}]}}" for number in range(1, 30))
    assert "more than 50,000 keys and values" in refused(f"m0: &m0 {{a: 1}}\n{merged}")


def test_a_long_file_is_no_definition():
    assert "more than 50,000 keys and values" in refused("\n".join(f"- {number}" for number in range(50_000)))


def in_flow(levels: int) -> str:
    return f"a: {'[' * (levels - 1)}{']' * (levels - 1)}"


def in_blocks(levels: int) -> str:
    return f"a:\n{'- ' * (levels - 2)}b"


def by_aliases(levels: int) -> str:
    """Lists inside of lists, each by an alias of the one before: flat in the text."""
    lines = [f"l{number}: &l{number} [*l{number - 1}]" for number in range(1, levels - 1)]
    return "\n".join(["l0: &l0 []", *lines])


@pytest.mark.parametrize("text_of", [in_flow, in_blocks, by_aliases])
def test_levels_are_bounded(text_of):
    assert read(text_of(50)).nodes >= 50
    for levels in (51, 900):
        assert refused(text_of(levels)).endswith(": more than 50 levels")
    assert "maximum nesting depth" in refused(in_flow(5000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "line 1: an alias stands inside of what it stands for"),
        ("a: 1\nb: &b {c: {d: *b}}", "line 2: an alias stands inside of what it stands for"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []", "line 2: a tag, !!python/object/apply:os.getcwd"),
        ("a: !!python/object/apply:pathlib.Path [b]", "line 1: a tag, !!python/object/apply:pathlib.Path"),
        ("a: !!binary YQ==", "line 1: a tag, !!binary"),
        ("a: !!set {b, c}", "line 1: a tag, !!set"),
        ("a: !own b", "line 1: a tag, !own"),
        ("a: !!timestamp 2001-01-01", "line 1: a tag, !!timestamp"),
        ("!!timestamp a: b", "line 1: a tag, !!timestamp"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}", "line 2: duplicate key c"),
        ("{a}: b", "line 1: a key that is not text; a name with { } in it needs quotes"),
        (f"a: {'9' * 5000}", "line 1: a number of 5,000 characters"),
        (f"a: {':'.join(['1'] * 50_000)}", "line 1: a number of 99,999 characters"),
        ("a: '${oc.env:HOME}'", "line 1: '${oc.env:HOME}' asks for more than the value of an option, which"),
        ("a: '${${b}:HOME}'", "line 1: '${${b}:HOME}' asks for more than the value of an option, which"),
        ("a: [", "not valid YAML: line 2: while parsing a flow node, did not find expected node content"),
        ("sizes:\n\ta: b", "not valid YAML: line 2: while scanning for the next token, found character that cannot"),
        ("a: [visual.{layer}.x]", "a name with { } in it needs quotes"),
        ("a: 1\n---\nb: 2", "not valid YAML: line 2: expected a single document in the stream, but found another"),
        ("a: *b", "not valid YAML: line 1: found undefined alias"),
        ("a: 0x_", "not valid YAML: invalid literal for int() with base 16"),
        ("a: !!bool maybe", "not valid YAML: 'maybe'"),
        ("a: \0", "not valid YAML: "),
        ("- a", "expected a mapping, found list"),
        ("own", "expected a mapping, found str"),
        ("defaults: b", "defaults: expected a list of names of model definitions, found 'b'"),
        ("defaults: null", "defaults: expected a list of names of model definitions, found None"),
        ("defaults: [b, 1]", "defaults: expected a list of names of model definitions, found ['b', 1]"),
        ("defaults: [_self_, b, _self_]", "defaults: _self_ stands there twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, message):
    problem = refused(text)
    assert problem.startswith("own.yaml: ")
    assert message in problem


@pytest.mark.parametrize("text", ["a: '$b {layer} ${'", "a: '{b}:$'"])
def test_what_only_looks_like_an_interpolation(text):
    assert (read(text).interpolated is None) == ("${" not in text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(b"# caf\xe9\n")
    with pytest.raises(InputError, match=rf"{broken}: is not UTF-8: "):
        read_definition(broken)
    with pytest.raises(InputError, match=rf"{tmp_path}: cannot be read: Is a directory"):
        read_definition(tmp_path)


def test_the_parser_of_python_alone_refuses_the_same(monkeypatch):
    """PyYAML need not have been built with libyaml."""
    from distconv.models import definition_file  # noqa: PLC0415

    class Slow(yaml.SafeLoader):
        yaml_implicit_resolvers = definition_file._Loader.yaml_implicit_resolvers

    monkeypatch.setattr(definition_file, "_Loader", Slow)
    assert read("a: &a {x: 1e5}\nb: [*a]\n").content == {"a": {"x": 1e5}, "b": [{"x": 1e5}]}
    assert "more than 50,000 keys and values" in refused(doubled(30))
    assert "more than 50 levels" in refused(f"a: {'[' * 5000}")
    assert "duplicate key c" in refused("b: {c: 1, c: 3}")
    assert "not valid YAML: line 1: while parsing a flow node" in refused("a: [")
