"""The formats, by the names that users give them, and the options of a job in any of them."""

from __future__ import annotations

from dataclasses import dataclass

from distconv.fields import Choice, option
from distconv.formats.dcp.options import DcpOptions
from distconv.formats.huggingface.options import HuggingFaceOptions


@dataclass(frozen=True, kw_only=True)
class FormatWords:
    """A format in words: what a result in it is."""

    words: str


FORMATS: dict[str, FormatWords] = {
    "megatron": FormatWords(words="`mp_rank_*` directories, cut by ranks"),
    "dcp": FormatWords(words="torch.distributed.checkpoint: whole tensors, no `layout`"),
    "hf": FormatWords(words="Hugging Face directory"),
}


@dataclass(frozen=True, kw_only=True)
class Options(HuggingFaceOptions, DcpOptions):
    """What the user asks for, all but the model definition."""

    target_format: str = option(
        Choice(lambda: {name: each.words for name, each in FORMATS.items()}), "megatron", "format of the result"
    )
