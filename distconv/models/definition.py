"""Model definitions: the rules of one family, parsed from its YAML file under `conf/model/`.

Owns the vocabulary of that file and every check that can be made without a checkpoint. It never looks at a checkpoint
and never runs an operator.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distconv.errors import InputError, raise_if, unknown_keys
from distconv.models.adapters import (
    ADAPTERS,
    canonical_factor,
    rules_of_adapters,
    rules_with_adapters,
    without_sizes,
)
from distconv.models.rules import MODALITIES, Rule, parse_rules
from distconv.models.sizes import Sizes, SizeSpec

PROJECTOR = "projector"
_KEYS = (
    "model_types", "variant_of", "renamed_prefixes", "sizes", "lists", "modalities", "experts", "adapters", "tied",
    "rules", "ignore",
)  # fmt: skip
FLOATING = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Tied:
    """The target names of a head and of an embedding that are equal in models whose `flag` is true."""

    flag: SizeSpec
    embedding: str
    head: str


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """Source tensors left out on purpose: a name pattern with `*`, and the reason.

    With `layers` (the names of two sizes: first layer, number of layers) the pattern has a `{layer}` in that range.
    """

    names: str
    reason: str
    layers: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A model definition, complete and consistent in itself."""

    name: str
    model_types: tuple[str, ...]
    variant_of: str | None
    renamed_prefixes: tuple[tuple[str, str], ...]
    sizes: Mapping[str, SizeSpec]
    lists: Mapping[str, SizeSpec]
    modalities: Mapping[str, str]
    experts: str | None
    adapters: str | None
    tied: Tied | None
    rules: tuple[Rule, ...]
    ignored: tuple[Ignored, ...]

    def is_tied(self, sizes: Sizes) -> bool:
        """Whether the head of a model of these sizes equals its embedding.

        Raises:
            InputError: its config.json does not say it, or not with true or false.
        """
        return self.tied is not None and sizes.flag(self.tied.flag)

    def without_base(self) -> Definition:
        """The definition for adapters without the `config.json` of their base model: no size of a source is checked."""
        if self.adapters != "only":
            return self
        return replace(self, rules=tuple(map(without_sizes, self.rules)))

    def expert_count(self, sizes: Sizes) -> int | None:
        """The number of experts of a model of these sizes, `None` for a dense model; raises as `Sizes.count` does."""
        return None if self.experts is None else sizes.count(self.experts)

    def tied_sources(self) -> tuple[str, str]:
        """The source names of head and embedding; for definitions with `tied` only."""
        assert self.tied is not None
        head, embedding = (self.rule_for(target).sources[0].name for target in (self.tied.head, self.tied.embedding))
        return head, embedding

    def rule_for(self, target: str) -> Rule:
        """The rule of a target name."""
        return next(rule for rule in self.rules if rule.target == target)

    def spelled(self, name: str) -> str:
        """The name of a source tensor in the spelling of the rules."""
        for old, new in self.renamed_prefixes:
            if name.startswith(old):
                name = new + name[len(old) :]
        return name if self.adapters is None else canonical_factor(name)


