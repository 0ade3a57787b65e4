"""How a call becomes a job: its keywords are options, and a mistake in how it is written is a `TypeError`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import distconv
from distconv import InputError, JobError, Layout, Options, api, convert, inspect, plan, verify
from distconv.errors import LostError
from distconv.observer import Everywhere, Observer, Outcome, Telling
from distconv.runtime import launch
from distconv.runtime.processes import Processes, SingleProcess

CALLS = pytest.mark.parametrize("call", [convert, plan, verify])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options of the jobs that calls have asked for, and that nobody does."""
    found: list[Options] = []

    def run(options: Options, *_: object) -> Outcome:
        found.append(options)
        return Outcome(report={"done": options.action}, differences=[f"as {options.action} says"])

    monkeypatch.setattr(api, "run", run)
    return found


@CALLS
def test_keywords_are_options(call, asked):
    found = call("a", Path("b"), layout={"tp": 2}, vocab_size=7, io={"fsync": False}, reference=None)

    action = call.__name__
    assert found == ([f"as {action} says"] if call is verify else {"done": action})
    layout = Layout(tp=2)
    expected = Options(
        action=action, source=Path("a"), target=Path("b"), layout=layout, vocab_size=7, io={"fsync": False}
    )
    assert asked == [expected]
    call("a", "b", layout=layout, vocab_size=7, io=expected.io)
    assert asked[1] == expected


@CALLS
def test_options_are_taken_whatever_their_action(call, asked):
    options = Options(action="verify", source="a", target="b", overwrite=True)
    call(options=options)
    assert asked == [Options(action=call.__name__, source="a", target="b", overwrite=True)]


def test_a_directory_is_inspected(asked):
    assert inspect("a", iteration=7, source_layout={"pp": 2}) == {"done": "inspect"}
    assert asked == [Options(action="inspect", source="a", iteration="7", source_layout={"pp": 2})]


def test_a_number_of_processes_is_for_plans(asked):
    plan("a", "b", processes=64)
    plan(options=Options(source="a", target="b"), processes=3)
    assert [each.processes for each in asked] == [64, 3]
    for call in (convert, verify):
        with pytest.raises(InputError, match=r"^processes=64: expected None, 'auto', 'torchrun' or 'mpi'$"):
            call("a", "b", processes=64)
    with pytest.raises(InputError, match=r"^processes='slurm': expected None"):
        plan("a", "b", processes="slurm")
    with pytest.raises(InputError, match=r"^processes=0: expected an integer from 1"):
        plan("a", "b", processes=0)
    assert len(asked) == 2


@CALLS
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"layot": {}}, "unknown key 'layot'; did you mean 'layout'?"),
        (
            {"modle": "x", "layout.tp": 2},
            "unknown key 'modle'; did you mean 'model'?; unknown key 'layout.tp'; did you",
        ),
        ({"action": "plan"}, "unknown key 'action'; "),
        ({"tensors": True}, "unknown key 'tensors'; "),
        ({"options": Options(source="c", target="d")}, "options= holds all options; leave out source, target"),
    ],
)
def test_a_mistake_in_a_call_is_a_type_error(call, given, problem, asked):
    with pytest.raises(TypeError) as raised:
        call("a", "b", **given)
    assert str(raised.value).startswith(f"{call.__name__}(): {problem}")
    assert asked == []


@pytest.mark.parametrize("key", ["target", "options", "progress", "source", "tensors"])
def test_what_a_directory_has_no_use_for_is_a_type_error(key, asked):
    with pytest.raises(TypeError, match=rf"^inspect\(\): unknown key '{key}'; (did you mean|known: directory, model)"):
        inspect("a", **{key: "x"})
    assert asked == []


