"""Rounds of LoRA adapters, as PEFT saves them: into training and back to the byte, or merged as PEFT merges.

A round is a function of its seed, as in `rounds`. Settings that distconv cannot honour, and factors that do not fit,
must be refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from distconv.api import convert
from distconv.errors import InputError
from tests.differential import oracle
from tests.differential.damages import EITHER, ELSEWHERE, REFUSED, RIGHT, Harm
from tests.differential.drafts import SINGLE, Draft, Stored, Tensors, numbered, numbered_tensors, save_hf
from tests.differential.generations import GENERATIONS, saved_by
from tests.differential.models import Model
from tests.differential.qwen import qwen2_vl
from tests.differential.routes import drawn_layout

FILE, CONFIG, FRONT = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
_LAYER = re.compile(r"(?:layers|blocks)\.\d+\.(.+)\.weight$")
_REFUSED_SETTINGS: Mapping[str, Any] = {
    "use_dora": True,
    "bias": "all",
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1, 2],
    "invented_by_a_later_release": True,
    "peft_type": "LOHA",
}
_HARMLESS_SETTINGS: Mapping[str, Any] = {
    "lora_dropout": 0.3,
    "inference_mode": False,
    "revision": "main",
    "use_dora": False,
    "modules_to_save": None,
}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A base model, adapters for some of its modules by the module's name, and the settings of PEFT."""

    model: Model
    draft: Draft
    base: Tensors
    base_config: dict[str, Any]
    scaling: Mapping[str, float]


