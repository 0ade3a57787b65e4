"""What transformers 5 trains with FSDP2: every family that a dialect knows goes there, is trained, and comes back.

Its program of training, and the one that loads what is published, find the transformers of `.venv/side/transformers-5`
before the one that other tests have; the two are never in one process.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from signal import SIGABRT, SIGSEGV
from typing import Any

import pytest
import torch
import yaml
from fsdp2_configurations import FAMILIES, configuration
from programs import run_python
from safetensors import safe_open

from tests.here import run_here

HERE = Path(__file__).parent
SIDE = Path(sys.prefix) / "side" / "transformers-5"
# an import of transformers takes ten seconds on a busy machine, and there are two processes of training
PROGRAM_SECONDS = 200
# trained by another class than the published model's, in another dialect, with names that lack a beginning
THINKERS = {
    "qwen2_5_omni_thinker": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
LACKING = "thinker."
MODELS = (*FAMILIES, *THINKERS)
pytestmark = [
    pytest.mark.skipif(sys.version_info < (3, 11), reason="transformers 5 has no release for Python 3.10"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each family published, converted for training, trained, and converted back (`NAME/back`)."""
    directory = tmp_path_factory.mktemp("families")
    for name in MODELS:
        (directory / f"{name}.json").write_text(json.dumps(configuration(name.removesuffix("_thinker"))))
    configs = [f"{name}={directory / name}.json" for name in MODELS]
    run_side(HERE / "fsdp2_families.py", directory, *configs)
    for name in MODELS:
        dialect = "transformers5_thinker" if name in THINKERS else "transformers5"
        there = {"source": directory / name / "hf", "target": directory / name / "there", "target_format": "dcp"}
        convert(name, **there, naming="hf", dialect=dialect, dtype="float32")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    classes = [f"{name}={THINKERS.get(name, '')}" for name in MODELS]
    try:
        run_side(*torchrun, HERE / "fsdp2_families.py", directory, *classes)
    except AssertionError as error:
        # Torch with gloo aborts now and then ("malloc(): unaligned fastbin chunk detected"); nothing else is retried.
        if re.search(rf"failed \(exitcode: -({int(SIGABRT)}|{int(SIGSEGV)})\)", str(error)) is None:
            raise
        run_side(*torchrun, HERE / "fsdp2_families.py", directory, *classes)
    for name in MODELS:
        back = {"source": directory / name / "dcp", "target": directory / name / "back", "target_format": "hf"}
        convert(name, **back, reference=directory / name / "hf", dtype="bfloat16")
    return directory


@pytest.fixture(scope="module")
def loaded(trained: Path) -> Mapping[str, Mapping[str, Any]]:
    """What `published_client.py` says of each published result."""
    jobs = [
        {"checkpoint": str(trained / name / "back"), "inputs": "", "output": str(trained / name / "loaded.pt"),
         "dtype": "float32"}
        for name in MODELS
    ]  # fmt: skip
    (trained / "jobs.json").write_text(json.dumps(jobs))
    run_side(HERE / "published_client.py", trained / "jobs.json")
    return {name: torch.load(trained / name / "loaded.pt", weights_only=True) for name in MODELS}


def run_side(*arguments: str | Path) -> None:
    """Run Python with transformers 5; fail with everything it printed unless it succeeds."""
    assert (SIDE / "transformers").is_dir(), f"no transformers 5 in {SIDE}: make setup installs it"
    # with a thread each, all sums are in the same order
    run_python(*arguments, seconds=PROGRAM_SECONDS, PYTHONPATH=str(SIDE), OMP_NUM_THREADS="1")


def convert(name: str, **options: Any) -> None:
    """A conversion whose failure names the family."""
    try:
        run_here(**{key: str(value) for key, value in options.items()})
    except Exception as error:
        raise AssertionError(f"{name}: {options}") from error


@pytest.mark.parametrize("dialect", ["transformers5", "transformers5_thinker"])
def test_no_family_of_a_dialect_is_untried(dialect: str) -> None:
    content = yaml.safe_load((HERE.parents[1] / "conf" / "dialect" / f"{dialect}.yaml").read_text())
    types = {each for family in content["families"] for each in family["model_types"]}
    tried = THINKERS if dialect == "transformers5_thinker" else FAMILIES
    assert types == {configuration(name.removesuffix("_thinker"))["model_type"] for name in tried}


@pytest.mark.parametrize("name", MODELS)
def test_training_begins_with_what_is_published(name: str, trained: Path) -> None:
    assert json.loads((trained / name / "unequal.json").read_text()) == []


@pytest.mark.parametrize("name", MODELS)
def test_what_was_trained_is_published_and_computes_the_same(
    name: str, trained: Path, loaded: Mapping[str, Mapping[str, Any]]
) -> None:
    found = loaded[name]
    beginning = LACKING if name in THINKERS else ""
    expected = torch.load(trained / name / "trained.pt", weights_only=True)
    assert found["unfit"] == []
    assert found["state"].keys() == {beginning + each for each in expected}
    different = [each for each, tensor in expected.items() if not torch.equal(found["state"][beginning + each], tensor)]
    assert different == []
    assert dtypes(trained / name / "back") == dtypes(trained / name / "hf")
    logits = torch.load(trained / name / "logits.pt", weights_only=True)
    assert logits.std() > 0.1
    assert torch.equal(found["logits"], logits), (found["logits"] - logits).abs().max()


def dtypes(checkpoint: Path) -> dict[str, str]:
    """The element types in the files of a checkpoint."""
    found = {}
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
    return found
