"""Facts survive being shared as JSON, whatever the source is."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from distconv.formats.dcp.index import DcpIndex
from distconv.formats.dcp.source import DcpFacts
from distconv.formats.model import Reference
from distconv.models.rules import ANY
from distconv.models.scaling import Scaling
from distconv.planning.facts import Facts
from distconv.tensors.compose import merge_dims
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import concat, whole
from tests.unit import toy
from tests.unit.toy_facts import PUBLISHED, facts
from tests.unit.toy_megatron import layout, source

WITH_WEIGHTS = Reference(
    directory="/hf",
    config=toy.config(),
    is_adapter=False,
    index=toy.index(),
    shard_files=dict.fromkeys(toy.shapes(), "model.safetensors"),
    index_content={"metadata": {"total_size": 3}, "weight_map": {"a": "b"}, "more": [1, None, "x"]},
)
BARE = Reference(directory="/ref", config={"r": 8}, is_adapter=True, index=None, shard_files=None, index_content=None)


def dcp() -> DcpFacts:
    """Tensors in two chunks, two of them cut alike, and one that is a merged one."""
    stored = list(toy.index().tensors.values())
    table = concat([whole("bfloat16", (2, 3), 0), whole("bfloat16", (1, 3), 1)])
    parts = [tuple(replace(stored[0], name=name, shape=shape) for shape in ((2, 3), (1, 3))) for name in "ab"]
    experts = merge_dims(whole("float32", (2, 3, 4)), 0)
    tensors = {name: NamedTensor(held, table, name) for name, held in zip("ab", parts, strict=True)}
    of_experts = replace(stored[1], name="c", dtype="float32", shape=(2, 3, 4))
    tensors["c"] = NamedTensor((of_experts,), experts, "c")
    index = DcpIndex(directory="/dcp", tensors=tensors, others=("optimizer",))
    return DcpFacts(index=index, naming="hf", prefix="model.", others=("optimizer", "args (2 entries)"))


def content(found: Facts) -> dict[str, Any]:
    """Everything in it, also of records that are compared by identity."""
    return {**vars(found), "source": asdict(found.source)}


def shared(found: Facts) -> Facts:
    return Facts.from_json(json.loads(json.dumps(found.to_json())))


@pytest.mark.parametrize(
    "known",
    [
        facts(),
        facts(model=None, definition={}),
        facts(replace(PUBLISHED, text=replace(PUBLISHED.model, config={"other": [1]}))),
        facts(source(layout(((1, 2),), tp=2, ep=2)).index(others=("args",)), WITH_WEIGHTS),
        facts(source(layout(((1, 0), (1, 1)), ((1, 0), (1, 0)))).index(), BARE),
        facts(dcp(), WITH_WEIGHTS),
        facts(dcp(), BARE),
        replace(facts(dcp(), BARE), scaling=Scaling(alpha=16, rslora=True, alphas={"a": 0.5}, where="/dcp/x")),
    ],
)
def test_what_one_process_tells_another_understands(known):
    assert content(shared(known)) == content(known)
    assert shared(known).to_json() == known.to_json()


def test_tensors_that_are_cut_alike_still_share_a_table():
    found = shared(facts(dcp(), BARE)).source
    assert isinstance(found, DcpFacts)
    assert found.index.tensors["a"].tensor is found.index.tensors["b"].tensor


def test_sizes_are_those_of_the_model_and_not_of_a_trained_checkpoint():
    other = replace(WITH_WEIGHTS, config=toy.config(hidden_size=64))
    for known, hidden in ((facts(), toy.HIDDEN), (facts(dcp(), other), 64)):
        assert known.bound_model().sizes.get("hidden") == hidden
    assert facts(model=None, definition={}).bound_model().definition is None


def test_the_scaling_of_adapters_goes_with_the_model_to_every_process():
    scaling = Scaling(alpha=16, rslora=True, where="/dcp/x")
    assert shared(facts(dcp(), BARE, scaling=scaling)).bound_model().scaling == scaling


@pytest.mark.parametrize("trained", [False, True])
def test_what_was_found_of_the_vocabulary_goes_with_the_model_to_every_process(trained):
    found = replace(shared(facts(dcp(), BARE)), trained_rows=trained)
    assert found.bound_model().trained_rows is trained
    assert (
        replace(found, parsed=found.bound_model(), trained_rows=not trained).bound_model().trained_rows is not trained
    )


@pytest.mark.parametrize(("reference", "known"), [(None, False), (BARE, False), (WITH_WEIGHTS, True)])
def test_the_sizes_of_adapters_are_known_only_from_their_base(reference, known):
    """Not from the configuration of the adapters, which has none of them."""
    content = {**toy.content(), "adapters": "only", "ignore": []}
    found = facts(PUBLISHED if reference is None else dcp(), reference, definition=content).bound_model().definition
    assert found is not None
    assert any(dim != ANY for rule in found.rules for source in rule.sources for dim in source.dims) == known
