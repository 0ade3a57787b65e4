"""The plan of a torch_dist result: that of a flat DCP of stacked parameters, with what training asks for beside them.

Owns the values beside the tensors. How tensors are cut into chunks and files, `dcp.plan` knows. Reads nothing.
"""

from __future__ import annotations

from distconv.formats.dcp.plan import DcpPlan, Names, Value, plan_parts
from distconv.formats.torch_dist.kind import BACKEND
from distconv.formats.torch_dist.stacks import stack
from distconv.formats.torch_zip.create import empty_state_frame
from distconv.models.parameter_dialect import ParameterDialect
from distconv.models.parameters import Binding


def make_torch_dist_plan(binding: Binding, dialect: ParameterDialect) -> DcpPlan:
    """Plan a bound model whose parameters have the names of its definition, under the keys of a dialect.

    Raises:
        InputError: as `stack`.
        JobError: as `plan_parts`.
    """
    stacks = stack(dialect.in_distributed().names(binding))
    files, chunks = plan_parts(stacks.parts)
    states = tuple(stacks.extra_states(dialect))
    return DcpPlan(
        files=files,
        chunks_of_files=chunks,
        unconverted=binding.unconverted,
        names=Names(naming="megatron", dialect=dialect.name),
        values=(Value(keys=states, frame=empty_state_frame()),) if states else (),
        state=None,
        form=BACKEND,
    )