def drawn_adapter(random: Random) -> Adapter:
    """Adapters of random kinds of modules in all layers, some kinds of another rank or alpha."""
    model = qwen2_vl(random, gated=True)
    config = saved_by(random.choice(GENERATIONS), model, "float32", random)
    modules = {name: match[1] for name in model.shapes if (match := _LAYER.search(name)) and "norm" not in name}
    kinds = sorted({kind for kind in modules.values() if "attn" in kind or "mlp" in kind})
    chosen = random.sample(kinds, random.randint(1, len(kinds)))
    rank, alpha, rooted = random.choice([2, 4]), random.choice([3, 8]), random.random() < 0.5
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rooted,
        "bias": "none",
    }
    settings |= {"base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}
    settings["target_modules"] = sorted({kind.rpartition(".")[2] for kind in chosen})
    ranks, alphas = {}, {}
    if random.random() < 0.4:
        ranks[random.choice(chosen)] = rank + 1
    if random.random() < 0.4:
        alphas[random.choice(chosen)] = alpha + 2
    settings |= {"rank_pattern": ranks, "alpha_pattern": alphas}
    shapes: dict[str, tuple[int, ...]] = {}
    scaling = {}
    for name, kind in modules.items():
        if kind.rpartition(".")[2] in settings["target_modules"]:
            rows, columns = model.shapes[name]
            own = next((each for key, each in ranks.items() if kind.endswith(key)), rank)
            stem = FRONT + name.removesuffix(".weight")
            shapes[f"{stem}.lora_A.weight"], shapes[f"{stem}.lora_B.weight"] = (own, columns), (rows, own)
            top = next((each for key, each in alphas.items() if kind.endswith(key)), alpha)
            scaling[name] = top / (own**0.5 if rooted else own)
    tensors = numbered_tensors(shapes, dict.fromkeys(shapes, torch.float32), 1)
    draft = Draft({}, [Stored(FILE, name, each) for name, each in tensors.items()], None)
    draft.files[CONFIG] = json.dumps(settings).encode()
    stored = {name: shape for name, shape in model.shapes.items() if name != model.head or not model.tied}
    base = numbered_tensors(stored, dict.fromkeys(stored, torch.float32), ELSEWHERE)
    return Adapter(model=model, draft=draft, base=base, base_config=config, scaling=scaling)


def refused_setting(random: Random, adapter: Adapter) -> Harm:
    key = random.choice(list(_REFUSED_SETTINGS))
    _set(adapter, key, _REFUSED_SETTINGS[key])
    return Harm(owed=REFUSED, what=f"{key} is {_REFUSED_SETTINGS[key]}", mentions=(key,))


def harmless_setting(random: Random, adapter: Adapter) -> Harm:
    key = random.choice(list(_HARMLESS_SETTINGS))
    _set(adapter, key, _HARMLESS_SETTINGS[key])
    return Harm(owed=RIGHT, what=f"{key} is {_HARMLESS_SETTINGS[key]}")


def factor_dropped(random: Random, adapter: Adapter) -> Harm:
    each = random.choice(adapter.draft.stored)
    adapter.draft.remove(each.name)
    return Harm(owed=REFUSED, what=f"without {each.name}", mentions=(_module(each.name),))


def factor_narrower(random: Random, adapter: Adapter) -> Harm:
    each = random.choice(adapter.draft.stored)
    each.tensor = each.tensor[:-1].clone() if "lora_A" in each.name else each.tensor[:, :-1].contiguous()
    return Harm(owed=REFUSED, what=f"{each.name} is narrower", mentions=(_module(each.name),))


def beside_the_factors(random: Random, adapter: Adapter) -> Harm:
    """What DoRA, trained modules and biases leave in the file."""
    like = random.choice(adapter.draft.stored).name
    ends = (".lora_magnitude_vector.weight", ".lora_embedding_A", ".base_layer.bias", ".modules_to_save.weight")
    name = like.partition(".lora_")[0] + random.choice(ends)
    adapter.draft.add(name, numbered((3,), torch.float32, ELSEWHERE), FILE)
    return Harm(owed=REFUSED, what=f"with {name}", mentions=(_module(like), "magnitude", "modules_to_save", "bias"))


def another_alpha(random: Random, adapter: Adapter) -> Harm:
    """Patterns that match no module change nothing."""
    _set(adapter, "alpha_pattern", {**_settings(adapter)["alpha_pattern"], "no_such_module": random.choice([1, 99])})
    return Harm(owed=EITHER, what="alpha_pattern for nothing", mentions=("alpha_pattern",))


DAMAGES: Mapping[str, Callable[[Random, Adapter], Harm]] = {
    each.__name__: each
    for each in (
        refused_setting,
        harmless_setting,
        factor_dropped,
        factor_narrower,
        beside_the_factors,
        another_alpha,
    )
}


def run(random: Random, room: Path, story: list[str]) -> tuple[str, str]:
    """A round: what was damaged, and the outcome.

    Raises:
        WrongError: the outcome is neither right nor an honest refusal.
    """
    adapter = drawn_adapter(random)
    harm, damage = None, "none"
    if random.random() < 0.6:
        damage = random.choice(sorted(DAMAGES))
        harm = DAMAGES[damage](random, adapter)
        story.append(f"{damage}: {harm.what} ({harm.owed})")
    source = save_hf(adapter.draft, room / "adapter")
    (source / "config.json").unlink()
    weights = [Stored(SINGLE, name, tensor) for name, tensor in adapter.base.items()]
    base = save_hf(Draft(adapter.base_config, weights, None), room / "base")
    options: dict[str, Any] = {"model": "qwen2_5vl_lora", "io": {"fsync": False, "threads": 1}}
    way: dict[str, Any] = random.choice([{"target_format": "dcp"}, {"layout": _stages(random, adapter.model)}])
    merge = random.random() < 0.5
    # PEFT's own files do not say how many layers there are: where the adapters do not show it, the base has to.
    shown = "layout" in way and all(any(part in name for name in adapter.scaling) for part in (".layers.", ".blocks."))
    back = {"target_format": "hf", "reference": source if shown and not merge else base, "merge_lora": merge}
    story.append(f"{_settings(adapter)} → {way} → {'merged' if merge else 'back'}")
    try:
        report = convert(source, room / "trained", **options, **way)
    except InputError as error:
        oracle.check_refusal(error, room / "trained", harm)
        return damage, "refused"
    if harm is not None and harm.owed == REFUSED:
        raise oracle.WrongError("accepted")
    if "layout" in way:
        # Adapters on few modules do not show how they are cut.
        options["source_layout"] = report["layout"]
    convert(room / "trained", room / "result", **options, **back)
    if merge:
        _check_merge(oracle.read_hf(room / "result"), adapter)
    else:
        oracle.check_named(oracle.read_adapter(room / "result"), adapter.draft.tensors, ())
    return damage, "right"


def _check_merge(found: Tensors, adapter: Adapter) -> None:
    expected = dict(adapter.base)
    factors = adapter.draft.tensors
    for name, scaling in adapter.scaling.items():
        stem = FRONT + name.removesuffix(".weight")
        first, second = factors[f"{stem}.lora_A.weight"], factors[f"{stem}.lora_B.weight"]
        expected[name] = expected[name] + (second @ first) * scaling
    lacking = {adapter.model.head} if adapter.model.tied else set()
    oracle.check_named(found, expected, lacking)


def _stages(random: Random, model: Model) -> dict[str, Any]:
    """A layout whose stages are given, since adapters do not say how many layers their model has."""
    layout = drawn_layout(random, model)
    layout.pop("pp", None)
    layout.setdefault("stages", {"text": [[model.layers["text"]]], "vision": [[model.layers["vision"]]]})
    return layout


def _settings(adapter: Adapter) -> dict[str, Any]:
    return json.loads(adapter.draft.files[CONFIG])


def _set(adapter: Adapter, key: str, value: object) -> None:
    adapter.draft.files[CONFIG] = json.dumps({**_settings(adapter), key: value}).encode()


def _module(name: str) -> str:
    return ".".join(name.partition(".lora_")[0].split(".")[-2:])