@CALLS
def test_a_wrong_value_is_an_input_error_with_all_problems(call, asked):
    with pytest.raises(ValueError, match="tpp") as raised:
        call(3, layout={"tpp": 2, "pp": 0}, iteration="no")
    assert raised.type is InputError
    starts = ["source=3: expected a path", "target is missing", "layout: unknown key 'tpp'; did you mean 'tp'?"]
    starts += ["layout.pp=0: expected an integer from 1", "iteration=no: expected release"]
    for start in starts:
        assert sum(each.startswith(start) for each in raised.value.problems) == 1, raised.value.problems
    assert len(raised.value.problems) == len(starts)
    assert asked == []


def test_a_record_has_no_other_keywords():
    with pytest.raises(TypeError, match="tpp"):
        Layout(tpp=2)
    with pytest.raises(InputError, match=r"layout\.tp=0"):
        Layout(tp=0)


def test_a_model_definition_is_looked_up(asked, tmp_path):
    with pytest.raises(InputError, match=r"^\+model=qwen2v1: no such model definition; the nearest is qwen2vl$"):
        convert("a", "b", model="qwen2v1")
    with pytest.raises(InputError, match=r"nowhere: no such directory; expected one with model definitions in model/"):
        convert("a", "b", config_dir=tmp_path / "nowhere")
    assert asked == []


class Watched(SingleProcess):
    """A process that notes how it leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str] = []

    def close(self, patience: float | None = None) -> None:
        self.left.append(f"closed, {patience}")

    def abandon(self, reason: str) -> None:
        self.left.append(reason)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (None, "closed, None"),
        (InputError("wrong"), "closed, None"),
        (JobError("failed"), "closed, None"),
        (LostError("rank 1 is silent"), "LostError: rank 1 is silent"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (ZeroDivisionError("a defect"), "ZeroDivisionError: a defect"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_processes_leave_together_or_say_why_not(error, left, monkeypatch):
    """An error of all of them is no reason to leave the others."""
    group = Watched()
    monkeypatch.setattr(launch, "connect_to", lambda which, environment: group)  # noqa: ARG005 - which does not matter

    def run(_options: Options, _chosen: Any, _library: Any, processes: Processes, _observer: Observer) -> Outcome:
        assert processes is group
        if error is not None:
            raise error
        return Outcome(report={})

    monkeypatch.setattr(api, "run", run)
    if error is None:
        convert("a", "b", processes="auto")
    else:
        with pytest.raises(type(error)) as raised:
            convert("a", "b", processes="auto")
        assert raised.value is error
    assert group.left == [left]


def test_who_is_interrupted_while_leaving_says_so(monkeypatch):
    class Interrupted(Watched):
        def close(self, patience: float | None = None) -> None:  # noqa: ARG002 - of the interface
            raise KeyboardInterrupt

    group = Interrupted()
    monkeypatch.setattr(launch, "connect_to", lambda which, environment: group)  # noqa: ARG005 - which does not matter
    monkeypatch.setattr(api, "run", lambda *_: Outcome(report={}))
    with pytest.raises(KeyboardInterrupt):
        convert("a", "b")
    assert group.left == ["KeyboardInterrupt: "]


def told(progress: Callable[[str, int, int], object]) -> None:
    observer = Telling(progress)
    everywhere = Everywhere(nbytes=50, elsewhere=lambda: 9)
    observer.begin("writing", 5, everywhere)
    observer.advance(2)
    observer.advance(3)
    observer.end(is_complete=True)
    observer.begin("comparing", 0, everywhere)


def test_progress_is_told_by_phase():
    found: list[tuple[str, int, int]] = []
    told(lambda *each: found.append(each))
    assert found == [("writing", 0, 5), ("writing", 2, 5), ("writing", 5, 5), ("comparing", 0, 0)]


def test_an_error_of_a_progress_function_is_one_of_the_job():
    def fail(*_: object) -> None:
        raise OSError("closed")

    with pytest.raises(JobError, match="progress raised OSError: closed") as raised:
        told(fail)
    assert isinstance(raised.value.__cause__, OSError)


def test_what_the_package_shows_is_there():
    assert set(distconv.__all__) <= set(dir(distconv))
