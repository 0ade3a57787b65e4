"""Stands for the programs of clusters: notes how it was called, in the file $CALLS, and does the least that they do.

`fake.py NAME WORD…`: srun starts $TASKS processes here, qsub runs what it is given as the job of $NODES, and waits are
short. A name that is not known only notes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("scontrol", "scancel", "srun", "qsub", "mpirun", "torchrun", "python", "apptainer")


def main() -> int:
    name, *words = sys.argv[1:]
    call = {"name": name, "words": words, "directory": os.getcwd(), "environment": dict(os.environ)}
    if name == "qsub":
        call["input"] = sys.stdin.read()
    if words != ["--version"]:
        with Path(os.environ["CALLS"]).open("a") as calls:
            calls.write(json.dumps(call) + "\n")
    if name == "scontrol" and words[:2] == ["show", "hostnames"]:
        first, numbers = re.fullmatch(r"(\w+)\[1-(\d+)\]", words[2]).groups()
        sys.stdout.writelines(f"{first}{number + 1}\n" for number in range(int(numbers)))
    elif name == "mpirun" and words == ["--version"]:
        sys.stdout.write(os.environ.get("MPI", "HYDRA build details:"))
    elif name == "srun":
        return srun(words)
    elif name == "qsub":
        return qsub(call["input"])
    return 0


def srun(words: list[str]) -> int:
    """Start the processes of a step; or, with $STATUS, end with it once scancel has been called."""
    if "STATUS" in os.environ:
        Path("started").touch()
        while '"scancel"' not in Path(os.environ["CALLS"]).read_text():
            time.sleep(0.02)
        return int(os.environ["STATUS"])
    program = words[next(at for at, word in enumerate(words) if not word.startswith("--")) :]
    tasks = os.environ.get("TASKS", "1")
    step = {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_NODEID": "0"}
    started = [
        subprocess.Popen(program, env={**os.environ, **step, "SLURM_PROCID": str(rank)}) for rank in range(int(tasks))
    ]
    return max(each.wait() for each in started)


def qsub(script: str) -> int:
    Path("nodes").write_text(os.environ["NODES"])
    job = {"PBS_NODEFILE": os.path.abspath("nodes"), "PBS_O_WORKDIR": os.getcwd()}
    environment = {**os.environ, **job}
    return subprocess.run(["/bin/bash"], input=script.encode(), env=environment, cwd="/", check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
