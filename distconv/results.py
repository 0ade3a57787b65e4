"""The result of a plan: its format, and where it is put."""

from __future__ import annotations

from pathlib import Path

from distconv.commit import Target
from distconv.dcp_files import DcpFormat
from distconv.dcp_plan import DcpPlan
from distconv.formats import Format
from distconv.iterations import RELEASE
from distconv.megatron_files import MegatronFormat
from distconv.megatron_plan import MegatronPlan
from distconv.outputs import Plan


def format_of(plan: Plan) -> Format:
    """The format that a plan is for."""
    if isinstance(plan, MegatronPlan):
        return MegatronFormat(plan.dictionaries)
    assert isinstance(plan, DcpPlan)
    return DcpFormat(plan)


def target_of(directory: Path, iteration: str | None) -> Target:
    """Where the result goes: below the directory that the user named, as the iteration that was asked for."""
    return Target(directory=directory, iteration=iteration or RELEASE)
