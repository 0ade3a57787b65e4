"""Which iteration of a directory is meant."""

from __future__ import annotations

import pytest

from distconv.errors import InputError
from distconv.formats.iterations import TRACKER_NAME, iteration_directory, iteration_name, iterations_in


@pytest.fixture
def root(tmp_path):
    for name in ("release", "iter_0000005", "iter_0001000", "logs"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("release", "release"),
        ("5", "iter_0000005"),
        ("0001000", "iter_0001000"),
        ("0000000005", "iter_0000005"),
        ("12345678", "iter_12345678"),
    ],
)
def test_names_of_iterations(given, name):
    assert iteration_name(given) == name


@pytest.mark.parametrize("given", ["", "latest", "-5", "5.0", "../x", "٥", "release\n"])
def test_anything_else_is_no_iteration(given):
    assert iteration_name(given) is None


@pytest.mark.parametrize("text", ["1000", "1000\n", " release \r\n"])
def test_the_tracker_decides(root, text):
    (root / TRACKER_NAME).write_text(text)
    assert iteration_directory(root, None).name == ("iter_0001000" if "1000" in text else "release")
    assert iteration_directory(root, "5").name == "iter_0000005"


def test_without_a_tracker_the_user_decides(root):
    with pytest.raises(InputError, match=r"3 iterations \(iter_0000005, iter_0001000, release\) and no latest"):
        iteration_directory(root, None)
    assert iteration_directory(root, "release") == root / "release"


def test_iterations_are_directories_or_links_to_them(root):
    (root / "iter_0000001").write_text("a file")
    (root / "iter_0000002").symlink_to(root / "logs")
    (root / "iter_0000003").symlink_to(root / "gone")
    names = ["iter_0000002", "iter_0000005", "iter_0001000", "release"]
    assert [path.name for path in iterations_in(root)] == names


def test_an_iteration_that_is_not_there(root):
    with pytest.raises(InputError, match=r"iteration=7: names iter_0000007, which is not in .*; it holds iter_0000005"):
        iteration_directory(root, "7")
    (root / TRACKER_NAME).write_text("9")
    with pytest.raises(InputError, match=r"latest_checkpointed_iteration.txt: names iter_0000009, which is not in"):
        iteration_directory(root, None)


@pytest.mark.parametrize("text", ["", "../../etc", "\0\ud7ff", "x" * 10**5])
def test_a_tracker_that_says_something_else(root, text):
    (root / TRACKER_NAME).write_text(text)
    with pytest.raises(InputError, match="expected release or the number of an iteration"):
        iteration_directory(root, None)


def test_a_tracker_that_is_a_directory(root):
    (root / TRACKER_NAME).mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        iteration_directory(root, None)


def test_an_empty_directory(tmp_path):
    with pytest.raises(InputError, match="is no checkpoint"):
        iteration_directory(tmp_path, None)
