"""The ranks of a Megatron checkpoint by coordinate: the meaning of the numbers in the names of directories.

Owns the choice between pipeline and expert parallel rank for names with one number for the two. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.megatron.directory import rank_directory
from distconv.formats.megatron.index import MegatronIndex, RankFile
from distconv.formats.megatron.names import Targets
from distconv.layout.request import SourceLayout


@dataclass(frozen=True, kw_only=True, eq=False)
class RankGrid:
    """The sizes of the axes, and (tensor, pipeline, expert) rank → file."""

    tensor_ranks: int
    pp: int
    ep: int
    files: Mapping[tuple[int, int, int], RankFile]


def arrange(index: MegatronIndex, targets: Targets, experts: int | None, given: SourceLayout) -> RankGrid:
    """The ranks of an index by coordinate; `experts`: the number of experts of the model, `None` for a dense model.

    Raises:
        InputError: a number may be the pipeline or the expert parallel rank, and neither files nor options decide.
    """
    tensor_ranks, *others = (max(numbers) + 1 for numbers in zip(*(file.rank for file in index.files), strict=True))
    if len(others) == 2:
        pp, ep = others
    elif not others or others == [1]:
        pp, ep = 1, 1
    elif _is_expert_rank(index, targets, experts, others[0], given):
        pp, ep = 1, others[0]
    else:
        pp, ep = others[0], 1
    if len(index.files) < tensor_ranks * pp * ep and (experts is None or ep == 1):
        raise InputError(
            f"{index.directory}: directories of ranks are missing, although there are ranks up to "
            f"{rank_directory(max(file.rank for file in index.files))}; was it copied completely? (only with "
            "experts may some be missing)"
        )
    files = {}
    for file in index.files:
        tp_rank, *rest = file.rank
        if len(rest) == 1:
            rest = [0, *rest] if ep > 1 else [*rest, 0]
        pp_rank, ep_rank = rest or (0, 0)
        files[tp_rank, pp_rank, ep_rank] = file
    return RankGrid(tensor_ranks=tensor_ranks, pp=pp, ep=ep, files=files)


def check_complete(index: MegatronIndex, grid: RankGrid, absent: Sequence[str]) -> None:
    """Check that what is absent from a checkpoint, in words, is not in a directory that is missing.

    Raises:
        InputError: the names are those of one of several pipeline or expert parallel ranks, and no other is there.
    """
    if (grid.pp, grid.ep) == (1, 1) and all(len(file.rank) > 1 for file in index.files):
        name = rank_directory(index.files[0].rank)
        raise InputError(
            f"{index.directory}: {'; '.join(absent)}, and {name} is the name of one of several pipeline or expert "
            "parallel ranks: the directories of the others are missing; if there are none, say with select=… what to "
            "convert"
        )


def _is_expert_rank(
    index: MegatronIndex, targets: Targets, experts: int | None, ranks: int, given: SourceLayout
) -> bool:
    if experts is None:
        return False
    if len(index.files) < ranks * (1 + max(file.rank[0] for file in index.files)):
        # Only expert parallel ranks run along with tensor parallel ones.
        return True
    names = {name for file in index.files for _, name in file.tensors}
    numbers = [local.expert for name in names if (local := targets.find(name)) and local.expert is not None]
    held = max(numbers, default=-1) + 1
    if experts in (held, held * ranks):
        return held < experts
    # Stages differ in their tensors, except for encoders that are on all of them; expert parallel ranks never differ.
    if len({frozenset(file.tensors) for file in index.files}) > 1:
        return False
    if held:
        return True
    as_pipeline = given.pp in (None, ranks) and given.ep in (None, 1)
    as_experts = given.pp in (None, 1) and given.ep in (None, ranks)
    if as_pipeline == as_experts:
        raise InputError(
            f"{index.directory}: the second number of names such as {rank_directory((0, ranks - 1))} may be the "
            "pipeline or the expert parallel rank: all ranks hold tensors of the same names, and no experts; give "
            f"source_layout.pp={ranks} or source_layout.ep={ranks}"
        )
    return as_experts
