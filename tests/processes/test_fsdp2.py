"""What FSDP2 saves on two processes is found, shard by shard."""

from __future__ import annotations

import json

import torch

from distconv.formats.dcp.index import DcpIndex, locate, open_dcp
from distconv.formats.dcp.prefix import find_prefix, names_under
from tests.end_to_end.assembled import assert_assembled
from tests.processes import fsdp2_training
from tests.processes.jobs import TORCHRUN, run


def test_a_model_that_was_trained_with_fsdp2(tmp_path):
    outcome = run([*TORCHRUN, "2", fsdp2_training.__file__, str(tmp_path)], tmp_path)
    assert outcome.status == 0, outcome.err
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    checkpoint = open_dcp(tmp_path / "dcp", None)
    names = checkpoint.metadata.tensors
    assert any(name.startswith("optim.state.") for name in names)
    assert find_prefix(names, whole) == "model."
    local = names_under(names, "model.")
    assert set(local) == set(whole)
    found = locate(checkpoint, set(local.values()).__contains__)
    assert "checkpoint_version" in found.others
    for index in (found, DcpIndex.from_json(json.loads(json.dumps(found.to_json())))):
        assert set(index.tensors) == set(local.values())
        for name, tensor in whole.items():
            assert_assembled(index.tensors[local[name]], tensor)
    parts = {name: [part.shape for part in found.tensors[local[name]].sources] for name in whole}
    assert parts["embed.weight"] == [(6, 6), (5, 6)]
    assert parts["scale"] == [(1,)]
    assert found.tensors["model.layers.0.weight"].tensor is not found.tensors["model.layers.0.bias"].tensor
    assert found.tensors["model.layers.0.weight"].tensor is found.tensors["model.layers.2.weight"].tensor
