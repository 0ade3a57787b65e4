"""Start a program in surroundings that only its rank has: `surroundings.py JSON PROGRAM…`.

JSON maps a rank to `directory` (its working directory, in which a pipe can hold it: `held/`), `limits` (of resources,
by name), `ordinary` (permissions count for it even if it belongs to root), `delay` (seconds before it starts) and
`slow` (seconds that each move of data takes, or each of the system calls in `calls` but for the first `quick` ones).
So one process of a job can see another file, hit a limit, come late or be slow, on any machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from pathlib import Path

RANK_NAMES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def main() -> None:
    rank = next((os.environ[name] for name in RANK_NAMES if name in os.environ), "0")
    own = json.loads(sys.argv[1]).get(rank, {})
    if "directory" in own or "slow" in own:
        os.chdir(own.get("directory", "."))
        os.environ["DISTCONV_TEST_SLOW"] = str(own.get("slow", ""))
        os.environ["DISTCONV_TEST_QUICK"] = str(own.get("quick", 0))
        os.environ["DISTCONV_TEST_CALLS"] = own.get("calls", "preadv pwritev copy_file_range")
        paths = [str(Path(__file__).parent / "held"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    for name, value in own.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if own.get("ordinary") and os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
    time.sleep(own.get("delay", 0))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the arguments come from a test


if __name__ == "__main__":
    main()
