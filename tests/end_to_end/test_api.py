"""Programs that call distconv: the examples of its documentation, and that a call leaves everything else alone."""

from __future__ import annotations

import contextlib
import doctest
import inspect as python
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import distconv
from distconv import DistconvError, InputError, JobError, Layout, Options, convert, inspect, plan, verify
from tests.checkpoints import hashes, load_case, write_source
from tests.readme import blocks, write_qwen2vl

CASE = "qwen2vl__tp2_pp2"
EXAMPLES = {
    "the package": python.getdoc(distconv),
    **{f"{each.__name__}": python.getdoc(each) for each in (convert, plan, verify, inspect)},
    "the README": "".join(blocks("pycon")),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "hf", load_case(CASE))


@pytest.mark.parametrize("what", EXAMPLES)
def test_the_examples_are_true(what, tmp_path):
    """With a tiny checkpoint that stands for the one that they name; verify has the result of convert."""
    write_qwen2vl(tmp_path / "Qwen2-VL-7B")
    if what == "verify":
        run_example("convert", tmp_path)
    run_example(what, tmp_path)


def run_example(what: str, directory: Path) -> None:
    text = (EXAMPLES[what] or "").replace("/ckpt", str(directory))
    example = doctest.DocTestParser().get_doctest(text, {}, what, None, None)
    assert example.examples, what
    said: list[str] = []
    outcome = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert outcome.failed == 0, "".join(said)


