"""Damages of `config.json`: a flag flipped, a size changed, a field missing. What they are owed is as in `damages`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.differential.damages import EITHER, REFUSED, RIGHT, Harm, Scene
from tests.differential.drafts import same
from tests.differential.generations import TIE, is_tied, text_of

# Sizes of the text that the shape of a tensor contradicts in every family, and the dims that have them.
_CHECKED = ("hidden_size", "vocab_size", "num_hidden_layers", "intermediate_size")
_NUMBERS = ("num_attention_heads", "num_key_value_heads")
_HARMLESS: Mapping[str, Any] = {
    "rope_theta": 123.0,
    "use_cache": False,
    "architectures": ["AnyOther"],
    "pad_token_id": 7,
    "note of a user": {"deep": [1, None]},
    "rms_norm_eps": 0.5,
    "max_position_embeddings": 3,
}


def tie_flipped(scene: Scene) -> Harm | None:
    """Every flag is set to the opposite of what the model is."""
    model, config = scene.model, scene.configured.config
    if model.head in model.left_out:
        return None
    above = config["thinker_config"] if model.text.startswith("thinker_config.") else config
    tied = not is_tied(config, model)
    for place in (above, text_of(config, model)):
        place[TIE] = tied
    tensors = scene.source.tensors
    head = tensors.get(model.head)
    if tied:
        equal = head is not None and same(head, tensors[model.embedding])
        # It is kept where the result has a place for it.
        owed = RIGHT if equal else EITHER
    else:
        owed = REFUSED if head is None else RIGHT
    return Harm(owed=owed, what=f"{TIE} is {tied}", mentions=(model.head.rpartition(".")[0].rpartition(".")[2], TIE))


def tie_missing(scene: Scene) -> Harm:
    """Classes have other defaults than readers suppose."""
    config, model = scene.configured.config, scene.model
    above = config["thinker_config"] if model.text.startswith("thinker_config.") else config
    for place in (above, text_of(config, model)):
        place.pop(TIE, None)
    return Harm(owed=EITHER, what=f"without {TIE}", mentions=("head", "output", TIE))


def size_changed(scene: Scene) -> Harm:
    key = scene.random.choice(_CHECKED)
    text = text_of(scene.configured.config, scene.model)
    text[key] += scene.random.choice([-1, 1, 2])
    # A model of experts alone has nothing as wide as the dense MLP.
    owed = EITHER if key == "intermediate_size" else REFUSED
    return Harm(owed=owed, what=f"{key} is {text[key]}", mentions=(key, "layers.", "shape", scene.model.embedding))


def heads_changed(scene: Scene) -> Harm:
    """Where only the order of rows depends on it nobody can see it; the way back must undo it all the same."""
    key = scene.random.choice(_NUMBERS)
    text = text_of(scene.configured.config, scene.model)
    text[key] = max(1, text[key] * 2 if scene.random.random() < 0.5 else text[key] // 2)
    return Harm(owed=EITHER, what=f"{key} is {text[key]}", mentions=(key, "heads", "shape", "divide", "rows"))


def vision_changed(scene: Scene) -> Harm | None:
    config = scene.configured.config
    above = config["thinker_config"] if scene.model.text.startswith("thinker_config.") else config
    vision = above.get("vision_config")
    if vision is None:
        return None
    key = scene.random.choice([each for each, value in vision.items() if type(value) is int])
    vision[key] += scene.random.choice([-1, 1, 2])
    return Harm(owed=EITHER, what=f"vision_config.{key} is {vision[key]}", mentions=("vision", "visual", "image"))


def experts_changed(scene: Scene) -> Harm | None:
    text = text_of(scene.configured.config, scene.model)
    keys = [each for each in ("num_experts", "n_routed_experts", "moe_intermediate_size") if each in text]
    if not keys or not any(".experts." in name for name in scene.source.tensors):
        return None
    key = scene.random.choice(keys)
    text[key] += scene.random.choice([-1, 1])
    return Harm(owed=REFUSED, what=f"{key} is {text[key]}", mentions=(key, "expert"))


def field_missing(scene: Scene) -> Harm:
    text = text_of(scene.configured.config, scene.model)
    key = scene.random.choice([*_CHECKED, *_NUMBERS])
    text.pop(key, None)
    return Harm(owed=EITHER, what=f"without {key}", mentions=(key, "shape", "layers"))


def model_type_changed(scene: Scene) -> Harm:
    config = scene.configured.config
    config["model_type"] = scene.random.choice(["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "unheard_of", "llama"])
    return Harm(owed=EITHER, what=f"model_type is {config['model_type']}", mentions=("",))


def called_quantised(scene: Scene) -> Harm:
    scene.configured.config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return Harm(owed=EITHER, what="called quantised", mentions=("quanti",))


def release_changed(scene: Scene) -> Harm:
    """Another release than that whose form the file has: only the precedence of two fields may depend on it."""
    config, model = scene.configured.config, scene.model
    before = is_tied(config, model)
    version = scene.random.choice(["4.57.0", "5.1.0", "4.40.0", None])
    config.pop("transformers_version", None)
    if version is not None:
        config["transformers_version"] = version
    owed = RIGHT if version is not None and is_tied(config, model) == before else EITHER
    return Harm(owed=owed, what=f"transformers_version is {version}", mentions=("head", "output", TIE))


def harmless(scene: Scene) -> Harm:
    key = scene.random.choice(list(_HARMLESS))
    scene.configured.config[key] = _HARMLESS[key]
    return Harm(owed=RIGHT, what=f"{key} is another")


FLAG_DAMAGES: Mapping[str, Callable[[Scene], Harm | None]] = {
    each.__name__: each
    for each in (
        tie_flipped,
        tie_missing,
        size_changed,
        heads_changed,
        vision_changed,
        experts_changed,
        field_missing,
        model_type_changed,
        called_quantised,
        release_changed,
        harmless,
    )
}
