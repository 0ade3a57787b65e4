"""The configuration of a job as one validated, frozen record. Nothing after this module sees an OmegaConf object.

Owns the checks that need nothing but the configuration: types, allowed values, what goes with what.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from distconv.balance import LayoutRequest
from distconv.errors import raise_if, unknown_keys
from distconv.layout import PLACEMENTS, StageRows
from distconv.tying import TIED_HEAD

ACTIONS = ("convert", "plan", "verify", "models")
TARGET_FORMATS = ("megatron", "dcp")
NAMINGS = ("megatron", "hf")
PACKED_EXPERTS = ("auto", "flatten", "keep")
PROJECTOR_CHOICES = ("auto", "keep", "omit")
# No parallel axis is longer, no vocabulary or number of threads larger; a typing error is.
_LARGEST_AXIS, _LARGEST = 2**16, 2**24
_MODALITIES = ("text", "vision", "audio")
_KEYS = (
    "action", "source", "target", "target_format", "naming", "name_prefix", "packed_experts", "layout", "select",
    "text_source", "projector", "tied_head", "vocab_size", "lora_only", "iteration", "overwrite", "io", "report",
    "processes", "model",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InputOutput:
    """How a process reads and writes; `buffer_bytes` is the size of each of the two buffers of a thread."""

    fsync: bool
    threads: int
    buffer_bytes: int


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What the user asked for, all but the model definition."""

    action: str
    source: Path
    target: Path
    target_format: str
    naming: str
    name_prefix: str
    packed_experts: str
    layout: LayoutRequest
    select: tuple[str, ...] | None
    text_source: Path | None
    projector: str
    tied_head: str
    vocab_size: int | None
    lora_only: bool
    iteration: str | None
    overwrite: bool
    io: InputOutput
    report: Path | None
    processes: int | None


def parse_config(content: Mapping[str, Any]) -> JobConfig:
    """The configuration in Hydra's composed content.

    Raises:
        InputError: every wrong key or value, with what is allowed.
    """
    reader = _Reader()
    reader.problems += unknown_keys(content, _KEYS)
    layout = reader.section(content, "layout", ("tp", "ep", "stages", "pp", "vpp", "modality_tp", "placement"))
    stages = reader.section(layout, "layout.stages", _MODALITIES)
    modality_tp = reader.section(layout, "layout.modality_tp", _MODALITIES[1:])
    io = reader.section(content, "io", ("fsync", "threads", "buffer_mib"))
    action = reader.choice(content, "action", ACTIONS)
    processes = reader.optional_size(content, "processes")
    if processes is not None and action != "plan":
        reader.problems.append("processes: goes with action=plan; otherwise the launcher says how many processes run")
    config = JobConfig(
        action=action,
        source=reader.needed_path(content, "source", "the Hugging Face directory to convert", action),
        target=reader.needed_path(content, "target", "the directory that gets the result", action),
        target_format=reader.choice(content, "target_format", TARGET_FORMATS),
        naming=reader.choice(content, "naming", NAMINGS),
        name_prefix=reader.text(content, "name_prefix"),
        packed_experts=reader.choice(content, "packed_experts", PACKED_EXPERTS),
        layout=LayoutRequest(
            tp=reader.axis(layout, "layout.tp"),
            ep=reader.axis(layout, "layout.ep"),
            pp=reader.optional_axis(layout, "layout.pp"),
            vpp=reader.optional_axis(layout, "layout.vpp"),
            stages={
                modality: rows
                for modality in stages
                if (rows := reader.stage_rows(stages, f"layout.stages.{modality}")) is not None
            },
            modality_tp={
                modality: size
                for modality in modality_tp
                if (size := reader.optional_axis(modality_tp, f"layout.modality_tp.{modality}")) is not None
            },
            placement=reader.choice(layout, "layout.placement", PLACEMENTS),
        ),
        select=reader.modalities(content, "select"),
        text_source=reader.path(content, "text_source"),
        projector=reader.choice(content, "projector", PROJECTOR_CHOICES),
        tied_head=reader.choice(content, "tied_head", TIED_HEAD),
        vocab_size=reader.optional_size(content, "vocab_size"),
        lora_only=reader.truth(content, "lora_only"),
        iteration=reader.iteration(content, "iteration"),
        overwrite=reader.truth(content, "overwrite"),
        io=InputOutput(
            fsync=reader.truth(io, "io.fsync"),
            threads=reader.size(io, "io.threads"),
            buffer_bytes=reader.size(io, "io.buffer_mib") * 1024 * 1024,
        ),
        report=reader.path(content, "report"),
        processes=processes,
    )
    if not reader.problems:
        reader.problems += _contradictions(config)
    if config.text_source is not None and config.select is not None and "text" not in config.select:
        reader.problems.append(f"text_source={config.text_source}: select={list(config.select)} leaves out the text")
    raise_if(reader.problems)
    return config


