"""What planning makes has no cycles: no collector looks for them meanwhile, and what is dropped must be gone."""

from __future__ import annotations

import gc

import pytest

from distconv.formats.registry import Options
from distconv.planning.facts import Facts
from distconv.planning.look import look
from distconv.planning.plan import plan_job
from distconv.runtime.processes import packed, unpacked
from tests.configuration import content
from tests.here import LIBRARY, in_every_format, run_here

# What modules of the standard library leave when they open a file.
FEW = 100


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = in_every_format(tmp_path_factory.mktemp("models"))
    run_here(source=str(directory / "hf"), target=str(directory / "torch_dist"), target_format="torch_dist")
    return directory


@pytest.mark.parametrize("target", ["megatron", "torch_dist", "dcp", "hf"])
@pytest.mark.parametrize("source", ["hf", "mm", "torch_dist", "dcp"])
def test_records_have_no_cycles(source, target, models):
    given = {"source": str(models / source), "target": str(models / "new"), "target_format": target}
    if target == "hf":
        given["shard_size"] = "1MB"
    options = Options.from_content(content(**given))
    gc.collect()
    gc.disable()
    try:
        facts = Facts.from_json(unpacked(packed(look(options, None, LIBRARY).to_json())))
        planned = plan_job(options, facts)
        planned.files.beside()
        assert sum(1 for file in planned.plan.files for _ in planned.plan.entries(file)) > FEW
        del facts, planned
        assert gc.collect() < FEW
    finally:
        gc.enable()
