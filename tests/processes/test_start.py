"""No time is lost at the start: what is imported before the first byte moves, and what a process takes of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from distconv.input_output import InputOutput
from tests.checkpoints import load_case, write_source
from tests.processes import at_first_byte
from tests.processes.jobs import MPIRUN, PYTHON, TORCHRUN, run, single
from tests.processes.memory import as_type, write_lookalike

MIB = 2**20
# Beside the standard library. The extensions of PyYAML are a package of their own, and so is what Cython leaves.
PACKAGES = {"distconv", "tests", "yaml", "_yaml", "cython_runtime"}
# Of the standard library, what takes long to import and is only there for others.
IDLE = {"asyncio", "multiprocessing", "email", "http", "ssl", "subprocess", "argparse", "unittest", "xml", "platform",
        "sqlite3", "pydoc", "pdb", "importlib.metadata", "urllib.request", "optparse", "gettext", "csv"}  # fmt: skip
# A third more than there are, so that nothing large comes unseen.
AT_MOST = 530


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A directory with a published checkpoint and what is made of it, in all formats."""
    directory = tmp_path_factory.mktemp("made")
    write_source(directory / "hf", load_case("qwen2vl__tp2_pp2"))
    for form in ("megatron", "dcp", "torch_dist"):
        done = run(single("source=hf", f"target={form}", f"target_format={form}"), directory)
        assert done.status == 0, done.err
    return directory


def at_the_first_byte(launcher: Sequence[str], made: Path, directory: Path, *options: str) -> list[set[str]]:
    """The modules that the processes of a job have imported when their first byte is about to move."""
    noted = directory / "noted"
    noted.mkdir()
    program = (at_first_byte.__file__, str(noted), f"target={directory / 'out'}", *options)
    done = run([*launcher, *program], made)
    assert done.status == 0, done.err
    return [set(path.read_text().splitlines()) for path in noted.iterdir()]


def foreign(modules: set[str]) -> set[str]:
    """The packages among them that are neither of the standard library nor of what starts this interpreter.

    Cython, with which PyYAML and mpi4py are built, shares something in a module of its own.
    """
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - of_the_interpreter()
    return {name for name in tops if not name.startswith("_cython")}


@cache
def of_the_interpreter() -> frozenset[str]:
    """What is imported where no program is, such as by `.pth` files of installed packages."""
    code = "import sys; print(*sys.modules)"
    said = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout
    return frozenset(name.partition(".")[0] for name in said.split())


@pytest.mark.parametrize(
    "options",
    [
        ("source=hf", "layout.tp=2", "layout.stages.text=[1,2,3]", "+model=qwen2vl"),
        ("source=hf", "target_format=dcp"),
        ("source=hf", "target_format=torch_dist"),
        ("source=megatron", "target_format=hf", "reference=hf"),
        ("source=dcp", "target_format=hf", "reference=hf"),
        ("source=torch_dist", "layout.tp=2", "reference=hf"),
    ],
    ids=["hf to megatron", "hf to dcp", "hf to torch_dist", "megatron to hf", "dcp to hf", "torch_dist to megatron"],
)
def test_one_process_has_imported_little_when_its_first_byte_moves(made, tmp_path, options):
    (modules,) = at_the_first_byte(PYTHON, made, tmp_path, *options)
    assert foreign(modules) <= PACKAGES
    assert modules & IDLE == set()
    assert len(modules) < AT_MOST


def test_mpi_adds_nothing_but_mpi4py(made, tmp_path):
    launcher = [*MPIRUN, "2", *PYTHON, "-m", "mpi4py"]
    noted = at_the_first_byte(launcher, made, tmp_path, "source=hf", "layout.tp=2")
    assert len(noted) == 2
    for modules in noted:
        assert foreign(modules) <= {*PACKAGES, "mpi4py"}
        assert len(modules) < AT_MOST


def test_torchrun_adds_what_its_store_needs(made, tmp_path):
    noted = at_the_first_byte([*TORCHRUN, "2"], made, tmp_path, "source=hf", "layout.tp=2")
    assert len(noted) == 2
    for modules in noted:
        assert "torch.distributed.rendezvous" in modules
        assert modules & {"hydra", "omegaconf", "torch.distributed.checkpoint", "torch._dynamo"} == set()


@pytest.mark.parametrize("words", [["--help"], ["action=models"], ["source=nowhere", "target=x"]])
def test_who_moves_nothing_imports_no_package(tmp_path, words):
    code = (
        f"import sys; from distconv.cli.main import main; sys.argv[1:] = {words}; main()\n"
        "open('noted', 'w').write('\\n'.join(sys.modules))"
    )
    subprocess.run([*PYTHON, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    modules = set((tmp_path / "noted").read_text().splitlines())
    assert foreign(modules) <= PACKAGES
    assert modules & IDLE == set()


def test_the_buffers_of_a_process_are_small_by_default():
    for cores in range(1, 100):
        assert InputOutput().lanes(cores).nbytes <= 48 * MIB


def test_a_process_needs_little_memory_by_default(tmp_path):
    """With all buffers filled, rows and columns moved, casts, and checksums."""
    write_lookalike(tmp_path / "hf", 3 * 10**8, as_type("bfloat16"))
    for options in (
        ("source=hf", "target=mm", "layout.tp=2"),
        ("source=mm", "target=dcp", "target_format=dcp", "dtype=float16"),
        ("source=mm", "target=back", "target_format=hf", "reference=hf"),
    ):
        done = run(single("report=report.json", "io.fsync=false", *options), tmp_path)
        assert done.status == 0, done.err
        (share,) = json.loads((tmp_path / "report.json").read_text())["processes"]
        assert share["peak_bytes"] < 120 * MIB, f"{share['peak_bytes'] / MIB:.0f} MiB"
