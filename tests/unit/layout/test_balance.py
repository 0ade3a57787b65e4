"""A layout that is given in part is completed: sizes from lists, lists from sizes, and contradictions refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement, pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.megatron.plan import make_plan
from distconv.layout.balance import complete_layout
from distconv.layout.layout import CompleteLayout, StageRows
from distconv.layout.request import Layout
from distconv.layout.tied_head import resolve_head
from distconv.models.parameters import Binding
from tests.unit import toy


def complete(binding: Binding | None = None, *, text_on_first_stage: int = 0, **request: Any) -> CompleteLayout:
    bound = binding or toy.bound()
    return complete_layout(Layout(**request), bound, toy.definition(), text_on_first_stage=text_on_first_stage)


def test_without_any_wish_everything_is_on_one_stage():
    found = complete()
    assert (found.tp, found.pp, found.vpp, found.ep) == (1, 1, 1, 1)
    assert found.stages == {"text": ((3,),), "vision": ((2,),)}
    assert found.placement == "sequential"


def test_sizes_come_from_the_text_list():
    found = complete(stages={"text": ((0, 1), (1, 1))}, tp=2, ep=4, modality_tp={"vision": 1}, placement="u_shape")
    assert (found.tp, found.pp, found.vpp, found.ep) == (2, 2, 2, 4)
    assert found.modality_tp == {"vision": 1}
    assert found.placement == "u_shape"


def test_an_encoder_without_a_list_stands_on_the_first_stage():
    assert complete(stages={"text": ((0, 1), (1, 1))}).stages["vision"] == ((2, 0), (0, 0))
    assert complete(pp=3).stages["vision"] == ((2, 0, 0),)


def test_lists_that_are_given_are_kept():
    stages = {"text": ((0, 1, 2),), "vision": ((0, 0, 2),)}
    assert complete(stages=stages).stages == stages
    assert complete(stages=stages, pp=3, vpp=1).stages == stages


def _bound(layers: int, *, tied: bool) -> Binding:
    shapes = toy.shapes(layers=layers)
    if tied:
        del shapes["lm_head.weight"]
    return toy.bound(shapes, num_hidden_layers=layers, tie_word_embeddings=tied)


def _every_spread(layers: int, pp: int, vpp: int) -> Iterator[StageRows]:
    for cuts in combinations_with_replacement(range(layers + 1), pp * vpp - 1):
        flat = [stop - start for start, stop in pairwise((0, *cuts, layers))]
        yield tuple(tuple(flat[start : start + pp]) for start in range(0, len(flat), pp))


def _heaviest(layout: CompleteLayout, binding: Binding) -> tuple[int, int]:
    """Bytes of the heaviest pipeline rank and of the heaviest stage, at one expert parallel coordinate."""
    plan = make_plan(resolve_head(binding, toy.definition(), layout, "auto"), layout)
    return max(file.nbytes for file in plan.files), max(stage.nbytes for stage in plan.stages) // layout.ep


def _heaviest_layer(binding: Binding) -> int:
    """In bytes, with both ends of the language model and a copied head."""
    layers = [0] * binding.layers["text"]
    ends = 0
    for parameter in binding.parameters:
        if parameter.recipe.rule.modality == "text" and parameter.layer is not None:
            layers[parameter.layer] += parameter.nbytes
        elif parameter.recipe.rule.modality == "text":
            ends += 2 * parameter.nbytes
    return max(layers) + ends


def _can_be_trained(text: StageRows, vision: StageRows, on_first_stage: int) -> bool:
    """Whether the first stage has as many text layers as it must, and there is text where, or after, vision ends."""
    layers, encoder = ([count for row in rows for count in row] for rows in (text, vision))
    last = max(stage for stage, count in enumerate(encoder) if count)
    return layers[0] >= min(on_first_stage, sum(layers)) and sum(layers[last:]) > 0


@settings(max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([1, 4]),
    st.booleans(),
    st.sampled_from(["sequential", "u_shape"]),
    st.sampled_from([0, 0, 1, 2, 3, 9]),
    st.data(),
)
def test_text_layers_are_spread_so_that_the_heaviest_rank_of_what_can_be_trained_is_as_light_as_possible(
    layers, pp, vpp, ep, tied, placement, on_first_stage, data
):
    assume(pp * vpp <= layers + toy.VISION_LAYERS)
    # The first layer is dense.
    assume(ep == 1 or layers > 1)
    binding = _bound(layers, tied=tied)
    request: dict[str, Any] = {"pp": pp, "vpp": vpp, "ep": ep, "placement": placement}
    if data.draw(st.booleans()):
        vision = data.draw(st.sampled_from(list(_every_spread(toy.VISION_LAYERS, pp, vpp))))
        request["stages"] = {"vision": vision}

    found = complete(binding, text_on_first_stage=on_first_stage, **request)

    vision = found.stages["vision"]
    spreads = [rows for rows in _every_spread(layers, pp, vpp) if _can_be_trained(rows, vision, on_first_stage)]
    # Else the check refuses whatever is chosen.
    assume(spreads)
    assert found.stages["text"] in spreads
    others = [complete(binding, **{**request, "stages": {**found.stages, "text": rows}}) for rows in spreads]
    best = min(_heaviest(other, binding) for other in others)
    if vpp == 1:
        assert _heaviest(found, binding) == best
    else:
        assert _heaviest(found, binding)[0] <= best[0] + _heaviest_layer(binding)


@pytest.mark.parametrize(("ep", "expected"), [(1, (2, 2)), (4, (1, 3))])
def test_experts_weigh_what_one_expert_parallel_rank_holds_of_them(ep, expected):
    """A dense layer weighs three quarters of one with four experts."""
    mlp, ffn = 3 * 3000, 2 * 1000
    shapes = toy.shapes(layers=4)
    for name, shape in shapes.items():
        size = ffn if ".experts." in name else mlp if ".mlp." in name else None
        if size is not None:
            shapes[name] = tuple(size if length in (toy.MLP, toy.FFN) else length for length in shape)
    binding = toy.bound(shapes, num_hidden_layers=4, intermediate_size=mlp, moe_intermediate_size=ffn)
    assert complete(binding, pp=2, ep=ep).stages["text"] == (expected,)


def test_a_tied_model_that_leaves_the_stage_of_a_heavy_encoder_stays_together():
    """There it needs no copy of its embedding, which is somewhat heavier than the encoder."""
    shapes = {**toy.shapes(layers=2), "model.embed.weight": (4000, 16), "visual.patch.weight": (24, 5, 2, 200)}
    del shapes["lm_head.weight"]
    binding = toy.bound(shapes, num_hidden_layers=2, vocab_size=4000, tie_word_embeddings=True)
    assert complete(binding, pp=2).stages["text"] == ((0, 2),)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_of_a_tied_model_weighs_as_its_own_would(tied):
    """On the last stage, whose copy of the embedding is as heavy as the embedding on the first one."""
    shapes = {**toy.shapes(layers=6), "model.embed.weight": (800, 16), "lm_head.weight": (800, 16)}
    if tied:
        del shapes["lm_head.weight"]
    binding = toy.bound(shapes, num_hidden_layers=6, vocab_size=800, tie_word_embeddings=tied)
    assert complete(binding, pp=2).stages["text"] == ((3, 3),)


def test_layers_that_must_be_on_the_first_stage_stay_there_beside_a_heavy_encoder():
    shapes = {**toy.shapes(layers=13), "visual.patch.weight": (24, 5, 2, 10_000)}
    binding = toy.bound(shapes, num_hidden_layers=13)
    assert complete(binding, pp=4, text_on_first_stage=3).stages["text"] == ((3, 3, 4, 3),)
    assert complete(binding, pp=2, vpp=2, text_on_first_stage=2).stages["text"] == (
        (2, 6),
        (0, 5),
    )
    assert complete(binding, pp=3, text_on_first_stage=20).stages["text"] == ((13, 0, 0),)
    # Nor do they leave it for an encoder that is given another one: the check refuses that.
    given = {"vision": ((0, 0, 2),)}
    assert complete(binding, stages=given, pp=3, text_on_first_stage=20).stages["text"] == ((13, 0, 0),)


def test_layers_that_must_be_on_the_first_stage_weigh_there():
    assert complete(_bound(8, tied=False), pp=2, text_on_first_stage=5).stages["text"] == ((5, 3),)


def test_the_last_layer_goes_where_a_heavy_encoder_ends():
    shapes = {**toy.shapes(layers=6), "visual.patch.weight": (24, 5, 2, 10_000)}
    binding = toy.bound(shapes, num_hidden_layers=6)
    stages = {"vision": ((0, 0, 2),)}
    assert complete(binding, stages=stages, pp=3).stages["text"] == ((3, 2, 1),)


def test_in_u_shape_every_stage_of_pipeline_rank_0_makes_room_for_the_ends():
    shapes = {**toy.shapes(layers=13), "model.embed.weight": (2000, 16), "lm_head.weight": (2000, 16)}
    binding = toy.bound(shapes, num_hidden_layers=13, vocab_size=2000)
    found = complete(binding, pp=3, vpp=2, placement="u_shape").stages["text"]
    assert found == ((0, 4, 3), (0, 3, 3))


def test_in_u_shape_the_ends_of_the_language_model_weigh_on_pipeline_rank_0():
    """With a vocabulary far heavier than a layer, rank 0 gets none."""
    shapes = {**toy.shapes(layers=4), "model.embed.weight": (4000, 16), "lm_head.weight": (4000, 16)}
    binding = toy.bound(shapes, num_hidden_layers=4, vocab_size=4000)
    found = complete(binding, pp=3, placement="u_shape")
    assert found.stages["text"] == ((0, 2, 2),)


def test_more_stages_than_layers_are_refused():
    with pytest.raises(InputError, match=r"layout\.pp=4 and layout\.vpp=2: 8 stages, but the model has 5 layers"):
        complete(_bound(3, tied=False), pp=4, vpp=2)


def test_a_stage_that_an_encoder_fills_gets_no_text_and_the_others_get_even_shares():
    shapes = {**toy.shapes(layers=13), "visual.patch.weight": (24, 5, 2, 10_000)}
    assert complete(toy.bound(shapes, num_hidden_layers=13), pp=4).stages["text"] == ((0, 5, 4, 4),)


def test_vision_alone_is_laid_out_by_its_own_list_or_the_sizes():
    binding = toy.bound(left_out=lambda rule: "not wanted" if rule.modality == "text" else None)
    assert complete(binding).stages == {"vision": ((2,),)}
    assert complete(binding, pp=2, vpp=2).stages == {"vision": ((2, 0), (0, 0))}
    found = complete(binding, stages={"vision": ((1, 1),)})
    assert (found.pp, found.vpp, found.stages) == (2, 1, {"vision": ((1, 1),)})
    # The text list still says how many stages there are, and that the encoder's list repeats.
    found = complete(binding, stages={"text": ((1, 1, 1),), "vision": ((2,),)})
    assert (found.pp, found.stages) == (3, {"vision": ((2,),)})


@pytest.mark.parametrize(
    ("request_", "messages"),
    [
        (
            {"stages": {"audio": ((1,),)}, "modality_tp": {"audio": 2}},
            [
                "layout.stages.audio: this model has no audio modality; it has text, vision",
                "layout.modality_tp.audio: this model has no audio modality; it has text, vision",
            ],
        ),
        (
            {"stages": {"text": ((1, 2),)}, "pp": 3, "vpp": 2},
            [
                "layout.pp=3: the stage list [1,2] has pp 2",
                "layout.vpp=2: the stage list [1,2] has vpp 1",
            ],
        ),
        ({"stages": {"text": ((1, 1),)}}, ["layout.stages.text=[1,1]: adds up to 2 layers, but the model has 3 text"]),
        ({"stages": {"vision": ((1, 1),)}}, ["layout.stages.vision=[1,1]: has 2 entries, more than the 1 pipeline"]),
        ({"ep": 3}, ["layout.ep=3: does not divide the 4 experts; sizes that do: 1, 2, 4"]),
        ({"tp": 2, "modality_tp": {"vision": 3}}, ["layout.tp=2: does not divide the largest"]),
    ],
)
def test_contradictions_are_refused(request_, messages):
    with pytest.raises(InputError) as caught:
        complete(**request_)
    for problem, message in zip(caught.value.problems, messages, strict=True):
        assert problem.startswith(message)
