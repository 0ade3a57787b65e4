"""The list of mutations is one of the code as it is: every text stands once in its file, and every test is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutations.catalogue import ROOT, Mutation, mutations

MUTATIONS = list(mutations())
# Where bytes go, and what is refused.
FOLDERS = ("tensors", "models", "layout", "formats", "transfer", "planning", "commit")


@pytest.mark.parametrize("file", sorted({each.file for each in MUTATIONS}))
def test_every_text_stands_once_in_its_file_and_its_mutation_is_a_program(file):
    text = (ROOT / file).read_text()
    for each in MUTATIONS:
        if each.file == file:
            assert ast.dump(ast.parse(each.applied(text))) != ast.dump(ast.parse(text)), str(each)


def test_every_test_that_must_notice_is_there():
    tests = {test.partition("::")[0] for each in MUTATIONS for test in each.tests}
    assert [test for test in sorted(tests) if not (ROOT / "tests" / test).is_file()] == []
    assert all(each.tests for each in MUTATIONS)


def test_the_list_is_of_all_folders_that_decide_where_bytes_go():
    assert len(MUTATIONS) >= 80
    assert {Path(each.file).parts[1] for each in MUTATIONS} >= set(FOLDERS)
    assert len(set(MUTATIONS)) == len(MUTATIONS)


def test_a_text_that_is_gone_or_not_alone_is_said():
    mutation = Mutation(file="a.py", old="x", new="y", tests=("unit",))
    assert mutation.applied("ax") == "ay"
    for text, count in (("", 0), ("xx", 2)):
        with pytest.raises(ValueError, match=f"^a.py: 'x' stands there {count} times, expected once$"):
            mutation.applied(text)
