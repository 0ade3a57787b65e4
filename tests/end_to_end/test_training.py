"""Checkpoints as training leaves them, and as an accident does, read as sources; the files are torch's own."""

from __future__ import annotations

import argparse
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distconv.errors import InputError
from distconv.formats.megatron.bind import MegatronBinding, bind_megatron
from distconv.formats.megatron.index import read_megatron
from distconv.layout.request import SourceLayout
from distconv.models.sizes import Sizes
from distconv.transfer.files import OpenFiles
from distconv.transfer.sinks import CompareSink, Counters
from distconv.transfer.sources import SourceFiles
from distconv.transfer.verify import comparison
from tests.checkpoints import load_case, overrides, write_source
from tests.megatron_sources import definition, elements, stored
from tests.unit.buffers import produce, small_buffers

CASE = load_case("qwen2vl__tp2_pp2")
FILE = "model_optim_rng.pt"
HIDDEN, MLP = CASE["hf_config"]["hidden_size"], CASE["hf_config"]["intermediate_size"]
Tensors = dict[str, torch.Tensor]
Rewrite = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Megatron directory of two tensor and two pipeline parallel ranks, saved by torch."""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    root = tmp_path_factory.mktemp("converted")
    arguments = [*overrides(CASE), f"source={write_source(root / 'hf', CASE)}", f"target={root / 'mm'}"]
    subprocess.run([sys.executable, "-m", "distconv", *arguments], check=True, capture_output=True)
    return root / "mm"


@pytest.fixture
def checkpoint(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "mm"))


def rewrite(checkpoint: Path, change: Rewrite, pattern: str = "mp_rank_*") -> None:
    """Load files with torch and save them as changed."""
    paths = sorted(checkpoint.glob(f"*/{pattern}/{FILE}"))
    assert paths
    for path in paths:
        content = change(torch.load(path, weights_only=True))
        path.unlink()
        torch.save(content, path)


def bound(checkpoint: Path, given: SourceLayout | None = None) -> MegatronBinding:
    model = definition("qwen2vl")
    sizes = Sizes(model.sizes, CASE["hf_config"], "hf/config.json")
    return bind_megatron(model, sizes, read_megatron(checkpoint, None), given or SourceLayout(), lambda _: None)


def parameters(found: MegatronBinding) -> Mapping[str, np.ndarray]:
    return {each.name: elements(each, map(stored, each.sources)) for each in found.parameters.parameters}


@pytest.fixture(scope="module")
def original(converted: Path) -> Mapping[str, np.ndarray]:
    return parameters(bound(converted))


def assert_same(found: MegatronBinding, original: Mapping[str, np.ndarray]) -> None:
    arrays = parameters(found)
    assert arrays.keys() == original.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, original[name], name)


class Foreign:
    """A class that only training has."""


class Malicious:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self._mark}",)


def test_what_training_saves(checkpoint, original, tmp_path):
    mark = tmp_path / "run"

    def trained(content: dict[str, Any]) -> dict[str, Any]:
        model = OrderedDict(content["model"])
        model["text_decoder.decoder.layers.0.self_attention.linear_qkv._extra_state"] = None
        model["text_decoder.decoder.layers.0.mlp.linear_fc1._extra_state"] = Malicious(mark)
        return {
            "args": argparse.Namespace(tensor_model_parallel_size=2, nested=Foreign()),
            "checkpoint_version": 3.0,
            "iteration": 1000,
            "model": model,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "malicious": Malicious(mark)},
            "opt_param_scheduler": {"lr": 1.0},
            "rng_state": [{"np_rng_state": np.random.get_state(), "torch_rng_state": torch.get_rng_state()}],  # noqa: NPY002
        }

    rewrite(checkpoint, trained)
    (checkpoint / "release").rename(checkpoint / "iter_0001000")
    (checkpoint / "latest_checkpointed_iteration.txt").write_text("1000\n")

    found = bound(checkpoint)

    assert not mark.exists()
    assert read_megatron(checkpoint, None).iteration == "1000"
    assert_same(found, original)
    assert {each.name for each in found.dropped} == {"args", "optimizer", "opt_param_scheduler", "rng_state"}


def test_parameters_and_virtual_stages_of_modules(checkpoint, original):
    """What `state_dict(keep_vars=True)` gives."""
    rewrite(
        checkpoint,
        lambda content: {"model": {name: torch.nn.Parameter(tensor) for name, tensor in content["model"].items()}},
    )
    assert_same(bound(checkpoint), original)


def views_of_one_buffer(content: dict[str, Any]) -> dict[str, Any]:
    """As a distributed optimizer keeps them."""
    tensors: Tensors = content["model"]
    buffer = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    pieces = buffer.split([tensor.numel() for tensor in tensors.values()])
    return {"model": {name: piece.view(tensors[name].shape) for name, piece in zip(tensors, pieces, strict=True)}}


def transposed(content: dict[str, Any]) -> dict[str, Any]:
    def turned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    return {"model": {name: turned(tensor) for name, tensor in content["model"].items()}}


def columns_of_wider_rows(content: dict[str, Any]) -> dict[str, Any]:
    def widened(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1]]

    return {"model": {name: widened(tensor) for name, tensor in content["model"].items()}}


@pytest.mark.parametrize("change", [views_of_one_buffer, transposed, columns_of_wider_rows])
def test_views_of_storage(checkpoint, original, change):
    rewrite(checkpoint, change)
    assert_same(bound(checkpoint), original)


def test_two_ranks_that_share_a_file_by_a_link(checkpoint, original):
    outside = checkpoint.parent / "outside"
    (checkpoint / "release" / "mp_rank_01_001").rename(outside)
    (checkpoint / "release" / "mp_rank_01_001").symlink_to(outside)
    assert_same(bound(checkpoint), original)


def refused(checkpoint: Path) -> str:
    with pytest.raises(InputError) as caught:
        bound(checkpoint)
    return str(caught.value)


def test_a_missing_rank(checkpoint):
    shutil.rmtree(checkpoint / "release" / "mp_rank_01_000")
    assert refused(checkpoint) == (
        f"{checkpoint}/release: mp_rank_01_000 is missing, although there are ranks up to mp_rank_01_001; was "
        "it copied completely?"
    )


def test_missing_last_ranks_of_a_pipeline(checkpoint):
    for name in ("mp_rank_00_001", "mp_rank_01_001"):
        shutil.rmtree(checkpoint / "release" / name)
    assert refused(checkpoint) == (
        f"{checkpoint}/release: its stages hold [2] text layers, but config.json says that the model has 6; is "
        "this the reference of the model, and are the directories of all ranks there?"
    )


def test_ranks_of_two_iterations(checkpoint):
    rewrite(checkpoint, lambda content: content | {"iteration": 100})
    rewrite(checkpoint, lambda content: content | {"iteration": 200}, "mp_rank_01_001")
    assert refused(checkpoint) == (
        "the files are of different checkpoints: they differ in iteration: "
        f"{checkpoint}/release/mp_rank_00_000/{FILE} has iteration 100, "
        f"{checkpoint}/release/mp_rank_01_001/{FILE} has iteration 200; give those of one"
    )


NORM = "text_decoder.decoder.layers.0.input_layernorm.weight"
EMBEDDING = "text_decoder.embedding.word_embeddings.weight"
FC1 = "text_decoder.decoder.layers.0.mlp.linear_fc1.weight"


def changed(**tensors: torch.Tensor | None) -> Rewrite:
    """Replace tensors, or remove them."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        model = content["model"] | tensors
        return content | {"model": {name: tensor for name, tensor in model.items() if tensor is not None}}

    return change


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({NORM: None}, f"1 tensor is missing: model/{NORM}"),
        ({"a.weight": torch.ones(2)}, "1 tensor that no rule of model definition qwen2vl knows: model/a.weight"),
        (
            {NORM: torch.ones(3, dtype=torch.bfloat16)},
            f"model/{NORM} has shape [3], expected [{HIDDEN}] (rule ",
        ),
        (
            {FC1: torch.ones(8, HIDDEN, dtype=torch.bfloat16)},
            (
                f"model/{FC1} has shape [8, {HIDDEN}], expected [{MLP}, {HIDDEN}], one of 2 pieces (rule "
                "text.mlp_input); its sizes: mlp ("
            ),
        ),
        ({NORM: torch.ones(HIDDEN)}, f"model/{NORM} is float32, but other pieces of the parameter are bfloat16"),
    ],
)
def test_a_rank_that_differs(checkpoint, tensors, message):
    rewrite(checkpoint, changed(**tensors), "mp_rank_01_000")
    assert refused(checkpoint).startswith(f"{checkpoint}/release/mp_rank_01_000/{FILE}: {message}")


