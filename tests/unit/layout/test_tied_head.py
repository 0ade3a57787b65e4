"""Which head a checkpoint of a tied model holds: what the training side needs, unless the user says otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distconv.errors import InputError
from distconv.formats.megatron.plan import make_plan
from distconv.layout.balance import complete_layout
from distconv.layout.request import Layout
from distconv.layout.tied_head import resolve_head, without_head
from distconv.models.bind import bind
from distconv.models.parameters import Binding
from distconv.models.sizes import Sizes
from distconv.tensors.stored import Assembled, SourceFile, StoredTensor
from distconv.tensors.virtual import concat, whole
from tests.unit import toy
from tests.unit.reference import evaluate

ONE_STAGE = ((3,),)
TWO_STAGES = ((1, 2),)


def resolved(
    tied_head: str = "auto",
    *,
    stages: Any = ONE_STAGE,
    stored: bool = False,
    tied: bool = True,
    placement: str = "sequential",
    **given: Any,
) -> Binding:
    shapes = toy.shapes()
    if not stored:
        del shapes["lm_head.weight"]
    binding = toy.bound(shapes, tie_word_embeddings=tied, **given)
    request = Layout(stages={"text": stages}, placement=placement)
    layout = complete_layout(request, binding, toy.definition())
    return resolve_head(binding, toy.definition(), layout, tied_head)


def head_sources(binding: Binding) -> list[str]:
    return [source.name for each in binding.parameters if each.name == "text.head.weight" for source in each.sources]


COPY, STORED, NONE = ["model.embed.weight"], ["lm_head.weight"], []


@pytest.mark.parametrize(
    ("stages", "stored", "tied_head", "expected"),
    [
        # Both ends on one stage: the training side has no head of its own; a stored one is kept.
        (ONE_STAGE, False, "auto", NONE),
        (ONE_STAGE, True, "auto", STORED),
        (ONE_STAGE, False, "write", COPY),
        (ONE_STAGE, True, "write", STORED),
        (ONE_STAGE, False, "omit", NONE),
        (ONE_STAGE, True, "omit", NONE),
        # The ends on two stages: a copy of the embedding, also in place of a stored head that is not asked for.
        (TWO_STAGES, False, "auto", COPY),
        (TWO_STAGES, True, "auto", COPY),
        (TWO_STAGES, False, "write", COPY),
        (TWO_STAGES, True, "write", COPY),
        (TWO_STAGES, True, "keep", STORED),
        (TWO_STAGES, False, "keep", COPY),
        (ONE_STAGE, True, "keep", STORED),
        (ONE_STAGE, False, "keep", NONE),
        (TWO_STAGES, False, "omit", NONE),
        (TWO_STAGES, True, "omit", NONE),
        # What counts is where the layers are, not how many ranks there are.
        (((3, 0),), False, "auto", NONE),
        (((0, 3),), False, "auto", NONE),
        (((0, 2, 1, 0),), False, "auto", COPY),
        (((1,), (2,)), False, "auto", COPY),
        (((0,), (3,)), False, "auto", NONE),
    ],
)
def test_the_head_of_a_tied_model(stages, stored, tied_head, expected):
    assert head_sources(resolved(tied_head, stages=stages, stored=stored)) == expected


@pytest.mark.parametrize(("stages", "expected"), [(TWO_STAGES, COPY), (((3, 0),), COPY), (ONE_STAGE, NONE)])
def test_the_head_of_a_tied_model_in_u_shape_goes_by_the_pipeline_size(stages, expected):
    assert head_sources(resolved(stages=stages, placement="u_shape")) == expected


@pytest.mark.parametrize("stages", [ONE_STAGE, TWO_STAGES])
@pytest.mark.parametrize("tied_head", ["auto", "write"])
def test_an_untied_head_is_what_the_source_stores(stages, tied_head):
    assert head_sources(resolved(tied_head, stages=stages, stored=True, tied=False)) == STORED


def test_an_untied_head_cannot_be_left_out():
    with pytest.raises(InputError, match="tied_head=omit: the head of this model is not tied"):
        resolved("omit", stored=True, tied=False)


@pytest.mark.parametrize(
    ("stages", "tied_head", "reason"),
    [
        (TWO_STAGES, "auto", "tied: the head is written as a copy of the embedding"),
        (TWO_STAGES, "omit", "tied_head=omit"),
        (ONE_STAGE, "omit", "tied_head=omit"),
    ],
)
def test_a_stored_head_that_is_not_written_is_reported(stages, tied_head, reason):
    found = resolved(tied_head, stages=stages, stored=True).unconverted
    assert [(each.tensor.name, each.reason) for each in found] == [("lm_head.weight", reason)]


def compared(binding: Binding) -> list[tuple[list[str], list[str]]]:
    return [
        ([each.name for each in replica.original.sources], [each.name for each in replica.copy.sources])
        for left_out in binding.unconverted
        for replica in left_out.replicas
    ]


@pytest.mark.parametrize(
    ("stages", "tied_head", "expected"),
    [
        (TWO_STAGES, "auto", [(COPY, STORED)]),
        # Nothing is left out, or the user has chosen.
        (TWO_STAGES, "write", []),
        (TWO_STAGES, "keep", []),
        (TWO_STAGES, "omit", []),
        (ONE_STAGE, "auto", []),
        (ONE_STAGE, "omit", []),
    ],
)
def test_a_stored_head_is_compared_before_it_is_left_out(stages, tied_head, expected):
    assert compared(resolved(tied_head, stages=stages, stored=True)) == expected


@pytest.mark.parametrize("tied_head", ["auto", "keep", "write", "omit"])
def test_a_head_that_cannot_equal_the_embedding_is_refused_where_it_would_be_left_out(tied_head):
    index = toy.index()
    head = replace(index.tensors["lm_head.weight"], dtype="float32")
    index = replace(index, tensors={**index.tensors, head.name: head})
    sizes = Sizes(toy.definition().sizes, toy.config(tie_word_embeddings=True), "/hf/config.json")
    binding = bind(toy.definition(), sizes, index, lambda _: None)
    layout = complete_layout(Layout(stages={"text": TWO_STAGES}), binding, toy.definition())
    if tied_head == "auto":
        with pytest.raises(InputError, match=r"lm_head.weight is float32 .*embed.weight is bfloat16 .*tied_head=keep"):
            resolve_head(binding, toy.definition(), layout, tied_head)
    else:
        found = resolve_head(binding, toy.definition(), layout, tied_head)
        assert head_sources(found) == {"keep": STORED, "write": COPY, "omit": NONE}[tied_head]


def test_nothing_else_changes():
    for stored in (True, False):
        before = resolved(stored=stored)
        after = resolved(stages=TWO_STAGES, stored=stored)
        names = [each.name for each in before.parameters if each.name != "text.head.weight"]
        assert [each.name for each in after.parameters if each.name != "text.head.weight"] == names
        assert (after.layers, after.experts, after.tied) == (before.layers, before.experts, before.tied)


@pytest.mark.parametrize("tied_head", ["auto", "write", "omit"])
def test_without_the_language_model_there_is_no_head(tied_head):
    binding = toy.bound(tie_word_embeddings=True, left_out=lambda rule: "no" if rule.modality == "text" else None)
    layout = complete_layout(Layout(stages={"text": TWO_STAGES}), binding, toy.definition())
    assert resolve_head(binding, toy.definition(), layout, tied_head) is binding


def test_a_model_without_a_tied_section_is_left_alone():
    model = toy.content()
    del model["tied"]
    binding = toy.bound(model=model, tie_word_embeddings=True)
    layout = complete_layout(Layout(), binding, toy.definition(model))
    assert resolve_head(binding, toy.definition(model), layout, "omit") is binding


def test_the_copy_is_on_the_last_stage_cut_like_a_head():
    source = toy.arrays()["model.embed.weight"]
    shapes = toy.shapes()
    del shapes["lm_head.weight"]
    binding = toy.bound(shapes, tie_word_embeddings=True)
    layout = complete_layout(Layout(tp=2, stages={"text": TWO_STAGES}), binding, toy.definition())
    plan = make_plan(resolve_head(binding, toy.definition(), layout, "auto"), layout)
    found = {
        (file.tp_rank, file.pp_rank, entry.name): evaluate(entry.tensor, [source])
        for file in plan.files
        for entry in plan.entries(file)
        if entry.name in ("text.embedding.weight", "text.head.weight")
    }
    assert sorted(found) == [
        (0, 0, "text.embedding.weight"),
        (0, 1, "text.head.weight"),
        (1, 0, "text.embedding.weight"),
        (1, 1, "text.head.weight"),
    ]
    for (tp_rank, _, _), array in found.items():
        np.testing.assert_array_equal(array, np.split(source, 2)[tp_rank])


@pytest.mark.parametrize("tied_head", ["auto", "omit"])
def test_a_head_that_is_stored_in_parts_is_left_out_as_one(tied_head):
    file = SourceFile("/dcp/0.distcp", 1 << 20)
    parts = tuple(StoredTensor("lm_head.weight", "bfloat16", (3, 2), file, 12 * number) for number in range(2))
    head = Assembled(parts, concat([whole("bfloat16", (3, 2), number) for number in range(2)]))
    embedding = StoredTensor("embed.weight", "bfloat16", (6, 2), file, 24)
    found = without_head(head, Assembled((embedding,), whole("bfloat16", (6, 2))), tied_head, "tied")
    assert (found.tensor.name, found.tensor.shape, found.tensor.nbytes) == ("lm_head.weight", (6, 2), 24)
    compared = {replica.copy.sources[0] for replica in found.replicas}
    assert compared == (set(parts) if tied_head == "auto" else set())
