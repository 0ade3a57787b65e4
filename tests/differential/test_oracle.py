"""The judgement of the differential test finds what it is for."""

from __future__ import annotations

import pytest
import torch

from tests.differential.drafts import numbered, numbered_tensors, same
from tests.differential.generations import is_tied
from tests.differential.models import Model
from tests.differential.oracle import WrongError, check_elements, check_named

FIVE = {"transformers_version": "5.0.0"}
SHAPES = {"a": (2, 3), "b": (4,)}


@pytest.fixture
def tensors():
    return numbered_tensors(SHAPES, dict.fromkeys(SHAPES, torch.bfloat16), 1)


def test_no_two_elements_are_alike_and_none_is_zero(tensors):
    elements = torch.cat([each.view(torch.int16).flatten() for each in tensors.values()])
    assert elements.tolist() == list(range(1, 11))
    assert numbered((2,), torch.float16, 65535).view(torch.int16).tolist() == [-1, 1]


def test_tensors_under_their_names(tensors):
    check_named(tensors, tensors, ())
    check_named({"a": tensors["a"]}, tensors, {"b"})
    swapped = tensors["a"].clone()
    swapped[0, 0], swapped[1, 1] = tensors["a"][1, 1], tensors["a"][0, 0]
    for wrong in (
        {"a": tensors["a"]},
        {**tensors, "c": tensors["a"]},
        {**tensors, "a": swapped},
        {**tensors, "a": tensors["a"].reshape(3, 2)},
        {**tensors, "a": tensors["a"].view(torch.float16)},
    ):
        with pytest.raises(WrongError):
            check_named(wrong, tensors, ())


def test_elements_under_other_names(tensors):
    flat = torch.cat([each.flatten() for each in tensors.values()])
    check_elements([{"x": flat[5:]}, {"y": flat[:5], "z": flat[6:7]}], tensors, padded=False)
    zeros = torch.zeros(2, dtype=torch.bfloat16)
    check_elements([{"x": flat, "y": zeros}], tensors, padded=True)
    for wrong, what in (
        ([{"x": flat[1:]}], "lost"),
        ([{"x": flat, "y": flat[:1]}], "more than once"),
        ([{"x": flat, "y": numbered((1,), torch.bfloat16, 77)}], "never put in"),
        ([{"x": flat, "y": zeros}], "never put in"),
        ([{"x": flat.float()}], "never put in"),
    ):
        with pytest.raises(WrongError, match=what):
            check_elements(wrong, tensors, padded=False)


def test_sameness_is_that_of_bits():
    nan = torch.tensor([float("nan"), 0.0])
    assert same(nan, nan.clone())
    assert not same(nan, torch.tensor([float("nan"), -0.0]))


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
        ({**FIVE, "tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
        ({"transformers_version": "4.57.1"}, False),
    ],
)
def test_the_tie_is_read_as_the_release_does(config, tied):
    model = Model(family="any", config={}, text="text_config", shapes={}, layers={})
    assert is_tied(config, model) is tied
