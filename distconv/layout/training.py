"""What the training side can run: limits on pipeline stages beyond those of a valid layout.

Owns the check of a target layout against the restrictions of a definition, and against the order of encoders and text,
which is the same for every model. Never looks at a source: what was trained under any layout can be read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from distconv.errors import counted, raise_if
from distconv.layout.layout import (
    CompleteLayout,
    StageRows,
    occupied_stages,
    shown_stages,
    stage_coordinates,
)
from distconv.layout.request import Layout
from distconv.models.definition import Definition
from distconv.models.rules import TEXT
from distconv.models.sizes import Sizes


def text_on_first_stage(definition: Definition, sizes: Sizes, modalities: Collection[str]) -> int:
    """The number of text layers that must be on the first stage, of a model of these sizes that has as many.

    `modalities`: those in the result. The text of a larger model, alone, is trained as any language model is.

    Raises:
        InputError: its config.json does not say it.
    """
    if _is_text_of_more(modalities, definition):
        return 0
    named = [each.first_stage for each in definition.restrictions if each.modality == TEXT]
    return max((definition.count(each, sizes) for each in named if each is not None), default=0)


def check_training(layout: CompleteLayout, request: Layout, definition: Definition, sizes: Sizes) -> tuple[str, ...]:
    """Check that the training side can run a layout; returns notes on what it is not known to run.

    With `layout.check=false` in the request, problems are notes. A text list counts even where no text is converted.

    Raises:
        InputError: every problem, with its reason.
    """
    stages = dict(layout.stages)
    if any(map(any, request.stages.get(TEXT, ()))):
        stages.setdefault(TEXT, request.stages[TEXT])
    late, unknown = _after_text(replace(layout, stages=stages))
    problems = [*_restricted(stages, definition, sizes), *late]
    if request.check:
        raise_if(
            [f"{problem}; give other stages, or layout.check=false to convert nevertheless" for problem in problems]
        )
    return (*problems, *unknown)


def _is_text_of_more(modalities: Collection[str], definition: Definition) -> bool:
    return set(modalities) == {TEXT} != set(definition.modalities)


def _restricted(stages: Mapping[str, StageRows], definition: Definition, sizes: Sizes) -> Iterator[str]:
    """Problems with the restrictions of the definition."""
    for each in definition.restrictions:
        rows = stages.get(each.modality)
        if rows is None or _is_text_of_more(stages, definition):
            continue
        given = _given(each.modality, rows)
        if each.one_stage and (count := len(occupied_stages(rows))) > 1:
            yield f"{given}: has {each.modality} layers on {count} stages, expected 1: {each.reason}"
        if each.first_stage is not None:
            # A model with fewer layers has all of them there.
            least = min(definition.count(each.first_stage, sizes), sum(map(sum, rows)))
            if rows[0][0] < least:
                yield (
                    f"{given}: has {counted(rows[0][0], f'{each.modality} layer')} on the first stage, expected at "
                    f"least {least} ({each.first_stage}): {each.reason}"
                )


def _after_text(layout: CompleteLayout) -> tuple[list[str], list[str]]:
    """Problems with encoder layers after the last text layer, and notes on those after the beginning of the text."""
    problems: list[str] = []
    notes: list[str] = []
    if TEXT not in layout.stages:
        return problems, notes
    # Where the embedding is, features of encoders join the text.
    first, last = layout.placement_of(TEXT).first[0], occupied_stages(layout.stages[TEXT])[-1]
    for modality, rows in layout.stages.items():
        stage = occupied_stages(rows)[-1]
        given = f"{_given(modality, rows)}: has {modality} layers on {_shown(stage, layout)}"
        if modality == TEXT or stage <= first:
            continue
        if stage > last:
            problems.append(
                f"{given}, expected none after {_shown(last, layout)}, which has the last text layer: no text layer "
                "would get their features"
            )
        else:
            notes.append(
                f"{given}, after {_shown(first, layout)}, where the text begins: the training side is not known to run "
                "this"
            )
    return problems, notes


def _given(modality: str, rows: StageRows) -> str:
    return f"layout.stages.{modality}={shown_stages(rows)}"


def _shown(stage: int, layout: CompleteLayout) -> str:
    virtual_stage, pp_rank = stage_coordinates(stage, layout.pp)
    return f"pipeline rank {pp_rank}" + (f" of virtual stage {virtual_stage}" if layout.vpp > 1 else "")
