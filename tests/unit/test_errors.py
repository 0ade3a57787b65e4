"""Many problems become one screen of text, and each kind of error its exit status."""

from __future__ import annotations

from errno import EACCES, ENOENT, ENOSPC

import pytest

from distconv.errors import (
    LINES_SHOWN,
    DistconvError,
    InputError,
    JobError,
    StoppedError,
    joined,
    named,
    printable,
    raise_if,
    reading,
    shown,
    system_problem,
    unknown_keys,
)


def test_exit_statuses_tell_wrong_input_from_a_failed_job():
    assert (InputError("x").exit_status, JobError("x").exit_status, StoppedError("x").exit_status) == (2, 1, 1)
    assert issubclass(InputError, DistconvError)
    assert issubclass(StoppedError, JobError)


def test_an_input_error_carries_every_problem():
    assert InputError("one").problems == ["one"]
    error = InputError(f"problem {number}" for number in range(LINES_SHOWN + 5))
    assert len(error.problems) == LINES_SHOWN + 5
    assert str(error).splitlines()[-1] == "… and 5 more of the same kind"


@pytest.mark.parametrize("count", [0, 1, LINES_SHOWN])
def test_problems_that_fit_are_shown_line_by_line(count):
    problems = [f"problem {number}" for number in range(count)]
    assert joined(problems).splitlines() == problems


def test_of_more_problems_the_rest_is_counted_and_the_list_left_alone():
    problems = [f"problem {number}" for number in range(LINES_SHOWN + 3)]
    assert joined(problems).splitlines() == [*problems[:LINES_SHOWN], "… and 3 more of the same kind"]
    assert len(problems) == LINES_SHOWN + 3


@pytest.mark.parametrize(
    ("ends", "line"),
    [
        (["is 1; give 2"] * 5, "give 2"),
        # From the first semicolon on, but never more than all have.
        (["is 1; give 2; or 3"] * 5, "give 2; or 3"),
        ([f"is odd; give {number}; or 3" for number in range(5)], "or 3"),
        ([*["is 1; give 2"] * 5, "is 1"], None),
        (["is 1; give 2"] * 4, None),
        (["is odd"] * 5, None),
    ],
)
def test_what_to_do_about_all_of_many_problems_is_said_once(ends, line):
    problems = [f"{number}: {end}" for number, end in enumerate(ends)]
    alone = [problem.removesuffix(f"; {line}") for problem in problems]
    assert joined(problems).splitlines() == [*alone, *([line] if line else [])]


def test_what_to_do_about_all_problems_is_said_when_not_all_are_shown():
    many = [f"{number}: is odd; give another" for number in range(LINES_SHOWN + 1)]
    assert joined(many).splitlines()[LINES_SHOWN - 1 :] == [
        f"{LINES_SHOWN - 1}: is odd",
        "… and 1 more of the same kind",
        "give another",
    ]
    assert InputError(many).problems == many


def test_what_a_terminal_would_obey_or_cannot_show_is_spelled_out():
    assert printable("qkv.weight é … 重 \\n") == "qkv.weight é … 重 \\n"
    assert printable("a\x1b[2Jb\nc\ud800\u202e\x7f\x00") == "a\\x1b[2Jb\\nc\\ud800\\u202e\\x7f\\x00"
    assert InputError("a\nb").problems == ["a\\nb"]
    assert str(InputError(["a\nb", "c\rd"])) == "a\\nb\nc\\rd"
    assert joined(["a\x1b"]) == "a\\x1b"
    assert named(["a\n", "b\t"]) == "a\\n, b\\t"


def test_of_many_names_only_those_that_are_shown_are_spelled_out():
    class Name:
        def __str__(self) -> str:
            spelled.append(self)
            return "name"

    spelled: list[Name] = []
    assert named((Name() for _ in range(1000)), 2) == "name, name and 998 more"
    assert len(spelled) == 2


def test_an_error_of_the_system_says_what_could_not_be_done_and_why():
    assert system_problem("writing /mm/a.pt", OSError(ENOSPC, "No space left on device", "/mm/a.pt")) == (
        "writing /mm/a.pt: No space left on device"
    )
    assert system_problem("reading /hf/a", OSError("read beyond the end")) == "reading /hf/a: read beyond the end"


@pytest.mark.parametrize(
    ("error", "missing", "problem"),
    [
        (PermissionError(EACCES, "Permission denied"), None, "/hf/a: cannot be read: Permission denied"),
        (PermissionError(EACCES, "Permission denied"), "no such file", "/hf/a: cannot be read: Permission denied"),
        (FileNotFoundError(ENOENT, "No such file"), "no such file; needed", "/hf/a: no such file; needed"),
        (FileNotFoundError(ENOENT, "No such file"), None, "/hf/a: cannot be read: No such file"),
    ],
)
def test_what_cannot_be_read_is_wrong_input(error, missing, problem):
    with pytest.raises(InputError) as caught, reading("/hf/a", missing):
        raise error
    assert caught.value.problems == [problem]
    assert caught.value.unreadable == isinstance(error, PermissionError)


def test_reading_lets_other_errors_pass():
    with pytest.raises(InputError, match=r"^damaged$"), reading("/hf/a", "no such file"):
        raise InputError("damaged")
    with pytest.raises(ValueError, match="a defect"), reading("/hf/a"):
        raise ValueError("a defect")


def test_raising_needs_a_problem():
    raise_if([])
    with pytest.raises(InputError) as caught:
        raise_if(["one", "two"])
    assert str(caught.value) == "one\ntwo"


def test_names_are_listed_up_to_a_limit():
    assert named([]) == ""
    assert named("abcde") == "a, b, c, d, e"
    assert named("abcdefg") == "a, b, c, d, e and 2 more"
    assert named([1, 2, 3], 2) == "1, 2 and 1 more"


def test_an_unknown_key_comes_with_the_nearest_known_one_or_with_all():
    assert unknown_keys({"target": 1}, ("target", "source")) == []
    assert unknown_keys({"targte": 1, 7: 2}, ("target", "source")) == [
        "unknown key 'targte'; did you mean 'target'?",
        "unknown key 7; known: target, source",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [([1, "é"], "[1,é]"), (None, "null"), (True, "true"), ("a b", "a b"), ("2", "'2'"), ({"a": [1]}, "{a:[1]}")],
)
def test_a_value_is_shown_as_it_is_written(value, text):
    assert shown(value) == text
