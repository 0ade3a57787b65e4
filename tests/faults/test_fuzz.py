"""Readers of files from strangers, fuzzed by coverage: a thousand inputs each, and ten thousand by `make soak`.

Whatever is in a file, its reader reads it or refuses it with `DistconvError`, soon, and with little memory.
"""

from __future__ import annotations

import importlib.util
import re
from random import Random

import pytest

from tests.faults.fuzz.targets import TARGETS
from tests.faults.fuzz.trees import changed
from tests.faults.programs import program

INPUTS = 1000
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not here: it has no wheel for this Python or machine",
)


@needs_atheris
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused(name, tmp_path):
    done = program("tests.faults.fuzz", name, "--inputs", INPUTS, directory=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    # It was led by coverage, and did not read the same again and again.
    (covered,) = re.findall(rf"#{INPUTS}\s+DONE\s+cov: (\d+)", done.stderr)
    assert int(covered) > 50


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_starts_from_is_valid(name, tmp_path):
    target = TARGETS[name]
    target.prepare(tmp_path)
    for each in target.corpus():
        (tmp_path / target.name).write_bytes(target.content(each))
        target.read(tmp_path)


def test_trees_are_changed():
    tree = {"a": [1, {"b": "c"}], "d": 2.5}
    found = [changed(tree, Random(seed)) for seed in range(50)]  # noqa: S311 - reproducible, and no secret
    assert len({repr(each) for each in found}) > 30
    assert tree == {"a": [1, {"b": "c"}], "d": 2.5}
