"""The head of a tied model, and packed experts as matrices, under published names in either spelling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from distconv.errors import InputError
from distconv.formats.dcp.live_model import held_tensors, packed, split_by_definition, with_tied_head
from distconv.formats.huggingface.follow import tie_of
from distconv.formats.model import Model
from distconv.models.definition import Definition
from distconv.models.dialect import Dialect, ExpertModule, Holding, LeftOut
from distconv.models.packing import ExpertSizes, Packing, parts_of
from distconv.models.spellings import Spellings
from distconv.tensors.stored import NOWHERE, NamedTensor, SourceFile, StoredTensor, as_stored
from distconv.tensors.virtual import whole
from tests.unit import toy
from tests.unit.reference import evaluate

HEAD, EMBEDDING = "lm_head.weight", "model.embed.weight"


def tensors(*left_out: str, spelling: str = "") -> list[NamedTensor]:
    """The toy's tensors, those of the language model in another spelling."""
    return [
        NamedTensor((stored,), whole(stored.dtype, stored.shape), name.replace("model.", f"model.{spelling}", 1))
        for name, stored in toy.index().tensors.items()
        if name not in left_out
    ]


def model(definition: Definition | None = None, **config: object) -> Model:
    return Model(
        definition=definition or toy.definition(),
        reference=None,
        config=toy.config(**config),
        config_path="/hf/config.json",
    )


def tied(given: Sequence[NamedTensor]) -> tuple[str, str] | None:
    return tie_of(given, model(tie_word_embeddings=True))


@pytest.mark.parametrize(("stored", "spelling"), list(product([False, True], ["", "language_model."])))
def test_the_head_of_a_tied_model_is_what_is_asked_for(stored, spelling):
    given = tensors(*([] if stored else [HEAD]), spelling=spelling)
    names = [each.name for each in given]

    def with_head(tied_head: str) -> tuple[list[NamedTensor], list[tuple[str, str]]]:
        found, left_out = with_tied_head(given, tied(given), tied_head, writes=False)
        return list(found), [(each.tensor.name, each.reason) for each in left_out]

    assert with_head("auto") == (given, [])

    found, left_out = with_head("write")
    assert sorted(each.name for each in found) == sorted({*names, HEAD})
    by_name = {each.name: each for each in found}
    head, embedding = by_name[HEAD], by_name[f"model.{spelling}embed.weight"]
    assert head.sources[0].name == (HEAD if stored else EMBEDDING)
    assert (head.tensor is embedding.tensor) == (not stored)
    assert left_out == []

    found, left_out = with_head("omit")
    assert [each.name for each in found] == [name for name in names if name != HEAD]
    assert left_out == ([(HEAD, "tied_head=omit")] if stored else [])


def test_a_head_without_an_embedding_to_copy_is_refused():
    with pytest.raises(InputError, match=f"source tensor {EMBEDDING} is missing: the head is a copy of it"):
        with_tied_head(given := tensors(EMBEDDING), tied(given), "write", writes=False)


def untied() -> Definition:
    content = toy.content()
    del content["tied"]
    return toy.definition(content)


@pytest.mark.parametrize("tied_head", ["write", "omit"])
@pytest.mark.parametrize("case", ["says it is not", "has no head to tie"])
def test_a_head_that_is_not_known_to_be_tied_is_not_touched(case, tied_head):
    found = {
        "says it is not": model(tie_word_embeddings=False),
        "has no head to tie": model(untied(), tie_word_embeddings=True),
    }[case]
    tie = tie_of(given := tensors(), found)
    with pytest.raises(InputError, match=f"tied_head={tied_head}: this model's head is not known to be tied"):
        with_tied_head(given, tie, tied_head, writes=False)
    assert with_tied_head(given, tie, "auto", writes=True) == (given, ())


def test_a_dialect_may_hold_the_head_that_is_not_published():
    given = tensors(HEAD)
    assert with_tied_head(given, tied(given), "auto", writes=False) == (given, ())
    found, left_out = with_tied_head(given, tied(given), "auto", writes=True)
    assert ([each.name for each in found], left_out) == ([*(each.name for each in given), HEAD], ())
    with_head = tensors()
    assert with_tied_head(with_head, tied(with_head), "auto", writes=True) == (with_head, ())


AS_PUBLISHED = Dialect(name="published", words="")


