"""Dialects of training: how a program names, cuts and groups the parameters of a model.

Owns the records; `parameter_dialect_file` parses them. A dialect is told as a difference from the targets of rules, so
it is for all models. It never sees a tensor, and knows no layout.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from distconv.errors import InputError
from distconv.models.definition import OWN_NAMES, Definition
from distconv.models.joining import Join, join_parameters, join_rules, part_parameters
from distconv.models.parameters import Binding, Parameter, Recipe
from distconv.models.predicting import inside_of, unnumbered, with_number
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes

# The end of the name of a part of a tensor that all experts of a rank are in, each of them transposed.
GROUPED = "[{expert}]"
# Whether a layer has a parameter whose target begins so.
_Has = Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The beginning of a target, and what takes its place; with `beside`, only in layers with a target that begins so.

    `beside` is a beginning as definitions have it, whatever has been exchanged before. All may have `{next}`.
    """

    old: str
    new: str
    beside: str = ""

    def inside(self) -> Exchange | None:
        """The same in layers that predict further tokens; `None` where it is not of names of a layer."""
        old, new = inside_of(self.old), inside_of(self.new)
        if old is None or new is None:
            return None
        return Exchange(old=old, new=new, beside=inside_of(self.beside) or self.beside)


@dataclass(frozen=True, kw_only=True)
class ParameterDialect:
    """A way to name parameters: all exchanges that fit, one after the other; `words`: what it is, after "parameters".

    `joined`: parameters that are one here. `whole`: beginnings of the targets of parameters that every tensor parallel
    rank holds whole. `distributed`: exchanges before the others in a distributed checkpoint, in which modules may save
    parameters under other names; `extra_states`: the modules that save a state beside them, as patterns of the last
    segments of their names, or as `PARENT.NAME`, of a module that has no parameters.
    """

    name: str
    words: str
    exchanges: tuple[Exchange, ...] = ()
    joined: tuple[Join, ...] = ()
    whole: tuple[str, ...] = ()
    distributed: tuple[Exchange, ...] = ()
    extra_states: tuple[str, ...] = ()

    def in_distributed(self) -> ParameterDialect:
        """The dialect as it names parameters in a distributed checkpoint."""
        return replace(self, exchanges=self.distributed + self.exchanges, distributed=())

    def saving_states(self, parameter: str) -> Iterator[str]:
        """The modules that save a state where a parameter of this name is: its own, or one that has no parameters."""
        module, _, name = parameter.rpartition(".")
        for pattern in self.extra_states:
            parent, _, child = pattern.rpartition(".")
            before, found, _ = parameter.partition(f".{parent}.")
            if parent and found:
                yield f"{before}.{parent}.{child}"
            # A norm may be named as if it were of a linear that its layer does not have.
            elif not parent and name == "weight" and fnmatch.fnmatchcase(module.rpartition(".")[2], pattern):
                yield module

    def renamed(self, target: str, has: _Has) -> str:
        """The name of a target in a layer of which `has` tells the targets."""
        name, number = unnumbered(target)
        for each in self.exchanges:
            if name.startswith(each.old) and (not each.beside or has(with_number(each.beside, number))):
                name = each.new + name[len(each.old) :]
        return with_number(name, number)

    def holds_whole(self, rule: Rule) -> bool:
        """Whether every tensor parallel rank holds the parameter of a definition's rule whole."""
        return unnumbered(rule.target)[0].startswith(self.whole)

    def rule(self, rule: Rule, has: _Has) -> Rule:
        """The rule of a parameter under its name here; the same record where nothing is different."""
        target = self.renamed(rule.target, has)
        changed = rule if target == rule.target else replace(rule, target=target)
        return whole_on_every_rank(changed) if self.holds_whole(rule) else changed

    def names(self, binding: Binding) -> Binding:
        """A binding of parameters with the targets of their definition, with the names that they have here."""
        parameters = join_parameters(binding.parameters, self.joined)
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

        return replace(binding, parameters=tuple(map(named, parameters)))


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """A definition with the names of a dialect: its rules, and the definition's own rule of each.

    `parts`: of joined rules, those of the definition that they are made of.
    """

    dialect: ParameterDialect
    definition: Definition
    own: Mapping[Rule, Rule]
    parts: Mapping[Rule, tuple[Rule, ...]] = field(default_factory=dict)

    def in_own_names(self, binding: Binding, sizes: Sizes) -> Binding:
        """A binding of these rules as one of the definition's own."""
        recipes: dict[Recipe, Recipe] = {}
        parts: dict[Recipe, list[Recipe]] = {}
        parameters: list[Parameter] = []
        for each in binding.parameters:
            rule = self.own[each.recipe.rule]
            if rule not in self.parts:
                if each.recipe not in recipes:
                    recipes[each.recipe] = replace(each.recipe, rule=rule)
                parameters.append(replace(each, recipe=recipes[each.recipe]))
                continue
            if each.recipe not in parts:
                parts[each.recipe] = [part.recipe for part in part_parameters(each, self.parts[rule], sizes)]
            parameters += (replace(each, recipe=recipe) for recipe in parts[each.recipe])
        return replace(binding, parameters=tuple(parameters))


def speak(dialect: ParameterDialect, definition: Definition) -> Spoken:
    """A definition with the names of a dialect.

    A rule whose name depends on what else a layer has becomes an alternative of each kind of layer.
    """
    own: dict[Rule, Rule] = {}
    rules, parts = join_rules(definition.rules, dialect.joined)
    for rule in rules:
        for each in _kinds(rule, definition, dialect):

            def has(start: str, each: Rule = each) -> bool:
                return any(not each.excludes(other) for other in _beginning(start, each, definition))

            spoken = dialect.rule(each, has)
            own[spoken] = rule
    tied = definition.tied
    if tied is not None:
        embedding, head = (dialect.renamed(target, lambda _: False) for target in (tied.embedding, tied.head))
        tied = replace(tied, embedding=embedding, head=head)
    spoken_definition = replace(definition, rules=tuple(own), tied=tied)
    return Spoken(dialect=dialect, definition=spoken_definition, own=own, parts=parts)


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
