"""The result of a plan: its format, where it is put, and what it remembers of its making.

Knows every kind of plan, so that nothing else need. Writes nothing.
"""

from __future__ import annotations

from pathlib import Path

from distconv.formats.base import Format
from distconv.formats.dcp.files import DcpFormat
from distconv.formats.dcp.plan import DcpPlan
from distconv.formats.huggingface.files import HuggingFaceFormat
from distconv.formats.huggingface.plan import HuggingFacePlan
from distconv.formats.huggingface.reference import check_side_files
from distconv.formats.megatron.files import MegatronFormat
from distconv.formats.megatron.plan import MegatronPlan
from distconv.formats.provenance import Record
from distconv.formats.records import Plan
from distconv.formats.registry import Options
from distconv.planning.facts import Facts
from distconv.transfer.commit import Target


def format_of(plan: Plan) -> Format:
    """The format that a plan is for."""
    if isinstance(plan, MegatronPlan):
        return MegatronFormat(plan.dictionaries)
    if isinstance(plan, DcpPlan):
        return DcpFormat(plan)
    assert isinstance(plan, HuggingFacePlan)
    return HuggingFaceFormat(plan)


def check_side(plan: Plan) -> None:
    """Raise `InputError` unless everything can be had that the result has beside its tensors."""
    if isinstance(plan, HuggingFacePlan) and plan.reference is not None:
        check_side_files(Path(plan.reference))


def record_of(config: Options, facts: Facts) -> Record | None:
    """What the result remembers of its making; a Hugging Face directory is what it is."""
    if config.target_format == "hf":
        return None
    if facts.reference is not None:
        return Record(model=facts.model, reference=str(Path(facts.reference.directory).resolve()))
    # A model of two directories is followed by neither.
    return Record(model=facts.model, reference=None if config.text_source is not None else str(config.source.resolve()))


def target_of(plan: Plan, directory: Path, iteration: str) -> Target:
    """Where the result goes: a Hugging Face directory is the one that the user named, the others hold an iteration."""
    return Target(directory=directory, iteration=None if isinstance(plan, HuggingFacePlan) else iteration)
