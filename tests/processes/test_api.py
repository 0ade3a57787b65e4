"""Programs on several processes call distconv: more than once, beside a group of torch's, and after errors of any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints import hashes, load_case, write_source
from tests.here import run_here
from tests.processes import jobs
from tests.processes.jobs import MPIRUN, PYTHON, TORCHRUN, Outcome, run, tasks_of_srun

HEADER = """
import json, os, pathlib, sys
import distconv
from distconv import InputError, JobError, convert, inspect, plan, verify

rank = int(os.environ.get("RANK") or os.environ.get("PMI_RANK"))

def say(**found):
    pathlib.Path(f"said-{rank}.json").write_text(json.dumps(found))
"""
LAUNCHERS = pytest.mark.parametrize("launcher", ["torchrun", "mpi"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "hf", load_case("qwen2vl__tp2_pp2"))


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that one process makes under two pipeline ranks."""
    target = tmp_path_factory.mktemp("alone") / "mm"
    run_here(source=str(source), target=str(target), layout__pp=2)
    return hashes(target)


def call(program: str, directory: Path, launcher: str, count: int = 2) -> tuple[Outcome, list[dict[str, object]]]:
    """Run a program on several processes: how that ended, and what each of them had to say."""
    path = directory / "program.py"
    path.write_text(HEADER + program)
    if launcher == "torchrun":
        command = [*TORCHRUN, str(count), str(path)]
    else:
        command = [*MPIRUN, str(count), *PYTHON, "-m", "mpi4py", str(path)]
    outcome = run(command, directory)
    found = [path for rank in range(count) if (path := directory / f"said-{rank}.json").exists()]
    return outcome, [json.loads(path.read_text()) for path in found]


@LAUNCHERS
@pytest.mark.parametrize("named", [True, False])
def test_two_calls_in_one_program(launcher, named, source, expected, tmp_path):
    processes = launcher if named else "auto"
    outcome, said = call(
        f"""
called = dict(source={str(source)!r}, layout=distconv.Layout(pp=2), processes={processes!r})
told = []
first = convert(target="one", progress=lambda *each: told.append(each), **called)
second = convert(target="two", **called)
planned = plan(target="three", **called)
found = inspect("one", processes={processes!r})
say(
    first=[each["files"] for each in first["processes"]],
    second=[each["files"] for each in second["processes"]],
    planned=len(planned["processes"]),
    differences=verify(target="two", **called),
    parameters=found["parameters"],
    last=told[-1],
    written=first["processes"][rank]["bytes_written"],
)
""",
        tmp_path,
        launcher,
    )

    assert (outcome.status, outcome.out) == (0, ""), outcome.err
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") == expected
    assert len(said) == 2
    for each in said:
        assert each["first"] == each["second"]
        assert all(each["first"])
        assert each["planned"] == 2
        assert each["differences"] == []
        assert each["last"] == ["writing", each["written"], each["written"]]
    assert {**said[0], "last": 0, "written": 0} == {**said[1], "last": 0, "written": 0}


def test_beside_a_process_group_of_the_program(source, expected, tmp_path):
    outcome, said = call(
        f"""
import torch
torch.distributed.init_process_group("gloo")
for target in ("one", "two"):
    convert({str(source)!r}, target, layout={{"pp": 2}}, processes="torchrun")
ranks = torch.tensor([rank])
torch.distributed.all_reduce(ranks)
say(sum=int(ranks))
sys.stdout.flush()
# On its way out, torch with gloo now and then aborts.
os._exit(0)
""",
        tmp_path,
        "torchrun",
    )

    assert outcome.status == 0, outcome.err
    assert said == [{"sum": 1}] * 2
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") == expected


def test_without_an_agent_of_torch(source, expected, tmp_path):
    """As tasks of srun that have an address: rank 0 hosts the store itself, anew for every call."""
    (tmp_path / "program.py").write_text(
        HEADER
        + f"""
for number in range(5):
    convert({str(source)!r}, f"mm-{{number}}", layout={{"pp": 2}}, processes="auto")
"""
    )
    outcome = run(tasks_of_srun(2, str(tmp_path / "program.py")), tmp_path)

    assert outcome.status == 0, outcome.err
    assert [hashes(tmp_path / f"mm-{number}") for number in range(5)] == [expected] * 5