def parse_definition(name: str, content: Mapping[str, Any]) -> Definition:
    """The definition `name`, given its content with everything inherited.

    Raises:
        InputError: every problem of the content, with its key or rule.
    """
    parser = _Parser(f"model definition {name}")
    parser.unknown(content, _KEYS)
    sizes = parser.specs(content, "sizes", is_list=False)
    lists = parser.specs(content, "lists", is_list=True)
    parser.derivations(sizes)
    modalities = parser.modalities(content, sizes)
    experts = content.get("experts")
    if experts is not None:
        parser.expect(isinstance(experts, str) and experts in sizes, "experts", "the name of a size", experts)
    rules = parser.rules(content, modalities, sizes, lists, experts is not None)
    adapters = content.get("adapters")
    parser.expect(adapters in (None, *ADAPTERS), "adapters", f"one of {', '.join(ADAPTERS)}", adapters)
    tied = parser.tied(content) if adapters != "only" else None
    ignored = parser.ignored(content, sizes)
    model_types = parser.names(content, "model_types")
    variant_of = content.get("variant_of")
    parser.expect(variant_of is None or isinstance(variant_of, str), "variant_of", "the name of a model", variant_of)
    renamed_prefixes = parser.renamed_prefixes(content)
    raise_if(parser.problems)
    if adapters is not None:
        rules = list(rules_with_adapters(rules) if adapters == "beside" else rules_of_adapters(rules))
    return Definition(
        name=name,
        model_types=model_types,
        variant_of=variant_of,
        renamed_prefixes=renamed_prefixes,
        sizes={size: spec for size, spec in sizes.items() if spec is not None},
        lists={each: spec for each, spec in lists.items() if spec is not None},
        modalities=modalities,
        experts=experts,
        adapters=adapters,
        tied=tied,
        rules=tuple(rules),
        ignored=ignored,
    )


# Specs by name; `None` for a spec with a problem, so that uses of its name are not reported as well.
_Specs = Mapping[str, "SizeSpec | None"]


