"""LoRA adapters on the way back: as PEFT has them, or merged into their base.

Owns the configuration that PEFT needs, which factors belong to which weight, and which weights take them up. The names
of PEFT are the business of `models.adapters`, what a merge computes that of `tensors.values`. Reads nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from distconv.errors import InputError, counted, named, raise_if
from distconv.formats.model import Reference
from distconv.models.adapters import (
    PEFT_PREFIX,
    belongs_to_adapter,
    factor_of,
    is_trained_otherwise,
    named_adapters_problem,
    plain_name,
    saved_factor,
)
from distconv.models.parameters import Unconverted
from distconv.models.scaling import Scaling
from distconv.tensors.dtypes import FLOATING
from distconv.tensors.stored import LowRank, NamedTensor, as_stored

Spelled = Callable[[str], str]
_SAVED_WRONG = "save the adapters again, with PEFT's save_pretrained"
_OTHER_BASE = "is it the base that they were trained on?"


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """Adapters under PEFT's names, and the text of `adapter_config.json`."""

    tensors: tuple[NamedTensor, ...]
    config: str


def scaling_of(known: Scaling | None, alpha: float | None) -> Scaling:
    """The scaling that is known of adapters, or that of the option `lora_alpha`.

    Raises:
        InputError: neither tells the alpha, or they contradict.
    """
    if known is None or known.alpha is None:
        if alpha is None:
            raise InputError(
                "lora_alpha is missing: the source does not say it; give lora_alpha=N as in training, or, to have the "
                "adapters as PEFT saves them, reference=DIR with an adapter_config.json"
            )
        return Scaling(alpha=alpha) if known is None else replace(known, alpha=alpha)
    if alpha not in (None, known.alpha):
        raise InputError(f"lora_alpha={alpha:g}: {known.where} says {known.alpha:g}; leave it out")
    return known


def as_peft(
    tensors: Sequence[NamedTensor], spelled: Spelled, base: Reference, scaling: Scaling, name: str
) -> PeftAdapter:
    """Adapters of which there is no published example: names and configuration follow from the base model's.

    `spelled` gives the definition's names for those of the base; `name` is that of the definition.

    Raises:
        InputError: adapters on modules that the base model does not have, or that are no whole adapters.
    """
    modules = _modules(base, spelled)
    factors = _factors(tensors)
    unknown = sorted(factors.keys() - modules.keys())
    if unknown:
        raise InputError(
            f"reference={base.directory}: is no base model for {name}: it has no {named(unknown)}, which have "
            f"adapters; {_OTHER_BASE}"
        )
    ranks = {modules[module]: pair["A"].tensor.shape[0] for module, pair in factors.items()}
    alphas = {modules[module]: scaling.alpha_of(module) for module in factors}
    renamed = [
        replace(tensor, name=PEFT_PREFIX + saved_factor(modules[module] + tensor.name.removeprefix(module)))
        for module, pair in factors.items()
        for tensor in pair.values()
    ]
    rank, rank_pattern = _with_exceptions(ranks)
    alpha, alpha_pattern = _with_exceptions(alphas)
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": base.config.get("_name_or_path") or base.directory,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": scaling.initialisation or True,
        "use_rslora": scaling.rslora,
        "target_modules": _target_modules(set(ranks), set(modules.values())),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }
    return PeftAdapter(tensors=tuple(renamed), config=json.dumps(content, indent=2) + "\n")


def merged_into(
    tensors: Sequence[NamedTensor], spelled: Spelled, base: Reference, scaling: Scaling
) -> list[NamedTensor]:
    """The base model in a reference, with adapters merged into its weights.

    Raises:
        InputError: adapters that fit no weight of the base, or the base is not the one that they were trained on.
    """
    if base.index is None:
        raise InputError(
            f"merge_lora=true: reference={base.directory} holds no weights to merge into; give the base model with its "
            "weights"
        )
    if scaling.initialisation is not None:
        raise InputError(
            f"merge_lora=true: {scaling.where}: init_lora_weights is {scaling.initialisation!r}, which changed the "
            "weights of the base, so that the adapters cannot be merged into those it had before; save them with "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...), or merge them with PEFT"
        )
    products = _products(tensors, scaling)
    result = []
    for each in as_stored(base.index.tensors.values()):
        product = products.pop(spelled(each.name).removesuffix(".weight"), None)
        result.append(replace(each, low_rank=product))
    _check(result, products, f"reference={base.directory}")
    return result