@LAUNCHERS
def test_without_processes_each_is_alone(launcher, source, expected, tmp_path):
    outcome, said = call(
        f"""
report = convert({str(source)!r}, f"mm-{{rank}}", layout={{"pp": 2}})
say(ranks=[each["rank"] for each in report["processes"]])
""",
        tmp_path,
        launcher,
    )

    assert outcome.status == 0, outcome.err
    assert said == [{"ranks": [0]}] * 2
    assert hashes(tmp_path / "mm-0") == hashes(tmp_path / "mm-1") == expected


@LAUNCHERS
def test_an_error_is_raised_by_all_and_another_call_works(launcher, source, expected, tmp_path):
    outcome, said = call(
        f"""
def error_of(source=f"{source}", **given):
    try:
        convert(source, "mm", processes="{launcher}", **given)
    except InputError as error:
        return error.problems

found = [
    error_of(layout={{"pp": 3, "tp": 3}}),
    error_of("nowhere"),
    error_of(layout={{"pp": "two"}}),
    # Of one rank alone.
    error_of(vocab_size=-1 if rank else None, layout={{"pp": 2}}),
]
error_of(layout={{"pp": 2}})
say(found=found)
""".replace(
            "    # Of one rank alone.\n    error_of(vocab_size=-1 if rank else None, layout={'pp': 3, 'tp': 3}),\n", ""
        ),
        tmp_path,
        launcher,
    )

    assert outcome.status == 0, outcome.err
    assert said[0] == said[1]
    divides, nowhere, kind, alone = said[0]["found"]
    assert any("tp=3" in problem for problem in divides)
    assert nowhere == ["source=nowhere: no such directory"]
    assert kind == ["layout.pp=two: expected an integer from 1 to 65536"]
    assert alone == ["vocab_size=-1: expected an integer from 1 to 16777216"]
    assert hashes(tmp_path / "mm") == expected


@LAUNCHERS
@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("error", ["RuntimeError", "KeyboardInterrupt"])
def test_a_failure_of_one_leaves_nobody_waiting(error, failing, launcher, source, tmp_path):
    """Nor a result; and in the same program, another call works."""
    outcome, said = call(
        f"""
def fail(*_):
    if rank == {failing}:
        raise {error}("no more")

called = dict(source={str(source)!r}, layout={{"pp": 2}}, processes="{launcher}")
try:
    convert(target="mm", progress=fail, **called)
except (JobError, KeyboardInterrupt) as error:
    kind, text = type(error).__name__, str(error)
convert(target="two", **called)
say(kind=kind, text=text)
""",
        tmp_path,
        launcher,
    )

    assert outcome.status == 0, outcome.err
    # What is finished is kept for whoever makes the call again.
    assert [path.name for path in tmp_path.glob("mm/*") if not path.name.startswith(".distconv-")] == []
    assert (tmp_path / "two" / "release").is_dir()
    if error == "KeyboardInterrupt":
        failed, other = said[failing], said[1 - failing]
        # Rank 0 knows the target.
        text = "no more" if failing else "no more; nothing was left in the target"
        assert failed == {"kind": error, "text": text}
        assert other == {"kind": "JobError", "text": f"rank {failing} has left the job: KeyboardInterrupt: {text}"}
    else:
        assert said[0] == said[1]
        assert said[0]["kind"] == "JobError"
        assert f"rank {failing} on " in said[0]["text"]
        assert said[0]["text"].endswith(": progress raised RuntimeError: no more")


def test_communicators_are_freed(source, tmp_path, monkeypatch):
    """MPICH has some two thousand for a process; so many calls take more than a minute of a busy machine."""
    monkeypatch.setattr(jobs, "JOB_SECONDS", 2 * jobs.JOB_SECONDS)
    outcome, _ = call(
        f"""
for number in range(1500):
    try:
        convert({str(source)!r}, "mm", layout={{"tp": 0}}, processes="mpi")
    except InputError:
        pass
""",
        tmp_path,
        "mpi",
    )

    assert outcome.status == 0, outcome.err
