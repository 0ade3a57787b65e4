"""The result of a plan: its format, and where it is put."""

from __future__ import annotations

from pathlib import Path

from distconv.commit import Target
from distconv.dcp_files import DcpFormat
from distconv.dcp_plan import DcpPlan
from distconv.formats import Format
from distconv.huggingface_files import HuggingFaceFormat
from distconv.huggingface_plan import HuggingFacePlan
from distconv.iterations import RELEASE
from distconv.megatron_files import MegatronFormat
from distconv.megatron_plan import MegatronPlan
from distconv.outputs import Plan


def format_of(plan: Plan) -> Format:
    """The format that a plan is for."""
    if isinstance(plan, MegatronPlan):
        return MegatronFormat(plan.dictionaries)
    if isinstance(plan, DcpPlan):
        return DcpFormat(plan)
    assert isinstance(plan, HuggingFacePlan)
    return HuggingFaceFormat(plan)


def target_of(plan: Plan, directory: Path, iteration: str | None) -> Target:
    """Where the result goes: a Hugging Face directory is the one that the user named, the others hold an iteration."""
    return Target(directory=directory, iteration=None if isinstance(plan, HuggingFacePlan) else iteration or RELEASE)
