"""Words that are no options are refused, with the line to type instead; all others are left as they are."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.cli.flags import sorted_words
from distconv.cli.meanings import kinds, nearest, unknown_option
from distconv.cli.mistakes import check_words
from distconv.errors import InputError

INSTEAD = "type instead: distconv "


def refused(words: Sequence[str]) -> list[str]:
    """The problems of a command line."""
    found = sorted_words(words)
    try:
        check_words(found)
    except InputError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        # By habit of other programs.
        ("--tp 2 source=a", "layout.tp=2 source=a"),
        ("--tp=2", "layout.tp=2"),
        ("-tp 2", "layout.tp=2"),
        ("--source /x --target /y", "source=/x target=/y"),
        ("--source lr=1e-4", "source=lr=1e-4"),
        ("--source --target /y", None),
        ("--target-format hf", "target_format=hf"),
        ("--tensor-model-parallel-size 4", "layout.tp=4"),
        ("--load /x --save /y", "source=/x target=/y"),
        ("--overwrite source=a", "overwrite=true source=a"),
        ("--no-provenance", "provenance=false"),
        ("--model qwen2vl", "+model=qwen2vl"),
        ("cfg.mm_dir=/mm cfg.parallel_config.tp_size=2", "target=/mm layout.tp=2"),
        ("plan source=a target=b", "action=plan source=a target=b"),
        ("source=a target=b plan", "source=a target=b action=plan"),
        ("verify source=a target=b", "action=verify source=a target=b"),
        ("inspct source=a", "action=inspect source=a"),
        ("source /x target /y", "source=/x target=/y"),
        ("layout.tp 2", "layout.tp=2"),
        ("qwen2vl source=a", "+model=qwen2vl source=a"),
        ("model=qwen2vl", "+model=qwen2vl"),
        ("/ckpt/a /ckpt/b", "source=/ckpt/a target=/ckpt/b"),
        ("source=/a --tp 2 /b", "source=/a layout.tp=2 target=/b"),
        ("/ckpt/b source=a", "target=/ckpt/b source=a"),
        # Misspelt.
        ("tp=2", "layout.tp=2"),
        ("sorce=a", "source=a"),
        ("target-format=hf Source=a", "target_format=hf source=a"),
        ("layot.tp=2", "layout.tp=2"),
        ("bufer_mib=2", "io.buffer_mib=2"),
        ("--multrun source=a", None),
        ("--conf x", None),
        ("xyzzy=1", None),
        ("--xyzzy 1", None),
        # By shells: blanks.
        ("source = /x target =/y", "source=/x target=/y"),
        ("source= /x target=/y", "source=/x target=/y"),
        ("'layout.stages.text=[1,' 10, '10]' source=a", "'layout.stages.text=[1,10,10]' source=a"),
        ("source=/my dir target=b", None),
        # With their flags.
        ("--config-dir d --tp 2 mine=3", "--config-dir d layout.tp=2 mine=3"),
    ],
)
def test_the_line_to_type_instead_is_told_where_it_is_clear(line, instead):
    problems = refused(shlex.split(line))
    assert problems
    told = [each.removeprefix(INSTEAD) for each in problems if each.startswith(INSTEAD)]
    assert told == ([] if instead is None else [instead])
    if instead is not None:
        assert refused(shlex.split(instead)) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["source=/my", "dir/hf", "target=b"], ["'source=/my dir/hf'", 'source="$NAME"']),
        (["source='/my", "dir/hf'"], ["quotes inside a variable quote nothing", 'distconv "${args[@]}"']),
        (["source=/my[1", "dir/hf"], ["'source=/my[1 dir/hf'"]),
        (["sources=a", "b", "c"], ["b c: no option; several paths are a pattern in quotes", "sources=@FILE"]),
        (["source=a", ""], ["'': is nothing: a variable in quotes that is not set"]),
        (["source=a", " ", "target=b"], ["' ': is nothing", "the \\ at the end of a line"]),
        (["source=a", "target=b\r"], ["target=b\\r: ends with a carriage return", "sed -i"]),
        (["‘layout.stages.text=[1,2]’"], ["sign of typography"]),
        (["–tp", "2"], ["sign of typography"]),
        (["=2"], ["=2: not of the form KEY=VALUE"]),
        (["source=a", "target=b", "layout.tp=2", "x"], ["x: not of the form KEY=VALUE"]),
    ],
)
def test_what_a_shell_has_made_of_blanks_quotes_and_variables_is_said(words, says):
    text = "\n".join(refused(words))
    assert [each for each in says if each not in text] == [], text


def test_all_mistakes_are_told_at_once():
    assert len(refused(["--tp", "2", "plan", "sorce=a", "x=1"])) == 4


@pytest.mark.parametrize(
    "line",
    [
        "source=/x target=/y layout.tp=2 +model=qwen2vl", "~source", "++layout.tp=2", "+sorce=x", "'layout={tp: 2}'",
        "layout.stages=[1]", "model.ignore=[]", "hydra.verbose=true", "+db@x=y", "source=", "--config-name x mine=3",
        "-m source=a,b", "source='a b'", "source=a=b", "source=-x", "target_format=huggingface",
    ],
)  # fmt: skip
def test_what_may_be_an_option_is_left_to_those_who_read_it(line):
    assert refused(shlex.split(line)) == []


@given(st.lists(st.text(st.sampled_from("abtp=-_.[]'\" +~/\r\n"), max_size=8), max_size=4))
def test_any_words_are_taken_or_refused(words):
    """None is lost: whatever is not refused is still there."""
    try:
        found = sorted_words(words)
    except InputError:
        assert {"-q", "-v"} <= set(words)
        return
    refused(words)
    assert len(found.others) <= len(words)


@given(st.sampled_from([key for key in kinds() if len(key) > 4]), st.data())
def test_a_key_with_a_letter_left_out_is_near_its_own(key, data):
    at = data.draw(st.integers(1, len(key) - 1))
    assert key in nearest(key[:at] + key[at + 1 :])


def test_only_near_keys_are_listed():
    assert unknown_option("sorce") == "unknown option sorce; did you mean source? or sources, text_source?"
    assert unknown_option("xyzzy") == "unknown option xyzzy; distconv --help lists the options"
    assert nearest("tp")[0] == "layout.tp"
