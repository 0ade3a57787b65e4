"""Requested layouts: the options of `layout` for a result, and of `source_layout` for a source.

Owns the two records, and never completes them: `balance` does so for a result, and the reader of a format for a source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from distconv.fields import ByName, Record, option
from distconv.kinds import Choice, Integer, Truth, Value
from distconv.layout.layout import PLACEMENTS, StageRows
from distconv.models.rules import MODALITIES
from distconv.path_kinds import FilePaths

# More layers than any stage has.
_LAYERS = Integer(2**16, smallest=0)


@dataclass(frozen=True)
class StageLists(Value[StageRows]):
    """Numbers of layers per pipeline stage: one list, or one per virtual stage; held as one row per virtual stage."""

    expected = "layers per stage, such as [1,10,10,7], or one such list per virtual stage"
    example = "[…]"

    def fits(self, value: Any) -> bool:
        """Whether the value is a list of integers from 0, or a list of such lists."""
        return _is_list(value) and all(_is_list(row) and all(map(_LAYERS.fits, row)) for row in _rows(value))

    def held(self, value: Any) -> StageRows:
        """The value as one row per virtual stage."""
        return tuple(map(tuple, _rows(value)))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0


def _rows(value: Any) -> Any:
    return value if isinstance(value[0], (list, tuple)) else [value]


# Larger than any parallel axis; rejects typing errors.
_AXIS = Integer(2**16)
_STAGES = ByName(StageLists(), MODALITIES)
_ENCODER_AXIS = ByName(_AXIS, MODALITIES[1:])
_PLACEMENT = Choice({PLACEMENTS[0]: "", PLACEMENTS[1]: "embedding, final norm and head on pipeline rank 0"})
_SIZES = "pipeline and virtual pipeline sizes, for stage lists to be chosen"
_AS_LAYOUT = "as `layout`, of a source that is cut by ranks"
_DETECTED = "found in its files"


@dataclass(frozen=True, kw_only=True)
class Layout(Record):
    """The requested layout of a result; `None` and missing modalities are chosen by `balance`.

    `stages` holds `StageRows`, and takes lists of either depth. `from_` is `layout.from`, until its files are read.
    """

    GROUP: ClassVar[str] = "layout"

    from_: Sequence[Path] | None = option(
        FilePaths("FILE"),
        None,
        "take the layout from the configuration of a training, where no other key says otherwise: the script that "
        "starts it, a model file of MindSpeed-MM (`model.json`), both as `[train.sh,model.json]`, or a checkpoint of "
        "it. Nothing is run: of a script, plain assignments (`TP=2`) and flags are read",
        of_run=True,
    )
    tp: int | None = option(_AXIS, None, "tensor parallel size", unset="`1`", neutral=1)
    ep: int | None = option(_AXIS, None, "expert parallel size", unset="`1`", neutral=1)
    expert_tp: int | None = option(
        _AXIS, None, "tensor parallel size of experts", unset="that of the text, `layout.tp`"
    )
    stages: Mapping[str, Any] = option(
        _STAGES,
        {},
        "layers per pipeline stage: `[1,10,10,7]`, or one list per virtual stage: `[[0,0,0,1],[4,4,4,4],[4,3,2,2]]`; "
        "zeros may stand anywhere; an encoder list shorter than the text list repeats",
        unset="encoders on the first stage, text layers balanced over `pp` and `vpp`",
    )
    pp: int | None = option(_AXIS, None, _SIZES, unset="as the lists say, or 1")
    vpp: int | None = option(_AXIS, None, _SIZES, unset="as the lists say, or 1")
    modality_tp: Mapping[str, int] = option(
        _ENCODER_AXIS, {}, "tensor parallel size of an encoder", unset="that of the text, `layout.tp`"
    )
    placement: str = option(_PLACEMENT, PLACEMENTS[0], "order of the pipeline stages")
    check: bool = option(
        Truth(),
        True,
        "refuse stages on which the training side computes wrong values or nothing; `false` only notes them",
    )


@dataclass(frozen=True, kw_only=True)
class SourceLayout(Record):
    """The given layout of a source; `None` and missing modalities are detected in its files.

    `stages` holds `StageRows`, and takes lists of either depth.
    """

    GROUP: ClassVar[str] = "source_layout"

    tp: int | None = option(_AXIS, None, _AS_LAYOUT, unset=_DETECTED)
    ep: int | None = option(_AXIS, None, _AS_LAYOUT, unset=_DETECTED)
    expert_tp: int | None = option(_AXIS, None, _AS_LAYOUT, unset=_DETECTED)
    stages: Mapping[str, Any] = option(_STAGES, {}, _AS_LAYOUT, unset=_DETECTED)
    pp: int | None = option(_AXIS, None, _AS_LAYOUT, unset=_DETECTED)
    vpp: int | None = option(_AXIS, None, _AS_LAYOUT, unset=_DETECTED)
    modality_tp: Mapping[str, int] = option(_ENCODER_AXIS, {}, _AS_LAYOUT, unset=_DETECTED)
    placement: str | None = option(_PLACEMENT, None, _AS_LAYOUT, unset=_DETECTED)
    vision_qkv: str = option(
        Choice({"heads": "by head, as training has it", "fused": "as published, as in files of late 2025"}),
        "heads",
        "fused qkv of an encoder",
    )