@contextlib.contextmanager
def nothing_else_changes(directory: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing is printed, no handler or variable is changed, and no file but in `mm` below the directory."""

    def state() -> tuple[Any, ...]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP)
        handlers = [signal.getsignal(number) for number in numbers]
        files = {path: value for path, value in hashes(directory).items() if not path.startswith("mm/")}
        beside = sorted(path.name for path in directory.iterdir() if path.name != "mm")
        # pytest says in a variable which test it runs.
        variables = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        return handlers, files, beside, variables, sorted(os.listdir()), threading.active_count(), os.umask(os.umask(0))

    os.umask(0o022)
    capfd.readouterr()
    before = state()
    yield
    assert state() == before
    found = capfd.readouterr()
    assert (found.out, found.err) == ("", "")


@pytest.mark.filterwarnings("error")
def test_calls_change_nothing_else(source, tmp_path, capfd, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    job: dict[str, Any] = {"source": source, "target": tmp_path / "mm", "layout": Layout(tp=2)}
    with nothing_else_changes(tmp_path, capfd):
        plan(**job)
        assert not (tmp_path / "mm").exists()
        convert(**job)
        assert verify(**job) == []
        inspect(source)
        inspect(tmp_path / "mm")
    with nothing_else_changes(tmp_path, capfd):
        for wrong in ({}, {"layout": {"tp": 5}}, {"layout": {"tp": "two"}}, {"source": tmp_path / "nowhere"}):
            with pytest.raises(InputError):
                convert(**{**job, **wrong})
        with pytest.raises(InputError):
            inspect(tmp_path / "nowhere")


def test_a_job_that_fails_leaves_nothing(source, tmp_path, capfd):
    def fail(*told: object) -> None:
        if told[1]:
            raise KeyError(told[0])

    with nothing_else_changes(tmp_path, capfd), pytest.raises(JobError, match="progress raised KeyError: 'writing'"):
        convert(source, tmp_path / "mm", progress=fail)
    assert not (tmp_path / "mm").exists()


def test_an_interruption_leaves_nothing(source, tmp_path, capfd):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with nothing_else_changes(tmp_path, capfd), pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "mm", progress=interrupt)
    assert not (tmp_path / "mm").exists()


def test_a_thread_can_call(source, tmp_path):
    found: list[Any] = []

    def work() -> None:
        found.append(convert(source, tmp_path / "mm"))
        found.append(verify(source, tmp_path / "mm"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0]["action"] == "convert"
    assert found[1] == []


@pytest.mark.parametrize(
    "calls",
    [
        "",
        "distconv.plan({source!r}, 'mm', layout=distconv.Layout(tp=2))",
        "distconv.inspect({source!r})",
        "distconv.convert({source!r}, 'mm'); distconv.verify({source!r}, 'mm')",
    ],
)
def test_neither_torch_nor_hydra_is_imported(source, tmp_path, calls):
    heavy = ["torch", "hydra", "omegaconf", "mpi4py"]
    code = f"import sys, distconv\n{calls.format(source=str(source))}\nprint([n for n in {heavy} if n in sys.modules])"
    # Variables of a launcher are nothing to a program that does not ask for others.
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert (found.stdout, found.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    "options",
    [
        {"layout": {"tp": 5}},
        {"layout": {"tpp": 2, "pp": 0}, "io": {"threads": True}},
        {"target_format": "hff"},
        {"model": "internvl"},
        {"merge_lora": True, "name_prefix": "module."},
        {"source": "nowhere"},
        {"target": None},
    ],
)
@pytest.mark.usefixtures("source")
def test_errors_are_those_of_the_command_line(options, tmp_path, distconv, monkeypatch):
    """Word by word; a mapping in a call is a group on the command line."""
    monkeypatch.chdir(tmp_path)
    given = {"source": "hf", "target": "mm", **options}
    with pytest.raises(InputError) as raised:
        convert(**given)
    assert isinstance(raised.value, ValueError)
    assert str(raised.value).splitlines() == raised.value.problems
    words = [word for key, value in given.items() for word in words_of(key, value)]
    assert distconv(*words).err == f"distconv: {raised.value}\n"


def words_of(key: str, value: Any) -> list[str]:
    """An option as words of the command line."""
    if isinstance(value, dict):
        return [word for name, each in value.items() for word in words_of(f"{key}.{name}", each)]
    if value is None:
        return []
    sign = "+" if key in ("model", "layout.tpp") else ""
    return [f"{sign}{key}={json.dumps(value) if not isinstance(value, str) else value}"]


def test_a_report_is_plain_data(source, tmp_path):
    reports = [
        plan(source, tmp_path / "mm"),
        convert(source, tmp_path / "mm", report=tmp_path / "report.json"),
        inspect(source),
        inspect(tmp_path / "mm"),
    ]
    for report in reports:
        assert json.loads(json.dumps(report)) == report
    assert json.loads((tmp_path / "report.json").read_text()) == reports[1]


@pytest.mark.parametrize("target_format", ["megatron", "dcp", "hf"])
def test_progress_ends_at_its_total(target_format, source, tmp_path):
    """Of writing and of comparing, whatever differs; in order, from several threads."""
    convert(source, tmp_path / "mm", layout={"tp": 2, "pp": 2})
    told: dict[str, list[tuple[int, int]]] = {}
    job = {"source": tmp_path / "mm", "target": tmp_path / "out", "target_format": target_format}

    def tell(phase: str, done: int, nbytes: int) -> None:
        told.setdefault(phase, []).append((done, nbytes))

    report = convert(**job, io={"threads": 4, "buffer_mib": 1}, progress=tell)
    verify(**job, progress=lambda phase, *rest: tell(f"again {phase}", *rest))
    path = tmp_path / "out" / report["files"][0]["path"]
    path.write_bytes(path.read_bytes()[:-1])
    verify(**job, progress=lambda phase, *rest: tell(f"damaged {phase}", *rest))

    copies = "comparing copies in the source"
    verified = {f"{when} {what}" for when in ("again", "damaged") for what in ("comparing", copies)}
    assert set(told) == {"writing", copies, *verified, "again comparing checksums"}
    nbytes = sum(each["bytes"] for each in report["files"])
    for phase, steps in told.items():
        total = steps[0][1]
        assert steps[0] == (0, total)
        assert steps[-1] == (total, total)
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert {each for _, each in steps} == {total}
        if phase.endswith("checksums"):
            # Of whole files, those beside the tensors too.
            assert total > nbytes
        elif not phase.endswith(copies):
            assert total == nbytes


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("target_format", ["megatron", "dcp", "hf"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "No such file"),
        (damage, "truncated"),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000] + bytes(1000)), ""),
    ],
)
def test_verify_returns_what_differs(target_format, change, words, source, tmp_path, distconv):
    job = {"source": source, "target": tmp_path / "mm", "target_format": target_format}
    if target_format == "hf":
        convert(source, tmp_path / "save")
        job["source"] = tmp_path / "save"
    report = convert(**job)
    path = tmp_path / "mm" / report["files"][-1]["path"]
    change(path)

    found = verify(**job)

    assert found
    assert all(str(path) in line for line in found), found
    assert words in found[0]
    outcome = distconv("action=verify", *(f"{key}={value}" for key, value in job.items()))
    assert outcome.status == 1
    assert all(line in outcome.err for line in found[:5])


def test_verify_returns_what_is_beside_the_tensors(source, tmp_path, distconv):
    for target_format, name in (("megatron", "latest_checkpointed_iteration.txt"), ("dcp", "release/.metadata")):
        target = tmp_path / target_format
        job = {"source": source, "target": target, "target_format": target_format}
        convert(**job)
        for content in (b"\xff\x00", None):
            (target / name).unlink()
            if content is not None:
                (target / name).write_bytes(content)
            (difference,) = verify(**job)
            assert difference.startswith(f"{target / name}: ")
            assert distconv("action=verify", *(f"{key}={value}" for key, value in job.items())).status == 1
        with pytest.raises(InputError, match="holds no release to verify"):
            verify(**{**job, "target": tmp_path / "nowhere"})


def test_what_happens_is_logged(source, tmp_path, caplog, capfd):
    with caplog.at_level(logging.INFO, "distconv"):
        convert(source, tmp_path / "mm", layout=Layout(tp=2))
    found = [(each.name, each.levelname, each.getMessage()) for each in caplog.records]
    assert found == [
        ("distconv", "INFO", f"planned 2 files from {source}"),
        ("distconv", "INFO", f"convert of {tmp_path}/mm/release is done"),
    ]
    assert capfd.readouterr().err == ""


def test_options_are_a_record(source, tmp_path):
    options = Options(source=source, target=tmp_path / "mm", layout=Layout(tp=2))
    assert plan(options=options)["layout"]["tp"] == 2
    assert len(plan(options=options, processes=3)["processes"]) == 3
    convert(options=options)
    assert verify(options=options) == []


@pytest.mark.parametrize("processes", [3, 1])
def test_a_number_of_processes_is_planned_for(processes, source, tmp_path):
    assert len(plan(source, tmp_path / "mm", processes=processes)["processes"]) == processes


def test_a_plan_says_what_known_nodes_read(source, tmp_path, monkeypatch):
    def nodes(**options):
        return plan(source, tmp_path / "mm", layout=Layout(tp=2), **options)["nodes"]

    assert nodes(processes=2) is None
    together = nodes(processes=2, processes_per_node=2)
    apart = nodes(processes=2, processes_per_node=1)
    assert together["bytes_fetched"] == [together["bytes_distinct"]]
    assert len(apart["bytes_fetched"]) == 2
    assert sum(apart["bytes_fetched"]) > apart["bytes_distinct"] == together["bytes_distinct"]
    # A launcher knows of the processes that run, but not of those that would.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert nodes()["processes_per_node"] == 1
    assert nodes(processes=2) is None


def test_a_definition_of_ones_own(source, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text("defaults: [qwen2vl, _self_]\n")
    found = plan(source, tmp_path / "mm", model="own", config_dir=tmp_path / "mine")
    assert found["model"] == "own"
    assert inspect(source, model="own", config_dir=tmp_path / "mine")["model"] == "own"
    with pytest.raises(DistconvError, match="no such directory; expected one with model definitions"):
        plan(source, tmp_path / "mm", config_dir=tmp_path / "nowhere")


def test_a_program_type_checks(tmp_path):
    """As the documentation calls it, and a wrong keyword of a record is found."""
    (tmp_path / "program.py").write_text(
        """
from pathlib import Path
from typing import Any

from distconv import InputError, InputOutput, JobError, Layout, Options, SourceLayout, convert, inspect, plan, verify


def print_bar(phase: str, done: int, nbytes: int) -> None:
    print(phase, done, nbytes)


source, target = "/ckpt/hf", Path("/ckpt/mm")
report: dict[str, Any] = plan(source, target, layout=Layout(tp=2, pp=4))
plan(source, target, processes=64)
layout = Layout(tp=2, stages={"text": [1, 10, 10, 7]})
try:
    convert(source, target, model="qwen2vl", layout=layout, progress=print_bar, processes="auto")
except InputError as error:
    problems: list[str] = error.problems
    wrong: ValueError = error
except JobError as error:
    print(error)
differences: list[str] = verify(options=Options(source=Path(source), target=target, io=InputOutput(fsync=False)))
found: dict[str, Any] = inspect(target, reference=source, source_layout=SourceLayout(pp=4))
Layout(tpp=2)
"""
    )
    # What distconv itself imports is not looked at, as that of an installed package.
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file", os.devnull]
    environment = {**os.environ, "MYPYPATH": str(Path(distconv.__file__).parents[1])}
    checked = subprocess.run(
        [*mypy, "--cache-dir", tmp_path / "cache", "program.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    *lines, _ = checked.stdout.splitlines()
    error = (
        'program.py:25: error: Unexpected keyword argument "tpp" for "Layout"; did you mean "pp" or "tp"?  [call-arg]'
    )
    assert lines == [error], checked.stdout
