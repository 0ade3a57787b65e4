"""The directories of a Megatron checkpoint: that of the iteration, and one per rank.

Owns the names of rank directories. Opens no checkpoint file, and follows no name out of the directory.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import lcm, prod
from pathlib import Path

from distconv.errors import InputError, counted, raise_if, reading
from distconv.formats.iterations import iteration_directory, iteration_of
from distconv.layout.layout import coordinates
from distconv.runtime.hand_out import AT_ONCE, on_threads

FILE_NAME = "model_optim_rng.pt"
# A limit, since the number in a stray name may be of any size.
_MISSING_NAMED = 1000
RANK_PREFIX = "mp_rank_"
_RANK_NAME = re.compile(RANK_PREFIX + r"(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")


@dataclass(frozen=True, kw_only=True)
class RankDirectories:
    """The rank directories of one iteration, by the numbers in their names: tensor parallel rank, then up to two more.

    `iteration`: `release` or a number, `None` if the name of the directory is neither.
    """

    directory: Path
    iteration: str | None
    paths: Mapping[tuple[int, ...], Path]


def rank_directory(rank: tuple[int, ...]) -> str:
    """The name of a rank's directory, given its tensor parallel rank and up to two more numbers."""
    first, *others = rank
    return f"{RANK_PREFIX}{first:02d}" + "".join(f"_{number:03d}" for number in others)


def find_ranks(directory: Path, iteration: str | None) -> RankDirectories:
    """The rank directories of an iteration; without `iteration`, of that of the tracker, or the only one.

    `directory` holds iterations, or is one.

    Raises:
        InputError: no such iteration, or several and no tracker; names with different numbers of ranks; every missing
            rank.
    """
    with reading(f"source={directory}"):
        if names := _rank_names(directory):
            return _only_iteration(directory, names, iteration)
        chosen = iteration_directory(directory, iteration)
        if not (names := _rank_names(chosen)):
            raise InputError(f"{chosen}: holds no {RANK_PREFIX}* directory; was it copied completely?")
        return RankDirectories(directory=chosen, iteration=iteration_of(chosen), paths=_ranks(chosen, names))


def notes_of_others(files: Iterable[Path]) -> Iterator[str]:
    """What lies beside the checkpoint files of ranks and is not read, in sentences."""
    listed = on_threads(os.listdir, [file.parent for file in files], AT_ONCE)
    others = Counter(name for names in listed for name in names if name != FILE_NAME)
    for name, count in sorted(others.items()):
        yield f"not carried over: {name} (of {counted(count, 'rank')}): the model is in {FILE_NAME} alone"


def _only_iteration(directory: Path, names: Mapping[str, bool], iteration: str | None) -> RankDirectories:
    """The rank directories of a directory that is an iteration itself, given their names as by `_rank_names`."""
    found = iteration_of(directory.resolve())
    if iteration is not None and found not in (None, iteration):
        raise InputError(
            f"iteration={iteration}: source={directory} is the directory of iteration {found} itself; leave iteration "
            "out, or give the directory above"
        )
    return RankDirectories(directory=directory, iteration=found or iteration, paths=_ranks(directory, names))


def _rank_names(directory: Path) -> Mapping[str, bool]:
    """The names in a directory that begin as those of ranks, in order, and whether they are those of directories."""
    with os.scandir(directory) as entries:
        found = [each for each in entries if each.name.startswith(RANK_PREFIX)]
    return {each.name: each.is_dir() for each in sorted(found, key=lambda each: each.name)}


def _ranks(directory: Path, names: Mapping[str, bool]) -> Mapping[tuple[int, ...], Path]:
    """Rank → path of its checkpoint file, in the order of ranks; `names` as by `_rank_names`."""
    ranks: dict[tuple[int, ...], str] = {}
    problems = []
    for name, is_directory in names.items():
        match = _RANK_NAME.fullmatch(name)
        if match is None or not is_directory:
            problems.append(f"{directory / name}: expected a directory named {RANK_PREFIX}TP, …TP_PP or …TP_PP_EP")
            continue
        rank = tuple(int(number) for number in match.groups() if number is not None)
        other = ranks.setdefault(rank, name)
        if other != name:
            problems.append(f"{directory}: {other} and {name} are of the same rank; remove one")
    raise_if(problems)
    if len({len(rank) for rank in ranks}) > 1:
        shortest, longest = min(ranks, key=len), max(ranks, key=len)
        raise InputError(
            f"{directory}: {ranks[shortest]} and {ranks[longest]} have different numbers of ranks in their names: they "
            "are of two checkpoints; move one of them elsewhere"
        )
    last = tuple(map(max, zip(*ranks, strict=True)))
    missing = (rank for rank in _grid(last) if rank not in ranks and not _experts_run_along(ranks.keys(), last))
    raise_if(
        [
            f"{directory}: {rank_directory(rank)} is missing, although there are ranks up to "
            f"{rank_directory(last)}; was it copied completely?"
            for rank in islice(missing, _MISSING_NAMED)
        ]
    )
    paths = {rank: directory / ranks[rank] / FILE_NAME for rank in sorted(ranks)}
    there = zip(paths.values(), on_threads(Path.is_file, list(paths.values()), AT_ONCE), strict=True)
    raise_if(
        [f"{path.parent}: holds no {FILE_NAME}; was it copied completely?" for path, is_there in there if not is_there]
    )
    return paths


def _grid(last: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All ranks up to `last`, generated on demand, since a stray name may imply any number of them."""
    if not last:
        yield ()
        return
    for number in range(last[0] + 1):
        yield from ((number, *rest) for rest in _grid(last[1:]))


def _experts_run_along(ranks: Collection[tuple[int, ...]], last: tuple[int, ...]) -> bool:
    """Whether these are all ranks up to `last` where experts are cut into fewer pieces than the rest."""
    if len(last) < 2:
        return False
    tensor, *between, experts = (number + 1 for number in last)
    stages = prod(between)
    for size in (size for size in range(1, min(tensor, len(ranks) + 1)) if tensor % size == 0):
        # Counted first, since a stray name may imply any number of ranks.
        if lcm(tensor, size * experts) * stages == len(ranks):
            there = coordinates(tensor, experts, size)
            if all((rank[0], rank[-1]) in there for rank in ranks):
                return True
    return False
