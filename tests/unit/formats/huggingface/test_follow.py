"""A result has the tensors of its reference, under its names: no more, no fewer, no other shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import pytest

from distconv.errors import InputError
from distconv.formats.base import Published
from distconv.formats.huggingface.follow import COMPLETE, FILL, Followed, follow, follow_reference
from distconv.formats.model import Model, Reference
from distconv.models.definition import Definition
from distconv.tensors.stored import NamedTensor, SourceFile, StoredTensor
from distconv.tensors.virtual import whole
from tests.unit import toy

HEAD, EMBEDDING = "lm_head.weight", "model.embed.weight"
Shapes = Mapping[str, tuple[int, ...]]


def tensors(shapes: Shapes) -> list[NamedTensor]:
    file = SourceFile("/mm/x.pt", 1 << 20)
    return [
        NamedTensor((StoredTensor(name, "bfloat16", shape, file, 64 * number),), whole("bfloat16", shape), name)
        for number, (name, shape) in enumerate(shapes.items())
    ]


def reference(shapes: Shapes, *, weights: bool = True) -> Reference:
    return Reference(
        directory="/hf",
        config={},
        is_adapter=False,
        index=toy.index(dict(shapes)) if weights else None,
        shard_files=dict.fromkeys(shapes, "model.safetensors"),
        index_content=None,
    )


def model(definition: Definition, known: Reference) -> Model:
    return Model(definition=definition, reference=known, config=known.config, config_path="/hf/config.json")


def spelled(name: str) -> str:
    return toy.definition().spelled(name)


def followed(
    source: Shapes, known: Reference, *, tied: bool = False, fill: bool = False, tied_head: str = "auto"
) -> Followed:
    head = (HEAD, EMBEDDING) if tied else None
    return follow(tensors(source), spelled, known, tied=head, fill=fill, tied_head=tied_head)


def refused(source: Shapes, known: Reference, *, tied: bool = False, fill: bool = False) -> list[str]:
    with pytest.raises(InputError) as caught:
        followed(source, known, tied=tied, fill=fill)
    return caught.value.problems


def test_tensors_are_those_of_the_reference_in_its_order_and_spelling():
    found = followed({"b": (2,), "visual.a": (3,)}, reference({"model.visual.a": (3,), "b": (2,)}))
    assert [(each.name, each.tensor.shape) for each in found.tensors] == [("model.visual.a", (3,)), ("b", (2,))]
    assert [each.sources[0].name for each in found.tensors] == ["visual.a", "b"]
    assert (found.left_out, found.filled) == ((), ())


def test_a_reference_without_shards_is_followed_by_anything():
    bare = Reference(directory="/hf", config={}, is_adapter=False, index=None, shard_files=None, index_content=None)
    given = tensors({HEAD: (2,), "x": (1,)})
    found = follow(given, spelled, bare, tied=(HEAD, EMBEDDING), fill=False)
    assert found == Followed(tensors=tuple(given), left_out=(), filled=())


@pytest.mark.parametrize("part_of", [None, "hidden_size", "absent"])
def test_the_names_of_a_larger_model_are_not_made_up(part_of):
    bare = Reference(
        directory="/hf", config=toy.config(), is_adapter=False, index=None, shard_files=None, index_content=None
    )
    definition, published = toy.definition({**toy.content(), "part_of": part_of}), Published(tensors=(), bound=True)
    if part_of != "hidden_size":
        assert follow_reference(published, model(definition, bare), fill=False).tensors == ()
        return
    with pytest.raises(InputError, match=r"config.json has hidden_size, so it is of a larger model .*index.json"):
        follow_reference(published, model(definition, bare), fill=False)
    # One that names its tensors is followed.
    named = replace(reference({}), config=toy.config())
    assert follow_reference(published, model(definition, named), fill=False).tensors == ()


def test_a_tied_head_is_a_copy_where_no_reference_shows_one():
    bare = Reference(directory="/hf", config={}, is_adapter=False, index=None, shard_files=None, index_content=None)
    given = tensors({HEAD: (2, 3), EMBEDDING: (2, 3)})
    found = follow(given, spelled, bare, tied=(HEAD, EMBEDDING), fill=False)
    assert sorted(each.name for each in found.tensors) == [HEAD, EMBEDDING]
    assert {each.sources[0].name for each in found.tensors} == {EMBEDDING}
    assert [len(each.replicas) for each in found.left_out] == [1]


def test_what_only_one_of_the_two_has_is_named_both_ways_at_once():
    assert refused({"a": (1,), "x": (1,), "y": (1,)}, reference({"a": (1,), "b": (1,)})) == [
        "reference=/hf: does not name 2 tensors of the source: x, y; is it the model that training began with?",
        f"reference=/hf: names 1 tensor that the source does not have: b; {COMPLETE}",
    ]
    assert refused({"a": (1,)}, reference({"a": (1,), "b": (1,)})) == [
        "reference=/hf: names 1 tensor that the source does not have: b; fill_from_reference=true fills in from there",
    ]


def test_what_is_missing_comes_from_the_reference_if_that_is_wished():
    known = reference({"b": (4,), "a": (1,), "c": (2, 2)})
    found = followed({"a": (1,)}, known, fill=True)
    assert [each.name for each in found.tensors] == ["b", "a", "c"]
    assert found.filled == ("b", "c")
    assert known.index is not None
    for each in found.tensors:
        (stored,) = each.sources
        assert (stored is known.index.tensors[each.name]) == (each.name in found.filled)
        assert each.tensor.shape == known.index.tensors[each.name].shape


def test_filling_adds_and_never_forgives():
    assert refused({"x": (1,)}, reference({"b": (1,)}), fill=True) == [
        "reference=/hf: does not name 1 tensor of the source: x; is it the model that training began with?"
    ]
    assert refused({"a": (1,)}, reference({"a": (1,), "b": (1,)}, weights=False), fill=True) == [
        "reference=/hf: names 1 tensor that the source does not have: b; it has no weights to fill in from"
    ]


def test_every_other_shape_is_named():
    known = reference({"a": (1, 2), "b": (3,), "c": (1,)})
    assert refused({"a": (2, 1), "b": (4,), "c": (1,)}, known) == [
        "a: is [2, 1] in the source, [1, 2] in reference=/hf; is it the model that training began with?",
        "b: is [4] in the source, [3] in reference=/hf; is it the model that training began with?",
    ]


@pytest.mark.parametrize(("tied", "stored", "published"), list(product([False, True], repeat=3)))
def test_the_head_is_where_the_reference_has_it(tied, stored, published):
    both: Shapes = {EMBEDDING: (6, 2), HEAD: (6, 2)}
    source = both if stored else {EMBEDDING: (6, 2)}
    known = reference(both if published else {EMBEDDING: (6, 2)})
    if not tied and stored != published:
        (problem,) = refused(source, known)
        assert HEAD in problem
        assert ("names 1 tensor that the source does not have" in problem) == published
        return
    found = followed(source, known, tied=tied)
    assert [each.name for each in found.tensors] == [EMBEDDING, *([HEAD] if published else [])]
    reason = "the reference has no head of its own"
    dropped = stored and not published
    assert [(each.tensor.name, each.reason) for each in found.left_out] == ([(HEAD, f"tied: {reason}")] * dropped)
    # It is left out only if it is the same.
    assert [
        (replica.copy.sources[0].name, replica.original.sources[0].name)
        for each in found.left_out
        for replica in each.replicas
    ] == [(HEAD, EMBEDDING)] * dropped
    if published:
        embedding, head = found.tensors
        # Its own where there is one, else the embedding's very bytes.
        assert head.sources[0].name == (HEAD if stored else EMBEDDING)
        assert (head.sources == embedding.sources) == (not stored)
        assert [note.partition(":")[0] for note in found.notes] == [HEAD] * (tied and stored)


@pytest.mark.parametrize(("stored", "published"), list(product([False, True], repeat=2)))
def test_a_stored_head_is_kept_if_that_is_wished(stored, published):
    both: Shapes = {EMBEDDING: (6, 2), HEAD: (6, 2)}
    known = reference(both if published else {EMBEDDING: (6, 2)})
    found = followed(both if stored else {EMBEDDING: (6, 2)}, known, tied=True, tied_head="keep")
    head = [HEAD] if stored or published else []
    assert [each.name for each in found.tensors] == [EMBEDDING, *head]
    assert [each.sources[0].name for each in found.tensors] == [
        EMBEDDING,
        *([HEAD if stored else EMBEDDING] if head else []),
    ]
    assert found.left_out == ()


def test_a_head_that_the_reference_has_not_is_spelled_as_its_embedding():
    known = reference({f"thinker.{EMBEDDING}": (6, 2)})
    found = follow(
        tensors({EMBEDDING: (6, 2), HEAD: (6, 2)}),
        lambda name: name.removeprefix("thinker."),
        known,
        tied=(HEAD, EMBEDDING),
        fill=False,
        tied_head="keep",
    )
    assert [each.name for each in found.tensors] == [f"thinker.{EMBEDDING}", f"thinker.{HEAD}"]


@pytest.mark.parametrize(("published", "tied_head"), list(product([False, True], ["omit", "write"])))
def test_a_stored_head_is_left_out_uncompared_only_if_that_is_wished(published, tied_head):
    both: Shapes = {EMBEDDING: (6, 2), HEAD: (8, 2)}
    known = reference(({EMBEDDING: (6, 2), HEAD: (6, 2)}) if published else {EMBEDDING: (6, 2)})
    found = followed(both, known, tied=True, tied_head=tied_head)
    assert [(each.tensor.name, each.reason, each.replicas) for each in found.left_out] == [
        (HEAD, f"tied_head={tied_head}", ())
    ]
    assert {each.sources[0].name for each in found.tensors} == {EMBEDDING}
    (problem,) = refused(both, known, tied=True)
    words = "is [8, 2] in the source, [6, 2] in" if published else f"is bfloat16 [8, 2], {EMBEDDING} is bfloat16 [6, 2]"
    assert f"{HEAD}{':' * published} {words}" in problem


def test_a_tied_head_is_a_copy_and_not_filled():
    both: Shapes = {EMBEDDING: (6, 2), HEAD: (6, 2)}
    found = followed({EMBEDDING: (6, 2)}, reference(both), tied=True, fill=True)
    assert found.filled == ()
    assert {each.sources[0].file.path for each in found.tensors} == {"/mm/x.pt"}
    # Nor can it be a copy of what is not there.
    assert followed({}, reference(both), tied=True, fill=True).filled == (EMBEDDING, HEAD)
    assert HEAD in refused({}, reference(both), tied=True)[0]


def test_a_tied_head_of_another_shape_is_refused():
    known = reference({EMBEDDING: (6, 2), HEAD: (8, 2)})
    assert refused({EMBEDDING: (6, 2)}, known, tied=True) == [
        f"{HEAD}: is [6, 2] in the source, [8, 2] in reference=/hf; is it the model that training began with?"
    ]


def lacking(source: Shapes, known: Reference, **config: object) -> list[str]:
    """What is said of the toy model where its reference has more."""
    known = replace(known, config={**toy.config(), **config})
    with pytest.raises(InputError) as caught:
        follow_reference(Published(tensors=tuple(tensors(source))), model(toy.definition(), known), fill=False)
    return caught.value.problems


def test_to_fill_in_is_advised_for_a_part_that_the_source_does_not_hold_at_all():
    whole_model = toy.shapes()
    vision = {name: shape for name, shape in whole_model.items() if name.startswith("visual.")}
    (problem,) = lacking(vision, reference(whole_model))
    assert problem.endswith(FILL)
    # What the definition leaves out, such as a part that is not trained.
    ignored = next(entry for entry in toy.content()["ignore"])["names"].replace("*", "x")
    (problem,) = lacking(whole_model, reference({**whole_model, ignored: (2,)}))
    assert problem.endswith(FILL)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("model.layers.3.norm.weight", {}, "is the source complete, and this the model that training began with?"),
        ("other", {}, "is the source complete, and this the model that training began with?"),
        ("lm_head.weight_scale_inv", {"quantization_config": {}}, "it is quantised, and they go with its own weights"),
        ("model.layers.0.q.lora_A.weight", {}, "they are adapters: give the model without them"),
    ],
)
def test_to_fill_in_is_not_advised_where_it_would_make_another_model(name, config, says):
    (problem,) = lacking(toy.shapes(), reference({**toy.shapes(), name: (2,)}), **config)
    assert f"names 1 tensor that the source does not have: {name}; {says}" in problem
    assert "fill_from_reference" not in problem


def test_a_source_that_is_incomplete_is_not_advised_to_be_filled():
    shapes = toy.shapes()
    del shapes["model.norm.weight"]
    (problem,) = lacking(shapes, reference(toy.shapes()))
    assert "is the source complete" in problem


def test_a_vocabulary_of_other_rows_may_differ_from_the_reference_in_these_alone():
    shapes = toy.shapes()
    known = replace(reference(shapes), config=toy.config())
    rows = toy.VOCABULARY + 2
    for name in (EMBEDDING, HEAD):
        shapes[name] = (rows, shapes[name][1])
    published = Published(tensors=tuple(tensors(shapes)), rows=rows)
    found = follow_reference(published, model(toy.definition(), known), fill=False)
    assert {each.name: each.tensor.shape for each in found.tensors} == shapes
    for changed in (
        replace(published, rows=None),
        replace(published, tensors=tuple(tensors({**shapes, HEAD: (rows, 3)}))),
    ):
        with pytest.raises(InputError, match=r"lm_head\.weight: is "):
            follow_reference(changed, model(toy.definition(), known), fill=False)
