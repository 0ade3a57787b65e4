"""LoRA adapters: the rules for them, derived from the rules of the modules that they adapt.

Owns the names that PEFT gives to the parts of an adapted module, and their tensor parallel cut. A module is adaptable
when its parameter is one source tensor as it is. Where checkpoints are of adapters alone, the linears that a parameter
is made of are, too, each by itself (q, k, v, gate and up); experts are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from distconv.errors import named
from distconv.models.rules import ANY, Rule, SourcePattern
from distconv.tensors.operators import OPERATORS, RENAME

ADAPTERS = ("beside", "only")
CONFIG_NAME = "adapter_config.json"
# PEFT's prefix of saved names, and its segments after the name of an adapted module: of its base weights, and of its
# factors.
PEFT_PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer"
_LORA = ".lora_"
_OTHERWISE = re.compile(r"\.(modules_to_save|trainable_tokens_delta)(\.|$)")
_WEIGHT, _BIAS = ".weight", ".bias"
# How the linears of a parameter are cut that is cut so.
_CUT_APART = {"replicated": "replicated", "rows": "rows", "glu": "rows"}
_OWN_NAME = re.compile(r"\.lora_[AB]\.(?!default\.|weight$)([^.]+)\.weight")
_FACTOR = re.compile(rf"(.+){re.escape(_LORA)}([AB])(?:\.default)?{re.escape(_WEIGHT)}")


def rules_with_adapters(rules: Iterable[Rule]) -> Iterator[Rule]:
    """The rules of a checkpoint whose modules are plain, or adapted with base weights beside the factors."""
    rules = list(rules)
    adaptable = {_stem(rule) for rule in rules if _is_adaptable(rule)}
    for rule in rules:
        stem, suffix = _stem(rule), _WEIGHT if rule.target.endswith(_WEIGHT) else _BIAS
        if stem not in adaptable or len(rule.sources) > 1:
            yield rule
            continue
        group = f"adapter of {stem}{suffix}"
        yield replace(rule, choice=(group, "plain"))
        yield replace(_renamed(rule, suffix, f"{_BASE_LAYER}{suffix}"), choice=(group, "adapted"))
        if suffix == _WEIGHT:
            yield from (replace(factor, choice=(group, "adapted")) for factor in _factors(rule))


def rules_of_adapters(rules: Iterable[Rule]) -> Iterator[Rule]:
    """The rules of a checkpoint of adapters alone: a module in a layer has both factors or none."""
    known: set[tuple[str, str]] = set()
    for rule in (linear for each in rules for linear in _apart(each)):
        module = _stem(rule), rule.sources[0].name
        if _is_linear(rule) and module not in known:
            known.add(module)
            # Alternatives may have modules of one name that are made of other tensors.
            choice = f"adapter of {_stem(rule)}", "adapted" if rule.choice is None else rule.choice[1]
            yield from (replace(factor, choice=choice, may_be_absent=True) for factor in _factors(rule))


def without_sizes(rule: Rule) -> Rule:
    """The rule of a factor where the base model's sizes are unknown: neither widths nor heads can be checked."""
    sources = tuple(SourcePattern(name=each.name, dims=(ANY, ANY)) for each in rule.sources)
    return replace(rule, sources=sources, unit=None)


def factor_of(name: str) -> tuple[str, str] | None:
    """The module and the letter (`A` or `B`) in the name of a factor; `None` for another tensor."""
    match = _FACTOR.fullmatch(name)
    return None if match is None else (match[1], match[2])


def canonical_factor(name: str) -> str:
    """The name of a factor in a model in memory, with the adapter's own name, which names saved by PEFT lack."""
    found = factor_of(name)
    return name if found is None else _in_memory(*found)


def saved_factor(name: str) -> str:
    """The name of a factor in files of PEFT; the inverse of `canonical_factor`."""
    found = factor_of(name)
    return name if found is None else f"{found[0]}{_LORA}{found[1]}{_WEIGHT}"


def named_adapters_problem(names: Iterable[str]) -> str | None:
    """What is wrong with factors of adapters that are not the one called default, in words; `None` without any."""
    found = sorted({match[1] for name in names if (match := _OWN_NAME.search(name))})
    if not found:
        return None
    return (
        f"holds adapters of names of their own ({named(found)}), of which one at a time is converted; let PEFT save "
        f"it: save_pretrained(DIR, selected_adapters=[{found[0]!r}])"
    )


def belongs_to_adapter(name: str) -> bool:
    """Whether a tensor belongs to an adapter, as a factor or otherwise, and is no weight of the model."""
    return _LORA in name


def plain_name(name: str) -> str:
    """The name of a base weight in the model without adapters."""
    return name.replace(f"{_BASE_LAYER}.", ".")


def module_of(name: str) -> str:
    """The module that a tensor of an adapter is for."""
    return name.partition(_LORA)[0]


def is_trained_otherwise(name: str) -> bool:
    """Whether PEFT trained a tensor beside the factors: a magnitude, a bias, a whole module, rows of an embedding."""
    return (_LORA in name and factor_of(name) is None) or _OTHERWISE.search(name) is not None


def _in_memory(module: str, factor: str) -> str:
    return f"{module}{_LORA}{factor}.default{_WEIGHT}"


def _stem(rule: Rule) -> str:
    return rule.target.removesuffix(_WEIGHT).removesuffix(_BIAS)


def _apart(rule: Rule) -> Iterator[Rule]:
    """The rules of the linears that a parameter is made of, named as they are published; of one linear its own."""
    if len(rule.sources) < 2 or rule.tensor_parallel not in _CUT_APART:
        yield rule
        return
    parent = _stem(rule).rpartition(".")[0]
    for source in rule.sources:
        yield replace(
            rule,
            target=".".join((parent, *source.name.rsplit(".", 2)[1:])),
            sources=(source,),
            operator=RENAME,
            operator_sizes=(),
            tensor_parallel=_CUT_APART[rule.tensor_parallel],
        )


def _is_adaptable(rule: Rule) -> bool:
    return rule.choice is None and _is_linear(rule)


def _is_linear(rule: Rule) -> bool:
    return (
        OPERATORS[rule.operator].is_identity
        and rule.stage == "layer"
        and "expert" not in rule.placeholders
        and rule.target.endswith(_WEIGHT)
        and len(rule.sources[0].dims) == 2
    )


def _renamed(rule: Rule, suffix: str, new: str) -> Rule:
    (source,) = rule.sources
    return replace(
        rule,
        target=rule.target.removesuffix(suffix) + new,
        sources=(replace(source, name=source.name.removesuffix(suffix) + new),),
    )


def _factors(rule: Rule) -> Iterator[Rule]:
    """The rules of a module's two factors: the factor on the cut side is cut like the module, the other replicated."""
    (source,) = rule.sources
    rows, columns = source.dims
    cut_by_columns = rule.tensor_parallel.startswith("cols")
    for factor, dims, cut in (("A", (ANY, columns), cut_by_columns), ("B", (rows, ANY), not cut_by_columns)):
        named = _renamed(rule, _WEIGHT, _in_memory("", factor))
        yield replace(
            named,
            sources=(replace(named.sources[0], dims=dims),),
            tensor_parallel=rule.tensor_parallel if cut else "replicated",
            unit=rule.unit if cut else None,
            is_adapter=True,
        )
