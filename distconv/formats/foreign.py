"""Directories of other programs that are no checkpoint of a known format, named for what they are.

Owns their marks and the way out for their users. Opens `metadata.json` alone, and converts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distconv.errors import InputError
from distconv.formats.iterations import iterations_in
from distconv.formats.jsonfile import read_object

# The file that tells the kind of a distributed checkpoint of Megatron-core.
KIND_NAME = "metadata.json"
# With these in it, a directory is a published model, whatever training left beside them.
_PUBLISHED = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")


@dataclass(frozen=True, kw_only=True)
class _Foreign:
    """A kind of directory: its marks as patterns of paths, one of which must be there, its name, and what to do."""

    marks: tuple[str, ...]
    title: str
    remedy: str
    holds: Callable[[Path], bool] = lambda _: True


def has_backend(mark: Path) -> bool:
    """Whether a `metadata.json` is that of Megatron-core's distributed checkpoints, or a damaged one beside chunks."""
    try:
        return "sharded_backend" in read_object(mark, "the kind of the checkpoint")
    except InputError as error:
        if error.unreadable:
            raise
        return mark.exists() and any(mark.parent.glob("*.distcp"))


_KINDS = (
    _Foreign(
        marks=("weights/metadata.json",),
        title="a checkpoint of NeMo, with a torch_dist checkpoint in weights/",
        remedy="give that directory",
        holds=has_backend,
    ),
    _Foreign(
        marks=("model_world_size_*_rank_*.pt", "actor/model_world_size_*_rank_*.pt", "actor/dist_ckpt/metadata.json"),
        title="a checkpoint of verl, one file for each rank",
        remedy="merge it with python -m verl.model_merger merge, and give the Hugging Face directory that it makes",
    ),
    _Foreign(
        marks=("zero_to_fp32.py", "*zero_pp_rank_*_optim_states.pt", "*mp_rank_*_model_states.pt"),
        title="a checkpoint of DeepSpeed",
        remedy="merge it with python zero_to_fp32.py SOURCE OUT, which DeepSpeed puts there, and give OUT with the "
        "config.json of the model",
    ),
    _Foreign(
        marks=("snapshots/*/config.json",),
        title="a directory of the Hugging Face cache",
        remedy="give the directory of one snapshot in it",
    ),
)


def foreign_problem(directory: Path, key: str) -> str | None:
    """What the directory of option `key` is, and what to do, in words; `None` if it has no mark of another program."""
    for place in (directory, *iterations_in(directory)):
        if any(next(place.glob(pattern), None) for pattern in _PUBLISHED):
            return None
        for kind in _KINDS:
            marks = (path for pattern in kind.marks for path in sorted(place.glob(pattern)))
            if (mark := next(filter(kind.holds, marks), None)) is not None:
                return f"{key}={directory}: is {kind.title} ({mark.relative_to(directory)}); {kind.remedy}"
    return None
