"""Directories of other programs that are no checkpoint of a known format, named for what they are.

Owns their marks and the way out for their users. Opens `metadata.json` alone, and converts nothing.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from distconv.errors import InputError
from distconv.formats.hub import snapshot_in
from distconv.formats.iterations import Place
from distconv.formats.jsonfile import read_object

# The file that tells the kind of a distributed checkpoint of Megatron-core.
KIND_NAME = "metadata.json"
# With these in it, a directory is a published model, whatever training left beside them.
_PUBLISHED = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")


@dataclass(frozen=True, kw_only=True)
class _Foreign:
    """A kind of directory: its marks as patterns of paths, one of which must be there, its name, and what to do.

    `remedy` may name the option as `{key}`, the `{mark}` that was found, and the directory that holds it as `{parent}`.
    """

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


def is_of_core(place: Place) -> bool:
    """Whether a directory is a distributed checkpoint of Megatron-core."""
    return KIND_NAME in place.names and has_backend(place.path / KIND_NAME)


def _is_without_kind(mark: Path) -> bool:
    """Whether a distributed checkpoint lies beside a file of Megatron-Bridge, and nothing tells its kind."""
    return (mark.parent / ".metadata").exists() and not (mark.parent / KIND_NAME).exists()


_UNPACK = "unpack it (tar -xf {mark} -C DIR, into an empty directory), and give {key}=DIR"
_GGUF = "which is for llama.cpp, and mostly quantised; give the model in safetensors that it was made of"
_KINDS = (
    _Foreign(
        marks=("weights/metadata.json", "model_weights/metadata.json"),
        title="a checkpoint of NeMo, with a torch_dist checkpoint in it",
        remedy="give that directory: {key}={parent}",
        holds=has_backend,
    ),
    _Foreign(
        marks=("context/model.yaml", "context/io.json", "model_weights.ckpt", "model_weights/*/.zarray"),
        title="a checkpoint of NeMo that holds no torch_dist checkpoint",
        remedy="export it with NeMo (llm.export_ckpt, target hf), and give what that makes",
    ),
    _Foreign(marks=("*.nemo",), title="a directory with an archive of NeMo", remedy=_UNPACK),
    _Foreign(
        marks=("run_config.yaml",),
        title="a checkpoint of Megatron-Bridge without metadata.json, as it saves with ckpt_format fsdp_dtensor",
        remedy="load it in training, and save it with ckpt_format torch_dist; if it is one, restore that file",
        holds=_is_without_kind,
    ),
    _Foreign(
        marks=("huggingface/*.safetensors", "actor/huggingface/*.safetensors"),
        title="a checkpoint of verl with the published model in it",
        remedy="give that: {key}={parent}",
    ),
    _Foreign(
        marks=(
            "model_world_size_*_rank_*.pt",
            "actor/model_world_size_*_rank_*.pt",
            "global_step_*/actor/model_world_size_*_rank_*.pt",
        ),
        title="a checkpoint of verl, one file for each rank",
        remedy="merge it with python -m verl.model_merger merge --backend fsdp --local_dir {parent} --target_dir OUT, "
        "and give {key}=OUT",
    ),
    _Foreign(
        marks=("actor/dist_ckpt/metadata.json", "global_step_*/actor/dist_ckpt/metadata.json"),
        title="a checkpoint of verl, saved by Megatron-core",
        remedy="merge it with python -m verl.model_merger merge --backend megatron --local_dir {parent}/.. "
        "--target_dir OUT, and give {key}=OUT",
    ),
    _Foreign(
        marks=(
            "zero_to_fp32.py",
            "*zero_pp_rank_*_optim_states.pt",
            "*mp_rank_*_model_states.pt",
            "layer_*-model_*-model_states.pt",
            "global_step*/*_model_states.pt",
            "global_step*/*_optim_states.pt",
        ),
        title="a checkpoint of DeepSpeed",
        remedy="merge it with python zero_to_fp32.py SOURCE OUT, which DeepSpeed puts beside the file latest, and give "
        "{key}=OUT with the config.json of the model in it",
    ),
    _Foreign(
        marks=("snapshots/*/config.json", "models--*/snapshots/*/config.json"),
        title="a directory of the Hugging Face cache",
        remedy="give the directory of one snapshot in it: {key}={snapshot}",
    ),
    _Foreign(marks=("*.gguf",), title="a directory with a GGUF file", remedy=_GGUF),
)
_FILES = {
    ".gguf": ("a GGUF file", _GGUF),
    ".nemo": ("an archive of NeMo", _UNPACK),
}


def foreign_problem(directory: Path, key: str) -> str | None:
    """What the directory of option `key` is, and what to do, in words; `None` if it has no mark of another program."""
    place = Place(directory)
    return foreign_problem_in((place, *place.iterations), key)


def foreign_problem_in(places: Sequence[Place], key: str) -> str | None:
    """The same, if it is enough to look in some places: the directory, which comes first, and iterations in it."""
    directory, known = places[0].path, {each.path: each for each in places}
    # The patterns are many.
    names = cache(lambda path: known[path].names if path in known else Place(path).names)
    for path in known:
        if any(next(_matching(path, pattern, names), None) for pattern in _PUBLISHED):
            return None
        for kind in _KINDS:
            marks = (mark for pattern in kind.marks for mark in _matching(path, pattern, names))
            if (mark := next(filter(kind.holds, marks), None)) is not None:
                what = f"{key}={directory}: is {kind.title} ({mark.relative_to(directory)})"
                return f"{what}; {_remedy(kind.remedy, mark, key)}"
    return None


def _matching(place: Path, pattern: str, names: Callable[[Path], Sequence[str]]) -> Iterator[Path]:
    """The paths below a directory that match a pattern, in order; `names`: those in a directory."""
    first, _, rest = pattern.partition("/")
    for name in fnmatch.filter(names(place), first):
        if rest:
            yield from _matching(place / name, rest, names)
        else:
            yield place / name


def file_words(path: Path, key: str) -> str:
    """What a file is that was given where a directory was expected, in option `key`, and what to do, in words."""
    if path.suffix.lower() in _FILES:
        what, remedy = _FILES[path.suffix.lower()]
        return f"{what}: {_remedy(remedy, path, key)}"
    return f"a file; give the directory that holds it: {key}={path.parent}"


def _remedy(words: str, mark: Path, key: str) -> str:
    """The words with the names of what was found."""
    return words.format(key=key, mark=mark, parent=mark.parent, snapshot=_snapshot(mark))


def _snapshot(mark: Path) -> Path:
    """The snapshot to take of a model in the cache, of which `mark` is in one."""
    return snapshot_in(mark.parent.parent.parent) or mark.parent
