"""The README's way into a live model, run as it stands: what the sharded model computes is what the source computes.

The variants change the options of its command and the one expression that says which tensors are loaded.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.readme import blocks, commands

# On its way out, torch with gloo now and then aborts: "terminate called without an active exception".
COMPUTE = """
import os, torch, torch.distributed as dist
logits = model.eval()(**torch.load("{directory}/inputs.pt")).logits
if dist.get_rank() == 0:
    torch.save(logits.detach(), "{directory}/logits.pt")
dist.barrier()
os._exit(0)
"""
ALL = "model.state_dict()"
PREFIXED = '{"module." + name: tensor for name, tensor in model.state_dict().items()}'
WITHOUT_HEAD = '{name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}'
TIED = "tied_head=write"


@pytest.mark.parametrize(
    ("name", "replaced", "loaded"),
    [
        pytest.param("tied", TIED, ALL, id="as it stands"),
        pytest.param("tied", "tied_head=omit", WITHOUT_HEAD, id="tied, without the head"),
        pytest.param("untied", "", ALL, id="untied"),
        pytest.param("untied", "name_prefix=module.", PREFIXED, id="untied, with a prefix"),
        pytest.param("moe", "", ALL, id="packed experts"),
        pytest.param("moe", "name_prefix=module. packed_experts=keep", PREFIXED, id="packed experts, with a prefix"),
    ],
)
def test_the_logits_are_those_of_the_source(
    name: str, replaced: str, loaded: str, live_sources: Path, run_program: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "Qwen3-VL-4B").symlink_to(live_sources / name / "hf")
    for kind in ("inputs.pt", "expected.pt"):
        (tmp_path / kind).symlink_to(live_sources / name / kind)
    convert, run = (
        each.replace("/ckpt", str(tmp_path)) for each in commands() if "naming=hf" in each or "load.py" in each
    )
    (program,) = blocks("python")
    assert TIED in convert
    assert program.count(ALL) == 1
    program = program.replace("/ckpt", str(tmp_path)).replace(ALL, loaded)
    (tmp_path / "load.py").write_text(program + COMPUTE.format(directory=tmp_path))

    (torchrun, *options), (_, *start) = shlex.split(convert.replace(TIED, replaced)), shlex.split(run)
    assert torchrun == "torchrun"
    # the variants are converted by one process, which starts sooner
    several = ("-m", "torch.distributed.run", "--standalone")
    run_program(*(several if replaced == TIED else ()), *options[0 if replaced == TIED else options.index("-m") :])
    run_program(*several, *start[:-1], tmp_path / "load.py")

    logits, expected = torch.load(tmp_path / "logits.pt"), torch.load(tmp_path / "expected.pt")
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
