"""Start a program on processes that find each other by MASTER_ADDR, as srun does: `plain_launcher.py N PROGRAM…`.

Rank 0 hosts the store. When a process has ended with a failure, the others have some seconds before they are killed, as
with `srun --kill-on-bad-exit`. The exit status is the largest, in which signals do not count.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

GRACE_SECONDS = 5


def main() -> int:
    count = int(sys.argv[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    around = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [subprocess.Popen(sys.argv[2:], env={**os.environ, **around, "RANK": str(rank)}) for rank in range(count)]
    end = None
    while any(each.poll() is None for each in ranks):
        if end is None and any(each.poll() for each in ranks):
            end = time.monotonic() + GRACE_SECONDS
        if end is not None and time.monotonic() > end:
            for each in ranks:
                each.kill()
        time.sleep(0.05)
    return max(0, *(each.wait() for each in ranks))


if __name__ == "__main__":
    sys.exit(main())
