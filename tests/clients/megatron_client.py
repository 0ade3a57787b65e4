"""Load converted checkpoints the way a Megatron training job does, and compute with them, on the CPU.

    python megatron_client.py < jobs

Each line of standard input is a job, a JSON object; each line of standard output is its answer:

    {"checkpoint": "…", "model": "model.json", "inputs": "inputs.pt", "outputs": "…",
     "layout": {"tp": 2, "ep": 1, "text": [[1, 3]], "vision": [[4, 0]]}, "save": ""}
    {"status": "loaded", "reason": ""}

`text[v][p]` is the number of layers in virtual stage v of pipeline rank p. A job runs in one process per (tp, ep, pp)
rank; `megatron_rank.py` says what each does. The ranks at the end of a pipeline write `logits_{tp}_{ep}.pt`, and of a
model with an image encoder `image_features_{tp}_{ep}.pt`, into the directory `outputs`: each expert parallel rank those
of its share of the token ids. Where `save` names a directory, it gets the model as torch_dist, iteration 7.

    loaded    the modules took exactly what the checkpoint holds, and the outputs are written
    refused   they did not; the reason names rank, part and tensors
    broken    the client itself failed or did not end in time; details on standard error

The exit status is 0 when all jobs were loaded, 3 when one was refused, 4 when one was broken. Whether the outputs are
right is not judged here: the caller compares them.

The modules are imported once and inherited by the ranks through fork, since importing takes longer than a job.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import before_megatron  # noqa: F401 - what megatron-core imports
from megatron_rank import REFUSED, Job, rank_main
from megatron_versions import without_accelerator

JOB_TIMEOUT = timedelta(seconds=60)
EXIT_STATUS = {"loaded": 0, "refused": 3, "broken": 4}


def main() -> int:
    # what any library prints must not be taken for an answer
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        without_accelerator()
        worst = 0
        for line in sys.stdin:
            status, reason = run(Job.from_json(line))
            print(json.dumps({"status": status, "reason": reason}), file=answers, flush=True)
            worst = max(worst, EXIT_STATUS[status])
    return worst


def run(job: Job) -> tuple[str, str]:
    """The job's status and reason; when this returns, all its processes have ended."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "refused"
        ranks = [
            fork.Process(
                target=rank_main,
                args=(job, rank),
                kwargs={"rendezvous": Path(scratch) / "rendezvous", "report": report, "timeout": JOB_TIMEOUT},
                # megatron-core saves in processes of its own, which a daemon may not have
                daemon=False,
            )
            for rank in range(len(job.layout.directories))
        ]
        for process in ranks:
            process.start()
        try:
            problem = watch(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        if problem:
            return "broken", problem
        return ("refused", report.read_text()) if report.exists() else ("loaded", "")


def watch(ranks: Sequence[BaseProcess]) -> str:
    """Wait until all have ended or one has failed; what went wrong, or nothing."""
    deadline = time.monotonic() + JOB_TIMEOUT.total_seconds()
    running = {process.sentinel: rank for rank, process in enumerate(ranks)}
    while running:
        ended = wait(list(running), timeout=deadline - time.monotonic())
        if not ended:
            return f"ranks {sorted(running.values())} have not ended after {JOB_TIMEOUT}"
        for sentinel in ended:
            assert isinstance(sentinel, int)
            rank = running.pop(sentinel)
            ranks[rank].join()
            if ranks[rank].exitcode not in (0, REFUSED):
                return f"rank {rank} ended with status {ranks[rank].exitcode}"
    return ""


if __name__ == "__main__":
    # without taking down an interpreter with torch in it, which takes longer than most jobs
    os._exit(main())
