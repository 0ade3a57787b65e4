"""The parameters in the tensors of a checkpoint, over the chunks that they lie in, or what is wrong with them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from distconv.errors import InputError
from distconv.formats.dcp.index import DcpIndex
from distconv.formats.torch_dist import index as index_module
from distconv.formats.torch_dist.index import index_parameters, open_torch_dist
from tests.unit.dcp_files import Call, Draft, Name, archive, rows
from tests.unit.formats.dcp.test_index import elements

LAYERS, EXPERTS, ROWS, COLUMNS = 3, 2, 4, 5
AGAIN = "load the checkpoint in training, and save it again"
FC1, FC2 = "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"
KIND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)


def boxes(*counts: int, dims: int) -> list[tuple[slice, ...]]:
    """One chunk for each position on the first dims, as Megatron-core cuts layers and experts."""
    rest = [slice(None)] * (dims - len(counts))
    return [(*(slice(each, each + 1) for each in position), *rest) for position in product(*map(range, counts))]


def saved(made: Draft, directory: Path, **kind: object) -> Path:
    made.save(directory)
    (directory / "metadata.json").write_text(json.dumps({**KIND, **kind}))
    return directory


def found(made: Draft, directory: Path) -> DcpIndex:
    return index_parameters(open_torch_dist(saved(made, directory), None))


def refused(made: Draft, directory: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        found(made, directory)
    return [problem.removeprefix(f"{directory}/.metadata: ") for problem in caught.value.problems]


def test_the_layers_and_experts_of_a_tensor(tmp_path):
    made, norm, experts = Draft(), numbered(LAYERS, ROWS), numbered(LAYERS, EXPERTS, ROWS, COLUMNS)
    made.put("decoder.layers.norm.weight", norm, "float32", boxes(LAYERS, dims=2))
    made.put(f"decoder.layers.mlp.experts.experts.{FC2[4:]}", experts, "float32", boxes(LAYERS, EXPERTS, dims=4))
    tensors = found(made, tmp_path).tensors
    for layer in range(LAYERS):
        assert (elements(tensors[f"decoder.layers.{layer}.norm.weight"]) == norm[layer]).all()
        for expert in range(EXPERTS):
            name = f"decoder.layers.{layer}.mlp.experts.local_experts.{expert}.{FC2[4:]}"
            assert (elements(tensors[name]) == experts[layer, expert]).all()
    assert len(tensors) == LAYERS * (1 + EXPERTS)


def test_layers_that_differ_are_apart(tmp_path):
    made, experts = Draft(), numbered(EXPERTS, ROWS, COLUMNS)
    made.put(f"decoder.layers.0.{FC1}", numbered(ROWS, COLUMNS), "float32", rows(2, ROWS))
    made.put(f"decoder.layers.10.mlp.experts.experts.{FC1[4:]}", experts, "float32", boxes(EXPERTS, dims=3))
    tensors = found(made, tmp_path).tensors
    assert (elements(tensors[f"decoder.layers.0.{FC1}"]) == numbered(ROWS, COLUMNS)).all()
    for expert in range(EXPERTS):
        name = f"decoder.layers.10.mlp.experts.local_experts.{expert}.{FC1[4:]}"
        assert (elements(tensors[name]) == experts[expert]).all()


@pytest.mark.parametrize("pieces", [1, 2])
def test_halves_are_joined_gate_first(pieces, tmp_path):
    made, whole = Draft(), numbered(2 * ROWS, COLUMNS)
    at = f"decoder.layers.1.mlp.experts.experts.3.{FC1[4:]}"
    # What gates is the first half, wherever it stands.
    made.put(f"{at}_v", whole[ROWS:], "float32", rows(pieces, ROWS))
    made.put(f"{at}_w", whole[:ROWS], "float32", rows(pieces, ROWS))
    (tensor,) = found(made, tmp_path).tensors.values()
    assert tensor.name == f"decoder.layers.1.mlp.experts.local_experts.3.{FC1[4:]}"
    assert (elements(tensor) == whole).all()


def test_a_chunk_may_hold_several_layers_and_others_a_part_of_one(tmp_path):
    """Other programs cut as they like."""
    made, stacked = Draft(), numbered(LAYERS, ROWS, COLUMNS)
    every = slice(None)
    cuts = [(slice(0, 2), every, slice(0, 2)), (slice(0, 2), every, slice(2, COLUMNS))]
    cuts += [(slice(2, 3), slice(0, 1), every), (slice(2, 3), slice(1, ROWS), every)]
    made.put(f"decoder.layers.{FC2}", stacked, "float32", cuts)
    tensors = found(made, tmp_path).tensors
    for layer in range(LAYERS):
        assert (elements(tensors[f"decoder.layers.{layer}.{FC2}"]) == stacked[layer]).all()


def test_a_prefix_of_all_keys_is_taken_off(tmp_path):
    made = Draft()
    made.put("module.decoder.layers.norm.weight", numbered(1, ROWS), "float32", rows(1, 1))
    made.put("module.output_layer.weight", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    assert found(made, tmp_path).tensors.keys() == {"decoder.layers.0.norm.weight", "output_layer.weight"}


def test_each_parameter_has_its_own_chunks_and_equal_ones_share_a_table(tmp_path):
    """So that facts and plans are as large as the list of names, however many chunks a tensor has."""
    made, experts = Draft(), numbered(8, 4, 2 * ROWS, COLUMNS)
    cuts = [(*box[:2], rows, box[3]) for box in boxes(8, 4, dims=4) for rows in (slice(0, ROWS), slice(ROWS, None))]
    for number, cut in enumerate(cuts):
        offsets = tuple(each.start or 0 for each in cut)
        stored = Draft()
        stored.put("x", np.asarray(experts[cut]), "float32", [(slice(None),) * 4])
        made.add("k", offsets, (1, 1, ROWS, COLUMNS), stored.files["__0_0.distcp"], f"__{number % 3}_0.distcp")
    key = f"decoder.layers.mlp.experts.experts.{FC1[4:]}"
    made.shapes[key], made.boxes[key] = ("float32", experts.shape), made.boxes.pop("k")
    index = found(made, tmp_path)
    again = DcpIndex.from_json(json.loads(json.dumps(index.to_json())))
    for each in (index, again):
        assert {len(tensor.sources) for tensor in each.tensors.values()} == {2}
        assert len({id(tensor.tensor) for tensor in each.tensors.values()}) == 1
        for (layer, expert), tensor in zip(product(range(8), range(4)), each.tensors.values(), strict=True):
            assert (elements(tensor) == experts[layer, expert]).all()


def test_only_the_model_is_located(tmp_path):
    """State of training may be damaged, or have names of the model further on."""
    made = Draft(others=["rng_state/shard_0_1", "common_state/shard_0_1", "notes", "a._extra_state/shard_0_1"])
    made.put("output_layer.weight", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    made.put("optimizer.state.param.output_layer.weight", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    made.boxes["optimizer.state.param.output_layer.weight"].clear()
    made.add("common_state/shard_0_1", (), (), archive([{"iteration": 7, "optimizer": {}}]), "__0_0.distcp")
    opened = open_torch_dist(_with_places(made, tmp_path), None)
    assert index_parameters(opened).tensors.keys() == {"output_layer.weight"}
    assert opened.others() == [
        "extra states of modules: 1 entry; none of them is a weight",
        "notes, which is no tensor: 1 entry; only the model is converted",
        "state of the optimizer: 1 entry; only the model is converted",
        "states of random generators: 1 entry; only the model is converted",
        "optimizer of the common part; only the model is converted",
    ]


def _with_places(made: Draft, directory: Path) -> Path:
    """The checkpoint, with the place of the common part, which is no tensor, in its metadata."""
    metadata = made.metadata
    (box,) = made.boxes["common_state/shard_0_1"]

    def with_place() -> Call:
        found = metadata()
        state = {"fqn": "common_state/shard_0_1", "index": None}
        found.state["storage_data"][Call(Name(META, "MetadataIndex"), (), state)] = box.info()
        return found

    made.metadata = with_place  # type: ignore[method-assign]
    return saved(made, directory)


META = "torch.distributed.checkpoint.metadata"


def test_everything_that_is_wrong_is_said(tmp_path):
    made = Draft()
    made.put(f"decoder.layers.0.{FC1}", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    made.put(f"decoder.layers.{FC1}", numbered(1, ROWS, COLUMNS), "float32", rows(1, 1, 3))
    made.put(f"decoder.layers.7.{FC1}_v", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    made.put(f"decoder.layers.8.{FC1}_v", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    made.put(f"decoder.layers.8.{FC1}_w", numbered(ROWS, COLUMNS + 1), "float32", rows(1, ROWS))
    made.put(f"decoder.layers.9.{FC1}", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    made.put(f"decoder.layers.9.{FC1}_w", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    made.put(f"decoder.layers.9.{FC1}_v", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    made.put("decoder.layers.mlp.experts.experts.linear_fc2.bias", numbered(2), "float32", rows(1, 2, 1))
    problems = refused(made, tmp_path)
    assert [problem.partition(": ")[0] for problem in problems[:1]] == [
        f"tensors decoder.layers.0.{FC1} and decoder.layers.{FC1} both hold decoder.layers.0.{FC1}; {AGAIN}"
    ]
    assert any("linear_fc2.bias: expected a dim for layers, or for experts" in each for each in problems)
    assert (
        f"decoder.layers.7.{FC1} is stored as gate and up apart (decoder.layers.7.{FC1}_v) and the other one is "
        f"missing; {AGAIN}" in problems
    )
    assert any(
        each.startswith(f"decoder.layers.8.{FC1} is stored as gate and up apart, which do not fit: ")
        for each in problems
    )
    assert any(
        each.startswith(f"decoder.layers.9.{FC1} is stored as gate and up apart (") and "and as a whole" in each
        for each in problems
    )
    assert len(problems) == 5


def test_more_parameters_than_any_model_has(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "_MOST_PARAMETERS", 3)
    made = Draft()
    for name in "ab":
        made.put(f"decoder.layers.{name}", numbered(4, ROWS), "float32", rows(1, 4))
    assert refused(made, tmp_path) == [
        "names more than 3 parameters: it is damaged; load the checkpoint in training, and save it again"
    ]


def test_a_checkpoint_without_a_model(tmp_path):
    made = Draft(others=["rng_state/shard_0_1"])
    made.put("optimizer.state.param.output_layer.weight", numbered(ROWS, COLUMNS), "float32", rows(1, ROWS))
    assert refused(made, tmp_path) == ["holds no tensor of a model; give a checkpoint that was saved with its weights"]


def test_every_byte_of_a_file_is_told_of(tmp_path):
    """But for files that are not named at all, and what is missing, which is said where it is needed."""
    made = Draft()
    made.put("a", numbered(ROWS, COLUMNS), "float32", rows(2, ROWS))
    made.files["__7_0.distcp"] = b"unread"
    assert open_torch_dist(saved(made, tmp_path), None).checkpoint.unread() != ()
    path = tmp_path / "__1_0.distcp"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(InputError) as caught:
        open_torch_dist(tmp_path, None)
    (problem,) = caught.value.problems
    assert problem.startswith(
        f"{path}: has {size + 1} bytes, but .metadata tells of {size}: it is of another checkpoint"
    )
