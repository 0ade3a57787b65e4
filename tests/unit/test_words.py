"""Numbers of bytes in words, and what fits the width of a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.words import binary, folded, table


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 30, "1.0 GiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(nbytes, text):
    assert binary(nbytes) == text


@given(st.lists(st.text("ab,", min_size=1, max_size=30), max_size=20))
def test_a_folded_text_has_its_words_in_lines_that_fit(words):
    lines = folded("label ", " ".join(words))
    assert all(len(line) <= 80 for line in lines)
    assert "label " + " ".join(line[6:] for line in lines) == "label " + " ".join(words)


def test_a_word_stays_whole_and_a_list_does_not():
    path = "/" + "a,b" * 40
    assert folded("  ", f"at {path}") == ["  at", f"  {path}"]
    rows = f"[[{'1,' * 50}1]]"
    lines = folded("  ", rows)
    assert all(len(line) <= 80 for line in lines)
    assert "".join(line[2:] for line in lines) == rows


def test_the_head_of_a_table_that_is_too_wide_has_a_word_a_line():
    assert table([["a b", "c"], ["1", "2"]]) == "  a b  c\n    1  2"
    head = ["virtual stage", *["layers of it"] * 9]
    assert table([head, ["1"] * 10]).splitlines() == [
        "           layers" + "  layers" * 8,
        "  virtual      of" + "      of" * 8,
        "    stage      it" + "      it" * 8,
        "        1       1" + "       1" * 8,
    ]
