"""Parsing of model definitions: a YAML file under `conf/model/`, composed, becomes a `Definition`.

Owns the vocabulary of that file and every check that can be made without a checkpoint, which it never looks at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from distconv.errors import InputError, raise_if, unknown_keys
from distconv.models.adapters import ADAPTERS, rules_of_adapters, rules_with_adapters
from distconv.models.definition import OWN_NAMES, Copied, Definition, Ignored, Kept, Restriction, Tied
from distconv.models.definition_reader import DefinitionReader, are_text, undecided
from distconv.models.nesting import Nesting
from distconv.models.predicting import PREDICTING, rules_of_predicting
from distconv.models.rules import MODALITIES, TEXT, Rule, parse_rules
from distconv.models.sizes import SizeSpec

_KEYS = (
    "model_types", "unless", "variant_of", "part_of", "renamed_prefixes", "sizes", "lists", "modalities", "experts",
    "predicting", "language_model", "adapters", "dialect", "tied", "layout", "rules", "ignore", "copied", "keep_dtype",
)  # fmt: skip


def parse_definition(name: str, content: Mapping[str, Any]) -> Definition:
    """The definition in a composed YAML file.

    Raises:
        InputError: every problem of the file together, each with the rule it is in.
    """
    parser = _Parser(f"model definition {name}")
    raise_if([f"{parser.where}: {each}" for each in undecided(content)])
    parser.unknown(content, _KEYS)
    nesting = parser.nesting(content)
    sizes = {
        size: None if spec is None else nesting.size(spec)
        for size, spec in parser.specs(content, "sizes", is_list=False).items()
    }
    lists = parser.specs(content, "lists", is_list=True)
    parser.derivations(sizes)
    modalities = parser.modalities(content, sizes)
    experts = content.get("experts")
    if experts is not None:
        parser.expect(isinstance(experts, str) and experts in sizes, "experts", "the name of a size", experts)
    predicting = content.get("predicting")
    if predicting is not None:
        is_size = isinstance(predicting, str) and predicting in sizes
        parser.expect(is_size and TEXT in modalities, "predicting", "the name of a size, beside text", predicting)
    rules = [nesting.rule(each) for each in parser.rules(content, modalities, sizes, lists, experts is not None)]
    parser.predicting(rules, predicting)
    adapters = content.get("adapters")
    parser.expect(adapters in (None, *ADAPTERS), "adapters", f"one of {', '.join(ADAPTERS)}", adapters)
    tied = parser.tied(content) if adapters != "only" else None
    ignored = parser.ignored(content, sizes)
    copied = parser.copied(content, nesting)
    kept = parser.kept(content)
    restrictions = parser.restrictions(content, modalities, {*sizes, *lists})
    model_types = parser.names(content, "model_types")
    # Who chooses a definition looks at it.
    parser.names(content, "unless")
    variant_of = parser.text(content, "variant_of", "the name of a model")
    part_of = parser.text(content, "part_of", "a field of config.json")
    dialect = parser.text(content, "dialect", "the name of a dialect of training")
    renamed_prefixes = parser.renamed_prefixes(content)
    raise_if(parser.problems)
    if predicting is not None:
        rules = list(rules_of_predicting(rules))
    if adapters is not None:
        rules = list(rules_with_adapters(rules) if adapters == "beside" else rules_of_adapters(rules))
    if not any("expert" in rule.placeholders for rule in rules):
        # Adapters are never on experts.
        experts = None
    return Definition(
        name=name,
        model_types=model_types,
        variant_of=variant_of,
        part_of=part_of,
        renamed_prefixes=renamed_prefixes,
        sizes={size: spec for size, spec in sizes.items() if spec is not None},
        lists={each: spec for each, spec in lists.items() if spec is not None},
        modalities=modalities,
        experts=experts,
        adapters=adapters,
        tied=tied,
        rules=tuple(rules),
        ignored=ignored,
        kept=kept,
        restrictions=restrictions,
        dialect=OWN_NAMES if dialect is None else dialect,
        copied=copied,
        predicting=predicting,
    )


# Specs by name; `None` for one that has a problem of its own, so that its name is known all the same.
_Specs = Mapping[str, "SizeSpec | None"]


class _Parser(DefinitionReader):
    """Reads the groups of a definition."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._targets: dict[str, list[Rule]] = {}
        self._broken = False

    def nesting(self, content: Mapping[str, Any]) -> Nesting:
        try:
            return Nesting.parse(content.get("language_model", {}))
        except ValueError as error:
            self.complain("language_model", error)
            return Nesting()

    def text(self, content: Mapping[str, Any], key: str, expected: str) -> str | None:
        found = content.get(key)
        self.expect(found is None or isinstance(found, str), key, expected, found)
        return found

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
        """Every size that another is derived from exists, and none is derived from itself."""
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
                self.problems.append(f"{self.where}: two rules for the target {rule.target}")
            self._targets.setdefault(rule.target, []).append(rule)
            if "expert" in rule.placeholders and not has_experts:
                self.complain("experts", f"missing: the size that is the number of experts, for {rule.target}")
        return rules

    def predicting(self, rules: Sequence[Rule], size: str | None) -> None:
        """Rules of layers that predict further tokens are in a section of their own, and those in it are theirs."""
        for rule in rules:
            if ("next" in rule.placeholders) != (rule.section == PREDICTING and size is not None):
                self.complain(
                    "predicting",
                    f"{{next}} stands in targets of section {PREDICTING}, and needs the size "
                    f"that is the number of these layers; found {size!r} and {rule.target} in {rule.where}",
                )

    def tied(self, content: Mapping[str, Any]) -> Tied | None:
        if content.get("tied") is None:
            return None
        entry = self.mapping(content, "tied")
        for problem in unknown_keys(entry, ("flag", "flag_of_transformers_5", "embedding", "head")):
            self.complain("tied", problem)
        flags = []
        for key in ("flag", "flag_of_transformers_5"):
            try:
                flags.append(SizeSpec.parse(entry.get("flag" if entry.get(key) is None else key)))
            except ValueError as error:
                self.complain(f"tied.{key}", error)
                return None
        for key in ("embedding", "head"):
            # The rule of that target may be one of those with problems.
            target = entry.get(key)
            if not isinstance(target, str) or (target not in self._targets and not self._broken):
                self.complain(f"tied.{key}", f"no rule for the target {target}")
        flag, since = flags
        return Tied(
            flag=flag, flag_of_transformers_5=since, embedding=str(entry.get("embedding")), head=str(entry.get("head"))
        )

    def ignored(self, content: Mapping[str, Any], sizes: _Specs) -> tuple[Ignored, ...]:
        ignored = []
        for number, entry in enumerate(self.entries(content, "ignore", "ignore")):
            at = f"ignore[{number}]"
            known = ("names", "reason", "layers")
            if not isinstance(entry, Mapping) or not are_text([entry.get("names"), entry.get("reason")]):
                self.expect(False, at, "{names: …, reason: …}", entry)
                continue
            for problem in unknown_keys(entry, known):
                self.complain(at, problem)
            layers = entry.get("layers")
            if layers is None:
                ignored.append(Ignored(names=entry["names"], reason=entry["reason"]))
            elif isinstance(layers, list) and len(layers) == 2 and are_text(layers) and set(layers) <= set(sizes):
                ignored.append(Ignored(names=entry["names"], reason=entry["reason"], layers=(layers[0], layers[1])))
            else:
                self.expect(False, f"{at}.layers", "the names of two sizes, first layer and count", layers)
        return tuple(ignored)

    def copied(self, content: Mapping[str, Any], nesting: Nesting) -> tuple[Copied, ...]:
        copied = []
        for number, entry in enumerate(self.entries(content, "copied", "copied")):
            keys = ("name", "of", "reason")
            good = isinstance(entry, Mapping) and set(entry) == set(keys) and are_text(list(entry.values()))
            if self.expect(good, f"copied[{number}]", "{name: …, of: …, reason: …}", entry):
                copied.append(
                    Copied(name=nesting.name(entry["name"]), of=nesting.name(entry["of"]), reason=entry["reason"])
                )
        return tuple(copied)

    def kept(self, content: Mapping[str, Any]) -> tuple[Kept, ...]:
        kept = []
        for number, entry in enumerate(self.entries(content, "keep_dtype", "keep_dtype")):
            at = f"keep_dtype[{number}]"
            if not isinstance(entry, Mapping) or not are_text([entry.get("names"), entry.get("reason")]):
                self.expect(False, at, "{names: …, reason: …}", entry)
                continue
            for problem in unknown_keys(entry, ("names", "reason")):
                self.complain(at, problem)
            kept.append(Kept(names=entry["names"], reason=entry["reason"]))
        return tuple(kept)

    def restrictions(
        self, content: Mapping[str, Any], modalities: Collection[str], counts: Collection[str]
    ) -> tuple[Restriction, ...]:
        restrictions = []
        for number, entry in enumerate(self.entries(content, "layout", "layout")):
            at = f"layout[{number}]"
            if not isinstance(entry, Mapping) or not are_text([entry.get("modality"), entry.get("reason")]):
                self.expect(False, at, "{modality: …, one_stage: true or first_stage: …, reason: …}", entry)
                continue
            for problem in unknown_keys(entry, ("modality", "one_stage", "first_stage", "reason")):
                self.complain(at, problem)
            modality, one_stage, first_stage = entry["modality"], entry.get("one_stage"), entry.get("first_stage")
            known = [each for each in modalities if each != TEXT] if one_stage is not None else modalities
            self.expect(modality in known, f"{at}.modality", f"one of {', '.join(known)}", modality)
            one = (one_stage is None) != (first_stage is None)
            self.expect(one, at, "either one_stage or first_stage", entry)
            self.expect(one_stage in (None, True), f"{at}.one_stage", "true", one_stage)
            good = first_stage is None or (isinstance(first_stage, str) and first_stage in counts)
            self.expect(good, f"{at}.first_stage", "the name of a list or of a size", first_stage)
            restrictions.append(
                Restriction(
                    modality=modality,
                    reason=entry["reason"],
                    one_stage=one_stage is not None,
                    first_stage=first_stage,
                )
            )
        return tuple(restrictions)

    def renamed_prefixes(self, content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        pairs = self.entries(content, "renamed_prefixes", "renamed_prefixes")
        good = all(isinstance(pair, list) and len(pair) == 2 and are_text(pair) for pair in pairs)
        self.expect(good, "renamed_prefixes", 'pairs of prefixes, such as [["model.visual.", "visual."]]', pairs)
        return tuple((pair[0], pair[1]) for pair in pairs) if good else ()
