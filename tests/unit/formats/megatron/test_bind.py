"""A Megatron source as parameters: what was planned forward comes back, and every tensor that is wrong is named."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.megatron.bind import MegatronBinding
from distconv.formats.megatron.plan import make_plan
from distconv.layout.layout import CompleteLayout, StageRows
from distconv.layout.request import SourceLayout
from distconv.layout.tied_head import resolve_head
from distconv.models.vocabulary import resize_vocabulary
from distconv.tensors.replicas import Replica
from distconv.tensors.virtual import invert
from distconv.transfer.verify import comparison
from tests.unit import toy, toy_megatron
from tests.unit.reference import evaluate
from tests.unit.toy_megatron import Source, bound, contiguous, layout, source, spaced, transposed

EMBEDDING, HEAD = "text.embedding.weight", "text.head.weight"
ROOT = f"{toy_megatron.DIRECTORY}/mp_rank_00"


def shapes_without(*names: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in toy.shapes().items() if name not in names}


@st.composite
def stage_rows(draw: st.DrawFn, layers: int, pp: int, vpp: int) -> StageRows:
    cuts = sorted(draw(st.lists(st.integers(0, layers), min_size=pp * vpp - 1, max_size=pp * vpp - 1)))
    flat = [high - low for low, high in zip([0, *cuts], [*cuts, layers], strict=True)]
    return tuple(tuple(flat[start : start + pp]) for start in range(0, pp * vpp, pp))


@st.composite
def layouts(draw: st.DrawFn) -> CompleteLayout:
    pp, vpp = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    vision = draw(stage_rows(toy.VISION_LAYERS, pp, vpp))
    if vpp == 1 and draw(st.booleans()):
        vision = draw(stage_rows(toy.VISION_LAYERS, draw(st.integers(1, pp)), 1))
    tp, vision_tp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([None, 1, 2, 4, 8]))
    return layout(
        draw(stage_rows(toy.LAYERS, pp, vpp)),
        vision,
        tp=tp,
        ep=draw(st.sampled_from([1, 2, 4])),
        modality_tp={} if vision_tp is None else {"vision": vision_tp},
        placement=draw(st.sampled_from(["sequential", "u_shape"])),
    )


@settings(max_examples=40)
@given(layouts(), st.booleans(), st.booleans(), st.sampled_from([contiguous, transposed, spaced]))
def test_what_was_planned_forward_comes_back(planned, tied, stored_head, store):
    """Layout, parameters, published tensors, and copies, whatever the layout and however the files store them."""
    shapes = toy.shapes() if stored_head or not tied else shapes_without("lm_head.weight")
    arrays = toy.arrays(shapes)
    forward = toy.bound(shapes, tie_word_embeddings=tied)
    files = source(planned, shapes=shapes, tie_word_embeddings=tied)
    files.store = store

    found = bound(files, tie_word_embeddings=tied)

    check_layout(found.layout, planned)
    expected = {each.name: each for each in forward.parameters}
    # Where both placements put the ends on the same stages, a head says that there is one, not whose it is.
    is_copy = tied and planned.keeps_separate_head()
    taken_for_copy = tied and found.layout.keeps_separate_head() and (is_copy or stored_head)
    if taken_for_copy:
        expected.pop(HEAD, None)
        assert any(replica.copy.sources[0].name == HEAD for replica in found.replicas)
    elif is_copy:
        expected[HEAD] = next(each for each in found.over_hf.parameters if each.name == HEAD)
        arrays["lm_head.weight"] = arrays["model.embed.weight"]
    assert {each.name for each in found.parameters.parameters} == expected.keys()
    for parameter, model in zip(found.parameters.parameters, found.over_hf.parameters, strict=True):
        operands = [arrays[each.name] for each in expected[parameter.name].sources]
        original = evaluate(expected[parameter.name].recipe.tensor, operands, np.dtype(np.int64))
        np.testing.assert_array_equal(files.elements(parameter), original)
        assert (parameter.layer, parameter.expert) == (model.layer, model.expert)
        assert [each.name for each in model.sources] == [each.name for each in expected[parameter.name].sources]
    check_published(found, files, arrays)
    for replica in found.replicas:
        of_embedding = replica.copy.sources[0].name == HEAD != replica.original.sources[0].name
        # A head of its own that is taken for a copy is found to be none.
        assert is_equal(replica, files) == (is_copy or not of_embedding)
    stored = sum(len(entries) for file in files.files.values() for entries in file.values())
    assert stored == len(found.replicas) + sum(len(each.sources) for each in found.parameters.parameters)
    assert found.dropped == ()


def check_layout(found: CompleteLayout, planned: CompleteLayout) -> None:
    """The two put every layer on the same stages and cut it alike."""
    for axis in ("tensor_ranks", "pp", "vpp", "ep"):
        assert getattr(found, axis) == getattr(planned, axis)
    for modality in planned.stages:
        assert found.tensor_parallel_size(modality) == planned.tensor_parallel_size(modality)
        here, there = found.placement_of(modality), planned.placement_of(modality)
        assert {layer: list(holders) for layer, holders in here.of_layer.items()} == dict(there.of_layer)
        assert (here.first, here.last) == (there.first, there.last)


def check_published(found: MegatronBinding, files: Source, arrays: Mapping[str, np.ndarray]) -> None:
    """The inverse of the published binding gives the tensors of the checkpoint."""
    made: dict[str, np.ndarray] = {}
    for parameter, model in zip(found.parameters.parameters, found.over_hf.parameters, strict=True):
        operands = [(each.dtype, each.shape) for each in model.sources]
        for tensor, back in zip(model.sources, invert([model.recipe.tensor], operands), strict=True):
            array = made.setdefault(tensor.name, np.zeros(tensor.shape, np.int64))
            array += evaluate(back, [files.elements(parameter)])
            assert (tensor.file.path, tensor.offset) == ("", 0)
    for name, array in made.items():
        np.testing.assert_array_equal(array, arrays[name], name)


def is_equal(replica: Replica, files: Source) -> bool:
    """Whether what the comparison makes is what is in the storage of the copy, at the places that it says."""
    work = comparison(replica)
    operands = [files.stored(each) for each in work.sources]
    (stored,) = replica.copy.sources
    storage = files.stored(stored).reshape(-1)
    seen = 0
    for shard in work.shards:
        assert shard.path == stored.file.path
        start = (shard.offset - stored.offset) // 2
        made = evaluate(shard.tensor, operands, np.dtype(np.int64)).reshape(-1)
        if not np.array_equal(made, storage[start : start + len(made)]):
            return False
        seen += len(made)
    assert seen == prod(replica.copy.tensor.shape)
    return True


@settings(max_examples=40)
@given(layouts(), layouts())
def test_a_source_plans_under_any_other_layout(before, after):
    """Entry by entry, the files are those that the conversion from Hugging Face would have written."""
    files = source(before)
    found = bound(files)
    wanted = source(after)
    plan = make_plan(resolve_head(found.parameters, toy.definition(), after, "auto"), after)
    for file in plan.files:
        names = set()
        for entry in plan.entries(file):
            operands = [files.stored(each) for each in entry.sources]
            made = evaluate(entry.tensor, operands, np.dtype(np.int64))
            np.testing.assert_array_equal(made, wanted.files[file.path][entry.key][entry.name])
            names.add((entry.key, entry.name))
        assert names == {(key, name) for key, entries in wanted.files[file.path].items() for name in entries}


@pytest.mark.parametrize("rows", [7, toy.VOCABULARY, 50])
def test_the_vocabulary_is_resized_over_pieces(rows):
    files = source(layout(tp=4))
    files.store = spaced
    found = resize_vocabulary(bound(files).parameters, rows)
    make_plan(found, layout(tp=2))
    embedding = next(each for each in found.parameters if each.name == EMBEDDING)
    expected = np.zeros((rows, toy.HIDDEN), np.int64)
    original = toy.arrays()["model.embed.weight"][:rows]
    expected[: len(original)] = original
    np.testing.assert_array_equal(files.elements(embedding), expected)


def test_the_vocabulary_of_the_files_counts_not_that_of_the_reference():
    found = bound(source(layout(tp=2)), vocab_size=29)
    embedding = next(each for each in found.over_hf.parameters if each.name == EMBEDDING)
    assert [each.shape for each in embedding.sources] == [(toy.VOCABULARY, toy.HIDDEN)]
    assert embedding.recipe.dims[0] == f"vocabulary ({toy.VOCABULARY})"


def test_layers_that_look_alike_share_a_table():
    found = bound(source(layout(tp=2)))
    norms = [each.recipe for each in found.parameters.parameters if each.name.endswith(".qkv.weight")]
    assert len({id(recipe) for recipe in norms}) == 2  # text and vision


def test_optional_parameters_are_there_if_the_files_hold_them():
    shapes = toy.shapes() | {f"model.layers.{layer}.norm.bias": (toy.HIDDEN,) for layer in range(toy.LAYERS)}
    shapes["model.positions.weight"] = (toy.HIDDEN,)
    found = bound(source(layout(((1, 2),)), shapes=shapes))
    names = {source.name for each in found.over_hf.parameters for source in each.sources}
    assert names == shapes.keys()


def test_an_optional_parameter_that_some_layers_have_is_missing_in_the_others():
    files = source(layout())
    files.files["mp_rank_00/model_optim_rng.pt"]["model"]["text.layers.1.norm.bias"] = np.zeros(toy.HIDDEN, np.int64)
    assert problems_of(files) == [
        (
            f"{ROOT}/model_optim_rng.pt: 2 tensors are missing: "
            "model/text.layers.0.norm.bias, model/text.layers.2.norm.bias; are the files of one checkpoint?"
        )
    ]


def test_what_is_not_wanted_is_dropped_by_name_and_reason():
    found = bound(
        source(layout(((1, 2),), tp=2)),
        left_out=lambda rule: "not selected" if rule.modality == "text" else None,
        others=("optimizer", "args"),
    )
    assert {each.recipe.rule.modality for each in found.parameters.parameters} == {"vision"}
    dropped = {each.name: each.reason for each in found.dropped}
    assert dropped["optimizer"] == dropped["args"] == "training state; only the model is converted"
    assert dropped["text.layers.2.experts.3.fc1.weight"] == "not selected"
    assert (
        len(dropped)
        == len(found.dropped)
        == 2 + sum(each.recipe.rule.modality == "text" for each in toy.bound().parameters)
    )
    assert found.absent == ()


@pytest.mark.parametrize(
    ("prefix", "absent"),
    [
        ("text.", "the files hold nothing of the text modality"),
        ("vision.", "the files hold nothing of the vision modality"),
        ("vision.projector", "the files hold no vision projector"),
    ],
)
def test_a_part_that_no_file_holds_is_absent(prefix, absent):
    files = source(layout(((1, 2),), ((1, 1),), tp=2))
    for dictionaries in files.files.values():
        for key, entries in dictionaries.items():
            dictionaries[key] = {name: array for name, array in entries.items() if not name.startswith(prefix)}
    found = bound(files)
    assert found.absent == (absent,)
    assert not any(each.name.startswith(prefix) for each in found.parameters.parameters)


def test_a_fused_qkv_that_was_never_interleaved_becomes_what_the_rule_says():
    """Late 2025: `[q; k; v]` cut into blocks of rows."""
    files = source(layout(((1, 2),), ((1, 1),), tp=2))
    arrays = toy.arrays()
    for rank in range(2):
        for stage in range(2):
            entries = files.files[f"mp_rank_{rank:02d}_{stage:03d}/model_optim_rng.pt"]["model"]
            for kind in ("weight", "bias"):
                fused = arrays[f"visual.blocks.{stage}.qkv.{kind}"]
                entries[f"vision.layers.0.qkv.{kind}"] = np.split(fused, 2)[rank]
    found = bound(files, SourceLayout(vision_qkv="fused"))
    check_published(found, files, arrays)
    forward = {each.name: each for each in toy.bound().parameters}
    for parameter in found.parameters.parameters:
        operands = [arrays[each.name] for each in forward[parameter.name].sources]
        original = evaluate(forward[parameter.name].recipe.tensor, operands, np.dtype(np.int64))
        np.testing.assert_array_equal(files.elements(parameter), original)


def test_the_names_of_the_reference_tell_alternatives_apart_that_training_has_alike():
    model = toy.content()
    (final, head) = model["rules"]["text"]["head"]
    other = head | {"sources": [["output.weight", "vocabulary", "hidden"]]}
    model["rules"]["text"]["head"] = [final, {"one_of": {"output": [other], "lm_head": [head]}}]
    files = source(layout())
    for reference, expected in (({}, "output.weight"), ({"lm_head.weight": None}, "lm_head.weight")):
        found = bound(files, model=model, reference=reference)
        (source_of_head,) = next(each for each in found.over_hf.parameters if each.name == HEAD).sources
        assert source_of_head.name == expected


def unequal() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The toy with a parameter of two sources, of which only tensors tell the rows, and its tensors."""
    model = toy.content()
    sources = [[f"model.layers.{{layer}}.{part}.weight", "any", "hidden"] for part in ("long", "short")]
    model["rules"]["text"]["more"] = [
        {"target": "text.layers.{layer}.more.weight", "sources": sources, "operator": "concat", "tp": "rows"}
    ]
    shapes = toy.shapes()
    for layer in range(toy.LAYERS):
        shapes[f"model.layers.{layer}.long.weight"] = (8 + layer, toy.HIDDEN)
        shapes[f"model.layers.{layer}.short.weight"] = (4 - layer, toy.HIDDEN)
    return model, shapes


