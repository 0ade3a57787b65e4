"""LoRA adapters on the way back: as PEFT has them, or merged into their base.

Owns the configuration that PEFT needs, and which factors belong to which weight. The names of PEFT are the business of
`models.adapters`, what a merge computes that of `tensors.values`. Reads nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from distconv.errors import InputError, named, raise_if
from distconv.formats.model import Reference
from distconv.models.adapters import PEFT_PREFIX, belongs_to_adapter, factor_of, plain_name, saved_factor
from distconv.models.bind import Unconverted
from distconv.tensors.stored import LowRank, NamedTensor, as_stored

Spelled = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """Adapters under PEFT's names, and the text of `adapter_config.json`."""

    tensors: tuple[NamedTensor, ...]
    config: str


def as_peft(
    tensors: Sequence[NamedTensor], spelled: Spelled, base: Reference, alpha: float | None, name: str
) -> PeftAdapter:
    """Adapters of which there is no published example: names and configuration follow from the base model's.

    `spelled` gives the definition's names for those of the base; `name` is that of the definition.

    Raises:
        InputError: adapters on modules that the base model does not have, or `lora_alpha` is not known.
    """
    if alpha is None:
        raise InputError(
            "lora_alpha is missing: the source does not say it, and adapter_config.json needs it; give lora_alpha=N as "
            "in training, or reference=DIR with an adapter_config.json"
        )
    modules = _modules(base, spelled)
    factors = _factors(tensors)
    unknown = sorted(factors.keys() - modules.keys())
    if unknown:
        raise InputError(
            f"reference={base.directory}: is no base model for {name}: it has no {named(unknown)}, which have adapters"
        )
    ranks = {modules[module]: pair["A"].tensor.shape[0] for module, pair in factors.items()}
    renamed = [
        replace(tensor, name=PEFT_PREFIX + saved_factor(modules[module] + tensor.name.removeprefix(module)))
        for module, pair in factors.items()
        for tensor in pair.values()
    ]
    most = Counter(ranks.values()).most_common(1)[0][0]
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": base.config.get("_name_or_path") or base.directory,
        "task_type": None,
        "inference_mode": True,
        "r": most,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": _target_modules(set(ranks), set(modules.values())),
        "rank_pattern": {re.escape(module): rank for module, rank in ranks.items() if rank != most},
        "alpha_pattern": {},
    }
    return PeftAdapter(tensors=tuple(renamed), config=json.dumps(content, indent=2) + "\n")


def merged_into(
    tensors: Sequence[NamedTensor], spelled: Spelled, base: Reference, alpha: float | None
) -> list[NamedTensor]:
    """The base model in a reference, with adapters merged into its weights.

    Raises:
        InputError: adapters that fit no weight of the base, the base has no weights, or `lora_alpha` is not known.
    """
    if base.index is None:
        raise InputError(f"merge_lora=true: reference={base.directory} holds no weights to merge into")
    products = _products(tensors, alpha, base)
    result = []
    for each in as_stored(base.index.tensors.values()):
        product = products.pop(spelled(each.name).removesuffix(".weight"), None)
        result.append(replace(each, low_rank=product))
    _check(result, products, base)
    return result


def merged_beside(
    tensors: Sequence[NamedTensor], reference: Reference, alpha: float | None
) -> tuple[list[NamedTensor], Reference]:
    """A model whose base weights stand beside its adapters, as the plain model, and the reference with plain names.

    Raises:
        InputError: adapters without a base weight, or `lora_alpha` is not known.
    """
    products = _products(tensors, alpha, reference)
    result = []
    for each in tensors:
        if factor_of(each.name) is not None:
            continue
        plain = plain_name(each.name)
        result.append(replace(each, name=plain, low_rank=products.pop(plain.removesuffix(".weight"), None)))
    _check(result, products, reference)
    shard_files = reference.shard_files and {
        plain_name(name.removeprefix(PEFT_PREFIX)): file
        for name, file in reference.shard_files.items()
        if not belongs_to_adapter(name)
    }
    content = reference.index_content and {**reference.index_content, "weight_map": shard_files}
    return result, replace(reference, shard_files=shard_files, index=None, index_content=content)


def beside_adapters(tensors: Sequence[NamedTensor], name: str) -> tuple[Unconverted, ...]:
    """The tensors that are no adapters, where the definition `name` converts adapters alone."""
    reason = f"no adapter: +model={name} converts adapters alone"
    return tuple(
        Unconverted(tensor=source, reason=reason)
        for each in tensors
        if factor_of(each.name) is None
        for source in each.sources[:1]
    )


def _factors(tensors: Sequence[NamedTensor]) -> Mapping[str, Mapping[str, NamedTensor]]:
    """The two factors of each module that has an adapter, by the module's name in the definition."""
    factors: dict[str, dict[str, NamedTensor]] = {}
    for each in tensors:
        if (found := factor_of(each.name)) is not None:
            module, factor = found
            factors.setdefault(module, {})[factor] = each
    return factors


def _products(tensors: Sequence[NamedTensor], alpha: float | None, reference: Reference) -> dict[str, LowRank]:
    factors = _factors(tensors)
    if not factors:
        raise InputError("merge_lora=true: the source holds no adapters; leave it out")
    config = reference.config if reference.is_adapter else {}
    known = alpha if alpha is not None else config.get("lora_alpha")
    if not isinstance(known, (int, float)):
        raise InputError("lora_alpha is missing: the source does not say it; give lora_alpha=N as in training")
    products = {}
    for module, pair in factors.items():
        rank = pair["A"].tensor.shape[0]
        scaling = known / (rank**0.5 if config.get("use_rslora") else rank)
        products[module] = LowRank(pair["B"], pair["A"], scaling)
    return products


def _check(result: Sequence[NamedTensor], left: Mapping[str, LowRank], reference: Reference) -> None:
    problems = []
    if left:
        problems.append(f"reference={reference.directory}: has no weights for the adapters on {named(sorted(left))}")
    for each in result:
        product = each.low_rank
        if product is not None:
            shape = (product.b.tensor.shape[0], product.a.tensor.shape[1])
            if each.tensor.shape != shape:
                problems.append(
                    f"{each.name}: is {list(each.tensor.shape)} in reference={reference.directory}, its adapter is for "
                    f"{list(shape)}"
                )
    raise_if(problems)


def _modules(base: Reference, spelled: Spelled) -> dict[str, str]:
    """The names that the base model has for its modules, by the definition's."""
    weights = [name for name in base.shard_files or () if name.endswith(".weight")]
    return {spelled(name).removesuffix(".weight"): name.removesuffix(".weight") for name in weights}


def _target_modules(adapted: set[str], modules: set[str]) -> list[str]:
    """How PEFT is told which modules are adapted: by the last part of their names, if that says it."""
    leaves = {module.rpartition(".")[2] for module in adapted}
    meant = {module for module in modules if module.rpartition(".")[2] in leaves}
    return sorted(leaves if meant == adapted else adapted)