def merged_beside(
    tensors: Sequence[NamedTensor], reference: Reference, known: Scaling | None, alpha: float | None
) -> tuple[list[NamedTensor], Reference]:
    """A model whose base weights stand beside its adapters, as the plain model, and the reference with plain names.

    Raises:
        InputError: adapters without a base weight that can take them up, or `lora_alpha` is not known.
    """
    if not any(factor_of(each.name) for each in tensors):
        raise InputError("merge_lora=true: the source holds no adapters; leave it out")
    products = _products(tensors, scaling_of(known, alpha))
    result = []
    for each in tensors:
        if factor_of(each.name) is not None:
            continue
        name = plain_name(each.name)
        result.append(replace(each, name=name, low_rank=products.pop(name.removesuffix(".weight"), None)))
    _check(result, products, "the source")
    plain = {
        name: plain_name(name.removeprefix(PEFT_PREFIX))
        for name in reference.shard_files or ()
        if not belongs_to_adapter(name)
    }
    shards = reference.shard_files and {plain[name]: reference.shard_files[name] for name in plain}
    content = reference.index_content and {**reference.index_content, "weight_map": shards}
    index = reference.index
    if index is not None:
        stored = {plain[name]: replace(index.tensors[name], name=plain[name]) for name in plain}
        index = replace(index, tensors=stored)
    return result, replace(reference, shard_files=shards, index=index, index_content=content)


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
    """The two factors of each module that has an adapter, by the module's name in the definition.

    Raises:
        InputError: every adapter that is no product of two matrices, and everything that was trained beside them.
    """
    factors: dict[str, dict[str, NamedTensor]] = {}
    problems = []
    if several := named_adapters_problem(each.name for each in tensors):
        raise InputError(f"the source {several}")
    others = [each.name for each in tensors if is_trained_otherwise(each.name)]
    if others:
        what = counted(len(others), "tensor that was", "tensors that were")
        problems.append(
            f"the source holds {what} trained beside the factors of adapters, which cannot be converted: "
            f"{named(others)}; merge the adapter with PEFT, and convert the model"
        )
    for each in tensors:
        if (found := factor_of(each.name)) is not None:
            module, factor = found
            if factors.setdefault(module, {}).setdefault(factor, each) is not each:
                problems.append(f"{each.name}: the source holds this factor of {module} twice; {_SAVED_WRONG}")
    for module, pair in factors.items():
        problems += _pair_problems(module, pair)
    raise_if(problems)
    if not factors:
        raise InputError("the source holds no adapters; name the definition of the model itself, or leave +model out")
    return factors


def _pair_problems(module: str, pair: Mapping[str, NamedTensor]) -> list[str]:
    problems = [
        f"{each.name}: is {each.tensor.dtype} {list(each.tensor.shape)}, expected a matrix of {', '.join(FLOATING)}; "
        f"{_SAVED_WRONG}"
        for each in pair.values()
        if each.tensor.dtype not in FLOATING or len(each.tensor.shape) != 2 or not each.tensor.elements
    ]
    if len(pair) < 2:
        return [
            *problems,
            f"{module}: has lora_{next(iter(pair))} alone; an adapter is lora_A and lora_B: {_SAVED_WRONG}",
        ]
    shapes = pair["A"].tensor.shape, pair["B"].tensor.shape
    if not problems and shapes[0][0] != shapes[1][1]:
        problems.append(
            f"{module}: lora_A {list(shapes[0])} and lora_B {list(shapes[1])} are of different rank; {_SAVED_WRONG}"
        )
    return problems


def _products(tensors: Sequence[NamedTensor], scaling: Scaling) -> dict[str, LowRank]:
    products = {}
    for module, pair in _factors(tensors).items():
        products[module] = LowRank(pair["B"], pair["A"], scaling.of(module, pair["A"].tensor.shape[0]))
    return products


def _check(result: Sequence[NamedTensor], left: Mapping[str, LowRank], base: str) -> None:
    """Raise `InputError` for every adapter that `base` has no weight for, of its shape and of numbers to add to."""
    problems = []
    if left:
        problems.append(f"{base}: has no weights for the adapters on {named(sorted(left))}; {_OTHER_BASE}")
    for each in result:
        product = each.low_rank
        if product is None:
            continue
        shape = (product.b.tensor.shape[0], product.a.tensor.shape[1])
        if each.tensor.shape != shape:
            problems.append(
                f"{each.name}: is {list(each.tensor.shape)} in {base}, its adapter is for {list(shape)}; {_OTHER_BASE}"
            )
        if each.tensor.dtype not in FLOATING:
            problems.append(
                f"{each.name}: is {each.tensor.dtype} in {base}, and adapters are merged into weights of "
                f"{', '.join(FLOATING)} only; give the base model as it was before it was quantised"
            )
    raise_if(problems)


def _with_exceptions(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The most common of the values of modules, and a pattern for each module that has another one."""
    most = Counter(values.values()).most_common(1)[0][0]
    return most, {re.escape(module): value for module, value in values.items() if value != most}


def _modules(base: Reference, spelled: Spelled) -> dict[str, str]:
    """The names that the base model has for its modules, by the definition's."""
    weights = [name for name in base.shard_files or () if name.endswith(".weight")]
    return {spelled(name).removesuffix(".weight"): name.removesuffix(".weight") for name in weights}


def _target_modules(adapted: set[str], modules: set[str]) -> list[str]:
    """How PEFT is told which modules are adapted: by the last part of their names, if that says it."""
    leaves = {module.rpartition(".")[2] for module in adapted}
    meant = {module for module in modules if module.rpartition(".")[2] in leaves}
    return sorted(leaves if meant == adapted else adapted)
