"""Damages of files: beside the weights, in the index, and of what is saved. What they are owed is as in `damages`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save

from tests.differential.damages import EITHER, ELSEWHERE, REFUSED, RIGHT, Harm, Scene, short
from tests.differential.drafts import INDEX, SINGLE, numbered

_NOTES: Mapping[str, bytes] = {
    "tokenizer.json": b"{}",
    "README.md": b"a model",
    ".gitattributes": b"*.bin lfs",
    "figures/loss.txt": b"1.0",
    "trainer_state.json": b"{}",
}


def _other_weights(scene: Scene) -> bytes:
    """A safetensors file with the first tensor of the model, and other elements."""
    each = scene.source.stored[0]
    return save({each.name: numbered(each.tensor.shape, each.tensor.dtype, ELSEWHERE)}, metadata={"format": "pt"})


def side_file(scene: Scene) -> Harm:
    name = scene.random.choice(list(_NOTES))
    scene.source.files[name] = _NOTES[name]
    return Harm(owed=RIGHT, what=f"{name} beside it")


def adapter_beside(scene: Scene) -> Harm | None:
    """An adapter lies in the directory of a model: loaders of transformers with PEFT would apply it."""
    if not scene.has_config:
        return None
    scene.source.files["adapter_config.json"] = b'{"peft_type": "LORA", "r": 8, "lora_alpha": 16}'
    if scene.random.random() < 0.5:
        scene.source.files["adapter_model.safetensors"] = _other_weights(scene)
    return Harm(owed=EITHER, what="adapter_config.json beside it", mentions=("adapter",))


def bin_beside(scene: Scene) -> Harm | None:
    """Readers prefer safetensors."""
    if not scene.has_config:
        return None
    scene.source.files["pytorch_model.bin"] = pickle.dumps({})
    return Harm(owed=EITHER, what="pytorch_model.bin beside it", mentions=("pytorch_model.bin",))


def single_beside_index(scene: Scene) -> Harm | None:
    """Readers take the single file."""
    if not scene.has_config or scene.source.weight_map is None:
        return None
    scene.source.files[SINGLE] = _other_weights(scene)
    return Harm(owed=REFUSED, what=f"{SINGLE} beside an index", mentions=(SINGLE,))


def shard_beside_index(scene: Scene) -> Harm | None:
    """A shard of another save that the index does not name."""
    if not scene.has_config or scene.source.weight_map is None:
        return None
    scene.source.files["model-00007-of-00007.safetensors"] = _other_weights(scene)
    return Harm(owed=EITHER, what="a shard that the index does not name", mentions=("model-00007",))


def index_without_a_tensor(scene: Scene) -> Harm | None:
    """Its shard holds it, and readers of whole shards get it."""
    if not scene.has_config or scene.source.weight_map is None:
        return None
    name = scene.name(trained=True)
    del scene.source.weight_map[name]
    return Harm(owed=EITHER, what=f"the index lacks {name}", mentions=(short(name),))


def index_names_another_shard(scene: Scene) -> Harm | None:
    draft = scene.source
    if not scene.has_config or draft.weight_map is None or len(draft.shards) < 2:
        return None
    each = scene.random.choice(draft.stored)
    draft.weight_map[each.name] = scene.random.choice([shard for shard in draft.shards if shard != each.shard])
    return Harm(owed=REFUSED, what=f"the index has {each.name} elsewhere", mentions=(short(each.name),))


def total_size_wrong(scene: Scene) -> Harm | None:
    if not scene.has_config or scene.source.weight_map is None:
        return None

    def change(directory: Path) -> None:
        content = json.loads((directory / INDEX).read_text())
        content["metadata"] = {"total_size": 12, "made by": "someone"}
        (directory / INDEX).write_text(json.dumps(content))

    scene.source.after.append(change)
    return Harm(owed=EITHER, what="total_size is 12", mentions=("total_size", INDEX))


def shard_missing(scene: Scene) -> Harm:
    form = "*.safetensors" if scene.has_config else "*.distcp"

    def change(directory: Path) -> None:
        scene.random.choice(sorted(directory.glob(form))).unlink()

    scene.source.after.append(change)
    return Harm(owed=REFUSED, what="a file of weights is missing", mentions=("safetensors", "distcp", "weights"))


def shard_cut(scene: Scene) -> Harm:
    """The file ends early, or goes on."""
    form = "*.safetensors" if scene.has_config else "*.distcp"
    change = scene.random.choice([-1, -7, 5])

    def cut(directory: Path) -> None:
        path = scene.random.choice(sorted(directory.glob(form)))
        content = path.read_bytes()
        path.write_bytes(content[:change] if change < 0 else content + bytes(change))

    scene.source.after.append(cut)
    # Torch's reader takes the bytes that .metadata names, and looks at no others.
    owed = EITHER if change > 0 and not scene.has_config else REFUSED
    return Harm(owed=owed, what=f"a file has {change} bytes", mentions=("safetensors", "distcp"))


def config_unreadable(scene: Scene) -> Harm:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_bytes(scene.random.choice([b"", b"[]", b"{", path.read_bytes()[:-1], b"\xff"]))

    scene.configured.after.append(change)
    return Harm(owed=REFUSED, what="config.json is no JSON object", mentions=("config.json",))


FILE_DAMAGES: Mapping[str, Callable[[Scene], Harm | None]] = {
    each.__name__: each
    for each in (
        side_file,
        adapter_beside,
        bin_beside,
        single_beside_index,
        shard_beside_index,
        index_without_a_tensor,
        index_names_another_shard,
        total_size_wrong,
        shard_missing,
        shard_cut,
        config_unreadable,
    )
}
