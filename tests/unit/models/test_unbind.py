"""Published tensors come back from parameters, whatever the layout and the model; nothing is made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.errors import JobError
from distconv.models.parameters import Binding
from distconv.models.unbind import Restored, restore
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import whole
from tests.unit import toy
from tests.unit.formats.megatron.test_bind import layouts
from tests.unit.reference import evaluate
from tests.unit.toy_megatron import Source, bound, contiguous, layout, source, spaced, transposed

NAMES = ["model.embed.weight", "lm_head.weight"]


def arrays(tensors: tuple[NamedTensor, ...] | list[NamedTensor], files: Source) -> dict[str, np.ndarray]:
    return {
        each.name: evaluate(each.tensor, [files.stored(source) for source in each.sources], np.dtype(np.int64))
        for each in tensors
    }


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@settings(max_examples=30)
@given(layouts(), st.sampled_from([contiguous, transposed, spaced]))
def test_every_published_tensor_comes_back(planned, store):
    files = source(planned)
    files.store = store
    found = bound(files)
    restored = restore(found.over_hf, found.parameters)
    assert_same(arrays(restored.tensors, files), toy.arrays())
    assert len(restored.tensors) == len(toy.shapes())
    assert restored.left_out == ()


def test_parameters_that_are_published_alike_may_be_stored_differently():
    """Layers of one recipe are not of one table where one of them, or one of its pieces, lies otherwise in its file."""
    files = source(layout(((3,),), tp=2))
    turned = [
        array
        for path, name in [
            ("mp_rank_00/model_optim_rng.pt", "text.layers.1.qkv.weight"),
            ("mp_rank_01/model_optim_rng.pt", "text.layers.1.qkv.weight"),
            ("mp_rank_01/model_optim_rng.pt", "text.layers.2.qkv.weight"),
            ("mp_rank_00/model_optim_rng.pt", "text.layers.2.norm.weight"),
        ]
        for array in [files.files[path]["model"][name]]
    ]
    files.store = lambda array: (transposed if any(array is each for each in turned) else contiguous)(array)
    found = bound(files)
    assert_same(arrays(restore(found.over_hf, found.parameters).tensors, files), toy.arrays())


def forward(**given: object) -> Binding:
    return toy.bound(**given)  # type: ignore[arg-type]


def identity(published: Binding) -> Binding:
    """The parameters as they would be stored whole."""
    stored = tuple(
        replace(
            each,
            recipe=replace(
                each.recipe,
                tensor=whole(each.recipe.tensor.dtype, each.recipe.tensor.shape),
                source_shapes=(each.recipe.tensor.shape,),
            ),
            sources=(replace(each.sources[0], name=each.name, shape=each.recipe.tensor.shape),),
        )
        for each in published.parameters
    )
    return replace(published, parameters=stored)


def without(binding: Binding, *numbers: int) -> Binding:
    kept = [each for number, each in enumerate(binding.parameters) if number not in numbers]
    return replace(binding, parameters=tuple(kept))


def test_an_element_that_no_parameter_holds_is_an_error_and_not_zeros():
    """One of the experts that are one tensor."""
    published = forward()
    stored = identity(published)
    (number,) = [i for i, each in enumerate(published.parameters) if each.name == "text.layers.1.experts.2.fc2.weight"]
    lost = toy.FFN * toy.HIDDEN
    with pytest.raises(JobError, match=rf"model\.layers\.1\.experts\.down: {lost} elements would have no source"):
        restore(without(published, number), without(stored, number))


def test_parameters_are_paired_by_name_whatever_their_order():
    files = source(layout(((1, 2),), tp=2))
    found = bound(files)
    turned = replace(found.parameters, parameters=found.parameters.parameters[::-1])
    assert_same(arrays(restore(found.over_hf, turned).tensors, files), toy.arrays())


def test_a_parameter_that_has_nothing_to_be_paired_with_is_an_error():
    published = forward()
    stored = identity(published)
    name = published.parameters[0].name
    for pair in ((without(published, 0), stored), (published, without(stored, 0))):
        with pytest.raises(JobError, match=rf"^{name}: is a parameter of the source or of the result alone; "):
            restore(*pair)


def without_key_bias() -> dict[str, object]:
    """The toy with attention whose k has no bias: zeros stand for it on the Megatron side."""
    content = toy.content()
    attention = content["rules"]["text"]["attention"]
    (norm, qkv) = attention
    weight = {
        **qkv,
        "target": qkv["target"].replace("{weight,bias}", "weight"),
        "sources": [[name.replace("{weight,bias}", "weight"), *dims] for name, *dims in qkv["sources"]],
    }
    bias = {
        **qkv,
        "target": qkv["target"].replace("{weight,bias}", "bias"),
        "sources": [
            [name.replace("{weight,bias}", "bias"), dims[0]] for name, *dims in (qkv["sources"][0], qkv["sources"][2])
        ],
        "operator": ["qzv_group", "groups"],
    }
    content["rules"]["text"]["attention"] = [norm, weight, bias]
    return content


def test_what_the_published_model_has_no_part_for_is_left_out_by_name():
    shapes = {name: shape for name, shape in toy.shapes().items() if not name.endswith(".k.bias")}
    published = forward(given=shapes, model=without_key_bias())
    restored: Restored = restore(published, identity(published))
    assert {each.name for each in restored.tensors} == shapes.keys()
    rows = toy.HIDDEN // toy.HEADS * toy.GROUPS
    whole_bias = toy.HIDDEN + 2 * rows
    assert [(each.tensor.name, each.reason) for each in restored.left_out] == [
        (
            f"text.layers.{layer}.qkv.bias",
            f"{rows} of {whole_bias} elements: the published model has no such part",
        )
        for layer in range(toy.LAYERS)
    ]


def test_layers_that_look_alike_share_a_table():
    found = bound(source(layout(((1, 1, 1),), tp=2)))
    tables = {
        each.name: each.tensor
        for each in restore(found.over_hf, found.parameters).tensors
        if each.name.endswith(".q.weight")
    }
    assert len(tables) == toy.LAYERS
    assert len({id(tensor) for tensor in tables.values()}) == 1