def test_pieces_of_a_vocabulary_that_differ_between_ranks(checkpoint):
    rewrite(checkpoint, changed(**{EMBEDDING: torch.ones(50, HIDDEN, dtype=torch.bfloat16)}), "mp_rank_01_000")
    assert f"mp_rank_01_000/{FILE}: model/{EMBEDDING} has shape [50, {HIDDEN}]" in refused(checkpoint)


@pytest.mark.parametrize("change", [views_of_one_buffer, transposed, columns_of_wider_rows])
def test_a_replica_that_differs_is_seen_where_it_is_compared(checkpoint, change):
    rewrite(checkpoint, changed(**{NORM: torch.zeros(HIDDEN, dtype=torch.bfloat16)}), "mp_rank_01_000")
    rewrite(checkpoint, change)
    found = bound(checkpoint)
    counters = Counters(lambda _: None)
    with SourceFiles() as sources, OpenFiles(os.O_RDONLY) as targets:
        sink = CompareSink(targets, counters)
        work = [comparison(replica) for replica in found.replicas]
        produce(work, sink, sources, counters, small_buffers(2, 1 << 16))
    copies = [stored for replica in found.replicas for stored in replica.copy.sources if stored.name == NORM]
    (norm,) = (copy for copy in copies if copy.file.path == f"{checkpoint}/release/mp_rank_01_000/{FILE}")
    assert {path for path, _ in sink.different} == {norm.file.path}
    assert all(norm.offset <= offset < norm.offset + norm.nbytes for _, offset in sink.different)


def test_a_truncated_file(checkpoint):
    path = checkpoint / "release" / "mp_rank_00_001" / FILE
    os.truncate(path, path.stat().st_size // 2)
    assert refused(checkpoint).startswith(f"{path}: truncated, or not in the zip format of torch >= 1.6 (")


def test_the_format_before_torch_1_6(checkpoint):
    path = checkpoint / "release" / "mp_rank_00_001" / FILE
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert "an older file can be saved again with torch.save" in refused(checkpoint)
