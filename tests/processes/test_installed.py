"""The wheel is the program: complete, and running where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.checkpoints import describe_result, load_case, overrides, write_source
from tests.processes.jobs import run, torchrun

ROOT = Path(__file__).parents[2]
DATA = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "conf").rglob("*.yaml"))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built as `python -m build` does: the source distribution first, and the wheel from that."""
    copy = tmp_path_factory.mktemp("build") / "distconv"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    for name in ("distconv", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    python("-m", "build", "--no-isolation", "--outdir", copy.parent, copy)
    assert len(list(copy.parent.glob("distconv-*.tar.gz"))) == 1
    (built,) = copy.parent.glob("distconv-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A directory that the wheel is installed in, beside what is installed already."""
    directory = tmp_path_factory.mktemp("installed")
    python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", directory, wheel)
    return directory


def python(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_wheel_holds_every_module(wheel):
    """None may come from the checkout, to which the environment of the tests points."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "distconv").rglob("*.py")}
    assert modules - names == set()


def test_the_wheel_holds_the_configuration_and_all_models(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    assert "conf/model/qwen2vl.yaml" in DATA
    assert [name for name in DATA if f"distconv/{name}" not in names] == []
    assert "distconv/py.typed" in names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"distconv"}


@pytest.mark.parametrize("start", ["script", "torchrun"])
def test_an_installed_wheel_converts(start, installed, tmp_path):
    case = load_case("qwen2vl__tp2_pp1")
    arguments = [*overrides(case), f"source={write_source(tmp_path / 'hf', case)}", f"target={tmp_path / 'mm'}"]
    command = [str(installed / "bin/distconv"), *arguments] if start == "script" else torchrun(2, *arguments)

    outcome = run(command, tmp_path, {"PYTHONPATH": str(installed)})

    assert outcome.status == 0, outcome.err
    assert describe_result(tmp_path / "mm") == case["files"]


def test_an_installed_wheel_is_what_runs(installed, tmp_path):
    """Not the checkout, to which the environment of the tests may point."""
    places = "import distconv.cli.main as m, importlib.resources as r; print(m.__file__, r.files('distconv.conf'))"

    found = subprocess.run(
        [sys.executable, "-c", places],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()

    assert [path for path in found if not Path(path).is_relative_to(installed)] == []


@pytest.mark.parametrize("launcher", [(sys.executable,), tuple(torchrun(2)[:-2])])
@pytest.mark.parametrize(
    ("package", "options", "install"),
    [
        ("yaml", [], "pyyaml"),
        ("hydra", ["select=[ text ]"], "hydra-core"),
        ("omegaconf", ["select=[ text ]"], "hydra-core"),
        ("numpy", ["dtype=float16"], "numpy"),
    ],
)
def test_a_package_that_is_missing_is_a_sentence(package, options, install, launcher, tmp_path):
    """As after `pip install --no-deps`: the package is hidden from the processes of the job.

    Rank 0 is the first to fail here: torchrun ends all when one has.
    """
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "hide.py").write_text(
        "import os, runpy, sys, time\ntime.sleep(2 * int(os.environ.get('RANK', 0)))\n"
        f"sys.path.remove({str(hidden)!r})\nsys.modules[{package!r}] = None\n"
        "sys.argv = ['distconv', *sys.argv[1:]]\nrunpy.run_module('distconv', run_name='__main__')\n"
    )
    write_source(tmp_path / "hf", load_case("qwen2vl__tp1_pp1"))
    done = run([*launcher, str(hidden / "hide.py"), "source=hf", "target=mm", *options], tmp_path)
    assert done.status == 1
    said = f"the package {package} is missing: {sys.executable} -m pip install {install}"
    assert said in done.err
    assert done.told.count("distconv: ") == 1
    assert "distconv/" not in done.err.replace(str(tmp_path), "")
    assert not (tmp_path / "mm").exists()


def test_torchrun_says_what_is_missing_where_rank_0_is_ended_first(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, runpy, sys, time\ntime.sleep(60 if os.environ['RANK'] == '0' else 0)\n"
        "sys.modules['yaml'] = None\nrunpy.run_module('distconv', run_name='__main__')\n"
    )
    done = run([*torchrun(2)[:-2], str(tmp_path / "slow.py"), "source=hf", "target=mm"], tmp_path)
    assert done.status == 1
    last = [line for line in done.err.splitlines() if "distconv: " in line][-1]
    assert last.endswith(f"distconv: the package yaml is missing: {sys.executable} -m pip install pyyaml")
