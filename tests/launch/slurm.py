"""A real Slurm of two nodes on this machine, for any user, without munge or control groups.

The programs are those of the machine, or those that `make slurm` unpacks beside the environment.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes.jobs import Job, Outcome, run

UNPACKED = Path(sys.prefix) / "side" / "slurm" / "usr"
LIBRARIES = UNPACKED / "lib" / "x86_64-linux-gnu"
PATHS = os.pathsep.join(
    map(str, (UNPACKED / "bin", UNPACKED / "sbin", Path(sys.executable).parent, os.environ["PATH"]))
)
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
SlurmdPidFile={directory}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=1
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES State=UP
"""
# `sbatch --wait` looks only twice a minute. A job that is put back into the queue may seem to have ended for a moment.
# The status is that of the script.
SUBMIT = r"""
number=$(sbatch --parsable "$@")
echo "$number" > number
for ((ended = 0; ended < 10; ended++)); do
    sleep 0.2
    [[ $(scontrol show job "$number") =~ JobState=(COMPLETED|FAILED|CANCELLED)\ .*ExitCode=([0-9]+) ]] || ended=0
done
exit "${BASH_REMATCH[2]}"
"""


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A cluster that runs: the environment that its programs need."""

    environment: dict[str, str]

    def run(self, *command: str, directory: Path | None = None) -> Outcome:
        return run([found(command[0]), *command[1:]], directory or Path.cwd(), self.environment)

    def submit(self, directory: Path, *command: str, **environment: str) -> Job:
        """A job, which ends when that of Slurm has; relative paths are those of the directory."""
        words = ["/bin/bash", "-c", SUBMIT, "submit", "--nodes=2", "--ntasks-per-node=2", "--output=log", *command]
        # The nodes have no names but in Slurm.
        return Job(words, directory, {**self.environment, "HEAD": "127.0.0.1", **environment})

    def field(self, directory: Path, name: str) -> str:
        """A field of the job that was submitted there, as scontrol shows it; empty before that."""
        number = (directory / "number").read_text().strip() if (directory / "number").exists() else ""
        shown = self.run("scontrol", "show", "job", number).out if number else ""
        return (re.findall(rf"\b{name}=(\S*)", shown) or [""])[0]


@contextmanager
def two_nodes(directory: Path) -> Iterator[Slurm]:
    """Start the daemons in the directory; skip by name where there are none."""
    control, node, step = found("slurmctld"), found("slurmd"), found("slurmstepd")
    environment = {"SLURM_CONF": str(directory / "slurm.conf"), "PATH": PATHS}
    plugins = ""
    if str(UNPACKED) in control:
        environment["LD_LIBRARY_PATH"] = f"{LIBRARIES}:{LIBRARIES}/slurm-wlm"
        plugins = f"PluginDir={LIBRARIES}/slurm-wlm\n"
    (directory / "state").mkdir()
    content = CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0], user=getpass.getuser(), directory=directory, ports=free_ports(3)
    )
    (directory / "slurm.conf").write_text(content + plugins)
    slurm = Slurm(environment=environment)
    with ExitStack() as daemons:
        for command in ([control], [node, "-N", "n1", "-d", step], [node, "-N", "n2", "-d", step]):
            daemon = daemons.enter_context(Job([*command, "-D"], directory, environment))
        until = time.monotonic() + 60
        while slurm.run("sinfo", "--noheader", "--format=%T %D").out.split() != ["idle", "2"]:
            if not daemon.is_running() or time.monotonic() > until:
                pytest.fail(f"Slurm does not start: {daemon.end().err}")
            time.sleep(0.2)
        yield slurm


def found(program: str) -> str:
    """The program, which Debian calls by another name."""
    path = shutil.which(program, path=PATHS) or shutil.which(f"{program}-wlm", path=PATHS)
    if path is None:
        pytest.skip(f"there is no {program}: make slurm unpacks the Slurm of Debian")
    return path


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
