"""Two hundred random models on random routes, most of them damaged: right by an independent check, or refused."""

from __future__ import annotations

from random import Random

import pytest

from tests.differential.families import FAMILIES
from tests.differential.rounds import run_round

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")

ROUNDS = 200
# Seeds of `make soak` that found something. One that the tables of damages outgrow gets a test of its own elsewhere.
KEPT: tuple[int, ...] = ()


@pytest.mark.parametrize("seed", [*range(ROUNDS), *KEPT])
def test_a_round_is_right_or_refused(seed, tmp_path):
    assert run_round(seed, tmp_path).outcome in ("right", "refused")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_has_few_enough_elements_to_number_them_in_two_bytes(family):
    for seed in range(20):
        model = FAMILIES[family](Random(seed))  # noqa: S311 - reproducible, and no secret
        assert sum(map(_elements, model.shapes.values())) < 2**16, (family, seed)
        assert model.head in model.shapes or model.left_out
        assert model.left_out <= model.shapes.keys()


def _elements(shape):
    product = 1
    for each in shape:
        product *= each
    return product
