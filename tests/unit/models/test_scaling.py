"""What the product of factors is multiplied by, with PEFT's arithmetic, and the scaling as plain data."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.models.scaling import Scaling

ALPHAS = st.one_of(st.integers(1, 1024), st.floats(0.5, 1024))


@given(alpha=ALPHAS, other=ALPHAS, rank=st.integers(1, 512))
def test_the_alpha_of_a_module_over_its_rank_or_the_root_of_that(alpha, other, rank):
    plain = Scaling(alpha=alpha, alphas={"special": other})
    rooted = Scaling(alpha=alpha, alphas={"special": other}, rslora=True)
    assert (plain.of("a", rank), plain.of("special", rank)) == (alpha / rank, other / rank)
    assert (rooted.of("a", rank), rooted.of("special", rank)) == (alpha / math.sqrt(rank), other / math.sqrt(rank))


def test_training_that_divides_by_the_rank_needs_another_alpha():
    assert Scaling(alpha=16, rslora=True).plain_alphas({"a": 4, "b": 4}) == [32.0]
    assert Scaling(alpha=16, rslora=True).plain_alphas({"a": 4, "b": 16}) == [32.0, 64.0]
    assert Scaling(alpha=16, alphas={"b": 8}).plain_alphas({"a": 4, "b": 16}) == [8.0, 16.0]


@given(
    alpha=st.one_of(st.none(), ALPHAS),
    rslora=st.booleans(),
    alphas=st.dictionaries(st.text(max_size=3), ALPHAS, max_size=3),
    initialisation=st.one_of(st.none(), st.just("pissa")),
)
def test_a_scaling_is_the_same_after_it_was_written(alpha, rslora, alphas, initialisation):
    scaling = Scaling(alpha=alpha, rslora=rslora, alphas=alphas, initialisation=initialisation, where="/a")
    assert Scaling.parse(scaling.to_json(), "/a") == scaling


@pytest.mark.parametrize(
    "data",
    [
        [],
        "16",
        {"alpha": "16"},
        {"alpha": float("nan")},
        {"alpha": True},
        {"rslora": 1},
        {"alphas": [1]},
        {"alphas": {"a": None}},
        {"initialisation": 3},
    ],
)
def test_a_damaged_scaling_is_refused(data):
    with pytest.raises(InputError, match=r"/mm/distconv\.json: expected the scaling of adapters"):
        Scaling.parse(data, "/mm/distconv.json")