def test_the_shapes_of_the_reference_tell_the_rows_of_sources_that_are_one_parameter():
    """Of each layer its own, under either spelling of a name."""
    model, shapes = unequal()
    files = source(layout(((1, 2),), tp=2), shapes=shapes, model=model)
    for prefix in ("model.", "model.language_model."):
        reference = {name.replace("model.", prefix): shape for name, shape in shapes.items()}
        check_published(bound(files, model=model, reference=reference), files, toy.arrays(shapes))


@pytest.mark.parametrize("reference", [{}, dict.fromkeys(unequal()[1])])
def test_rows_that_nothing_tells_are_refused_once_for_all_layers(reference):
    model, shapes = unequal()
    (problem,) = problems_of(source(layout(tp=2), shapes=shapes, model=model), model=model, reference=reference)
    assert problem == (
        f"{toy_megatron.DIRECTORY}: text.layers.{{layer}}.more.weight, made of model.layers.{{layer}}.long.weight and "
        "model.layers.{layer}.short.weight (rule text.more): shape [12, 16] does not tell how many rows are of which; "
        "give a reference with their weights, or else the model definition needs sizes instead of any"
    )


def test_rows_of_the_reference_that_contradict_the_files_are_refused_layer_by_layer():
    model, shapes = unequal()
    files = source(layout(tp=2), shapes=shapes, model=model)
    reference = {name: (5, toy.HIDDEN) if "short" in name else shape for name, shape in shapes.items()}
    found = problems_of(files, model=model, reference=reference)
    assert [problem.rpartition("(rule text.more): ")[2] for problem in found] == [
        f"sources of {8 + layer} + 5 rows do not make 12 rows; is this the reference of the model?"
        for layer in range(toy.LAYERS)
    ]


