"""The same files, byte for byte, from every launcher and every number of processes; and one voice."""

from __future__ import annotations

import json
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path
from zlib import crc32

import pytest

from distconv.formats.torch_zip.archive import read_archive
from tests.checkpoints import describe_result, hashes, load_case, overrides, write_source
from tests.processes.jobs import Job, Outcome, mpirun, open_mpirun, plain_mpirun, run, single, torchrun

# Four files: more processes than files, fewer, and numbers that divide nothing.
MANY_FILES = "qwen2vl__tp2_pp2"
VIRTUAL_STAGES = "qwen2vl__tp1_pp2_vpp2_vit_split"


class Expected:
    """A case, its checkpoint, and what one process made of it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.case = load_case(name)
        self.directory = directory
        self.arguments = [*overrides(self.case), f"source={write_source(directory / 'hf', self.case)}", "target=mm"]
        self.outcome = run(single(*self.arguments), directory)
        assert self.outcome.status == 0, self.outcome.err
        self.files = hashes(directory / "mm")
        self.tensors = describe_result(directory / "mm")

    def check(self, outcome: Outcome, directory: Path, count: int) -> None:
        assert outcome.status == 0, outcome.err
        assert hashes(directory / "mm") == self.files
        *plan, result = outcome.out.splitlines()
        assert plan == self.outcome.out.splitlines()[:-1]
        assert f"on {count} process{'es' if count > 1 else ''} " in result


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process makes of a case, made once."""
    made: dict[str, Expected] = {}

    def make(name: str) -> Expected:
        if name not in made:
            made[name] = Expected(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.mark.parametrize("name", [MANY_FILES, VIRTUAL_STAGES])
def test_one_process_makes_the_golden_result(name, expected):
    assert expected(name).tensors == expected(name).case["files"]


@pytest.mark.parametrize(
    ("launcher", "count", "name"),
    [
        *((launcher, count, MANY_FILES) for launcher in (torchrun, mpirun) for count in (1, 2, 3, 4, 7)),
        (plain_mpirun, 3, MANY_FILES),
        (open_mpirun, 1, MANY_FILES),
        (open_mpirun, 3, MANY_FILES),
        (mpirun, 3, VIRTUAL_STAGES),
    ],
)
def test_same_bytes(launcher, count, name, tmp_path, expected):
    outcome = run(launcher(count, *expected(name).arguments), tmp_path)

    expected(name).check(outcome, tmp_path, count)


def test_same_bytes_from_the_tasks_of_srun(tmp_path, expected):
    """As launch/slurm.sh starts them where the MPI of the site is not used."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    step = {"SLURM_STEP_NUM_TASKS": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    with ExitStack() as stack:
        jobs = [
            stack.enter_context(
                Job(single(*expected(MANY_FILES).arguments), tmp_path, {**step, "SLURM_PROCID": str(rank)})
            )
            for rank in range(3)
        ]
        first, *others = [job.end() for job in jobs]

    expected(MANY_FILES).check(first, tmp_path, 3)
    assert [(other.status, other.out, other.err) for other in others] == [(0, "", "")] * 2


def test_same_bytes_from_two_nodes(tmp_path, expected):
    """Two torchrun agents on one machine, as one each runs on two."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
    command = torchrun(1, *expected(VIRTUAL_STAGES).arguments)
    command[command.index("--standalone")] = f"--rdzv-endpoint={endpoint}"
    command[3:3] = ["--nnodes=2", "--rdzv-backend=c10d", "--local-addr=127.0.0.1"]

    with Job(command, tmp_path) as one, Job(command, tmp_path) as other:
        outcomes = sorted((one.end(), other.end()), key=lambda outcome: len(outcome.out))

    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert outcomes[0].out == ""
    expected(VIRTUAL_STAGES).check(outcomes[1], tmp_path, 2)


@pytest.mark.parametrize("launcher", [torchrun, mpirun])
def test_several_processes_prove_a_result_by_its_record(launcher, tmp_path, expected):
    """Each its share of the files; a difference that any of them finds, all tell."""
    shutil.copytree(expected(MANY_FILES).directory / "mm", tmp_path / "mm")
    record = tmp_path / "mm" / "release" / "distconv.json"
    content = json.loads(record.read_text())
    for name, each in content["files"].items():
        each["crc32"] = f"{crc32((record.parent / name).read_bytes()):08x}"
    record.write_text(json.dumps(content))
    verify = launcher(2, "action=verify", "target=mm", "report=report.json")

    outcome = run(verify, tmp_path)
    assert outcome.status == 0, outcome.err
    assert "on 2 processes" in outcome.out
    shares = [each["files"] for each in json.loads((tmp_path / "report.json").read_text())["processes"]]
    assert [len(share) for share in shares] == [2, 2]
    assert {*shares[0], *shares[1]} == content["files"].keys()
    for name in (shares[0][0], shares[1][0]):
        path = record.parent / name
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    outcome = run(verify, tmp_path)
    assert outcome.status == 1
    assert [line.partition(": has the checksum")[0] for line in outcome.told.splitlines() if "checksum " in line] == [
        f"{before}mm/release/{share[0]}" for before, share in zip(("distconv: ", ""), shares, strict=True)
    ]


def test_several_processes_verify(tmp_path, expected):
    """What one process wrote, until a byte of it has changed."""
    shutil.copytree(expected(MANY_FILES).directory / "mm", tmp_path / "mm")
    verify = mpirun(3, *expected(MANY_FILES).arguments, "action=verify")

    assert run(verify, tmp_path).status == 0
    changed = "mm/release/mp_rank_01_001/model_optim_rng.pt"
    name = "text_decoder.output_layer.weight"
    with (tmp_path / changed).open("r+b") as stream:
        offset = read_archive(tmp_path / changed)["model"][name].offset
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))
    outcome = run(verify, tmp_path)

    assert outcome.status == 1
    assert [line for line in outcome.told.splitlines() if changed in line] == [
        f"distconv: {changed}: model/{name} differs from the source"
    ]
