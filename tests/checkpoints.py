"""Source checkpoints and expected results for tests: the golden cases, rebuilt byte for byte.

A case (tests/golden/cases/*.json) describes a tiny Hugging Face checkpoint with real parameter names and lopsided
sizes, a layout, and the sha256 of every tensor of the result. A source tensor is the bytes `shake_128(salt + name)`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from distconv.tensors.dtypes import ITEM_SIZE, SAFETENSORS_CODE

CASES = Path(__file__).parent / "golden" / "cases"
CODES = {dtype: code for code, dtype in SAFETENSORS_CODE.items()}


def load_case(name: str) -> dict[str, Any]:
    return json.loads((CASES / f"{name}.json").read_text())


def case_names() -> list[str]:
    return sorted(path.stem for path in CASES.glob("*.json"))


def tensor_bytes(name: str, dtype: str, shape: Iterable[int], salt: str = "") -> bytes:
    return hashlib.shake_128((salt + name).encode()).digest(prod(shape) * ITEM_SIZE[dtype])


def write_header(path: Path, tensors: Mapping[str, tuple[str, list[int]]]) -> None:
    """Write a shard of tensors, as (dtype, shape) in the order given, that are holes: zeros that take no space."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        start, offset = offset, offset + prod(shape) * ITEM_SIZE[dtype]
        header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, offset]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(stream.tell() + offset)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, list[int], bytes]]) -> None:
    """Write a shard: tensors as (dtype, shape, data) in the order given."""
    write_header(path, {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()})
    with path.open("r+b") as stream:
        stream.seek(-sum(len(data) for _, _, data in tensors.values()), os.SEEK_END)
        for _, _, data in tensors.values():
            stream.write(data)


def write_source(directory: Path, case: Mapping[str, Any], *, single_file: bool = False) -> Path:
    """Write the Hugging Face directory of a case (or of its `llm` part)."""
    directory.mkdir(parents=True)
    salt = case.get("salt", "")
    shards: dict[str, dict[str, tuple[str, list[int], bytes]]] = {}
    for name, (dtype, shape, shard) in case["source_tensors"].items():
        data = tensor_bytes(name, dtype, shape, salt)
        shards.setdefault("model.safetensors" if single_file else shard, {})[name] = (dtype, shape, data)
    for shard, tensors in shards.items():
        write_safetensors(directory / shard, tensors)
    adapter = any(shard.startswith("adapter_model") for shard in shards)
    if not single_file and not adapter:
        weight_map = {name: shard for name, (_, _, shard) in case["source_tensors"].items()}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / ("adapter_config.json" if adapter else "config.json")).write_text(json.dumps(case["hf_config"]))
    return directory


def hashes(directory: Path) -> dict[str, str]:
    """Every file of a directory, hidden ones too, with the sha256 of its bytes."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def hashes_but_record(directory: Path) -> dict[str, str]:
    """The same without the record, which says of what a result was made."""
    return {path: digest for path, digest in hashes(directory).items() if Path(path).name != "distconv.json"}


def forget(directory: Path) -> None:
    """Have the records below a directory say no more than those of the first version: nothing of what files hold."""
    for path in directory.rglob("distconv.json"):
        content = json.loads(path.read_text())
        kept = {key: content[key] for key in ("model", "reference", "adapters") if key in content}
        path.write_text(json.dumps(kept))


def is_refused(case: Mapping[str, Any]) -> bool:
    """Whether the layout of a case leaves text layers without deepstack features, so that they are trained wrongly."""
    merged = case["hf_config"].get("vision_config", {}).get("deepstack_visual_indexes", ())
    return "files" in case and case["layout"]["llm_pp_layers"][0][0] < len(merged)


def overrides(case: Mapping[str, Any]) -> list[str]:
    """The options of the command line that ask for the layout and the variant of a case."""
    layout, options = case["layout"], case["options"]
    variant = "_canonical" if options.get("enable_canonical_hf_struct") else ""
    if "__lora_" in case["case"]:
        variant = "_lora"
    given = [f"+model={case['model']}{variant}"]
    if "dcp" in case:
        prefix = "base_model.model.model." if options.get("is_lora_base") else "model."
        hf = ["naming=hf", f"name_prefix={prefix}"] if "__fsdp_" in case["case"] else []
        return [*given, "target_format=dcp", *hf]
    given += [f"layout.tp={layout['tp_size']}", f"layout.ep={layout['ep_size']}"]
    for modality, key in (("text", "llm"), ("vision", "vit"), ("audio", "audio")):
        if rows := layout.get(f"{key}_pp_layers"):
            shown = json.dumps(rows if len(rows) > 1 else rows[0], separators=(",", ":"))
            given.append(f"layout.stages.{modality}={shown}")
        if size := layout.get(f"{key}_tp_size"):
            given.append(f"layout.modality_tp.{modality}={size}")
    if "__ldt_" in case["case"]:
        given.append("layout.placement=u_shape")
    if is_refused(case):
        given.append("layout.check=false")
    if rows := options.get("resize_vocab_size"):
        given.append(f"vocab_size={rows}")
    if case["case"] == "qwen2vl__tied_with_head_pp2":
        # The head that it stores differs from the embedding, which is to take its place.
        given.append("tied_head=write")
    if options.get("save_vit_only"):
        given.append("select=[vision]")
    return given


def described(value: Any) -> Any:
    """A tensor as its element type, shape and sha256; a dictionary of them; other values as they are."""
    import torch  # noqa: PLC0415 - slow to import, and most tests do without it

    if isinstance(value, dict):
        return {name: described(item) for name, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return [str(value.dtype).removeprefix("torch."), list(value.shape), hashlib.sha256(data).hexdigest()]


def describe_result(directory: Path) -> dict[str, Any]:
    """What a Megatron directory holds, in the words of a case's `files`; read with torch, not with distconv."""
    import torch  # noqa: PLC0415 - as above

    return {
        path.relative_to(directory).as_posix(): described(torch.load(path, weights_only=True))
        for path in sorted(directory.rglob("*.pt"))
    }


def read_dcp(directory: Path) -> dict[str, Any]:
    """The tensors and values of a DCP by flat name, read by torch."""
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner  # noqa: PLC0415 - as above
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict  # noqa: PLC0415

    nested: dict[str, Any] = {}
    reader = FileSystemReader(directory)
    _load_state_dict(nested, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    flat = {}
    for key, value in nested.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def describe_dcp(directory: Path) -> dict[str, Any]:
    """What a DCP holds, in the words of a case's `dcp`."""
    return described(read_dcp(directory))
