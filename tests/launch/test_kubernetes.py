"""The manifests and the image of launch/: what they say is compared with what must hold, since no cluster is here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.readme import README, commands

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
DOCKERFILE = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
MPI = yaml.safe_load((LAUNCH / "kubernetes_mpijob.yaml").read_text())
TORCH = yaml.safe_load((LAUNCH / "kubernetes_pytorchjob.yaml").read_text())
REPLICAS = {
    **{f"MPIJob {name}": each for name, each in MPI["spec"]["mpiReplicaSpecs"].items()},
    **{f"PyTorchJob {name}": each for name, each in TORCH["spec"]["pytorchReplicaSpecs"].items()},
}
# Those in which distconv runs: the launcher of MPI only starts it, by ssh.
AT_WORK = {name: each for name, each in REPLICAS.items() if name != "MPIJob Launcher"}


def pod(replica: dict[str, Any]) -> dict[str, Any]:
    return replica["template"]["spec"]


def container(replica: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(replica)["containers"]
    return only


def of_readme(launcher: str) -> list[list[str]]:
    """The commands of README.md that begin with it: their words from -m on."""
    found = [shlex.split(command) for command in commands() if command.startswith(launcher)]
    return [started(words) for words in found if "-m" in words]


def started(words: list[str]) -> list[str]:
    return words[words.index("-m") :]


def test_kinds():
    assert (MPI["apiVersion"], MPI["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    assert (TORCH["apiVersion"], TORCH["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    # The names by which the operators know them.
    assert {*MPI["spec"]["mpiReplicaSpecs"]} == {"Launcher", "Worker"}
    assert {*TORCH["spec"]["pytorchReplicaSpecs"]} == {"Master", "Worker"}
    assert {container(each)["name"] for each in TORCH["spec"]["pytorchReplicaSpecs"].values()} == {"pytorch"}


def test_the_commands_are_those_of_readme():
    launcher = container(MPI["spec"]["mpiReplicaSpecs"]["Launcher"])
    assert launcher["command"][:2] == ["mpirun", "-n"]
    assert started([*launcher["command"], *launcher["args"]]) in of_readme("mpirun")
    for each in TORCH["spec"]["pytorchReplicaSpecs"].values():
        words = [*container(each)["command"], *container(each)["args"]]
        assert started(words)[:2] == of_readme("torchrun")[0][:2]
        assert container(each)["args"] == launcher["args"]


def test_as_many_processes_as_the_workers_have_places():
    spec = MPI["spec"]
    command = container(spec["mpiReplicaSpecs"]["Launcher"])["command"]
    assert int(command[2]) == spec["slotsPerWorker"] * spec["mpiReplicaSpecs"]["Worker"]["replicas"]


def test_torchrun_takes_from_the_operator_which_pod_it_is_in():
    """WORLD_SIZE would be the number of processes with nprocPerNode, in later operators only."""
    assert "nprocPerNode" not in TORCH["spec"]
    (master, worker) = TORCH["spec"]["pytorchReplicaSpecs"].values()
    assert master["template"] == worker["template"]
    words = container(master)["command"]
    given = {"nnodes": "WORLD_SIZE", "node-rank": "RANK", "master-addr": "MASTER_ADDR", "master-port": "MASTER_PORT"}
    for option, name in given.items():
        assert words[words.index(f"--{option}") + 1] == f"$({name})"


@pytest.mark.parametrize("job", [MPI, TORCH], ids=["MPIJob", "PyTorchJob"])
def test_a_job_that_ends_early_is_tried_again(job):
    assert 0 < job["spec"]["runPolicy"]["backoffLimit"] <= 6
    assert job["spec"]["runPolicy"]["cleanPodPolicy"] == "Running"


@pytest.mark.parametrize("name", REPLICAS)
def test_a_pod(name):
    replica = REPLICAS[name]
    # Always would begin anew what has ended well.
    assert replica["restartPolicy"] in ("OnFailure", "Never")
    assert pod(replica)["terminationGracePeriodSeconds"] >= 60
    security = pod(replica)["securityContext"]
    assert security["runAsNonRoot"] is True
    (user,) = re.findall(r"^ARG UID=(\d+)$", DOCKERFILE, re.MULTILINE)
    assert [security["runAsUser"], security["runAsGroup"]] == [int(user), int(user)]
    # It would change the owner of all that is in the volume, sources included.
    assert "fsGroup" not in security
    assert container(replica)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    # One to be replaced, and no digest of an image that nobody has.
    assert container(replica)["image"] == "registry.example.com/distconv:latest"
    resources = container(replica)["resources"]
    assert {*resources["requests"]} == {"cpu", "memory"}
    # Throttled I/O threads would only be slower.
    assert {*resources["limits"]} == {"memory"}
    assert "env" not in container(replica)


@pytest.mark.parametrize("name", AT_WORK)
def test_a_pod_at_work_has_the_files_and_a_core_for_each_thread(name):
    replica = AT_WORK[name]
    mounted = {each["name"]: each["mountPath"] for each in container(replica)["volumeMounts"]}
    claims = {each["name"] for each in pod(replica)["volumes"] if "persistentVolumeClaim" in each}
    paths = [word.partition("=")[2] for word in container(REPLICAS["MPIJob Launcher"])["args"]]
    for path in paths:
        if path.startswith("/"):
            assert any(path.startswith(f"{mounted[claim]}/") for claim in claims)
    words = container(replica)["command"]
    processes = (
        int(words[words.index("--nproc-per-node") + 1]) if "torchrun" in words else MPI["spec"]["slotsPerWorker"]
    )
    assert int(container(replica)["resources"]["requests"]["cpu"]) == 2 * processes


def test_mpi_reaches_its_workers_as_the_image_has_it():
    worker = container(MPI["spec"]["mpiReplicaSpecs"]["Worker"])
    assert MPI["spec"]["mpiImplementation"] == "MPICH"
    assert MPI["spec"]["launcherCreationPolicy"] == "WaitForWorkersReady"
    assert re.search(r"pip install mpich==\S+ mpi4py==\S+", DOCKERFILE)
    keys = MPI["spec"]["sshAuthMountPath"]
    assert f"'HostKey {keys}/id_rsa'" in DOCKERFILE
    assert f"> {worker['command'][-1]}\n" in DOCKERFILE
    # In that order: of ssh, and of sshd, which the probe asks.
    assert re.findall(r"Port (\d+)", DOCKERFILE) == [str(worker["readinessProbe"]["tcpSocket"]["port"])] * 2
    volumes = {each["name"]: each for each in pod(MPI["spec"]["mpiReplicaSpecs"]["Worker"])["volumes"]}
    (shm,) = (each["name"] for each in worker["volumeMounts"] if each["mountPath"] == "/dev/shm")  # noqa: S108
    assert volumes[shm]["emptyDir"]["medium"] == "Memory"


def test_the_image_has_torch_first_without_cuda_and_everything_pinned():
    installed = re.findall("pip install (.*?)(?:&&|\n)", DOCKERFILE)
    assert "--index-url https://download.pytorch.org/whl/cpu torch==" in installed[0]
    assert "assert torch.version.cuda is None" in DOCKERFILE
    packages = [word for line in installed for word in shlex.split(line) if not word.startswith(("-", "http", "/src"))]
    assert packages
    assert [each for each in packages if not re.fullmatch(r"[\w-]+==[\d.]+", each)] == []
    torch = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"torch=={torch[1]}" in packages


def test_the_image_needs_no_root():
    steps = re.findall(r"^[A-Z]+ .*$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"FROM python:3\.\d+-slim-\w+", steps[0])
    users = [at for at, step in enumerate(steps) if step.startswith("USER ")]
    assert users
    assert [steps[at] for at in users] == ["USER $UID:$UID"]
    assert not [step for step in steps[users[0] :] if step.startswith(("RUN", "COPY"))]
    assert not [step for step in steps if "cuda" in step.lower() and "is None" not in step]


def test_the_image_gets_what_a_build_of_the_package_needs():
    """All that is copied is not ignored, exists, and is all that pyproject.toml speaks of."""
    copied = {word for line in re.findall("^COPY (.*) ", DOCKERFILE, re.MULTILINE) for word in line.split()}
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert all((ROOT / path).exists() for path in copied)
    assert copied == {"pyproject.toml", "README.md", "conf", "distconv"}


def test_nothing_of_this_is_in_the_package():
    assert "launch" not in (ROOT / "pyproject.toml").read_text()


def test_readme_says_how_to_start_them():
    for path in (LAUNCH / "Dockerfile", *LAUNCH.glob("*.yaml")):
        command = path.read_text().splitlines()[0].removeprefix("# ").rpartition(": ")[2]
        assert f"`{command}`" in README
