"""Dialects of training: how a program names, cuts and groups the parameters of a model.

Owns the records, and the parsing of a file under `conf/dialect/` that has `parameters`. A dialect is told as a
difference from the targets of rules, so it is for all models. It never sees a tensor, and knows no layout.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distconv.errors import InputError, raise_if, unknown_keys
from distconv.models.definition import OWN_NAMES, Definition
from distconv.models.parameters import Binding, Parameter, Recipe
from distconv.models.rules import Rule

_KEYS = ("words", "like", "parameters", "whole")
# The end of the name of a part of a tensor that all experts of a rank are in, each of them transposed.
GROUPED = "[{expert}]"
# Whether a layer has a parameter whose target begins so.
_Has = Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The beginning of a target, and what takes its place; with `beside`, only in layers with a target that begins so.

    `beside` is a beginning as definitions have it, whatever has been exchanged before.
    """

    old: str
    new: str
    beside: str = ""


@dataclass(frozen=True, kw_only=True)
class ParameterDialect:
    """A way to name parameters: all exchanges that fit, one after the other; `words`: what it is, after "parameters".

    `whole`: beginnings of the targets of parameters that every tensor parallel rank holds whole.
    """

    name: str
    words: str
    exchanges: tuple[Exchange, ...] = ()
    whole: tuple[str, ...] = ()

    def renamed(self, target: str, has: _Has) -> str:
        """The name of a target in a layer of which `has` tells the targets."""
        name = target
        for each in self.exchanges:
            if name.startswith(each.old) and (not each.beside or has(each.beside)):
                name = each.new + name[len(each.old) :]
        return name

    def rule(self, rule: Rule, has: _Has) -> Rule:
        """The rule of a parameter under its name here; the same record where nothing is different."""
        target = self.renamed(rule.target, has)
        changed = rule if target == rule.target else replace(rule, target=target)
        return whole_on_every_rank(changed) if rule.target.startswith(self.whole) else changed

    def names(self, binding: Binding) -> Binding:
        """A binding of parameters with the targets of their definition, with the names that they have here."""
        kinds: dict[tuple[str, int | None], set[str]] = {}
        for each in binding.parameters:
            kinds.setdefault((each.recipe.rule.modality, each.layer), set()).add(each.recipe.rule.target)
        shared: dict[frozenset[str], frozenset[str]] = {}
        frozen = {at: shared.setdefault(frozenset(found), frozenset(found)) for at, found in kinds.items()}
        recipes: dict[tuple[Recipe, int], Recipe] = {}

        def named(each: Parameter) -> Parameter:
            kind = frozen[each.recipe.rule.modality, each.layer]
            if (each.recipe, id(kind)) not in recipes:
                rule = self.rule(each.recipe.rule, lambda start: any(target.startswith(start) for target in kind))
                same = rule is each.recipe.rule
                recipes[each.recipe, id(kind)] = each.recipe if same else replace(each.recipe, rule=rule)
            recipe = recipes[each.recipe, id(kind)]
            return each if recipe is each.recipe else replace(each, recipe=recipe)

        return replace(binding, parameters=tuple(map(named, binding.parameters)))


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """A definition with the names of a dialect: its rules, and the definition's own rule of each."""

    dialect: ParameterDialect
    definition: Definition
    own: Mapping[Rule, Rule]

    def in_own_names(self, binding: Binding) -> Binding:
        """A binding of these rules as one of the definition's own."""
        recipes: dict[Recipe, Recipe] = {}
        for each in binding.parameters:
            if each.recipe not in recipes:
                recipes[each.recipe] = replace(each.recipe, rule=self.own[each.recipe.rule])
        return replace(
            binding, parameters=tuple(replace(each, recipe=recipes[each.recipe]) for each in binding.parameters)
        )


def speak(dialect: ParameterDialect, definition: Definition) -> Spoken:
    """A definition with the names of a dialect.

    A rule whose name depends on what else a layer has becomes an alternative of each kind of layer.
    """
    own: dict[Rule, Rule] = {}
    for rule in definition.rules:
        for each in _kinds(rule, definition, dialect):

            def has(start: str, each: Rule = each) -> bool:
                return any(not each.excludes(other) for other in _beginning(start, each, definition))

            spoken = dialect.rule(each, has)
            own[spoken] = rule
    tied = definition.tied
    if tied is not None:
        embedding, head = (dialect.renamed(target, lambda _: False) for target in (tied.embedding, tied.head))
        tied = replace(tied, embedding=embedding, head=head)
    return Spoken(dialect=dialect, definition=replace(definition, rules=tuple(own), tied=tied), own=own)


