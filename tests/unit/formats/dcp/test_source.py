"""Parameters and published tensors of a DCP, over the chunks that they lie in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.base import Source, SourceFacts
from distconv.formats.dcp.index import DcpIndex
from distconv.formats.dcp.source import DcpFacts
from distconv.formats.registry import format_named
from distconv.layout.shards import cut_recipes
from distconv.models.over import over
from distconv.tensors.compose import renumbered
from distconv.tensors.stored import NamedTensor, SourceFile, StoredTensor
from distconv.tensors.virtual import VirtualTensor, concat, narrow, whole
from tests import configuration
from tests.unit import toy, toy_facts, toy_megatron
from tests.unit.reference import evaluate
from tests.unit.toy_megatron import layout

Arrays = Mapping[str, np.ndarray]
INT = np.dtype(np.int64)


class Pieces:
    """Arrays in pieces, each cut in two along a dim, if it is."""

    def __init__(
        self,
        given: Arrays,
        cut: Callable[[str, tuple[int, ...]], tuple[int, int] | None],
        directory: str = "/dcp",
    ) -> None:
        self.arrays: dict[tuple[str, int], np.ndarray] = {}
        self.tensors: dict[str, NamedTensor] = {}
        tables: dict[object, Any] = {}
        for name, array in given.items():
            where = cut(name, array.shape)
            pieces = [array] if where is None else np.split(array, [where[1]], where[0])
            parts = []
            for number, piece in enumerate(pieces):
                file = SourceFile(f"{directory}/__{number}_0.distcp", 1 << 30)
                parts.append(StoredTensor(name, "bfloat16", piece.shape, file, 64 * len(self.arrays)))
                self.arrays[file.path, parts[-1].offset] = piece
            key = tuple(part.shape for part in parts), where
            if key not in tables:
                tables[key] = (
                    concat(
                        [renumbered(whole("bfloat16", part.shape), number) for number, part in enumerate(parts)],
                        where[0] if where else 0,
                    )
                    if where
                    else whole("bfloat16", array.shape)
                )
            self.tensors[name] = NamedTensor(tuple(parts), tables[key], name)

    def evaluate(self, tensor: Any, sources: tuple[StoredTensor, ...]) -> np.ndarray:
        return evaluate(tensor, [self.arrays[each.file.path, each.offset] for each in sources], INT)


def halves(_: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    return (0, shape[0] // 2) if shape[0] > 1 else None


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def made(arrays: Arrays) -> dict[str, np.ndarray]:
    """What binding makes of whole tensors, by parameter."""
    return {
        each.name: evaluate(each.recipe.tensor, [arrays[source.name] for source in each.sources], INT)
        for each in toy.bound().parameters
    }


@settings(max_examples=30)
@given(st.data())
def test_a_binding_over_pieces_is_that_of_the_whole_tensors(data):
    def cut(name: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
        dim = data.draw(st.none() | st.integers(0, len(shape) - 1), label=name)
        return None if dim is None else (dim, data.draw(st.integers(1, max(1, shape[dim] - 1))))

    arrays = toy.arrays()
    pieces = Pieces(arrays, cut)
    found = over(toy.bound(), pieces.tensors)
    parameters = {each.name: pieces.evaluate(each.recipe.tensor, each.sources) for each in found.parameters}
    assert_same(parameters, made(arrays))
    for each in found.parameters:
        assert each.recipe.source_shapes == tuple(part.shape for part in each.sources)
    # Proves that every element of every piece is in one shard, but for those that a recipe says it does not use.
    cut_recipes((each.recipe for each in found.parameters), layout(tp=2))


def test_layers_that_are_cut_alike_may_list_their_pieces_in_another_order():
    arrays = toy.arrays()
    pieces = Pieces(arrays, halves)
    swapped: dict[int, VirtualTensor] = {}
    for name, tensor in pieces.tensors.items():
        if ".1." in name and len(tensor.sources) == 2:
            copies = tuple(replace(copy, operand=1 - copy.operand) for copy in tensor.tensor.copies)
            table = swapped.setdefault(id(tensor.tensor), replace(tensor.tensor, copies=copies))
            pieces.tensors[name] = replace(tensor, tensor=table, sources=tensor.sources[::-1])
    found = over(toy.bound(), pieces.tensors)
    assert_same(
        {each.name: pieces.evaluate(each.recipe.tensor, each.sources) for each in found.parameters}, made(arrays)
    )


def test_what_lies_between_the_rows_of_a_piece_is_not_used():
    """As where a tensor was saved that is the first columns of a wider one."""
    arrays = toy.arrays()
    pieces = Pieces(arrays, lambda *_: None)
    for name, tensor in pieces.tensors.items():
        (stored,) = tensor.sources
        *rows, columns = stored.shape
        wide = np.full((*rows, columns + 3), -1)
        wide[..., :columns] = arrays[name]
        pieces.arrays[stored.file.path, stored.offset] = wide
        table = narrow(whole("bfloat16", wide.shape), len(rows), 0, columns)
        pieces.tensors[name] = replace(tensor, tensor=table, sources=(replace(stored, shape=wide.shape),))
    found = over(toy.bound(), pieces.tensors)
    assert_same(
        {each.name: pieces.evaluate(each.recipe.tensor, each.sources) for each in found.parameters}, made(arrays)
    )
    cut_recipes((each.recipe for each in found.parameters), layout(tp=2))


def test_layers_that_are_cut_alike_share_a_recipe():
    recipes = [
        {id(each.recipe) for each in binding.parameters}
        for binding in (toy.bound(), over(toy.bound(), Pieces(toy.arrays(), halves).tensors))
    ]
    assert len(recipes[0]) == len(recipes[1])


def test_what_is_not_converted_is_where_its_first_piece_is():
    pieces = Pieces(toy.arrays(), halves)
    binding = toy.bound(left_out=lambda rule: "no" if rule.modality == "text" else None)
    found = over(binding, pieces.tensors)
    assert [each.tensor.name for each in found.unconverted] == [each.tensor.name for each in binding.unconverted]
    assert {each.tensor.file.path for each in found.unconverted} == {"/dcp/__0_0.distcp"}


def bound(facts: SourceFacts, *, changes: Mapping[str, Any] | None = None, **options: Any) -> Source:
    """A source that follows a reference, whose configuration has some values changed."""
    known = toy_facts.facts(facts, toy_facts.reference(**(changes or {})))
    return format_named(known.kind).source(configuration.job(**options), facts, known.bound_model())


def dcp(pieces: Pieces, naming: str) -> DcpFacts:
    index = DcpIndex(directory="/dcp", tensors=pieces.tensors, others=())
    return DcpFacts(index=index, naming=naming, prefix="", others=("optimizer (3 entries)",))


def published_of(found: Source, pieces: Pieces) -> dict[str, np.ndarray]:
    return {each.name: pieces.evaluate(each.tensor, each.sources) for each in found.published().tensors}


def parameters_of(found: Source, pieces: Pieces) -> dict[str, np.ndarray]:
    return {each.name: pieces.evaluate(each.recipe.tensor, each.sources) for each in found.parameters().parameters}


def test_a_dcp_with_megatron_names_gives_both():
    arrays = toy.arrays()
    pieces = Pieces(made(arrays), halves)
    found = bound(dcp(pieces, "megatron"))
    assert_same(parameters_of(found, pieces), made(arrays))
    assert_same(published_of(found, pieces), arrays)
    assert found.notes == ("not carried over: optimizer (3 entries): training state; only the model is converted",)


def test_what_a_dcp_with_megatron_names_lacks_is_said_with_its_directory():
    arrays = made(toy.arrays())
    name = next(name for name in arrays if ".1." in name)
    del arrays[name]
    with pytest.raises(InputError) as caught:
        bound(dcp(Pieces(arrays, halves), "megatron"))
    assert caught.value.problems == [f"/dcp: 1 tensor is missing: model/{name}; are the files of one checkpoint?"]


@pytest.mark.parametrize("naming", ["megatron", "hf"])
def test_a_dcp_has_all_rows_of_its_vocabulary(naming):
    arrays = toy.arrays()
    pieces = Pieces(made(arrays) if naming == "megatron" else arrays, halves)
    found = bound(dcp(pieces, naming), changes={"vocab_size": 17})
    assert parameters_of(found, pieces)["text.head.weight"].shape == (toy.VOCABULARY, toy.HIDDEN)
    np.testing.assert_array_equal(published_of(found, pieces)["lm_head.weight"], arrays["lm_head.weight"])


@pytest.mark.parametrize("as_matrix", [False, True])
@pytest.mark.parametrize("spelled", [False, True])
def test_a_dcp_with_published_names_gives_both(as_matrix, spelled):
    """In either spelling, and with packed experts as wrapped models hold them."""
    arrays = toy.arrays()
    stored = {
        name.replace("model.", "model.language_model.", 1) if spelled else name: array.reshape(-1, toy.HIDDEN)
        if as_matrix and name.endswith("experts.down")
        else array
        for name, array in arrays.items()
    }
    pieces = Pieces(stored, halves)
    found = bound(dcp(pieces, "hf"))
    assert_same(published_of(found, pieces), arrays)
    assert_same(parameters_of(found, pieces), made(arrays))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("naming", ["hf", "megatron"])
def test_a_published_model_is_tied_if_its_configuration_says_so(tied, naming):
    arrays = toy.arrays()
    pieces = Pieces(arrays if naming == "hf" else made(arrays), halves)
    found = bound(dcp(pieces, naming), changes={"tie_word_embeddings": tied})
    assert found.published().tied == tied


def test_a_selection_leaves_the_rest_of_a_trained_source_out():
    files = toy_megatron.source(layout())
    found = bound(files.index(), select=["vision"])
    assert {each.name.partition(".")[0] for each in found.published().tensors} == {"visual"}
    pieces = Pieces(made(toy.arrays()), halves)
    found = bound(dcp(pieces, "megatron"), select=["vision"])
    assert {each.name.partition(".")[0] for each in found.parameters().parameters} == {"vision"}


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"select": ["vision"]}, ["select"]),
        ({"lora_only": True, "projector": "omit"}, ["projector", "lora_only"]),
        ({"text_source": "/llm"}, ["text_source"]),
    ],
)
def test_tensors_that_are_taken_as_they_are_are_all_taken(keys, names):
    pieces = Pieces(toy.arrays(), halves)
    for source in (dcp(pieces, "hf"), toy_facts.PUBLISHED):
        with pytest.raises(InputError) as caught:
            bound(source, **keys).published()
        assert [problem.partition(":")[0] for problem in caught.value.problems] == names


def test_a_matrix_of_experts_that_does_not_divide_is_left_to_the_binding():
    arrays = toy.arrays()
    name = next(name for name in arrays if name.endswith("experts.down"))
    arrays[name] = arrays[name].reshape(-1, toy.HIDDEN)[:-1]
    with pytest.raises(InputError) as caught:
        bound(dcp(Pieces(arrays, halves), "hf")).parameters()
    (problem,) = caught.value.problems
    assert problem.startswith(f"/dcp/__0_0.distcp: {name} has shape {list(arrays[name].shape)}, expected")


def test_two_spellings_of_a_tensor_are_refused_before_anything_is_made_of_them():
    arrays = toy.arrays()
    arrays["model.language_model.norm.weight"] = arrays["model.norm.weight"]
    with pytest.raises(InputError) as caught:
        bound(dcp(Pieces(arrays, halves), "hf"))
    assert caught.value.problems == [
        "/dcp: model.norm.weight and model.language_model.norm.weight are two spellings of the same tensor; remove one"
    ]


def test_copies_under_another_prefix_are_said_with_what_chooses():
    facts = replace(dcp(Pieces(toy.arrays(), halves), "hf"), prefix="model.", copies=("ema (3 entries)",))
    assert DcpFacts.from_json(json.loads(json.dumps(facts.to_json()))).copies == facts.copies
    assert bound(facts).notes[1] == (
        "not carried over: ema (3 entries): named as tensors of the model are, but what is under the prefix model. is "
        "converted; name_prefix= chooses"
    )
