"""What `action=plan` foresees of the processes of a job: their files, reads and memory, and the reads of their nodes.

Owns which processes are planned for, and what they read beside what they write. Reads nothing of a checkpoint.
"""

from __future__ import annotations

import os
from typing import Any

from distconv.formats.registry import Options
from distconv.planning.assign import assign_parts, gains_by_parts
from distconv.planning.plan import Planned, shares_of
from distconv.planning.summary import planned_nodes, planned_processes
from distconv.runtime.lanes import Lanes
from distconv.runtime.launch import local_size
from distconv.transfer.parts import may_be_shared
from distconv.transfer.planned_reads import planned_reads


def foreseen(options: Options, planned: Planned, size: int, lanes: Lanes) -> dict[str, Any]:
    """The part of the report about processes, of which `size` run, and about their nodes, if these are known.

    `lanes`: the threads and buffers of each.
    """
    count, per_node = options.processes or size, options.processes_per_node
    if per_node is None and options.processes is None:
        per_node = local_size(os.environ)
    files = planned.plan.files
    shared = gains_by_parts(options, files, count) and may_be_shared(options.target, options.io)
    shares = assign_parts(planned.plan, files, count, shared=shared)
    reads = planned_reads(planned.plan, shares, lanes, per_node)
    copies = [shares_of(each, count) for each in (planned.replicas, planned.padding)]
    # Originals and duplicates are both read.
    compared = [2 * sum(each.nbytes for share in shares for each in share) for shares in zip(*copies, strict=True)]
    nodes = None if per_node is None else planned_nodes(per_node, reads.fetched, reads.distinct, compared)
    return {"processes": planned_processes(shares, reads.sources, compared, lanes.nbytes), "nodes": nodes}
