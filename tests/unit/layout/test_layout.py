"""What stage lists, sizes and placement mean: which stage holds a layer, the first and the last parameters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.layout.layout import (
    CompleteLayout,
    StageRows,
    check_layout,
    shown_stages,
    stage_coordinates,
    stage_number,
    stage_rows,
)


def layout(**given: Any) -> CompleteLayout:
    """A layout from stage lists; pp and vpp are those of the text list."""
    stages = {key: given.pop(key) for key in ("text", "vision", "audio") if key in given}
    leading = stages.get("text", next(iter(stages.values())))
    defaults = {
        "tp": 1,
        "ep": 1,
        "pp": len(leading[0]),
        "vpp": len(leading),
        "modality_tp": {},
        "placement": "sequential",
    }
    return CompleteLayout(stages=stages, **{**defaults, **given})


def layers_on(found: CompleteLayout, modality: str) -> list[list[int]]:
    """The global numbers of the layers on each stage in the order of their local numbers."""
    on: list[list[tuple[int, int]]] = [[] for _ in range(found.stage_count)]
    for layer, holders in found.placement_of(modality).of_layer.items():
        for stage, local in holders:
            on[stage].append((local, layer))
    for held in on:
        assert sorted(local for local, _ in held) == list(range(len(held))), "local numbers count from 0"
    return [[layer for _, layer in sorted(held)] for held in on]


@st.composite
def stage_lists(draw: st.DrawFn) -> StageRows:
    """Stage lists with at least one layer and zeros anywhere."""
    pp, vpp = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    flat = draw(st.lists(st.integers(0, 3), min_size=pp * vpp, max_size=pp * vpp).filter(any))
    return tuple(tuple(flat[start : start + pp]) for start in range(0, pp * vpp, pp))


@pytest.mark.parametrize("pp", [1, 3])
@pytest.mark.parametrize("vpp", [1, 2])
def test_stages_are_counted_over_the_pipeline_ranks_of_one_virtual_stage_after_the_other(pp, vpp):
    coordinates = [(virtual_stage, pp_rank) for virtual_stage in range(vpp) for pp_rank in range(pp)]
    assert [stage_coordinates(stage, pp) for stage in range(pp * vpp)] == coordinates
    assert [stage_number(*each, pp) for each in coordinates] == list(range(pp * vpp))
    rows = stage_rows(range(pp * vpp), pp)
    assert [rows[virtual_stage][pp_rank] for virtual_stage, pp_rank in coordinates] == list(range(pp * vpp))


@given(stage_lists(), st.sampled_from(["sequential", "u_shape"]))
def test_a_full_list_spreads_the_layers_in_order_over_virtual_stages_of_pipeline_ranks(rows, placement):
    found = layers_on(layout(text=rows, placement=placement), "text")
    pp = len(rows[0])
    assert [len(held) for held in found] == [rows[stage // pp][stage % pp] for stage in range(len(found))]
    assert [layer for held in found for layer in held] == list(range(sum(map(sum, rows))))


@given(stage_lists())
def test_first_and_last_are_the_outermost_stages_that_have_layers(rows):
    for modality in ("text", "vision"):
        found = layout(**{modality: rows})
        occupied = [stage for stage, held in enumerate(layers_on(found, modality)) if held]
        placement = found.placement_of(modality)
        assert placement.stages("first", None) == [(occupied[0], None)]
        assert placement.stages("last", None) == [(occupied[-1], None)]
        assert placement.stages("every", None) == [(stage, None) for stage in range(found.stage_count)]


@pytest.mark.parametrize(
    ("rows", "expected", "first", "last"),
    [
        (((0, 2, 2, 2),), [[], [0, 1], [2, 3], [4, 5]], 1, 3),
        (((0, 0, 3),), [[], [], [0, 1, 2]], 2, 2),
        (((2, 0, 1),), [[0, 1], [], [2]], 0, 2),
        (((2, 1, 0, 0),), [[0, 1], [2], [], []], 0, 1),
        (((0, 0, 0, 1), (1, 2, 0, 1)), [[], [], [], [0], [1], [2, 3], [], [4]], 3, 7),
        (((1, 0), (0, 0), (0, 1)), [[0], [], [], [], [], [1]], 0, 5),
    ],
)
def test_zeros_anywhere_mean_what_they_say(rows, expected, first, last):
    found = layout(text=rows)
    assert layers_on(found, "text") == expected
    assert found.placement_of("text").first == (first,)
    assert found.placement_of("text").last == (last,)


@pytest.mark.parametrize(
    ("rows", "expected", "first", "last"),
    [
        (((3,),), [[0, 1, 2]] * 4, (0, 1, 2, 3), (0, 1, 2, 3)),
        (((1, 2),), [[0], [1, 2], [0], [1, 2]], (0, 2), (1, 3)),
        (((0, 2),), [[], [0, 1], [], [0, 1]], (1, 3), (1, 3)),
        # The period is the list's own length also where that does not divide the pipeline.
        (((1, 0, 2),), [[0], [], [1, 2], [0]], (0, 3), (2,)),
    ],
)
def test_an_encoder_list_shorter_than_the_text_list_repeats(rows, expected, first, last):
    found = layout(text=((1, 1, 1, 1),), vision=rows)
    check_layout(found, {"text": 4, "vision": sum(rows[0])}, None)
    assert layers_on(found, "vision") == expected
    assert found.placement_of("vision").first == first
    assert found.placement_of("vision").last == last


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any), st.integers(0, 4))
def test_a_repeated_list_has_each_layer_on_every_stage_that_repeats_its_entry(entries, more):
    pp = len(entries) + more
    found = layout(text=((1,) * pp,), vision=(tuple(entries),))
    once = layers_on(layout(text=(tuple(entries),)), "text")
    assert layers_on(found, "vision") == [once[stage % len(entries)] for stage in range(pp)]


# docs/zh/features/layerwise_disaggregated_training.md of MindSpeed-MM
_DOCUMENTED = {
    "text": ((0, 0, 0, 0, 0), (0, 16, 16, 16, 16), (0, 0, 0, 0, 0)),
    "vision": ((3, 7, 7, 7, 7), (1, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
}


def test_the_documented_u_shape():
    found = layout(**_DOCUMENTED, placement="u_shape")
    check_layout(found, {"text": 64, "vision": 32}, None)
    text, vision = found.placement_of("text"), found.placement_of("vision")
    model0, model1, model2 = 0, 5, 10
    assert vision.first == (model0,)
    assert vision.last == (model1,)
    assert text.first == (model1,)
    assert text.last == (model2,)
    assert layers_on(found, "vision")[:6] == [
        list(range(3)),
        list(range(3, 10)),
        list(range(10, 17)),
        list(range(17, 24)),
        list(range(24, 31)),
        [31],
    ]
    assert layers_on(found, "text")[6:10] == [list(range(start, start + 16)) for start in range(0, 64, 16)]
    assert found.keeps_separate_head()


@given(stage_lists())
def test_u_shape_keeps_both_ends_of_the_language_model_on_pipeline_rank_0(rows):
    pp = len(rows[0])
    placement = layout(text=rows, placement="u_shape").placement_of("text")
    virtual_stage = next(number for number, row in enumerate(rows) if any(row))
    assert placement.first == (virtual_stage * pp,)
    assert placement.last == ((len(rows) - 1) * pp,)


def test_in_u_shape_a_short_encoder_list_does_not_repeat():
    found = layout(text=((1, 1, 1),), vision=((2,),), placement="u_shape")
    assert layers_on(found, "vision") == [[0, 1], [], []]
    assert found.placement_of("vision").first == (0,)
    assert found.placement_of("vision").last == (0,)


@pytest.mark.parametrize(
    ("rows", "placement", "expected"),
    [
        (((2,),), "sequential", False),
        (((1, 1),), "sequential", True),
        (((2, 0),), "sequential", False),
        (((0, 2),), "sequential", False),
        (((1, 0, 1),), "sequential", True),
        # One pipeline rank, but two virtual stages are two stages.
        (((1,), (1,)), "sequential", True),
        (((0,), (2,)), "sequential", False),
        (((2,),), "u_shape", False),
        (((1,), (1,)), "u_shape", False),
        (((0, 2),), "u_shape", True),
    ],
)
def test_a_tied_model_keeps_a_separate_head_where_its_ends_are_apart(rows, placement, expected):
    assert layout(text=rows, placement=placement).keeps_separate_head() is expected


def test_a_layer_is_asked_for_by_its_global_number():
    placement = layout(text=((1, 2),)).placement_of("text")
    assert [list(placement.stages("layer", layer)) for layer in range(3)] == [[(0, 0)], [(1, 0)], [(1, 1)]]


def test_tensor_parallel_sizes_of_encoders_stand_beside_that_of_the_text():
    found = layout(text=((1,),), tp=2, modality_tp={"vision": 4})
    assert {name: found.tensor_parallel_size(name) for name in ("text", "vision", "audio")} == {
        "text": 2,
        "vision": 4,
        "audio": 2,
    }
    assert found.tensor_ranks == 4
    assert layout(text=((1,),), tp=2).tensor_ranks == 2
    assert layout(text=((1,),), tp=4, modality_tp={"vision": 1}).tensor_ranks == 4


@pytest.mark.parametrize(
    ("found", "layers", "experts", "message"),
    [
        (
            layout(text=((1, 10, 10, 8),)),
            {"text": 28},
            None,
            "layout.stages.text=[1,10,10,8]: adds up to 29 layers, but the model has 28 text layers",
        ),
        (
            layout(text=((4,),), vision=((3,),)),
            {"text": 4, "vision": 2},
            None,
            "layout.stages.vision=[3]: adds up to 3 layers, but the model has 2 vision layers",
        ),
        (
            layout(text=((1, 1), (2,))),
            {"text": 4},
            None,
            "layout.stages.text=[[1,1],[2]]: every virtual stage needs the same number of entries",
        ),
        (
            layout(text=((1, 1), (1, 1)), vision=((2, 0),)),
            {"text": 4, "vision": 2},
            None,
            "layout.stages.vision=[2,0]: has 1 virtual stages, expected 2; write one list for each",
        ),
        (
            layout(text=((1, 1),), vision=((2, 0), (0, 0))),
            {"text": 2, "vision": 2},
            None,
            "layout.stages.vision=[[2,0],[0,0]]: has 2 virtual stages, expected 1",
        ),
        (
            layout(text=((2, 2),), vision=((1, 1, 1),)),
            {"text": 4, "vision": 3},
            None,
            "layout.stages.vision=[1,1,1]: has 3 entries, more than the 2 pipeline ranks",
        ),
        (
            layout(text=((2, 2),), pp=3),
            {"text": 4},
            None,
            "layout.stages.text=[2,2]: has 2 entries, expected 3, one per pipeline rank",
        ),
        (
            layout(text=((1, 1), (1, 1)), vision=((2,), (0,))),
            {"text": 4, "vision": 2},
            None,
            "layout.stages.vision=[[2],[0]]: has 1 entries, expected 2, one per pipeline rank; a shorter list repeats",
        ),
        (
            layout(text=((1,),), tp=3, modality_tp={"vision": 2}),
            {"text": 1},
            None,
            "layout.modality_tp.vision=2: does not divide the largest tensor parallel size, 3",
        ),
        (
            layout(text=((1,),), tp=2, modality_tp={"vision": 3}),
            {"text": 1},
            None,
            "layout.tp=2: does not divide the largest tensor parallel size, 3",
        ),
        (layout(text=((1,),), ep=2), {"text": 1}, None, "layout.ep=2: this model has no experts"),
        (layout(text=((1,),), ep=3), {"text": 1}, 8, "layout.ep=3: does not divide the 8 experts"),
    ],
)
def test_a_contradiction_is_reported_with_the_numbers_of_both_sides(found, layers, experts, message):
    with pytest.raises(InputError) as caught:
        check_layout(found, layers, experts)
    (problem,) = caught.value.problems
    assert message in problem


def test_all_contradictions_are_reported_together():
    found = layout(text=((1, 1),), vision=((1, 1, 1),), tp=3, modality_tp={"vision": 2}, ep=2)
    with pytest.raises(InputError) as caught:
        check_layout(found, {"text": 3, "vision": 2}, None)
    named = Counter(problem.split("=")[0] for problem in caught.value.problems)
    assert named == {
        "layout.stages.text": 1,
        "layout.stages.vision": 2,
        "layout.modality_tp.vision": 1,
        "layout.ep": 1,
    }


def test_adapters_say_only_how_many_layers_there_are_at_least():
    found = layout(text=((2, 2),))
    for layers in (1, 4):
        check_layout(found, {"text": layers}, None, at_least=True)
    with pytest.raises(InputError, match=r"adds up to 4 layers, but the model has at least 5 text layers"):
        check_layout(found, {"text": 5}, None, at_least=True)


@pytest.mark.parametrize(("ep", "experts"), [(1, None), (1, 8), (2, 8), (8, 8)])
def test_expert_parallel_sizes_that_fit(ep, experts):
    check_layout(layout(text=((1,),), ep=ep), {"text": 1}, experts)


def test_stage_lists_are_shown_as_a_user_writes_them():
    assert shown_stages(((1, 10, 7),)) == "[1,10,7]"
    assert shown_stages(((0, 1), (4, 4))) == "[[0,1],[4,4]]"