class _Parser:
    """Parses the groups of a definition and collects their problems; a wrong value is replaced by an empty one."""

    def __init__(self, where: str) -> None:
        self.problems: list[str] = []
        self._where = where
        self._targets: dict[str, list[Rule]] = {}
        self._broken = False

    def complain(self, key: str, problem: object) -> None:
        self.problems.append(f"{self._where}: {key}: {problem}")

    def expect(self, condition: object, key: str, expected: str, found: object) -> bool:
        if not condition:
            self.complain(key, f"expected {expected}, found {found!r}")
        return bool(condition)

    def unknown(self, content: Mapping[Any, Any], known: Collection[str]) -> None:
        self.problems += [f"{self._where}: {problem}" for problem in unknown_keys(content, known)]

    def mapping(self, content: Mapping[str, Any], key: str, *, needed: bool = True) -> Mapping[str, Any]:
        value = content.get(key)
        if isinstance(value, Mapping):
            return value
        if value is not None or needed:
            self.expect(False, key, "a mapping", value)
        return {}

    def entries(self, content: Mapping[str, Any], key: str, at: str) -> Sequence[Any]:
        value = content.get(key)
        if value is None:
            return ()
        return value if self.expect(isinstance(value, list), at, "a list", value) else ()

    def names(self, content: Mapping[str, Any], key: str) -> tuple[str, ...]:
        names = self.entries(content, key, key)
        return tuple(names) if self.expect(_are_text(names), key, "a list of names", names) else ()

    def specs(self, content: Mapping[str, Any], key: str, *, is_list: bool) -> _Specs:
        specs: dict[str, SizeSpec | None] = {}
        for name, value in self.mapping(content, key, needed=not is_list).items():
            try:
                specs[str(name)] = SizeSpec.parse(value, is_list=is_list)
            except ValueError as error:
                specs[str(name)] = None
                self.complain(f"{key}.{name}", error)
        return specs

    def derivations(self, sizes: _Specs) -> None:
        """Check that sizes in derivations exist, and that no size is derived from itself."""
        for name, spec in sizes.items():
            for item in spec.of if spec is not None else ():
                if isinstance(item, str) and item not in sizes:
                    self.complain(f"sizes.{name}", f"no size {item!r}")
            reached: set[str] = set()
            pending = [name]
            while pending:
                current = sizes.get(pending.pop())
                found = {item for item in (current.of if current is not None else ()) if isinstance(item, str)}
                if name in found:
                    self.complain(f"sizes.{name}", "is derived from itself")
                    break
                pending += found - reached
                reached |= found

    def modalities(self, content: Mapping[str, Any], sizes: _Specs) -> dict[str, str]:
        modalities: dict[str, str] = {}
        for modality, value in self.mapping(content, "modalities").items():
            if modality not in MODALITIES:
                self.complain("modalities", f"unknown {modality!r}; known: {', '.join(MODALITIES)}")
            for problem in unknown_keys(value, ("layers",)) if isinstance(value, Mapping) else ():
                self.complain(f"modalities.{modality}", problem)
            layers = value.get("layers") if isinstance(value, Mapping) else None
            known = isinstance(layers, str) and layers in sizes
            self.expect(known, f"modalities.{modality}.layers", "the name of a size", layers)
            modalities[str(modality)] = str(layers)
        return modalities

    def rules(
        self,
        content: Mapping[str, Any],
        modalities: Collection[str],
        sizes: _Specs,
        lists: _Specs,
        has_experts: bool,  # noqa: FBT001 - a fact beside other facts
    ) -> list[Rule]:
        rules: list[Rule] = []
        for modality, sections in self.mapping(content, "rules").items():
            at = f"rules.{modality}"
            if modality not in modalities:
                self.complain(at, f"no such modality; known: {', '.join(modalities)}")
                continue
            if not self.expect(isinstance(sections, Mapping), at, "sections of rules", sections):
                continue
            for section in sections:
                for number, entry in enumerate(self.entries(sections, section, f"{at}.{section}")):
                    try:
                        rules += parse_rules(str(modality), str(section), number, entry, sizes, lists)
                    except InputError as error:
                        self._broken = True
                        for problem in error.problems:
                            self.complain(f"{at}.{section}[{number}]", problem)
        for rule in rules:
            if any(not rule.excludes(other) for other in self._targets.get(rule.target, ())):
                self.problems.append(f"{self._where}: two rules for the target {rule.target}")
            self._targets.setdefault(rule.target, []).append(rule)
            if "expert" in rule.placeholders and not has_experts:
                self.complain("experts", f"missing: the size that is the number of experts, for {rule.target}")
        return rules

    def tied(self, content: Mapping[str, Any]) -> Tied | None:
        if content.get("tied") is None:
            return None
        entry = self.mapping(content, "tied")
        for problem in unknown_keys(entry, ("flag", "embedding", "head")):
            self.complain("tied", problem)
        try:
            flag = SizeSpec.parse(entry.get("flag"))
        except ValueError as error:
            self.complain("tied.flag", error)
            return None
        for key in ("embedding", "head"):
            # The rule of that target may be one of those with problems.
            target = entry.get(key)
            if not isinstance(target, str) or (target not in self._targets and not self._broken):
                self.complain(f"tied.{key}", f"no rule for the target {target}")
        return Tied(flag=flag, embedding=str(entry.get("embedding")), head=str(entry.get("head")))

    def ignored(self, content: Mapping[str, Any], sizes: _Specs) -> tuple[Ignored, ...]:
        ignored = []
        for number, entry in enumerate(self.entries(content, "ignore", "ignore")):
            at = f"ignore[{number}]"
            known = ("names", "reason", "layers")
            if not isinstance(entry, Mapping) or not _are_text([entry.get("names"), entry.get("reason")]):
                self.expect(False, at, "{names: …, reason: …}", entry)
                continue
            for problem in unknown_keys(entry, known):
                self.complain(at, problem)
            layers = entry.get("layers")
            if layers is None:
                ignored.append(Ignored(names=entry["names"], reason=entry["reason"]))
            elif isinstance(layers, list) and len(layers) == 2 and _are_text(layers) and set(layers) <= set(sizes):
                ignored.append(Ignored(names=entry["names"], reason=entry["reason"], layers=(layers[0], layers[1])))
            else:
                self.expect(False, f"{at}.layers", "the names of two sizes, first layer and count", layers)
        return tuple(ignored)

    def renamed_prefixes(self, content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        pairs = self.entries(content, "renamed_prefixes", "renamed_prefixes")
        good = all(isinstance(pair, list) and len(pair) == 2 and _are_text(pair) for pair in pairs)
        self.expect(good, "renamed_prefixes", 'pairs of prefixes, such as [["model.visual.", "visual."]]', pairs)
        return tuple((pair[0], pair[1]) for pair in pairs) if good else ()


def _are_text(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)
