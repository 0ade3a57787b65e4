"""What tests share that train from results: layouts, what a client computes from a result, and damages to one.

Knows no model, and starts no program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# All is float32 and of the order of 1, and only the order of sums may differ: 5e-6 was seen with experts, 3e-6 with
# tensor parallelism alone, 0 with neither; the rest is a margin for other machines. The smallest of the damages that
# tests make moves the output by 0.1.
SAME = 1e-5
DIFFERENT = 1e-2

LOG = logging.getLogger(__name__)

Stages = list[list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """`text[v][p]` is the number of layers in virtual stage v of pipeline rank p; there are tp x ep x pp processes.

    Without `vision`, the text alone is converted. `source` names a model of `tiny_models.py`.
    """

    tp: int = 1
    ep: int = 1
    text: Stages
    vision: Stages = dataclasses.field(default_factory=list)
    source: str = ""

    def overrides(self) -> list[str]:
        vision = f"layout.stages.vision={as_typed(self.vision)}" if self.vision else "select=[text]"
        return [f"layout.tp={self.tp}", f"layout.ep={self.ep}", f"layout.stages.text={as_typed(self.text)}", vision]


def packages_beside(release: str) -> Path:
    """The packages of a release of megatron-core beside that of `.venv`; skips the test, by name, where it is not."""
    packages = Path(sys.prefix) / "side" / f"megatron-core-{release}"
    if not packages.is_dir():
        pytest.skip(f"no megatron-core {release} in {packages}: make setup installs it")
    return packages


def as_typed(stages: Stages) -> str:
    """As a user types them: a plain list where there are no virtual stages."""
    return json.dumps(stages if len(stages) > 1 else stages[0], separators=(",", ":"))


@dataclasses.dataclass(frozen=True)
class Converted:
    checkpoint: Path
    layout: Layout
    source: Path


Convert = Callable[[Layout], Converted]
MegatronClient = Callable[[Mapping[str, object]], dict[str, str]]


def loaded(client: MegatronClient, result: Converted, outputs: Path, *, save: Path | None = None) -> dict[str, float]:
    """For each output, the largest difference between what a client that takes the checkpoint and transformers compute.

    Each tensor parallel rank gives the whole output; each expert parallel rank, that of its share of the inputs.
    """
    answer = train_from(client, result, outputs, save=save)
    assert answer["status"] == "loaded", answer["reason"]
    expected: dict[str, Tensor] = torch.load(result.source / "expected.pt", weights_only=True)
    found = {}
    for name, values in expected.items():
        ranks = [
            torch.cat([torch.load(outputs / f"{name}_{t}_{e}.pt", weights_only=True) for e in range(result.layout.ep)])
            for t in range(result.layout.tp)
        ]
        assert all(output.shape == values.shape for output in ranks)
        found[name] = float((torch.stack(ranks) - values).abs().max())  # NaN, if there is one
    LOG.info("largest differences %s", found)
    return found


def refusal(client: MegatronClient, result: Converted, outputs: Path) -> str:
    """Why the client does not take the checkpoint."""
    answer = train_from(client, result, outputs)
    assert answer["status"] == "refused"
    return answer["reason"]


def train_from(client: MegatronClient, result: Converted, outputs: Path, *, save: Path | None = None) -> dict[str, str]:
    """Let the client load the checkpoint, compute from it, and save what it has loaded as torch_dist."""
    outputs.mkdir()
    layout = dataclasses.asdict(result.layout)
    del layout["source"]
    return client(
        {
            "checkpoint": result.checkpoint,
            "layout": layout,
            "model": result.source / "model.json",
            "inputs": result.source / "inputs.pt",
            "outputs": outputs,
            "save": save or "",
        }
    )


def damaged(damage: Callable[[Path], None], result: Converted, directory: Path) -> Converted:
    checkpoint = directory / "damaged"
    shutil.copytree(result.checkpoint, checkpoint)
    damage(checkpoint)
    return dataclasses.replace(result, checkpoint=checkpoint)


@contextlib.contextmanager
def editing(checkpoint: Path, directory: str) -> Iterator[dict[str, Any]]:
    """The content of a rank's file, written back afterwards."""
    path = checkpoint / "release" / directory / "model_optim_rng.pt"
    content = torch.load(path, weights_only=True)
    yield content
    torch.save(content, path)