def whole_on_every_rank(rule: Rule) -> Rule:
    """The rule of a parameter that is not cut."""
    return replace(rule, tensor_parallel="replicated", unit=None)


def _beginning(start: str, rule: Rule, definition: Definition) -> list[Rule]:
    return [each for each in definition.rules if each.modality == rule.modality and each.target.startswith(start)]


def _kinds(rule: Rule, definition: Definition, dialect: ParameterDialect) -> Iterator[Rule]:
    """The rule, or where some kinds of layers have what its name depends on and others have not, one for each kind."""
    names = {rule.target}
    for exchange in dialect.exchanges:
        fitting = {name for name in names if name.startswith(exchange.old)}
        names |= {exchange.new + name[len(exchange.old) :] for name in fitting}
        if rule.choice is None and exchange.beside and fitting:
            beside = [each.choice for each in _beginning(exchange.beside, rule, definition)]
            having = {choice for choice in beside if choice is not None}
            groups = {group for group, _ in having}
            if len(groups) != 1 or None in beside:
                continue
            choices = dict.fromkeys(
                each.choice for each in definition.rules if each.choice and each.choice[0] in groups
            )
            if having != set(choices):
                yield from (replace(rule, choice=choice) for choice in choices)
                return
    yield replace(rule)


@dataclass(frozen=True, kw_only=True)
class ParameterDialects:
    """The dialects of training, by name."""

    dialects: Mapping[str, ParameterDialect] = field(default_factory=dict)

    def chosen(self, name: str, key: str) -> ParameterDialect:
        """A dialect by the value of an option.

        Raises:
            InputError: there is no such dialect.
        """
        if name == OWN_NAMES and name not in self.dialects:
            return ParameterDialect(name=OWN_NAMES, words="as MindSpeed-MM names them")
        if name not in self.dialects:
            near = difflib.get_close_matches(name, self.dialects, 1)
            hint = f"; the nearest is {near[0]}" if near else ""
            known = ", ".join(sorted(self.dialects))
            raise InputError(f"{key}={name}: no such dialect of Megatron-side names{hint}; known: {known}")
        return self.dialects[name]


def is_of_parameters(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file of a dialect is one of training, not of published names."""
    return "parameters" in content


def parse_parameter_dialects(contents: Mapping[str, Mapping[str, Any]]) -> ParameterDialects:
    """The dialects of training, from the contents and paths of their files by name.

    Raises:
        InputError: every key that is unknown, and every value that is not as expected.
    """
    problems: list[str] = []
    parsed = {name: _parsed(name, each["content"], each["path"], problems) for name, each in contents.items()}
    likes = {name: each["content"].get("like") for name, each in contents.items()}
    for name, like in likes.items():
        seen, last = {name}, like
        while isinstance(last, str) and last in parsed and last not in seen:
            seen.add(last)
            last = likes[last]
        if last is not None:
            problems.append(
                f"{contents[name]['path']}: like: expected the name of another dialect with parameters, found {like!r}"
            )
    raise_if(problems)
    return ParameterDialects(dialects={name: _complete(name, parsed, likes) for name in parsed})


def _complete(name: str, parsed: Mapping[str, ParameterDialect], likes: Mapping[str, Any]) -> ParameterDialect:
    """A dialect with the exchanges of the one that it is like before its own."""
    if likes[name] is None:
        return parsed[name]
    first, then = _complete(likes[name], parsed, likes), parsed[name]
    return replace(then, exchanges=first.exchanges + then.exchanges, whole=first.whole + then.whole)


def _parsed(name: str, content: Mapping[str, Any], where: str, problems: list[str]) -> ParameterDialect:
    problems += [f"{where}: {each}" for each in unknown_keys(content, _KEYS)]
    words, whole = content.get("words", f"as in {name}"), content.get("whole", [])
    if not isinstance(words, str):
        problems.append(f"{where}: words: expected text, found {words!r}")
    if not _are_text(whole):
        problems.append(f"{where}: whole: expected beginnings of targets, found {whole!r}")
        whole = []
    exchanges = []
    pairs = content["parameters"]
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not _are_text(pair) or len(pair) not in (2, 3):
            problems.append(f"{where}: parameters: expected [beginning, its name, beginning beside], found {pair!r}")
        elif any(pair[0].count(each) != pair[1].count(each) for each in ("{layer}", "{expert}")):
            problems.append(f"{where}: parameters: {pair}: expected the same placeholders in both names")
        else:
            exchanges.append(Exchange(old=pair[0], new=pair[1], beside="".join(pair[2:])))
    return ParameterDialect(name=name, words=str(words), exchanges=tuple(exchanges), whole=tuple(whole))


def _are_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
