"""Plain words are composed to what Hydra composes of them, and refused in the same words; others are left to Hydra."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distconv.cli.command_line import run_command_line
from distconv.cli.config import help_text
from distconv.cli.plain import composed
from distconv.errors import InputError
from distconv.fields import keys_of
from distconv.formats.registry import Options
from distconv.models.library import Library
from distconv.path_kinds import PathKind

KEYS = {key: each.kind for key, each in keys_of(Options)}
PATHS = [key for key, kind in KEYS.items() if isinstance(kind, PathKind)]
# Values that are right for some option, and others that look like them to one grammar or the other.
VALUES = ["null", "Null", "true", "FALSE", "yes", "off", "0", "-1", "+1", "01", "1_000", "8", "1e5", "1.5", ".5", "5.",
          "inf", "-inf", "NaN", "nano", "infinite", "5GB", "2GiB", "5E3", "1E", "0x10", "release", "convert", "inspect",
          "hf", "dcp", "megatron", "float16", "bfloat16", "a.b", "a/b", "a-b", "a:b", "a b", "a,b", "a=b", "true.x", "",
          "[]", "[1]", "[1,10,10,7]", "[[0,1],[4,3]]", "[[0],2]", "[1,[2]]", "[[[1]]]", "[1,]", "[,]", "[ 1, 2 ]",
          "[text]", "[text,vision]", "[null,true,x]", "[a*]", "[1", "1]", "{}", "{a:1}", "'1'", '"x"', "'a",
          "${layout.tp}", "$HOME", "~", "???", "\\", "é", "range(1,3)", "2026-11-27", "12:30",
          "99999999999999999999", "模型"]  # fmt: skip
NAMES = ["qwen2vl", "llama", "qwen3_moe_lora", "qwen2vl.yaml", "nothing", "null", "5", "", "[llama]", "qwen2vl,llama"]
OTHER = ["source", "source=", "layout={tp: 2}", "layout=2", "layout.stages=[1]", "~source", "+source=x",
         "++layout.tp=2", "model.keep_dtype=null", "model=llama", "layuot.tp=2", "hydra.verbose=true", "=1",
         " source=x"]  # fmt: skip
WORDS = st.one_of(
    st.builds("{}={}".format, st.sampled_from(list(KEYS)), st.sampled_from(VALUES)),
    st.builds("{}={}".format, st.sampled_from(list(KEYS)), st.integers() | st.text("ab1.-_/[],:'$ ", max_size=6)),
    st.builds("{}={}".format, st.sampled_from(PATHS), st.text(st.characters(exclude_characters="\0"), max_size=8)),
    st.builds("+model={}".format, st.sampled_from(NAMES)),
    st.sampled_from(OTHER),
)
# Without them, little would be looked at of what is wrong.
FRAME = ["source=/hf", "target=/mm"]


def plainly(words: list[str]) -> Any:
    """What is made of the words, or the error; `None` where they are left to Hydra."""
    try:
        found = composed(words)
    except InputError as error:
        return "refused", str(error)
    return None if found is None else as_compared(*found)


def by_hydra(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    found: list[Any] = []
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["distconv", *words])
    try:
        run_command_line(lambda *job: found.append(as_compared(*job)), quiet=True)
    except InputError as error:
        return "refused", str(error)
    (only,) = found
    return only


def as_compared(options: Options, chosen: Any, library: Library) -> Any:
    # The representation tells 1 from 1.0 and from true.
    return options, repr(options), repr(chosen), library.names(), sorted(library.dialects())


def assert_alike(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = plainly(words)
    if plain is not None:
        assert plain == by_hydra(words, monkeypatch)


# Beside each other these many would be refused together: each by itself, as other tests have it, is looked at here.
@pytest.mark.parametrize(
    "key", ["source", "sources", "layout.tp", "select", "dialect", "iteration", "shard_size", "keep_dtype"]
)
def test_every_value_that_is_taken_is_what_hydra_makes_of_it(key, monkeypatch):
    taken = [word for value in VALUES if plainly([word := f"{key}={value}"]) is not None]
    assert len(taken) > 20, "some are plain"
    for word in taken[:: 1 if key in ("select", "dialect") else 5]:
        assert_alike([*(each for each in FRAME if not word.startswith("source")), word], monkeypatch)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=4), st.booleans())
@example(["+model=llama", "layout.tp=0"], True)
@example(["+model=lama"], True)
@example(["layout.tp=2", "layout.tp=4"], True)
def test_words_are_composed_as_by_hydra_or_left_to_it(monkeypatch, words, framed):
    assert_alike([*(FRAME if framed else []), *words], monkeypatch)


@pytest.mark.parametrize("name", Library.of_package().names()[::6])
def test_a_definition_is_what_hydra_composes(name, monkeypatch):
    words = [*FRAME, f"+model={name}", "layout.stages.text=[[1,2],[3,4]]"]
    assert plainly(words) is not None
    assert_alike(words, monkeypatch)


def test_the_command_lines_of_the_documents_need_no_hydra():
    lines = [line.split() for line in help_text().splitlines() if line.startswith("  distconv source=")]
    assert lines
    for _, *words in lines:
        assert plainly(words) is not None, words
    assert plainly([*FRAME, "layout.stages.text=[1,10,10,7]", "dialect=mcore_te", "io.fsync=false"]) is not None
    assert plainly(["sources=runs/**/iter_[0-9]?*", "target=hf/{parent}/{name}", "target_format=hf"]) is not None


@pytest.mark.parametrize("word", [*OTHER, "--multirun", "--cfg", "-h", "--config-dir=x", "source='a,b'", "source=${a}"])
def test_other_words_are_left_to_hydra(word):
    assert composed(["target=/mm", word]) is None


def test_a_key_that_is_given_twice_is_left_to_hydra():
    assert composed(["source=/a", "source=/b", "target=/mm"]) is None
