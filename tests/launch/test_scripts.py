"""The scripts of launch/: what each calls, with programs in the place of a cluster's that note how they were called."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import hashes, load_case, overrides, write_source
from tests.launch import fake
from tests.processes.jobs import LAUNCHER_NAMES, OPEN_MPI, OPEN_MPI_NAMES, need_open_mpi, run, single
from tests.readme import README

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# What a shell could change, were it asked to.
WORDS = [
    "source=/ckpt/a b",
    "target='x' \"y\"",
    "report=$HOME/*.json",
    "layout.stages.text=[1, 2]",
    "a=\nb=\\",
    "模型=é",
]
# How a job of Slurm begins: what sbatch sets of the header.
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "node[1-2000]",
    "SLURM_JOB_NUM_NODES": "2000",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_CPUS_PER_TASK": "2",
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A directory to work in, and the programs of a cluster that are found first."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, script: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_NAMES)}
        return subprocess.Popen(
            [script, *words],
            env={**inherited, **self.environment, **environment},
            cwd=self.directory,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, script: Path, *words: str, **environment: str) -> list[dict[str, Any]]:
        """Every call, in order."""
        with self.start(script, *words, **environment) as process:
            out, err = process.communicate()
        assert process.returncode == 0, out + err
        return self.calls()

    def calls(self) -> list[dict[str, Any]]:
        path = self.directory / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[..., Cluster]:
    """A cluster that has stand-ins for these programs, all of them if none is named."""

    def make(*names: str) -> Cluster:
        programs = tmp_path / "programs"
        programs.mkdir()
        for name in names or fake.NAMES:
            words = shlex.join([sys.executable, fake.__file__, name])
            (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            (programs / name).chmod(0o755)
        paths = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        (tmp_path / "work").mkdir()
        return Cluster(
            directory=tmp_path / "work",
            environment={"PATH": os.pathsep.join(paths), "CALLS": str(tmp_path / "work" / "calls")},
        )

    return make


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_can_be_started_and_stops_at_errors(script):
    subprocess.run(["/bin/bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in script.read_text()


def test_readme_names_every_way_to_start():
    for path in LAUNCH.glob("*"):
        if path.name not in ("demo.sh", "Dockerfile.dockerignore"):
            assert f"`launch/{path.name}`" in README


@pytest.mark.parametrize(
    ("script", "before", "environment"),
    [
        ("torchrun.sh", [], {}),
        ("mpirun.sh", [], {}),
        ("mpirun.sh", ["--hostfile", "my hosts", "--"], {}),
        ("mpirun.sh", ["--"], {"MPI": "mpirun (Open MPI) 5.0.11"}),
        ("pbs.sh", [], {"NODES": "a\n"}),
        ("pbs.sh", ["-q", "long", "--"], {"NODES": "a\na\n"}),
        ("slurm.sh", [], SLURM),
        ("slurm.sh", [], {**SLURM, "START": "pmix"}),
        ("slurm.sh", [], {**SLURM, "START": "torchrun"}),
    ],
)
def test_words_reach_the_program_as_they_are(script, before, environment, cluster):
    called = cluster().run(LAUNCH / script, *before, *WORDS, **environment)

    assert called[-1]["words"][-len(WORDS) - 2 :] == ["-m", "distconv", *WORDS]


def test_torchrun_on_machines_without_a_scheduler(cluster):
    given = {"NODES": "4", "NODE": "3", "HEAD": "first", "PROCESSES": "8", "PORT": "1234"}
    (call,) = cluster().run(LAUNCH / "torchrun.sh", **given)

    assert call["words"] == [
        *("--nproc-per-node", "8", "--nnodes", "4", "--node-rank", "3", "--master-addr", "first"),
        *("--master-port", "1234", "-m", "distconv"),
    ]


@pytest.mark.parametrize(
    ("mpi", "options", "expected"),
    [
        ("HYDRA build details:", ["-ppn", "8"], ["-ppn", "8"]),
        # It binds every process to a core, whose threads then share it.
        ("mpirun (Open MPI) 5.0.11", ["--hostfile", "a b"], ["--hostfile", "a b", "--bind-to", "none"]),
        ("mpirun (Open MPI) 4.1.4", ["--bind-to", "numa"], ["--bind-to", "numa"]),
    ],
)
def test_options_of_mpirun(mpi, options, expected, cluster):
    made = cluster("mpirun", "python")
    (call,) = made.run(LAUNCH / "mpirun.sh", *options, "--", "source=a", MPI=mpi, PROCESSES="16")

    python = str(made.directory.parent / "programs" / "python")
    assert call["words"] == ["-n", "16", *expected, python, "-m", "mpi4py", "-m", "distconv", "source=a"]


def test_a_job_of_pbs(cluster):
    """The job that it submits has the directives of the script, and a process for each line of the file of nodes."""
    made = cluster("qsub", "mpirun", "python")
    submitted, call = made.run(LAUNCH / "pbs.sh", "-l", "select=2:mpiprocs=2", "--", "source=a", NODES="a\na\nb\nb\n")

    assert submitted["words"] == ["-l", "select=2:mpiprocs=2"]
    directives = re.findall("^#PBS .*$", (LAUNCH / "pbs.sh").read_text(), re.MULTILINE)
    assert submitted["input"].splitlines()[1:-1] == directives
    assert {"#PBS -r y", "#PBS -S /bin/bash"} <= {*directives}
    assert call["directory"] == str(made.directory)
    assert call["words"][:4] == ["-n", "4", "--hostfile", str(made.directory / "nodes")]


def test_slurm_takes_any_number_of_nodes_and_asks_the_job_to_end_before_its_time():
    header = re.findall("^#SBATCH --(.*)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)

    assert not [option for option in header if option.startswith(("nodes", "partition", "account"))]
    assert {"requeue", "signal=B:USR1@120", "open-mode=append"} <= {*header}


@pytest.mark.parametrize(
    ("start", "step", "program"),
    [
        ("srun", ["--mpi=none", "--cpus-per-task=2"], ["python", "-m", "distconv"]),
        ("pmi2", ["--mpi=pmi2", "--cpus-per-task=2"], ["python", "-m", "mpi4py", "-m", "distconv"]),
        ("torchrun", ["--mpi=none", "--ntasks=2000", "--ntasks-per-node=1", "--cpus-per-task=16"], None),
    ],
)
def test_a_step_of_slurm(start, step, program, cluster):
    made = cluster()
    called = made.run(LAUNCH / "slurm.sh", "source=a", START=start, **SLURM)
    (srun,) = (call for call in called if call["name"] == "srun")

    assert srun["words"][: len(step) + 1] == ["--kill-on-bad-exit=1", *step]
    assert srun["environment"]["MASTER_ADDR"] == "node1"
    assert srun["environment"]["MASTER_PORT"] == "24567"
    if program:
        assert srun["words"][len(step) + 1 :] == [*program, "source=a"]
    else:
        assert called[-1]["words"] == [
            *("--node-rank", "0", "--nproc-per-node", "8", "--nnodes", "2000", "--rdzv-id", "1234567"),
            *("--master-addr", "node1", "--master-port", "24567", "-m", "distconv", "source=a"),
        ]


def test_where_the_processes_of_slurm_meet_can_be_given(cluster):
    called = cluster().run(LAUNCH / "slurm.sh", HEAD="node1-ib", PORT="1234", **SLURM)

    (srun,) = (call for call in called if call["name"] == "srun")
    assert srun["environment"]["MASTER_ADDR"] == "node1-ib"
    assert srun["environment"]["MASTER_PORT"] == "1234"


@pytest.mark.parametrize("start", ["srun", "pmix", "torchrun"])
def test_places_for_modules_and_containers_of_slurm(start, cluster, tmp_path):
    """Each line that is a comment works when it is none."""
    made = cluster()
    text = (LAUNCH / "slurm.sh").read_text()
    assert re.search("^# module load ", text, re.MULTILINE)
    assert re.search("^##SBATCH --partition=.* --account=", text, re.MULTILINE)
    containers = re.findall(r"^# (run=\(.*\))$", text, re.MULTILINE)
    expected = {
        "pyxis": [f"--container-image={tmp_path}/distconv.sqsh", "--container-mounts=/ckpt:/ckpt"],
        "apptainer": ["apptainer", "exec", "--bind", "/ckpt", f"{tmp_path}/distconv.sif"],
    }
    for line, words in zip(containers, expected.values(), strict=True):
        script = tmp_path / "edited.sh"
        script.write_text(text.replace(f"# {line}", line))
        script.chmod(0o755)
        called = made.run(script, "source=a", START=start, HOME=str(tmp_path), **SLURM)
        srun = [call for call in called if call["name"] == "srun"][-1]
        program = {"srun": ["python", "-m", "distconv"], "pmix": ["python", "-m", "mpi4py"], "torchrun": ["bash", "-c"]}
        at = srun["words"].index(program[start][0])
        assert srun["words"][at - len(words) : at + len(program[start])] == [*words, *program[start]]


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        pytest.param("143", {}, True, id="it was asked to end"),
        pytest.param("0", {}, False, id="it had just ended well"),
        pytest.param("143", {"SLURM_RESTART_COUNT": "10"}, False, id="often enough"),
        pytest.param("143", {"SLURM_RESTART_COUNT": "2", "RESTARTS": "3"}, True, id="as often as is wanted"),
        pytest.param("143", {"RESTARTS": "0"}, False, id="not wanted"),
    ],
)
def test_a_job_of_slurm_whose_time_is_over_goes_back_into_the_queue(status, restarts, requeued, cluster):
    made = cluster()
    with made.start(LAUNCH / "slurm.sh", **SLURM, **restarts, STATUS=status) as job:
        while not (made.directory / "started").exists():
            assert job.poll() is None
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        job.communicate(timeout=60)

    assert job.returncode == int(status)
    asked = [call["words"] for call in made.calls() if call["name"] == "scancel"]
    assert asked == [["--signal=TERM", "1234567"]]
    again = [call["words"] for call in made.calls() if call["words"][0] == "requeue"]
    assert again == ([["requeue", "1234567"]] if requeued else [])


def test_a_job_of_slurm_that_failed_does_not_go_back_into_the_queue(cluster):
    made = cluster("scontrol", "scancel", "srun")
    with made.start(LAUNCH / "slurm.sh", "source=nothing", "target=mm", **SLURM, HEAD="127.0.0.1") as job:
        out, err = job.communicate()

    assert job.returncode == 2, out
    assert "source=nothing" in err
    assert [call["words"][0] for call in made.calls() if call["name"] == "scontrol"] == ["show"]


@pytest.fixture
def check(cluster, tmp_path):
    """Two processes that a script starts make what one does, with stand-ins for schedulers alone."""

    def run_both(script: str, *before: str, path: Path | None = None, **environment: str) -> None:
        made = cluster("scontrol", "scancel", "srun", "qsub")
        case = load_case("qwen2vl__tp2_pp2")
        words = [*overrides(case), f"source={write_source(tmp_path / 'h f', case)}"]
        one = run(single(*words, "target=one"), made.directory)
        assert one.status == 0, one.err
        if path:
            environment["PATH"] = f"{path}:{made.environment['PATH']}"
        with socket.create_server(("127.0.0.1", 0)) as server:
            environment["PORT"] = str(server.getsockname()[1])

        with made.start(LAUNCH / script, *before, *words, "target=t wo", **SLURM, **environment) as job:
            out, err = job.communicate()

        assert job.returncode == 0, err
        assert "on 2 processes" in out
        assert hashes(made.directory / "t wo") == hashes(made.directory / "one")

    return run_both


@pytest.mark.parametrize(
    ("script", "environment"),
    [
        ("torchrun.sh", {"PROCESSES": "2"}),
        ("mpirun.sh", {"PROCESSES": "2"}),
        ("pbs.sh", {"NODES": "localhost\nlocalhost\n"}),
        ("slurm.sh", {"TASKS": "2", "HEAD": "127.0.0.1"}),
    ],
)
def test_a_job_through_a_script(script, environment, check):
    check(script, **environment)


@pytest.mark.parametrize(
    ("script", "before", "environment"),
    [
        ("mpirun.sh", ["--map-by", ":OVERSUBSCRIBE", "--"], {"PROCESSES": "2"}),
        ("pbs.sh", [], {"NODES": "localhost\nlocalhost\n"}),
    ],
)
def test_a_job_through_a_script_with_open_mpi(script, before, environment, check):
    need_open_mpi()
    check(script, *before, path=OPEN_MPI / "bin", **environment, **OPEN_MPI_NAMES)
