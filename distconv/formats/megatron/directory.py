"""Which directories of a Megatron checkpoint are the model: the iteration, and one directory for each rank.

Owns the names of directories and the tracker file. Opens no checkpoint file, and follows no name out of the directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from distconv.errors import InputError, raise_if, reading
from distconv.formats.iterations import iteration_directory, iteration_of

FILE_NAME = "model_optim_rng.pt"
# A stray name may have any number in it.
_MISSING_NAMED = 1000
RANK_PREFIX = "mp_rank_"
_RANK_NAME = re.compile(RANK_PREFIX + r"(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")


@dataclass(frozen=True, kw_only=True)
class RankDirectories:
    """The rank directories of one iteration, by the numbers in their names: tensor parallel, then up to two more.

    `iteration` is `release`, a number, or nothing where the name of the directory does not say.
    """

    directory: Path
    iteration: str | None
    paths: Mapping[tuple[int, ...], Path]


def rank_directory(rank: tuple[int, ...]) -> str:
    """The name of a rank's directory: of its tensor parallel rank, then of up to two more numbers."""
    first, *others = rank
    return f"{RANK_PREFIX}{first:02d}" + "".join(f"_{number:03d}" for number in others)


def find_ranks(directory: Path, iteration: str | None) -> RankDirectories:
    """The rank directories of a checkpoint: of the iteration that is asked for, or else that the tracker names.

    `directory` holds iterations, or is one.

    Raises:
        InputError: no such iteration, or no single one; names that do not fit; every rank that is missing.
    """
    with reading(f"source={directory}"):
        if _rank_names(directory):
            return _only_iteration(directory, iteration)
        chosen = iteration_directory(directory, iteration)
        if not _rank_names(chosen):
            raise InputError(f"{chosen}: holds no {RANK_PREFIX}* directory")
        return RankDirectories(directory=chosen, iteration=iteration_of(chosen), paths=_ranks(chosen))


def _only_iteration(directory: Path, iteration: str | None) -> RankDirectories:
    """A directory that is an iteration itself."""
    found = iteration_of(directory.resolve())
    if iteration is not None and found not in (None, iteration):
        raise InputError(
            f"iteration={iteration}: source={directory} is the directory of iteration {found} itself; leave iteration "
            "out, or give the directory above"
        )
    return RankDirectories(directory=directory, iteration=found or iteration, paths=_ranks(directory))


def _rank_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(RANK_PREFIX))


def _ranks(directory: Path) -> Mapping[tuple[int, ...], Path]:
    """The path of each rank's file, by rank."""
    names = _rank_names(directory)
    ranks: dict[tuple[int, ...], str] = {}
    problems = []
    for name in names:
        match = _RANK_NAME.fullmatch(name)
        if match is None or not (directory / name).is_dir():
            problems.append(f"{directory / name}: expected a directory named {RANK_PREFIX}TP, …TP_PP or …TP_PP_EP")
            continue
        rank = tuple(int(number) for number in match.groups() if number is not None)
        other = ranks.setdefault(rank, name)
        if other != name:
            problems.append(f"{directory}: {other} and {name} are of the same rank")
    raise_if(problems)
    if len({len(rank) for rank in ranks}) > 1:
        shortest, longest = min(ranks, key=len), max(ranks, key=len)
        raise InputError(
            f"{directory}: {ranks[shortest]} and {ranks[longest]} have different numbers of ranks in their names: they "
            "are of two checkpoints"
        )
    last = tuple(map(max, zip(*ranks, strict=True)))
    missing = (rank for rank in _grid(last) if rank not in ranks)
    raise_if(
        [
            f"{directory}: {rank_directory(rank)} is missing, although there are ranks up to {rank_directory(last)}"
            for rank in islice(missing, _MISSING_NAMED)
        ]
    )
    raise_if(
        [
            f"{directory / name}: holds no {FILE_NAME}"
            for name in ranks.values()
            if not (directory / name / FILE_NAME).is_file()
        ]
    )
    return {rank: directory / ranks[rank] / FILE_NAME for rank in sorted(ranks)}


def _grid(last: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All ranks up to the last one, none of them made before it is asked for."""
    if not last:
        yield ()
        return
    for number in range(last[0] + 1):
        yield from ((number, *rest) for rest in _grid(last[1:]))
