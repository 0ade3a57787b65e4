"""A skeleton of each published model, from names and shapes: what it lacks is decided as the real definition has it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import yaml

from distconv.models.bind import bind
from distconv.models.definition import Definition
from distconv.models.definition_parser import parse_definition
from distconv.models.definition_reader import undecided
from distconv.models.library import Library
from distconv.models.parameters import Binding
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes
from distconv.models.skeleton import skeleton_of
from distconv.models.skeleton_text import skeleton_text
from distconv.tensors.stored import SourceFile, SourceIndex, StoredTensor
from tests.published import PUBLISHED, Published
from tests.published_language_models import LANGUAGE_MODELS

ALL = {each.name: each for each in (*PUBLISHED, *LANGUAGE_MODELS)}
# The smallest of each definition.
FIRST = {each.definition: each for each in reversed(ALL.values())}
Content = dict[str, Any]


@pytest.fixture(scope="module")
def known() -> dict[str, Definition]:
    library = Library.of_package()
    heads = library.heads()
    families = [name for name in library.names() if heads[name].get("variant_of") is None]
    return {name: parse_definition(name, library.content(name)) for name in families}


def index_of(published: Published) -> SourceIndex:
    file = SourceFile("model.safetensors", 1 << 50)
    stored = {
        tensor.name: StoredTensor(tensor.name, "bfloat16", tensor.shape, file, 0)
        for tensor in published.tensors()
        if tensor.stored
    }
    return SourceIndex(directory="published", tensors=stored)


def bound(definition: Definition, published: Published) -> Binding:
    sizes = Sizes(definition.sizes, published.configs[0], "config.json")
    return bind(definition.of_model(sizes), sizes, index_of(published), lambda _: None)


def text_of(published: Published, known: Sequence[Definition]) -> str:
    shapes = {name: tensor.shape for name, tensor in index_of(published).tensors.items()}
    return skeleton_text(skeleton_of(shapes, published.configs[0], known))


def lists_of(content: Content) -> Iterator[list[Any]]:
    """The lists that have rules."""
    for sections in content["rules"].values():
        for entries in sections.values():
            for entry in entries:
                yield from entry.get("one_of", {}).values()
            yield entries


def names_in(entry: Content) -> list[str]:
    """The names of the sources of an entry, those of weight and bias."""
    names = [source[0] for source in entry.get("sources", ())]
    return [each.replace("{weight,bias}", kind) for each in names for kind in ("weight", "bias")]


def decided(text: str, real: Definition, published: Published) -> Content:
    """The content of a skeleton in which all that is to be decided is as the real definition has it."""
    content: Content = yaml.safe_load(text)
    sizes = Sizes(real.sizes, published.configs[0], "config.json")
    shapes = {real.spelled(name): tensor.shape for name, tensor in index_of(published).tensors.items()}
    wanted = {
        name for found in lists_of(content) for entry in found if list(undecided(entry)) for name in names_in(entry)
    }
    used = {(each.recipe.rule.target, each.recipe.rule.choice) for each in bound(real, published).parameters}
    rules = [
        rule
        for rule in real.rules
        if any(real.spelled(name) in rule.source_names for name in wanted)
        if (rule.target, rule.choice) in used or "{next}" in rule.target
    ]
    taken = {name for rule in rules for name in rule.source_names}
    for found in lists_of(content):
        places = [
            each for each in found if "sources" in each and taken & {real.spelled(name) for name in names_in(each)}
        ]
        names = {real.spelled(name) for each in places for name in names_in(each)}
        spelled = {real.spelled(name): name for each in places for name in names_in(each)}
        kept = [each for each in found if each not in places and not list(undecided(each))]
        added = [entry_of(rule, spelled, shapes, sizes) for rule in rules if rule.source_names[0] in names]
        found[:] = kept + [each for each in added if each is not None]
    if any("{expert}" in rule.target for rule in rules) and real.experts is not None:
        content["sizes"]["number_of_experts"] = ["product", sizes.get(real.experts)]
        content["experts"] = "number_of_experts"
    content["ignore"] = [
        *({"names": each.names, "reason": each.reason} for each in real.ignored if each.layers is None),
        *(each for each in content.get("ignore", ()) if not list(undecided(each))),
    ]
    return content


def entry_of(
    rule: Rule, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], sizes: Sizes
) -> Content | None:
    """An entry with the decisions of a rule, over the names and shapes of the checkpoint."""
    if not all(name in names for name in rule.source_names):
        return None
    sources = []
    for name in rule.source_names:
        pattern = re.compile(re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(name)))
        found = {shape for each, shape in shapes.items() if pattern.fullmatch(each)}
        dims = [each[0] if len(set(each)) == 1 else "any" for each in zip(*found, strict=True)]
        sources.append([names[name], *dims])
    entry: Content = {"target": rule.target, "sources": sources}
    entry["operator"] = [rule.operator, *map(sizes.get, rule.operator_sizes)]
    entry["tp"] = [rule.tensor_parallel, *([] if rule.unit is None else [sizes.get(rule.unit)])]
    return (
        entry
        | ({} if rule.stage == "layer" else {"stage": rule.stage})
        | ({"layers": rule.layers} if rule.layers else {})
    )


def meaning(binding: Binding, sizes: Sizes) -> dict[str, tuple[object, ...]]:
    """What a definition makes of a checkpoint: for each parameter its shape, sources, cut and place."""
    found = {}
    for each in binding.parameters:
        rule = each.recipe.rule
        found[each.name] = (
            each.recipe.tensor.shape,
            [source.name for source in each.sources],
            # Who cuts evenly refuses what the other cuts, and makes nothing else of what both cut.
            rule.tensor_parallel.removesuffix("_uneven"),
            None if rule.unit is None else sizes.get(rule.unit),
            rule.stage,
            rule.operator,
            [sizes.get(size) for size in rule.operator_sizes],
        )
    return found


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("name", FIRST)
def test_what_is_decided_as_in_the_definition_of_a_model_is_that_definition(
    name: str, known: dict[str, Definition], *, is_known: bool
) -> None:
    """Nothing is guessed wrong: also where the definition of the model is not among the known ones."""
    published, real = FIRST[name], known[name]
    text = text_of(published, [each for each in known.values() if is_known or each is not real])
    made = parse_definition("made", decided(text, real, published))
    own, theirs = bound(made, published), bound(real, published)
    config = published.configs[0]
    expected = meaning(theirs, Sizes(real.sizes, config, ""))
    assert meaning(own, Sizes(made.sizes, config, "")) == expected
    assert {each.tensor.name for each in own.unconverted} == {each.tensor.name for each in theirs.unconverted}
    assert (own.layers, own.experts, own.tied) == (theirs.layers, theirs.experts, theirs.tied)
