"""What holds of the texts of all errors: the options that they name are there, and the list finds the texts."""

from __future__ import annotations

import re

from distconv.fields import keys_of
from distconv.formats.registry import Options
from tests.error_texts import error_texts, texts_of

KEYS = {key for key, _ in keys_of(Options)}
GROUPS = {key.rpartition(".")[0] for key in KEYS}
# model.KEY changes a definition; the others are of other programs, or of functions in Python.
ELSEWHERE = {
    "model",
    "model.model_types",
    "model.renamed_prefixes",
    "args",
    "options",
    "path_initial_model_for_weight_conversion",
    "selected_adapters",
    "use_collectives",
}


def test_every_option_that_a_text_names_is_there():
    named = [
        (each, key)
        for each in error_texts()
        for key in re.findall(r"(?<![\w.{-])([a-z_]+(?:\.[a-z_]+)*)=", re.sub(r"\{[^{}]*\}", "{}", each.text))
    ]
    assert len(named) > 100
    assert [f"{each}: {key}" for each, key in named if key not in KEYS | GROUPS | ELSEWHERE] == []


def test_texts_are_found_with_their_placeholders_and_the_error_that_has_them():
    source = '''
"""A docstring of five or more words."""
raise InputError(f"{path}: missing")
problems.append(f"{name}: is not what {where[0]!r} says")
short = "of three words"[:3]
key = "one_word"
'''
    assert texts_of(source) == [
        (3, "InputError", "{path}: missing"),
        (4, None, "{name}: is not what {where[0]} says"),
    ]


# What is expected, what to do, or a question that says where to look; the reason of the system is enough; so is what
# another text says, which is a placeholder.
SAYS_MORE = re.compile(
    r"; |\?|: expected|, expected|^expected|known: |give |, or |cannot be (?:read|written|looked at)"
    r"|\{_?[A-Z_]+\}|\{(?:problem|each|error|several)\}$|\{_missing_words\(|no permission|not a name that a file"
)


def test_whoever_refuses_input_says_what_to_do():
    """But for definitions, whose author is told the place of a mistake."""
    refusals = [
        each
        for each in error_texts()
        if each.error == "InputError" and len(each.text.split()) > 4 and "/models/" not in each.file
    ]
    assert len(refusals) > 100
    assert [str(each) for each in refusals if not SAYS_MORE.search(each.text)] == []
