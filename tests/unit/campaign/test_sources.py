"""What `sources` means: a pattern, a list, or the paths themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distconv.campaign.sources import directories, nothing_problem
from distconv.errors import InputError


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/iter_1", "runs/a/iter_2", "runs/b/deep/iter_3", "runs/.hidden/iter_4", "runs/[x]/iter_5"):
        os.makedirs(name)
    Path("runs/a/iter_file").write_text("")
    Path("runs/link").symlink_to("a")
    Path("runs/b/up").symlink_to("..")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("runs/a/iter_*", ["runs/a/iter_1", "runs/a/iter_2"]),
        ("./runs/a/iter_[13]/", ["runs/a/iter_1"]),
        ("runs/?/iter_*", ["runs/a/iter_1", "runs/a/iter_2"]),
        (
            "runs/*/iter_*",
            ["runs/[x]/iter_5", "runs/a/iter_1", "runs/a/iter_2", "runs/link/iter_1", "runs/link/iter_2"],
        ),
        ("runs/[[]x]/*", ["runs/[x]/iter_5"]),
        ("runs/.*/iter_*", ["runs/.hidden/iter_4"]),
        ("**/iter_*", ["runs/[x]/iter_5", "runs/a/iter_1", "runs/a/iter_2", "runs/b/deep/iter_3"]),
        ("runs/a/iter_1", ["runs/a/iter_1"]),
        ("runs/a/iter_file", []),
        ("runs/a/iter_file/*", []),
        ("none/*", []),
        ("*/../runs/b/*p", ["runs/../runs/b/deep", "runs/../runs/b/up"]),
    ],
)
def test_directories_match_a_pattern(pattern, found):
    assert [os.path.normpath(each) if pattern.startswith("./") else each for each in directories(pattern)] == found


def test_a_pattern_from_the_root(tmp_path):
    assert directories(f"{tmp_path}/runs/a/*") == [f"{tmp_path}/runs/a/iter_1", f"{tmp_path}/runs/a/iter_2"]


def test_what_cannot_be_read_is_not_passed_over(monkeypatch):
    listed = os.listdir

    def refusing(path):
        if path in ("runs/a", "runs/b"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", refusing)
    with pytest.raises(InputError) as caught:
        directories("runs/[ab]/iter_*")
    assert caught.value.problems == [
        "sources=runs/[ab]/iter_*: runs/a: cannot be read: Permission denied",
        "sources=runs/[ab]/iter_*: runs/b: cannot be read: Permission denied",
    ]


@pytest.mark.parametrize("pattern", ["runs/a/*_gone", "runs/*/iter_gone"])
def test_a_link_that_leads_nowhere_is_not_passed_over(pattern):
    Path("runs/a/iter_gone").symlink_to("removed")
    assert (
        directories(pattern) == ["runs/a/iter_gone", "runs/link/iter_gone"][: 1 if pattern.startswith("runs/a") else 2]
    )


def test_what_cannot_be_looked_at_is_for_its_job_to_say(monkeypatch):
    looked = os.stat

    def refusing(path, *arguments, **given):
        if path == "runs/a/iter_2":
            raise PermissionError(13, "Permission denied")
        return looked(path, *arguments, **given)

    monkeypatch.setattr(os, "stat", refusing)
    assert directories("runs/a/*") == ["runs/a/iter_1", "runs/a/iter_2"]


def test_a_list_is_taken_as_it_is():
    Path("list").write_bytes(b"runs/a*\r\n\n  \n a b \n# of last week\r\n\r\n./#1\nnot there")
    assert directories("@list") == ["runs/a*", " a b ", "./#1", "not there"]
    Path("of notepad").write_bytes(b"\xef\xbb\xbfruns/a\r\n")
    assert directories("@of notepad") == ["runs/a"]
    assert directories(("runs/*", "x")) == ["runs/*", "x"]
    with pytest.raises(InputError, match=r"^sources=@none: no such file$"):
        directories("@none")


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ("runs/a/model_*", "sources=runs/a/model_*: matches no directory; nothing to do; runs/a holds iter_1, iter_2"),
        ("none*", "nothing to do; the working directory holds runs"),
        ("@list", "sources=@list: the file names no directory; nothing to do"),
        ((), "sources: the list is empty; nothing to do"),
    ],
)
def test_nothing_is_said_with_what_there_is(sources, says):
    assert says in nothing_problem(sources)
