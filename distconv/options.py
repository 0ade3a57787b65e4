"""The configuration of a job as one validated, frozen record. Nothing after this module sees an OmegaConf object.

Owns the checks that need nothing but the configuration: types, allowed values, what goes with what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field
from pathlib import Path
from typing import Any

from distconv.cli.values import LayoutReader, Reader
from distconv.errors import raise_if, unknown_keys
from distconv.layout.layout import PLACEMENTS
from distconv.layout.request import VISION_QKV, Layout, SourceLayout
from distconv.layout.tied_head import TIED_HEAD

ACTIONS = ("convert", "plan", "verify", "models")
TARGET_FORMATS = ("megatron", "dcp", "hf")
NAMINGS = ("megatron", "hf")
PACKED_EXPERTS = ("auto", "flatten", "keep")
PROJECTOR_CHOICES = ("auto", "keep", "omit")
_KEYS = (
    "action", "source", "target", "target_format", "reference", "fill_from_reference", "naming", "name_prefix",
    "packed_experts", "layout", "source_layout", "select", "text_source", "projector", "tied_head", "vocab_size",
    "lora_only", "merge_lora", "lora_alpha", "iteration", "overwrite", "io", "report", "processes", "model",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InputOutput:
    """How a process reads and writes; `buffer_bytes` is the size of each of the two buffers of a thread."""

    fsync: bool
    threads: int
    buffer_bytes: int


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for, all but the model definition."""

    action: str
    source: Path
    target: Path
    target_format: str
    naming: str = "megatron"
    name_prefix: str | None = None
    packed_experts: str = "auto"
    reference: Path | None = None
    fill_from_reference: bool = False
    layout: Layout = field(default_factory=Layout)
    source_layout: SourceLayout = field(default_factory=SourceLayout)
    select: tuple[str, ...] | None = None
    text_source: Path | None = None
    projector: str = "auto"
    tied_head: str = "auto"
    vocab_size: int | None = None
    lora_only: bool = False
    merge_lora: bool = False
    lora_alpha: float | None = None
    iteration: str | None
    overwrite: bool
    io: InputOutput
    report: Path | None
    processes: int | None


def parse_config(content: Mapping[str, Any]) -> Options:
    """The configuration in Hydra's composed content.

    Raises:
        InputError: every wrong key or value, with what is allowed.
    """
    reader = Reader()
    reader.problems += unknown_keys(content, _KEYS)
    layout = LayoutReader(reader, content, "layout", ())
    source_layout = LayoutReader(reader, content, "source_layout", ("vision_qkv",))
    io = reader.section(content, "io", ("fsync", "threads", "buffer_mib"))
    action = reader.choice(content, "action", ACTIONS)
    processes = reader.optional_size(content, "processes")
    if processes is not None and action != "plan":
        reader.problems.append("processes: goes with action=plan; otherwise the launcher says how many processes run")
    config = Options(
        action=action,
        source=reader.needed_path(content, "source", "the directory of the checkpoint to convert", action),
        target=reader.needed_path(content, "target", "the directory that gets the result", action),
        target_format=reader.choice(content, "target_format", TARGET_FORMATS),
        naming=reader.choice(content, "naming", NAMINGS),
        name_prefix=reader.optional_text(content, "name_prefix"),
        packed_experts=reader.choice(content, "packed_experts", PACKED_EXPERTS),
        reference=reader.path(content, "reference"),
        fill_from_reference=reader.truth(content, "fill_from_reference"),
        layout=Layout(
            tp=layout.axis("tp"),
            ep=layout.axis("ep"),
            pp=layout.optional_axis("pp"),
            vpp=layout.optional_axis("vpp"),
            stages=layout.stages(),
            modality_tp=layout.modality_tp(),
            placement=layout.choice("placement", PLACEMENTS),
        ),
        source_layout=SourceLayout(
            tp=source_layout.optional_axis("tp"),
            ep=source_layout.optional_axis("ep"),
            pp=source_layout.optional_axis("pp"),
            vpp=source_layout.optional_axis("vpp"),
            stages=source_layout.stages(),
            modality_tp=source_layout.modality_tp(),
            placement=source_layout.optional_choice("placement", PLACEMENTS),
            vision_qkv=source_layout.choice("vision_qkv", VISION_QKV),
        ),
        select=reader.modalities(content, "select"),
        text_source=reader.path(content, "text_source"),
        projector=reader.choice(content, "projector", PROJECTOR_CHOICES),
        tied_head=reader.choice(content, "tied_head", TIED_HEAD),
        vocab_size=reader.optional_size(content, "vocab_size"),
        lora_only=reader.truth(content, "lora_only"),
        merge_lora=reader.truth(content, "merge_lora"),
        lora_alpha=reader.optional_number(content, "lora_alpha"),
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
    if config.text_source is not None and config.select is not None and "text" not in config.select:
        reader.problems.append(f"text_source={config.text_source}: select={list(config.select)} leaves out the text")
    raise_if(reader.problems)
    return config


def default_of(option: Field[Any]) -> Any:
    """The default of a field; a required one has none that a value can equal."""
    return option.default if option.default_factory is MISSING else option.default_factory()
