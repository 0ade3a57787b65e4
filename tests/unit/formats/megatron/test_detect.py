"""The layout is read off names and shapes; what cannot be is asked for, by key; what is given and not so is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distconv.errors import InputError
from distconv.layout.layout import CompleteLayout
from distconv.layout.request import SourceLayout
from tests.unit import toy, toy_megatron
from tests.unit.toy_megatron import Source, bound, layout, source

DIRECTORY = toy_megatron.DIRECTORY


def found(files: Source, given: SourceLayout | None = None, **changes: Any) -> CompleteLayout:
    return bound(files, given, **changes).layout


def only(files: Source, prefix: str) -> Source:
    """The files with the tensors whose names begin so."""
    for dictionaries in files.files.values():
        for key, entries in dictionaries.items():
            dictionaries[key] = {name: array for name, array in entries.items() if name.startswith(prefix)}
    return files


def refused(files: Source, given: SourceLayout | None = None, **changes: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        found(files, given, **changes)
    return caught.value.problems


@pytest.mark.parametrize(
    "planned",
    [
        layout(),
        layout(((1, 2),), ((2, 0),)),
        layout(((0, 3, 0),), ((0, 0, 2),)),
        layout(((0, 1), (1, 1)), ((1, 0), (1, 0)), tp=2, ep=2),
        layout(((1, 1, 1),), ((2,),)),
        layout(((1, 1, 1, 0),), ((1, 1),)),
        layout(ep=4),
        layout(tp=4, modality_tp={"vision": 8}),
        layout(tp=4, modality_tp={"vision": 1}),
        layout(((0, 0), (2, 1), (0, 0)), ((2, 0), (0, 0), (0, 0)), placement="u_shape"),
    ],
)
def test_a_layout_is_found_as_it_was_written(planned):
    assert found(source(planned)) == planned
    assert found(source(planned), as_given(planned)) == planned


@pytest.mark.parametrize(
    "planned", [layout(), layout(((1, 2),), ((2, 0),)), layout(((0, 1), (1, 1)), ((1, 0), (1, 0)))]
)
def test_a_layout_is_found_whatever_the_order_of_the_tensors(planned):
    files = source(planned)
    for dictionaries in files.files.values():
        for key, entries in dictionaries.items():
            dictionaries[key] = dict(reversed(entries.items()))
    assert found(files) == planned


def as_given(planned: CompleteLayout) -> SourceLayout:
    return SourceLayout(
        tp=planned.tp,
        ep=planned.ep,
        pp=planned.pp,
        vpp=planned.vpp,
        stages=planned.stages,
        modality_tp=planned.modality_tp,
        placement=planned.placement,
    )


def test_an_encoder_that_could_be_written_shorter_is_what_is_given():
    planned = layout(((3, 0),), ((2,),))
    assert found(source(planned)).stages["vision"] == ((2,),)
    longer = SourceLayout(stages={"vision": ((2, 2),)})
    assert refused(source(planned), longer) == [
        f"{DIRECTORY}: source_layout.stages.vision=[2,2]: adds up to 4 layers, but the model has 2 vision layers"
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pp": 3}, f"source_layout.pp=3: {DIRECTORY} has pp 2; leave it out"),
        ({"ep": 2}, f"source_layout.ep=2: {DIRECTORY} has ep 1; leave it out"),
        ({"vpp": 2}, f"source_layout.vpp=2: {DIRECTORY} has vpp 1; leave it out"),
        ({"tp": 1}, f"source_layout.tp=1: the text tensors in {DIRECTORY} are cut into 2 pieces; leave it out"),
        (
            {"modality_tp": {"vision": 1}},
            (
                f"source_layout.modality_tp.vision=1: the vision tensors in {DIRECTORY} are cut into 2 pieces; "
                "leave it out"
            ),
        ),
        (
            {"stages": {"text": ((2, 1),)}},
            f"source_layout.stages.text=[2,1]: the stages in {DIRECTORY} hold [1,2] text layers; leave it out",
        ),
        (
            {"placement": "u_shape"},
            (
                f"source_layout.placement=u_shape: in {DIRECTORY} the ends of the language model are on the stages of "
                "placement sequential; leave it out"
            ),
        ),
        (
            {"stages": {"audio": ((1,),)}, "modality_tp": {"audio": 1}},
            "source_layout.stages.audio: this model has no audio modality; it has text, vision",
        ),
    ],
)
def test_what_is_given_and_not_so_is_refused(given, message):
    assert refused(source(layout(((1, 2),), tp=2)), SourceLayout(**given))[0] == message


def test_a_qkv_that_no_rule_fuses_is_not_an_option():
    assert refused(source(layout()), SourceLayout(vision_qkv="fused"), model=canonical()) == [
        "source_layout.vision_qkv=fused: model definition toy has no qkv that training stores by head; leave it out"
    ]


def test_ranks_that_differ_are_of_the_pipeline_and_ranks_with_parts_of_the_experts_are_expert_parallel():
    assert found(source(layout(((1, 2),)))).pp == 2
    assert found(source(layout(ep=2))).ep == 2
    assert found(source(layout(((3, 0),), ((2,),)))).pp == 2


def test_a_damaged_expert_rank_is_an_expert_rank_all_the_same():
    files = source(layout(ep=2))
    del files.files["mp_rank_00_001/model_optim_rng.pt"]["model"]["text.layers.1.experts.0.fc1.weight"]
    assert refused(files) == [
        (
            f"{DIRECTORY}/mp_rank_00_001/model_optim_rng.pt: 1 tensor is missing: "
            "model/text.layers.1.experts.0.fc1.weight; are the files of one checkpoint?"
        )
    ]


def test_where_the_files_do_not_tell_the_kind_of_rank_it_is_asked_for():
    """An encoder that is on every rank, of a model that has experts."""
    files = only(source(layout(((2, 1),), ((2,),))), "vision.")
    assert refused(files) == [
        (
            f"{DIRECTORY}: the second number of names such as mp_rank_00_001 may be the pipeline or the expert "
            "parallel rank: all ranks hold tensors of the same names, and no experts; "
            "give source_layout.pp=2 or source_layout.ep=2"
        )
    ]
    assert found(files, SourceLayout(pp=2)).pp == 2
    assert found(files, SourceLayout(ep=1)).pp == 2
    assert found(files, SourceLayout(ep=2)).ep == 2


def test_the_second_of_one_rank_is_no_question():
    """Some write a number for an axis of one rank."""
    files = source(layout(tp=2))
    files.files = {path.replace("/", "_000/"): content for path, content in files.files.items()}
    assert (found(files).pp, found(files).ep) == (1, 1)


def test_layers_that_do_not_add_up_are_refused_with_the_stages_found():
    asked = "is this the reference of the model, and are the directories of all ranks there?"
    assert refused(source(layout(((1, 2),), ((1, 1),))), num_hidden_layers=4) == [
        f"{DIRECTORY}: its stages hold [1,2] text layers, but config.json says that the model has 4; {asked}"
    ]
    assert refused(source(layout(((1, 2),), ((2,),))), vision_config=toy.config()["vision_config"] | {"depth": 3}) == [
        f"{DIRECTORY}: its stages hold [2,2] vision layers, but config.json says that the model has 3; {asked}"
    ]


def test_a_piece_of_the_wrong_shape_does_not_hide_the_size():
    files = source(layout(tp=2))
    name = "text.layers.0.mlp.fc2.weight"
    files.files["mp_rank_01/model_optim_rng.pt"]["model"][name] = np.zeros((toy.HIDDEN, toy.MLP), np.int64)
    (problem,) = refused(files)
    assert problem.startswith(
        f"{DIRECTORY}/mp_rank_01/model_optim_rng.pt: model/{name} has shape [16, 12], expected [16, 6]"
    )


def test_more_ranks_than_pieces_is_another_model():
    files = source(layout(tp=2))
    whole = source(layout())
    files.files = {path: next(iter(whole.files.values())) for path in files.files}
    assert refused(files) == [
        (
            f"{DIRECTORY}: has 2 tensor parallel ranks, but with the sizes in config.json its tensors are cut into 1 "
            "pieces at most; is this the reference of the model?"
        )
    ]


def test_names_that_no_rule_knows_are_another_model():
    files = Source(files={"mp_rank_00/model_optim_rng.pt": {"model": {"something": np.zeros(3, np.int64)}}})
    assert refused(files) == [f"{DIRECTORY}: model definition toy knows no name in it; is this another model?"]


def canonical(**changes: Any) -> dict[str, Any]:
    """The toy model whose adapters alone are converted."""
    model = toy.content()
    model |= {"adapters": "only", "experts": None, "tied": None, "lists": {}, "ignore": []}
    model["rules"] = {
        "vision": {"blocks": model["rules"]["vision"]["blocks"][1:]},
        "text": {
            "attention": [
                {
                    "target": "text.layers.{layer}.q.weight",
                    "sources": [["model.layers.{layer}.q.weight", "hidden", "hidden"]],
                    "tp": ["rows", "heads"],
                }
            ]
        },
    }
    return model | changes


ADAPTERS = {
    f"{module}.lora_{factor}.default.weight": (rows, columns)
    for module, sizes in (("model.layers.{}.q", (16, 16)), ("visual.blocks.{}.proj", (24, 24)))
    for factor, rows, columns in (("A", 4, sizes[1]), ("B", sizes[0], 4))
}


def adapters(planned: CompleteLayout, *modalities: str) -> Source:
    shapes = {
        name.format(layer): shape
        for name, shape in ADAPTERS.items()
        for modality, prefix, layers in (("text", "model.", 3), ("vision", "visual.", 2))
        if modality in modalities and name.startswith(prefix)
        for layer in range(layers)
    }
    return source(planned, shapes=shapes, model=canonical())


def test_adapters_alone_tell_their_stages_and_ranks():
    planned = layout(((1, 2),), tp=2)
    given = found(adapters(planned, "text"), model=canonical())
    assert (given.pp, given.ep, given.tp, given.stages) == (2, 1, 2, {"text": ((1, 2),)})


def test_into_how_many_pieces_adapters_of_two_modalities_are_cut_is_asked_for():
    planned = layout(((1, 2),), ((2, 0),), tp=2, modality_tp={"vision": 1})
    files = adapters(planned, "text", "vision")
    assert refused(files, model=canonical()) == [
        f"{DIRECTORY}: there are 2 tensor parallel ranks, and nothing tells whether the {modality} tensors are cut "
        f"into as many pieces; give {key}"
        for modality, key in (("vision", "source_layout.modality_tp.vision"), ("text", "source_layout.tp"))
    ]
    given = SourceLayout(tp=2, modality_tp={"vision": 1})
    assert found(files, given, model=canonical()).modality_tp == {"vision": 1}
    shapes = {
        each.name: each.recipe.tensor.shape for each in bound(files, given, model=canonical()).parameters.parameters
    }
    assert shapes["vision.layers.1.proj.lora_A.default.weight"] == (4, 24)
    assert shapes["text.layers.2.q.lora_B.default.weight"] == (16, 4)


def test_an_encoder_whose_adapters_are_on_every_stage():
    planned = layout(((1, 2),), ((2,),))
    assert found(adapters(planned, "text", "vision"), model=canonical()).stages == planned.stages


def without_adapters(planned: CompleteLayout, stage: int, layer: int) -> Source:
    """Text adapters, but for a layer of a stage."""
    files = adapters(planned, "text")
    name = "mp_rank_00" if planned.pp == 1 else f"mp_rank_00_{stage:03d}"
    for factor in "AB":
        del files.files[f"{name}/model_optim_rng.pt"]["model"][f"text.layers.{layer}.q.lora_{factor}.default.weight"]
    return files


# What an adapter's reference names where it has three layers, and no config.json of the model.
NAMED = tuple(f"model.layers.{layer}.q.lora_A.default.weight" for layer in (0, 2))


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, "3"),
        ({"reference": dict.fromkeys(NAMED), "num_hidden_layers": None}, "3"),
        ({"num_hidden_layers": None}, "none"),
    ],
)
def test_at_which_stage_layers_have_no_adapters_is_asked_for(changes, known):
    """The last layer of the first stage has none."""
    files = without_adapters(layout(((2, 1),)), 0, 1)
    (problem,) = refused(files, model=canonical(), **changes)
    assert problem == (
        f"{DIRECTORY}: its stages hold adapters on [1,1] text layers, and the reference has {known}: the last layers "
        "of a stage may have none; give source_layout.stages.text"
    )
    files = without_adapters(layout(((2, 1),)), 0, 0)
    if "reference" in changes or not changes:
        assert found(files, model=canonical(), **changes).stages == {"text": ((2, 1),)}


def test_a_stage_list_that_is_given_for_adapters_has_as_many_layers_as_the_model():
    files = without_adapters(layout(((2, 1),)), 0, 1)
    problems = refused(files, SourceLayout(stages={"text": ((1, 1),)}), model=canonical())
    assert problems == [
        f"{DIRECTORY}: source_layout.stages.text=[1,1]: adds up to 2 layers, but the model has 3 text layers"
    ]


@pytest.mark.parametrize("layers", [3, None])
def test_one_stage_has_all_layers_whether_they_have_adapters_or_not(layers):
    files = without_adapters(layout(), 0, 2)
    assert found(files, model=canonical(), num_hidden_layers=layers).stages == {"text": ((layers or 2,),)}


def test_layers_without_adapters_are_given():
    """The last layer of the first stage has none."""
    files = without_adapters(layout(((2, 1),)), 0, 1)
    result = bound(files, SourceLayout(stages={"text": ((2, 1),)}), model=canonical())
    assert [each.layer for each in result.parameters.parameters] == [0, 2, 0, 2]
    assert result.parameters.adapters
