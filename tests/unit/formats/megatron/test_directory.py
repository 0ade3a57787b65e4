"""Which directories are the checkpoint: the iteration that is asked for or the tracker's, and each rank by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.formats.iterations import TRACKER_NAME
from distconv.formats.megatron.directory import FILE_NAME, find_ranks, rank_directory


def checkpoint(root: Path, *ranks: str, iteration: str | None = "release", tracker: str | None = None) -> Path:
    for rank in ranks:
        directory = root / (iteration or "") / rank
        directory.mkdir(parents=True)
        (directory / FILE_NAME).touch()
    if tracker is not None:
        (root / TRACKER_NAME).write_text(tracker)
    return root


def refused(root: Path, iteration: str | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        find_ranks(root, iteration)
    return caught.value.problems


@pytest.mark.parametrize("text", ["release", "release\n", " release "])
def test_the_tracker_names_a_release(tmp_path, text):
    found = find_ranks(checkpoint(tmp_path, "mp_rank_00", tracker=text), None)
    assert (found.directory, found.iteration) == (tmp_path / "release", "release")
    assert found.paths == {(0,): tmp_path / "release" / "mp_rank_00" / FILE_NAME}


@pytest.mark.parametrize("text", ["1000", "1000\n"])
def test_the_tracker_names_an_iteration(tmp_path, text):
    checkpoint(tmp_path, "mp_rank_00", iteration="iter_0000500")
    checkpoint(tmp_path, "mp_rank_00", iteration="iter_0001000", tracker=text)
    found = find_ranks(tmp_path, None)
    assert (found.directory, found.iteration) == (tmp_path / "iter_0001000", "1000")
    assert find_ranks(tmp_path, "500").directory == tmp_path / "iter_0000500"


def test_a_single_iteration_needs_no_tracker(tmp_path):
    assert find_ranks(checkpoint(tmp_path, "mp_rank_00", iteration="iter_0000007"), None).iteration == "7"


def test_the_directory_of_an_iteration_is_a_source_itself(tmp_path):
    checkpoint(tmp_path, "mp_rank_00", iteration="iter_0000007", tracker="9")
    found = find_ranks(tmp_path / "iter_0000007", None)
    assert (found.directory, found.iteration) == (tmp_path / "iter_0000007", "7")
    assert find_ranks(tmp_path / "iter_0000007", "7").iteration == "7"
    assert refused(tmp_path / "iter_0000007", "8") == [
        (
            f"iteration=8: source={tmp_path}/iter_0000007 is the directory of iteration 7 itself; leave iteration "
            "out, or "
            "give the directory above"
        )
    ]


def test_a_directory_of_ranks_may_have_any_name(tmp_path):
    checkpoint(tmp_path, "mp_rank_00", iteration=None)
    assert find_ranks(tmp_path, None).iteration is None
    assert find_ranks(tmp_path, "12").iteration == "12"


def test_links_that_a_user_made_are_followed(tmp_path):
    checkpoint(tmp_path / "elsewhere", "a", iteration=None)
    (tmp_path / "mm").mkdir()
    (tmp_path / "mm" / "mp_rank_00").symlink_to(tmp_path / "elsewhere" / "a")
    assert find_ranks(tmp_path / "mm", None).paths == {(0,): tmp_path / "mm" / "mp_rank_00" / FILE_NAME}


@pytest.mark.parametrize(
    ("names", "ranks"),
    [
        (["mp_rank_00", "mp_rank_01"], [(0,), (1,)]),
        (["mp_rank_00_000", "mp_rank_00_001"], [(0, 0), (0, 1)]),
        (["mp_rank_00_000_000", "mp_rank_00_000_001"], [(0, 0, 0), (0, 0, 1)]),
        ([f"mp_rank_{number:02d}" for number in range(101)], [(number,) for number in range(101)]),
    ],
)
def test_the_numbers_in_the_names_are_the_ranks(tmp_path, names, ranks):
    assert list(find_ranks(checkpoint(tmp_path, *names), None).paths) == ranks
    assert [rank_directory(rank) for rank in ranks] == names


def test_several_iterations_without_a_tracker_are_named(tmp_path):
    checkpoint(tmp_path, "mp_rank_00", iteration="iter_0000007")
    checkpoint(tmp_path, "mp_rank_00", iteration="release")
    assert refused(tmp_path) == [
        (
            f"source={tmp_path}: holds 2 iterations (iter_0000007, release) and no latest_checkpointed_iteration.txt "
            "that says "
            "which is the latest; give iteration=release or iteration=NUMBER"
        )
    ]


def test_an_iteration_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    checkpoint(tmp_path, "mp_rank_00", iteration="iter_0000007", tracker="8\n")
    assert refused(tmp_path) == [
        f"{tmp_path}/{TRACKER_NAME}: names iter_0000008, which is not in {tmp_path}; it holds iter_0000007"
    ]
    assert refused(tmp_path, "release") == [
        f"iteration=release: names release, which is not in {tmp_path}; it holds iter_0000007"
    ]


@pytest.mark.parametrize("text", ["", "latest", "-1", "../elsewhere", "1.5", "٣"])
def test_a_tracker_that_names_no_iteration_is_refused(tmp_path, text):
    checkpoint(tmp_path, "mp_rank_00", tracker=text)
    assert refused(tmp_path) == [
        f"{tmp_path}/{TRACKER_NAME}: expected release or the number of an iteration, found {text!r}"
    ]


def test_a_directory_without_ranks_is_refused(tmp_path):
    assert refused(tmp_path) == [
        f"source={tmp_path}: is no checkpoint; expected latest_checkpointed_iteration.txt, release/ or iter_*/ in it"
    ]
    (tmp_path / "release").mkdir()
    assert refused(tmp_path) == [f"{tmp_path}/release: holds no mp_rank_* directory; was it copied completely?"]


@pytest.mark.parametrize("name", ["mp_rank_0", "mp_rank_00_1", "mp_rank_00_000_000_000", "mp_rank_00.old", "mp_rank_"])
def test_a_name_that_does_not_fit_is_refused(tmp_path, name):
    checkpoint(tmp_path, "mp_rank_00", name)
    assert refused(tmp_path) == [
        f"{tmp_path}/release/{name}: expected a directory named mp_rank_TP, …TP_PP or …TP_PP_EP"
    ]


def test_every_missing_rank_is_named(tmp_path):
    checkpoint(tmp_path, "mp_rank_00_000", "mp_rank_01_002")
    assert refused(tmp_path) == [
        f"{tmp_path}/release: {name} is missing, although there are ranks up to mp_rank_01_002; was it copied "
        "completely?"
        for name in ("mp_rank_00_001", "mp_rank_00_002", "mp_rank_01_000", "mp_rank_01_001")
    ]


def test_a_stray_number_does_not_make_an_endless_list(tmp_path):
    assert len(refused(checkpoint(tmp_path, "mp_rank_00_000", "mp_rank_99999999_99999999"))) == 1000


def test_names_of_two_kinds_are_of_two_checkpoints(tmp_path):
    checkpoint(tmp_path, "mp_rank_00", "mp_rank_00_001")
    assert refused(tmp_path) == [
        (
            f"{tmp_path}/release: mp_rank_00 and mp_rank_00_001 have different numbers of ranks in their names: they "
            "are of "
            "two checkpoints; move one of them elsewhere"
        )
    ]


def test_two_names_of_one_rank_are_refused(tmp_path):
    checkpoint(tmp_path, "mp_rank_00", "mp_rank_000")
    assert refused(tmp_path) == [f"{tmp_path}/release: mp_rank_00 and mp_rank_000 are of the same rank; remove one"]


def test_every_rank_without_a_file_is_named(tmp_path):
    checkpoint(tmp_path, "mp_rank_00")
    (tmp_path / "release" / "mp_rank_01").mkdir()
    (tmp_path / "release" / "mp_rank_02" / FILE_NAME).mkdir(parents=True)
    assert refused(tmp_path) == [
        f"{tmp_path}/release/mp_rank_{number:02d}: holds no model_optim_rng.pt; was it copied completely?"
        for number in (1, 2)
    ]
