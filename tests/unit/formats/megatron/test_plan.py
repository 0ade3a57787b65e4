"""The plan of the toy model, file by file and element by element, against a conversion written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.errors import JobError
from distconv.formats.megatron.plan import MegatronPlan, make_plan
from distconv.formats.records import Entry
from distconv.layout.balance import complete_layout
from distconv.layout.layout import CompleteLayout, StageRows
from distconv.layout.request import Layout
from distconv.tensors.dtypes import ITEM_SIZE
from tests.unit import toy
from tests.unit.reference import evaluate


def plan(shapes: dict[str, tuple[int, ...]] | None = None, **request: Any) -> MegatronPlan:
    binding = toy.bound(shapes)
    return make_plan(binding, complete_layout(Layout(**request), binding, toy.definition()))


def contents(found: MegatronPlan, source: dict[str, np.ndarray]) -> toy.Contents:
    """What each planned file would hold."""
    result: toy.Contents = {}
    for file in found.files:
        assert file.path not in result
        result[file.path] = {key: {} for key in found.dictionaries}
        for entry in found.entries(file):
            held = result[file.path][entry.key]
            assert entry.name not in held
            operands = [source[stored.name] for stored in entry.sources]
            held[entry.name] = evaluate(entry.tensor, operands)
    return result


def assert_same(found: toy.Contents, expected: toy.Contents) -> None:
    assert {path: {key: sorted(held) for key, held in keys.items()} for path, keys in found.items()} == {
        path: {key: sorted(held) for key, held in keys.items()} for path, keys in expected.items()
    }
    for path, keys in expected.items():
        for key, held in keys.items():
            for name, array in held.items():
                np.testing.assert_array_equal(found[path][key][name], array, err_msg=f"{path} {key} {name}")


@st.composite
def spread(draw: st.DrawFn, layers: int, pp: int, vpp: int = 1) -> StageRows:
    """Stage lists that add up to a number of layers."""
    cuts = sorted(draw(st.lists(st.integers(0, layers), min_size=pp * vpp - 1, max_size=pp * vpp - 1)))
    flat = np.diff([0, *cuts, layers]).tolist()
    return tuple(tuple(flat[start : start + pp]) for start in range(0, len(flat), pp))


@st.composite
def layouts(draw: st.DrawFn) -> CompleteLayout:
    """Layouts of the toy model: hetero TP and PP, expert parallel, virtual stages, zeros anywhere."""
    pp, vpp = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    vision_pp = draw(st.integers(1, pp)) if vpp == 1 else pp
    tp, vision_tp = draw(st.sampled_from([(1, None), (2, None), (4, None), (1, 2), (2, 1), (4, 2), (2, 8), (4, 8)]))
    return CompleteLayout(
        tp=tp,
        pp=pp,
        vpp=vpp,
        ep=draw(st.sampled_from([1, 2, 4])),
        stages={
            "text": draw(spread(toy.LAYERS, pp, vpp)),
            "vision": draw(spread(toy.VISION_LAYERS, vision_pp, vpp)),
        },
        modality_tp={} if vision_tp is None else {"vision": vision_tp},
        placement="sequential",
    )


@settings(max_examples=40)
@given(layouts())
def test_every_shard_is_in_exactly_the_right_files(layout):
    found = make_plan(toy.bound(), layout)
    source = toy.arrays()
    expected = toy.converted(source, layout)

    assert_same(contents(found, source), expected)

    item_size = ITEM_SIZE["bfloat16"]
    sizes = {
        path: sum(array.size for held in keys.values() for array in held.values()) * item_size
        for path, keys in expected.items()
    }
    assert {file.path: file.nbytes for file in found.files} == sizes
    assert sum(summary.nbytes for summary in found.stages) == sum(sizes.values())
    ranks = dict(zip((file.path for file in found.files), found.summary()["ranks"], strict=True))
    assert ranks == {file.path: [file.tp_rank, file.pp_rank, file.ep_rank] for file in found.files}
    for summary in found.stages:
        rows = {name: layout.stages[name] for name in ("text", "vision")}
        virtual_stage, pp_rank = divmod(summary.stage, layout.pp)
        layers = {name: row[virtual_stage][pp_rank % len(row[0])] for name, row in rows.items()}
        assert summary.layers == {name: count for name, count in layers.items() if count}


@settings(max_examples=20)
@given(layouts())
def test_entries_of_one_group_are_the_shards_of_one_parameter(layout):
    """Experts of one packed tensor that have the same name on their ranks are not."""
    found = make_plan(toy.bound(), layout)
    for pp_rank in range(layout.pp):
        groups: dict[Any, list[Entry]] = {}
        for file in found.files:
            if file.batch == pp_rank:
                for entry in found.entries(file):
                    groups.setdefault(entry.group, []).append(entry)
        for entries in groups.values():
            assert len({(entry.key, entry.name) for entry in entries}) == 1
            assert all(entry.sources is entries[0].sources for entry in entries)
            tables = {id(entry.tensor) for entry in entries}
            assert any(tables == set(map(id, shards)) for shards in found.shards.values())
        placed = [parameter for stage in found.placed[pp_rank :: layout.pp] for parameter, _ in stage]
        assert len(groups) == len(placed)


def test_a_parameter_of_every_stage_is_everywhere():
    shapes = {**toy.shapes(), "model.positions.weight": (toy.HIDDEN,)}
    stages = {"text": ((0, 2), (1, 0))}
    found = plan(shapes=shapes, stages=stages, tp=2, ep=2)
    source = toy.arrays(shapes)
    assert_same(contents(found, source), toy.converted(source, found.layout))


def test_hetero_tensor_parallel_rank_r_holds_piece_r_mod_size():
    found = contents(plan(tp=2, modality_tp={"vision": 4}), source := toy.arrays())
    merger = np.split(source["visual.merger.weight"], 4)
    embedding = np.split(source["model.embed.weight"], 2)
    assert list(found) == [f"mp_rank_{rank:02d}/model_optim_rng.pt" for rank in range(4)]
    for rank, file in enumerate(found.values()):
        np.testing.assert_array_equal(file["model"]["vision.projector.weight"], merger[rank])
        np.testing.assert_array_equal(file["model"]["text.embedding.weight"], embedding[rank % 2])


def test_experts_are_numbered_on_their_rank_and_everything_else_is_on_every_rank():
    found = contents(plan(ep=2), source := toy.arrays())
    first, second = (found[f"mp_rank_00_{rank:03d}/model_optim_rng.pt"]["model"] for rank in range(2))
    assert sorted(first) == sorted(second)
    assert {name for name in first if ".experts." in name} == {
        f"text.layers.{layer}.experts.{local}.{part}.weight"
        for layer in (1, 2)
        for local in range(2)
        for part in ("fc1", "fc2")
    }
    for held, expert in ((first, 1), (second, 3)):
        down = source["model.layers.1.experts.down"][expert].T
        np.testing.assert_array_equal(held["text.layers.1.experts.1.fc2.weight"], down)
    np.testing.assert_array_equal(first["text.layers.1.router.weight"], second["text.layers.1.router.weight"])


def test_stages_without_anything_are_files_with_empty_dictionaries():
    found = contents(plan(stages={"text": ((3, 0), (0, 0)), "vision": ((2, 0), (0, 0))}), toy.arrays())
    assert found["mp_rank_00_001/model_optim_rng.pt"] == {"model0": {}, "model1": {}}
    assert found["mp_rank_00_000/model_optim_rng.pt"]["model1"] == {}


def test_a_file_lists_its_tensors_by_stage_and_then_in_the_order_of_the_definition():
    (file,) = (found := plan()).files
    names = [entry.name for entry in found.entries(file)]
    assert names[:2] == ["vision.patch.weight", "vision.layers.0.qkv.weight"]
    assert names[-1] == "text.head.weight"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"tp": 2}, ["mp_rank_00", "mp_rank_01"]),
        ({"stages": {"text": ((1, 2),)}}, ["mp_rank_00_000", "mp_rank_00_001"]),
        ({"ep": 2}, ["mp_rank_00_000", "mp_rank_00_001"]),
        ({"ep": 2, "stages": {"text": ((3, 0),)}}, [f"mp_rank_00_{p:03d}_{e:03d}" for e in range(2) for p in range(2)]),
        ({"stages": {"text": ((1,), (2,))}}, ["mp_rank_00"]),
    ],
)
def test_directories_have_a_number_for_each_axis_that_is_cut(request_, expected):
    assert [file.path for file in plan(**request_).files] == [f"{name}/model_optim_rng.pt" for name in expected]


def test_files_know_their_coordinates():
    found = plan(tp=2, ep=2, stages={"text": ((1, 2),)})
    coordinates = [(file.ep_rank, file.tp_rank, file.pp_rank) for file in found.files]
    assert coordinates == [(ep, tp, pp) for ep in range(2) for tp in range(2) for pp in range(2)]
    for file in found.files:
        assert file.path == f"mp_rank_{file.tp_rank:02d}_{file.pp_rank:03d}_{file.ep_rank:03d}/model_optim_rng.pt"


def test_dictionaries_are_numbered_where_there_are_virtual_stages():
    assert plan(stages={"text": ((1, 2),)}).dictionaries == ["model"]
    assert plan(stages={"text": ((1,), (1,), (1,))}).dictionaries == ["model0", "model1", "model2"]


def test_stage_summaries_count_the_unsplit_parameters():
    found = plan(tp=2, stages={"text": ((1, 2),), "vision": ((2, 0),)})
    elements = {name: array.size for name, array in toy.arrays().items()}
    first = {name for name in elements if name.startswith(("visual.", "model.embed.", "model.layers.0."))}
    assert [summary.parameters for summary in found.stages] == [
        sum(elements[name] for name in first),
        sum(elements[name] for name in elements if name not in first),
    ]


def test_two_parameters_of_one_name_are_a_defect_found_before_writing():
    binding = toy.bound()
    doubled = replace(binding, parameters=binding.parameters + toy.bound().parameters[:1])
    layout = complete_layout(Layout(), binding, toy.definition())
    with pytest.raises(JobError, match=r"vision\.patch\.weight: would be twice on stage 0"):
        make_plan(doubled, layout)


@pytest.mark.parametrize("order", [1, -1])
def test_an_expert_with_the_name_of_another_parameter_is_a_defect_found_before_writing(order):
    """Whichever of the two comes first."""
    model = toy.content()
    shared = {
        "target": "text.layers.{layer}.experts.0.fc2.weight",
        "sources": [["model.layers.{layer}.shared.weight", "hidden"]],
    }
    model["rules"]["text"]["attention"].append(shared)
    shapes = toy.shapes() | {f"model.layers.{layer}.shared.weight": (toy.HIDDEN,) for layer in range(toy.LAYERS)}
    binding = toy.bound(shapes, model=model)
    layout = complete_layout(Layout(ep=2), binding, toy.definition(model))
    binding = replace(binding, parameters=binding.parameters[::order])
    with pytest.raises(JobError, match=r"text\.layers\.[12]\.experts\.0\.fc2\.weight: would be twice on stage 0"):
        make_plan(binding, layout)