def _contradictions(config: JobConfig) -> Iterator[str]:
    """Keys that were given although they say nothing about a result of this format."""
    published = config.target_format == "hf" or config.naming == "hf"
    is_dcp = config.target_format == "dcp"
    for keys, allowed, why in (
        (
            {f"layout.{key}": given for key, given in _given(config.layout, LayoutRequest()).items()},
            config.target_format == "megatron",
            f"target_format={config.target_format} holds whole tensors; leave it out",
        ),
        (
            {"naming": config.naming != NAMINGS[0], "name_prefix": config.name_prefix not in (None, "") and not is_dcp},
            is_dcp,
            "goes with target_format=dcp",
        ),
        (
            {"packed_experts": config.packed_experts != PACKED_EXPERTS[0]},
            is_dcp and published,
            "goes with target_format=dcp and naming=hf",
        ),
        (
            {"vocab_size": config.vocab_size is not None},
            not published,
            "the published names have the vocabulary of the published model; leave it out",
        ),
        (
            {"fill_from_reference": config.fill_from_reference},
            published,
            "goes with target_format=hf, or dcp and naming=hf",
        ),
    ):
        if not allowed:
            yield from (f"{key}: {why}" for key, given in keys.items() if given)


def _given(value: Any, default: Any) -> dict[str, bool]:
    """Which fields of a record differ from those of another one."""
    return {each.name: getattr(value, each.name) != getattr(default, each.name) for each in fields(value)}


class _Reader:
    """Reads values by dotted key and collects what is wrong with them; a wrong value reads as a harmless one."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        # Groups that are no groups: of what they should hold, nothing more is said.
        self._broken: set[str] = set()

    def section(self, content: Mapping[str, Any], key: str, known: tuple[str, ...]) -> Mapping[str, Any]:
        value = content.get(_last(key))
        if not isinstance(value, Mapping):
            if value is not None or key not in self._broken:
                self._wrong(key, value, f"a group of options: {', '.join(known)}; give {key}.{known[0]}=…")
            self._broken.add(key)
            return {}
        self.problems += [f"{key}: {problem}" for problem in unknown_keys(value, known)]
        return value

    def needed_path(self, content: Mapping[str, Any], key: str, meaning: str, action: str) -> Path:
        path = self.path(content, key)
        if content.get(key) is None and action != "models":
            self.problems.append(f"{key} is missing: give {key}=DIR, {meaning} (--help lists all options)")
        return path or Path()

    def choice(self, content: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
        value = content.get(_last(key))
        if value not in allowed:
            self._wrong(key, value, f"one of {', '.join(allowed)}")
            return allowed[0]
        return str(value)

    def size(self, content: Mapping[str, Any], key: str, largest: int = _LARGEST) -> int:
        value = content.get(_last(key))
        if type(value) is not int or not 1 <= value <= largest:
            self._wrong(key, value, f"an integer from 1 to {largest}")
            return 1
        return value

    def optional_size(self, content: Mapping[str, Any], key: str, largest: int = _LARGEST) -> int | None:
        return None if content.get(_last(key)) is None else self.size(content, key, largest)

    def axis(self, content: Mapping[str, Any], key: str) -> int:
        return self.size(content, key, _LARGEST_AXIS)

    def optional_axis(self, content: Mapping[str, Any], key: str) -> int | None:
        return self.optional_size(content, key, _LARGEST_AXIS)

    def truth(self, content: Mapping[str, Any], key: str) -> bool:
        value = content.get(_last(key))
        if not isinstance(value, bool):
            self._wrong(key, value, "true or false")
        return value is True

    def text(self, content: Mapping[str, Any], key: str) -> str:
        value = content.get(key)
        if not isinstance(value, str):
            self._wrong(key, value, "text; the empty text is written ''")
            return ""
        return value

    def path(self, content: Mapping[str, Any], key: str) -> Path | None:
        value = content.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            self._wrong(key, value, "a path")
            return None
        return None if value is None else Path(value).expanduser()

    def modalities(self, content: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
        value = content.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not value or any(item not in _MODALITIES for item in value):
            self._wrong(key, value, f"a list of modalities out of {', '.join(_MODALITIES)}, such as [vision]")
            return None
        return tuple(value)

    def iteration(self, content: Mapping[str, Any], key: str) -> str | None:
        value = content.get(key)
        if value is None:
            return None
        if value != "release" and (type(value) is not int or value < 1):
            self._wrong(key, value, "release, or a positive integer")
        return str(value)

    def stage_rows(self, content: Mapping[str, Any], key: str) -> StageRows | None:
        value = content.get(_last(key))
        if value is None:
            return None
        rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        for row in rows:
            if not isinstance(row, list) or not row or any(type(item) is not int or item < 0 for item in row):
                self._wrong(key, value, "layers per stage, such as [1,10,10,7], or one such list per virtual stage")
                return None
        return tuple(tuple(row) for row in rows)

    def _wrong(self, key: str, value: Any, expected: str) -> None:
        if not any(key.startswith(f"{group}.") for group in self._broken):
            self.problems.append(f"{key}={shown(value)}: expected {expected}")


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str).replace('"', "")