@pytest.mark.parametrize("spelling", ["", "language_model."])
def test_packed_experts_become_matrices_and_nothing_else_changes(spelling):
    arrays = toy.arrays()
    given = tensors(spelling=spelling)
    found = packed(given, model(), AS_PUBLISHED, Holding(), "flatten", "")
    changed = set()
    for before, after in zip(given, found, strict=True):
        array = arrays[before.sources[0].name]
        if after != before:
            changed.add(after.name)
            array = array.reshape(toy.EXPERTS * toy.FFN, toy.HIDDEN)
        assert (after.name, after.sources) == (before.name, before.sources)
        np.testing.assert_array_equal(evaluate(after.tensor, [arrays[before.sources[0].name]]), array)
    assert changed == {f"model.{spelling}layers.{layer}.experts.down" for layer in range(1, toy.LAYERS)}


def test_layers_that_look_alike_share_a_table():
    table = whole("bfloat16", (toy.EXPERTS, toy.FFN, toy.HIDDEN))
    given = [NamedTensor((), table, f"model.layers.{layer}.experts.down") for layer in (1, 2)]
    one, two = packed(given, model(), AS_PUBLISHED, Holding(), "flatten", "")
    assert one.tensor is two.tensor


@pytest.mark.parametrize(
    ("how", "prefix", "flattens"),
    [("auto", "", False), ("auto", "model.", True), ("flatten", "", True), ("keep", "model.", False)],
)
def test_when_experts_are_matrices(how, prefix, flattens):
    given = tensors()
    found = packed(given, model(), AS_PUBLISHED, Holding(), how, prefix)
    assert (list(found) != given) == flattens
    assert list(split_by_definition(found, model())) == given or flattens
    assert {each.name: each.tensor.shape for each in split_by_definition(found, model())} == {
        each.name: each.tensor.shape for each in given
    }


MODULE = ExpertModule(module="model.layers.{layer}.mlp.experts")
PACKED = Packing(transposed=True, flattened=True)


def mixture(dialect: Dialect) -> Model:
    """A model whose experts a dialect knows."""
    published = Dialect(name="published", words="", holdings={"toy": Holding(modules=(MODULE,))})
    config = {"model_type": "toy", "num_experts": 2, "hidden_size": 3, "moe_intermediate_size": 5}
    spellings = Spellings(dialects={"published": published, dialect.name: dialect}, config=config, where="config.json")
    return Model(definition=None, reference=None, config=config, config_path="config.json", spellings=spellings)


def experts_of_one_layer() -> list[NamedTensor]:
    shapes = parts_of(None, ExpertSizes(experts=2, hidden=3, width=5))
    names = {MODULE.name(0, part): shape for part, shape in shapes.items()}
    return list(as_stored(StoredTensor(name, "bfloat16", shape, NOWHERE, 0) for name, shape in names.items()))


@pytest.mark.parametrize(("how", "shape"), [("auto", (6, 10)), ("flatten", (6, 10)), ("keep", None)])
def test_experts_are_packed_as_the_dialect_or_the_user_says(how, shape):
    holding = Holding(says_experts=True, experts=PACKED)
    dialect = Dialect(name="mine", words="", holdings={"toy": holding})
    given = experts_of_one_layer()
    found = {each.name: each.tensor.shape for each in packed(given, mixture(dialect), dialect, holding, how, "")}
    assert found.get("model.layers.0.mlp.experts.gate_up_proj") == shape
    assert (len(found) == len(given)) == (how == "keep")


def test_names_and_what_is_not_held_are_the_dialects():
    holding = Holding(names=(("model.", "memory."),), left_out=(LeftOut(names="mtp.*", reason="not loaded"),))
    nameless = Model(definition=None, reference=None, config={}, config_path="config.json")
    table = whole("bfloat16", (2,))
    stored = StoredTensor("mtp.w", "bfloat16", (2,), SourceFile("/hf/a", 4), 0)
    given = [NamedTensor((), table, "model.w"), NamedTensor((stored,), table, "mtp.w"), NamedTensor((), table, "x.w")]
    held, left_out = held_tensors(given, nameless, holding, "outer.")
    assert [each.name for each in held] == ["outer.memory.w", "outer.x.w"]
    assert [(each.tensor, each.reason) for each in left_out] == [(stored, "not loaded")]
    in_float32 = Holding(float32=("*.w",))
    (one, two), _ = held_tensors([given[0], given[2]], nameless, in_float32, "")
    assert (one.tensor.dtype, one.tensor.shape, one.tensor is two.tensor) == ("float32", (2,), True)
    # Two published beginnings become one.
    lossy = Holding(names=(("x.", "z."), ("y.", "z.")))
    with pytest.raises(InputError, match=r"are not found again: y\.w; mend its names"):
        held_tensors([NamedTensor((), table, "y.w")], nameless, lossy, "")
