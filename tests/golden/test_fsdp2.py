"""Published names, there and back: what training with FSDP2 loads and saves, byte for byte, or refused.

A case (`fsdp2/*.json`) is a tiny Hugging Face directory, the source or the reference of the way back, a DCP that
training has saved, and the sha256 of every tensor of the result. They are of an independent converter, where it is
right, of transformers 5, or follow from the documented meaning of a layout.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distconv.formats.huggingface.safetensors import read_header
from tests.checkpoints import describe_dcp, tensor_bytes, write_safetensors

CASES = Path(__file__).parent / "fsdp2"
NAMES = sorted(path.stem for path in CASES.glob("*.json"))
FLOATING = {"float32": 4, "bfloat16": 2, "float16": 2}
WRAPPED, NATIVE, MEMORY = ("dialect=mm_wrapped",), ("dialect=mm_fsdp2",), ("dialect=transformers5",)
TIED = ("tied_head=write",)
FILLED = ("fill_from_reference=true",)
# What is asked for, by case; the dialect of a source is found.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "glm4v_moe__pack": WRAPPED,
    "internvl3_5_moe__pack": WRAPPED,
    "mistral3__forward": WRAPPED,
    "mistral3__forward_lora_base": (*WRAPPED, "name_prefix=base_model.model.model."),
    "qwen3_5_moe__back_keep_mtp": FILLED,
    "qwen3_5_moe__forward": NATIVE,
    "qwen3_5_moe__forward_prefix": (*NATIVE, "name_prefix=model."),
    "qwen3_5_moe_packed_mtp__forward": NATIVE,
    "qwen3_5_tied__forward": TIED,
    "qwen3__forward_prefix": ("name_prefix=model.",),
    "qwen3_omni_moe__pack": NATIVE,
    "qwen3_omni_moe_model_prefix__pack": WRAPPED,
    "qwen3_omni_moe_talker__pack": NATIVE,
    "qwen3_omni_moe_talker__unpack_thinker_only": FILLED,
    "qwen3_omni_moe_ungrouped__forward": (*NATIVE, "packed_experts=keep"),
    "qwen3_tied__forward": TIED,
    "qwen3vl_tied__forward": (*WRAPPED, *TIED),
    **{name: MEMORY for name in NAMES if name.startswith("tf5_") and name.endswith("__forward")},
    "qwen3_5__back_bf16": ("dtype=bfloat16",),
    "qwen3_5_moe__back_reference_dtype": ("dtype=reference",),
    "qwen3__back_bf16_optimizer": ("dtype=bfloat16",),
    "qwen3vl_moe__back_bf16": ("dtype=bfloat16",),
}
# What waits for something that is not there yet.
WAITING: tuple[str, ...] = ()


def load(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((CASES / f"{name}.json").read_text())
    return case


def content(case: Mapping[str, Any], name: str, dtype: str, shape: list[int], salt: str) -> bytes:
    """Bytes without infinities and NaN: the top bit of every exponent is 0."""
    data = bytearray(tensor_bytes(name, dtype, shape, salt))
    if case.get("finite") and dtype in FLOATING:
        last = slice(FLOATING[dtype] - 1, None, FLOATING[dtype])
        data[last] = bytes(byte & 0xBF for byte in data[last])
    return bytes(data)


def write_published(directory: Path, case: Mapping[str, Any]) -> Path:
    directory.mkdir(parents=True)
    shards: dict[str, dict[str, tuple[str, list[int], bytes]]] = {}
    for name, (dtype, shape, shard) in case["source_tensors"].items():
        data = content(case, name, dtype, shape, case.get("salt", ""))
        shards.setdefault(shard, {})[name] = (dtype, shape, data)
    for shard, tensors in shards.items():
        write_safetensors(directory / shard, tensors)
    if not case.get("no_index"):
        total = sum(len(data) for tensors in shards.values() for _, _, data in tensors.values())
        weight_map = {name: shard for name, (_, _, shard) in sorted(case["source_tensors"].items())}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (directory / "config.json").write_text(json.dumps(case["hf_config"], indent=2) + "\n")
    return directory


def save_trained(rank: int, world: int, port: int, name: str, path: str) -> None:
    """One rank of what training saves, in a process of its own."""
    import torch  # noqa: PLC0415 - slow to import
    import torch.distributed as dist  # noqa: PLC0415
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.tensor import Shard, distribute_tensor  # noqa: PLC0415

    case = load(name)
    trained = case["dcp_source"]

    def tensor(origin: str, dtype: str, shape: list[int]) -> Any:
        data = bytearray(content(case, origin, dtype, shape, trained["salt"]))
        return torch.frombuffer(data, dtype=torch.uint8).view(getattr(torch, dtype)).reshape(shape)

    alias = trained.get("alias", {})
    model = {each: tensor(alias.get(each, each), *kind) for each, kind in trained["tensors"].items()}
    state = {
        f"state.{each}.{kind}": tensor(f"optimizer.{kind}.{each}", "float32", trained["tensors"][each][1])
        for each in trained.get("optimizer", [])
        for kind in ("exp_avg", "exp_avg_sq")
    }
    if world > 1:
        store = dist.TCPStore("127.0.0.1", port, world, is_master=rank == 0)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        mesh = init_device_mesh("cpu", (world,))
        model, state = (
            {key: distribute_tensor(each, mesh, [Shard(0)]) for key, each in part.items()} for part in (model, state)
        )
    saved: dict[str, Any] = {"model": model}
    if state:
        saved["optimizer"] = state
    if trained.get("checkpoint_version"):
        saved["checkpoint_version"] = 3.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.save(saved, storage_writer=dcp.FileSystemWriter(path), no_dist=world == 1)
    if world > 1:
        dist.destroy_process_group()


def write_trained(directory: Path, name: str, case: Mapping[str, Any]) -> Path:
    iteration = directory / "iter_0000005"
    iteration.mkdir(parents=True)
    (directory / "latest_checkpointed_iteration.txt").write_text("5")
    world = case["dcp_source"].get("ranks", 1)
    if world == 1:
        save_trained(0, 1, 0, name, str(iteration))
        return directory
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=save_trained, args=(rank, world, port, name, str(iteration))) for rank in range(world)
    ]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
        assert each.exitcode == 0
    return directory


def describe_published(directory: Path) -> dict[str, Any]:
    """Every tensor in the words of a case's `hf`; the index names what is there."""
    found = {}
    where = {}
    for path in sorted(directory.glob("*.safetensors")):
        for each in read_header(path):
            data = path.read_bytes()[each.offset : each.offset + each.nbytes]
            found[each.name] = [each.dtype, list(each.shape), hashlib.sha256(data).hexdigest()]
            where[each.name] = path.name
    index = directory / "model.safetensors.index.json"
    if index.exists():
        assert json.loads(index.read_text())["weight_map"] == where
    else:
        assert len(set(where.values())) == 1
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WAITING])
def test_case(name, tmp_path, distconv):
    case = load(name)
    published = write_published(tmp_path / "hf", case)
    forth = case["direction"] == "hf_to_dcp"
    if forth:
        arguments = [f"source={published}", "target_format=dcp", "naming=hf"]
    else:
        trained = write_trained(tmp_path / "dcp", name, case)
        arguments = [f"source={trained}", "target_format=hf", f"reference={published}"]
    target = tmp_path / "result"
    arguments += [f"target={target}", *OPTIONS.get(name, ())]

    outcome = distconv(*arguments)

    if case["expect"] == "reject":
        assert outcome.status == 2, outcome
        assert not target.exists()
        return
    assert outcome.status == 0, outcome.err
    expected = case["dcp" if forth else "hf"]
    found = describe_dcp(target / "release") if forth else describe_published(target)
    optional = set(case.get("optional") or ())
    assert {key: value for key, value in found.items() if key not in optional - expected.keys()} == {
        key: value for key, value in expected.items() if key in found or key not in optional
    }
    if not forth:
        files = {each: shard for each, (_, _, shard) in case["source_tensors"].items()}
        assert {path.name for path in target.glob("*.safetensors")} == set(files.values())
        assert json.loads((target / "config.json").read_text()) == case["hf_config"]
    assert distconv(*arguments, "action=verify").status == 0
    if forth:
        # Without a word of what it is: names, packing and prefix are recognised.
        back = distconv(f"source={target}", f"target={tmp_path / 'back'}", "target_format=hf", "dtype=reference")
        assert back.status == 0, back.err
        assert describe_published(tmp_path / "back") == describe_published(published)


def test_what_waits_is_a_case():
    assert set(WAITING) <= set(NAMES)
    assert OPTIONS.keys() <= set(NAMES)
