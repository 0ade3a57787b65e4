"""The picture in README.md: the plan of its first command, for the published Qwen2-VL-7B.

`python -m tests.picture` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distconv.foreseen import foreseen
from distconv.formats.huggingface.source import Checkpoint, HuggingFaceFacts
from distconv.layout.request import Layout
from distconv.models.library import Library
from distconv.page.page import picture_of
from distconv.planning.facts import Facts
from distconv.planning.plan import plan_job
from distconv.planning.summary import plan_report
from distconv.runtime.lanes import lanes
from tests import configuration
from tests.end_to_end.test_published import index_of
from tests.published import PUBLISHED

PATH = Path(__file__).with_name("picture.svg")
_PROCESSES = 8
_STAGES = {"text": [1, 10, 10, 7], "vision": [32, 0, 0, 0]}


def report_of(name: str, layout: Layout, processes: int) -> dict[str, Any]:
    """The report of the plan for a published model, in this layout and on so many processes."""
    (published,) = (each for each in PUBLISHED if each.name == name)
    checkpoint = Checkpoint(index=index_of(published.tensors()), config=published.configs[0])
    known = Library.of_package()
    facts = Facts(
        kind="hf",
        source=HuggingFaceFacts(model=checkpoint, text=None),
        reference=None,
        model=published.definition,
        definition=known.content(published.definition),
        iteration="release",
        dialects=known.dialects(),
    )
    options = configuration.job(action="plan", processes=processes, layout=layout)
    planned = plan_job(options, facts)
    report = plan_report(options, planned, facts, options.target / "release")
    return report | foreseen(options, planned, processes, lanes(None, None, 1))


def picture() -> str:
    """The picture as it has to be."""
    return picture_of(report_of("Qwen2-VL-7B", Layout(tp=2, stages=_STAGES), _PROCESSES)) + "\n"


if __name__ == "__main__":
    PATH.write_text(picture())
