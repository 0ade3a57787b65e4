"""Running the programs that these tests connect: the converter, and the client that loads what it wrote.

Both run as processes of their own, as users run them. Knows no model: what to convert and what must come out is said by
the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
from programs import run_python
from training import Convert, Converted, Layout, MegatronClient, packages_beside

HERE = Path(__file__).parent
COMMAND_SECONDS = 120
# more than the client gives a job, so that it reports a hanging job by itself
ANSWER_SECONDS = 90


@pytest.fixture(scope="session")
def run_program() -> Callable[..., None]:
    """Run Python with these arguments; fail with everything it printed unless it succeeds."""

    def run(*arguments: str | Path) -> None:
        run_python(*arguments, seconds=COMMAND_SECONDS)

    return run


@pytest.fixture(scope="session")
def sources(run_program: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints that `tiny_models.py` describes. Not to be changed: tests share them."""
    directory = tmp_path_factory.mktemp("sources")
    run_program(HERE / "tiny_models.py", directory)
    return directory


@pytest.fixture(scope="session")
def families(run_program: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints that `tiny_families.py` describes. Not to be changed: tests share them."""
    directory = tmp_path_factory.mktemp("families")
    run_program(HERE / "tiny_families.py", directory)
    return directory


@pytest.fixture(scope="session")
def live_sources(run_program: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints that `tiny_qwen3vl.py` describes. Not to be changed: tests share them."""
    directory = tmp_path_factory.mktemp("live")
    run_program(HERE / "tiny_qwen3vl.py", directory)
    return directory


@pytest.fixture(scope="session")
def language_models(run_program: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints that `tiny_language_models.py` describes. Not to be changed: tests share them."""
    directory = tmp_path_factory.mktemp("language_models")
    run_program(HERE / "tiny_language_models.py", directory)
    return directory


@pytest.fixture(scope="session")
def converted(run_program: Callable[..., None], sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """The checkpoint of a layout, made when it is first asked for. Not to be changed: tests share it."""
    done: dict[str, Converted] = {}

    def convert(layout: Layout) -> Converted:
        if repr(layout) not in done:
            source, target = sources / layout.source, tmp_path_factory.mktemp("converted") / "checkpoint"
            run_program("-m", "distconv", f"source={source / 'hf'}", f"target={target}", *layout.overrides())
            done[repr(layout)] = Converted(target, layout, source)
        return done[repr(layout)]

    return convert


@pytest.fixture(scope="session")
def megatron_client(megatron_clients: Callable[[str], MegatronClient]) -> MegatronClient:
    """The client of the release of megatron-core that `.venv` has."""
    return megatron_clients(version("megatron-core"))


@pytest.fixture(scope="session")
def megatron_clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], MegatronClient]]:
    """The client of a release of megatron-core, that of `.venv` or one of `.venv/side`.

    One client of each serves the whole session, because starting it takes longer than most jobs.
    """
    started: dict[str, MegatronClient] = {}
    with contextlib.ExitStack() as stack:

        def client(release: str) -> MegatronClient:
            if release not in started:
                packages = None if release == version("megatron-core") else packages_beside(release)
                log = tmp_path_factory.mktemp("client") / "stderr"
                started[release] = stack.enter_context(running_client(packages, log))
            return started[release]

        yield client


@contextlib.contextmanager
def running_client(packages: Path | None, log: Path) -> Iterator[MegatronClient]:
    """A `megatron_client.py`, to be handed jobs, of which its docstring tells; `packages` come before others.

    What the client gives for a job is its answer.
    """
    # compiling takes longer than computing, and each process of a job would
    environment = {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    if packages:
        environment["PYTHONPATH"] = str(packages)
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, HERE / "megatron_client.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **environment},
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        questions, answers = process.stdin, process.stdout

        def ask(job: Mapping[str, object]) -> dict[str, str]:
            # a client that has ended is reported below, with what it said
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(job, default=str), file=questions, flush=True)
            # each job is answered by one line, so nothing can be left over in the buffer of `answers`
            readable, _, _ = select.select([answers], [], [], ANSWER_SECONDS)
            line = answers.readline() if readable else ""
            assert line, f"the client gave no answer within {ANSWER_SECONDS} s, or ended:\n{log.read_text()}"
            answer: dict[str, str] = json.loads(line)
            assert answer["status"] != "broken", f"{answer['reason']}:\n{log.read_text()}"
            return answer

        try:
            yield ask
        finally:
            with contextlib.suppress(BrokenPipeError):
                questions.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