def problems_of(files: Source, **given: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        bound(files, **given)  # type: ignore[arg-type]
    return caught.value.problems


def test_every_tensor_that_is_wrong_is_named_at_once():
    files = source(layout(((1, 2),), tp=2))
    first = files.files["mp_rank_00_000/model_optim_rng.pt"]["model"]
    last = files.files["mp_rank_01_001/model_optim_rng.pt"]["model"]
    del first["text.layers.0.norm.weight"], first["vision.layers.1.proj.bias"]
    first["text.layers.0.qkv.weight"] = np.zeros((9, toy.HIDDEN), np.int64)
    last["text.layers.0.mlp.fc1.weight"] = last["another"] = np.zeros((4, 4), np.int64)
    assert problems_of(files) == [
        (
            f"{ROOT}_000/model_optim_rng.pt: 2 tensors are missing: model/vision.layers.1.proj.bias, "
            "model/text.layers.0.norm.weight; are the files of one checkpoint?"
        ),
        (
            f"{ROOT}_000/model_optim_rng.pt: model/text.layers.0.qkv.weight has shape [9, 16], expected [16, 16], one "
            "of 2 pieces (rule text.attention); its sizes: hidden (16, hidden_size in config.json), kv_rows (8)"
        ),
        f"{ROOT[:-2]}01_001/model_optim_rng.pt: 1 tensor that no rule of model definition toy knows: model/another",
        (
            f"{ROOT[:-2]}01_001/model_optim_rng.pt: 1 tensor that fit a rule, but not the layers, experts and ends of "
            "the model on this rank: model/text.layers.0.mlp.fc1.weight"
        ),
    ]


def test_element_types_are_those_of_the_files_and_agree_between_ranks():
    files = source(layout(tp=2))
    router = "text.layers.1.router.weight"
    files.dtypes = {router: "float32"}
    found = bound(files)
    types = {each.name: each.recipe.tensor.dtype for each in found.over_hf.parameters}
    assert types[router] == "float32"
    assert types["text.layers.2.router.weight"] == "bfloat16"

    files.dtypes = {router: "int64"}
    assert problems_of(files)[0] == (
        f"{ROOT}/model_optim_rng.pt: model/{router} is int64, expected one of float64, float32, float16, bfloat16; "
        "quantised checkpoints cannot be converted"
    )


def test_pieces_of_one_parameter_are_of_one_type(monkeypatch):
    files = source(layout(tp=2))
    index = files.index()
    place = ("model", "text.layers.1.router.weight")
    changed = index.files[1].tensors[place]
    tensors = dict(index.files[1].tensors)
    tensors[place] = type(changed)("float32", changed.shape, changed.strides, changed.offset)
    object.__setattr__(index.files[1], "tensors", tensors)
    monkeypatch.setattr(files, "index", lambda **_: index)
    assert problems_of(files) == [
        (
            f"{ROOT[:-2]}01/model_optim_rng.pt: model/text.layers.1.router.weight is float32, but other pieces of the "
            "parameter are bfloat16; are the files of one checkpoint?"
        )
    ]


def test_a_size_that_the_ranks_do_not_divide_names_the_key_of_the_source():
    """The reference has other heads than the model that was trained."""
    assert "source_layout.tp=4: does not divide groups (2, num_key_value_heads in config.json)" in " ".join(
        problems_of(source(layout(tp=4)), num_key_value_heads=2)
    )


def test_a_tied_head_that_differs_is_a_replica_that_is_not_equal():
    planned = layout(((1, 2),), tp=2)
    files = source(planned, tie_word_embeddings=True)
    for key in files.files:
        files.files[key]["model"].get(HEAD, np.zeros(()))[...] += 1
    found = bound(files, tie_word_embeddings=True)
    different = {replica.copy.sources[0].name for replica in found.replicas if not is_equal(replica, files)}
    assert different == {HEAD}
    assert found.parameters.tied
    assert not any(each.name == HEAD for each in found.parameters.parameters)


def test_a_tied_model_may_lack_the_head():
    found = bound(source(layout(((1, 2),)), tie_word_embeddings=True, tied_head="omit"), tie_word_embeddings=True)
    assert not any(each.name == HEAD for each in found.parameters.parameters)
