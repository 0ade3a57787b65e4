"""Adapters on the way back: as PEFT has them, merged with the scaling that is known, or refused at planning."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.huggingface.peft import as_peft, merged_beside, merged_into, scaling_of
from distconv.formats.model import Reference
from distconv.models.adapter_config import AdapterConfig
from distconv.models.scaling import Scaling
from distconv.tensors.stored import NamedTensor, SourceFile, SourceIndex, StoredTensor, as_stored

FILE = SourceFile("/dcp/__0_0.distcp", 1 << 20)
Shapes = Mapping[str, tuple[int, ...]]
# Modules of 6 rows and 5 columns, and the ranks of their adapters.
RANKS = {"0.q": 2, "0.k": 4, "1.q": 2, "1.k": 2}


def tensors(shapes: Shapes, dtypes: Mapping[str, str] | None = None) -> list[NamedTensor]:
    stored = (
        StoredTensor(name, (dtypes or {}).get(name, "bfloat16"), shape, FILE, 0) for name, shape in shapes.items()
    )
    return list(as_stored(stored))


def factors(ranks: Mapping[str, int] = RANKS) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for module, rank in ranks.items():
        found[f"{module}.lora_A.default.weight"] = (rank, 5)
        found[f"{module}.lora_B.default.weight"] = (6, rank)
    return found


def base(dtypes: Mapping[str, str] | None = None, **changes: tuple[int, ...]) -> Reference:
    """A base whose names have a prefix that the definition's have not, with a module beside the adapted ones."""
    shapes = {f"m.{module}.weight": (6, 5) for module in (*RANKS, "0.o")} | changes
    stored = {
        name: StoredTensor(name, (dtypes or {}).get(name, "bfloat16"), shape, FILE, 0) for name, shape in shapes.items()
    }
    return Reference(
        directory="/base",
        config={},
        is_adapter=False,
        index=SourceIndex(directory="/base", tensors=stored),
        shard_files=dict.fromkeys(shapes, "model.safetensors"),
        index_content=None,
    )


def spelled(name: str) -> str:
    return name.removeprefix("m.")


def merged(
    given: list[NamedTensor], scaling: Scaling | None = None, reference: Reference | None = None
) -> dict[str, Any]:
    result = merged_into(given, spelled, reference or base(), scaling or Scaling(alpha=8))
    return {each.name: each.low_rank for each in result}


def problems(given: list[NamedTensor], reference: Reference | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        merged(given, reference=reference)
    return caught.value.problems


def test_each_module_is_merged_with_the_scaling_of_its_rank_and_alpha():
    found = merged(tensors(factors()), Scaling(alpha=8, rslora=True, alphas={"1.q": 3}))
    assert {name: product and product.scaling for name, product in found.items()} == {
        "m.0.q.weight": 8 / 2**0.5,
        "m.0.k.weight": 8 / 4**0.5,
        "m.1.q.weight": 3 / 2**0.5,
        "m.1.k.weight": 8 / 2**0.5,
        "m.0.o.weight": None,
    }
    assert found["m.0.k.weight"].a.tensor.shape == (4, 5)
    assert found["m.0.k.weight"].b.tensor.shape == (6, 4)


def test_a_base_that_is_quantised_is_refused_with_all_its_weights():
    quantised = base({"m.0.q.weight": "float8_e4m3fn", "m.1.k.weight": "int8", "m.0.o.weight": "int8"})
    assert [problem.split(",")[0] for problem in problems(tensors(factors()), quantised)] == [
        "m.0.q.weight: is float8_e4m3fn in reference=/base",
        "m.1.k.weight: is int8 in reference=/base",
    ]


@pytest.mark.parametrize("shape", [(5, 6), (30,), (6, 5, 1)])
def test_a_weight_of_another_shape_is_refused(shape):
    assert problems(tensors(factors()), base(**{"m.0.q.weight": shape})) == [
        (
            f"m.0.q.weight: is {list(shape)} in reference=/base, its adapter is for [6, 5]; is it the "
            "base that they were trained on?"
        )
    ]


def test_an_adapter_without_a_weight_is_refused():
    assert problems(tensors(factors({"7.q": 2}))) == [
        "reference=/base: has no weights for the adapters on 7.q; is it the base that they were trained on?"
    ]


@pytest.mark.parametrize(
    ("changes", "dtypes", "message"),
    [
        ({"0.q.lora_A.default.weight": (2,)}, {}, "0.q.lora_A.default.weight: is bfloat16 [2], expected a matrix of"),
        ({"0.q.lora_B.default.weight": (6, 2, 1)}, {}, "0.q.lora_B.default.weight: is bfloat16 [6, 2, 1], expected"),
        ({"0.q.lora_A.default.weight": (0, 5)}, {}, "0.q.lora_A.default.weight: is bfloat16 [0, 5], expected a matrix"),
        ({}, {"0.q.lora_A.default.weight": "int8"}, "0.q.lora_A.default.weight: is int8 [2, 5], expected a matrix of"),
        ({"0.q.lora_A.default.weight": (3, 5)}, {}, "0.q: lora_A [3, 5] and lora_B [6, 2] are of different rank"),
        ({"0.o.lora_A.default.weight": (3, 5)}, {}, "0.o: has lora_A alone; an adapter is lora_A and lora_B"),
        ({"0.q.lora_A.weight": (2, 5)}, {}, "0.q.lora_A.weight: the source holds this factor of 0.q twice"),
    ],
)
def test_what_is_no_product_of_two_matrices_is_refused(changes, dtypes, message):
    given = tensors({**factors(), **changes}, dtypes)
    (problem,) = problems(given)
    assert problem.startswith(message)
    with pytest.raises(InputError, match=re.escape(message)):
        as_peft(given, spelled, base(), Scaling(alpha=8), "toy")


def test_a_second_adapter_does_not_disappear():
    given = tensors({**factors(), "0.q.lora_A.second.weight": (2, 6)})
    for write in (
        lambda: merged(given),
        lambda: as_peft(given, spelled, base(), Scaling(alpha=8), "toy"),
        lambda: merged_beside(given, base(), Scaling(alpha=8), None),
    ):
        with pytest.raises(InputError, match=r"the source holds adapters of names of their own \(second\)"):
            write()


@pytest.mark.parametrize(
    "name",
    [
        "0.q.lora_magnitude_vector.default.weight",
        "0.q.lora_B.default.bias",
        "lm_head.modules_to_save.default.weight",
        "embed.token_adapter.trainable_tokens_delta.default",
    ],
)
def test_what_was_trained_beside_the_factors_does_not_disappear(name):
    given = tensors({**factors(), name: (6,), "lm_head.original_module.weight": (6, 5)})
    message = f"the source holds 1 tensor that was trained beside the factors of adapters, .*: {re.escape(name)};"
    with pytest.raises(InputError, match=message):
        merged(given)
    with pytest.raises(InputError, match=message):
        as_peft(given, spelled, base(), Scaling(alpha=8), "toy")
    with pytest.raises(InputError, match=message):
        merged_beside(given, base(), Scaling(alpha=8), None)


def test_a_base_that_its_adapters_have_changed_is_not_found_in_a_reference():
    changed = Scaling(alpha=8, initialisation="pissa_niter_4", where="/hf/adapter_config.json")
    with pytest.raises(InputError, match=r"/hf/adapter_config\.json: init_lora_weights is 'pissa_niter_4'"):
        merged(tensors(factors()), changed)
    # Beside the adapters, it is the one that they were trained on.
    given = tensors({**factors({"0.q": 2}), "0.q.base_layer.weight": (6, 5)})
    (result,), _ = merged_beside(given, replace(base(), shard_files=None), changed, None)
    assert result.low_rank is not None
    assert (result.name, result.low_rank.scaling) == ("0.q.weight", 4.0)


def test_base_weights_beside_adapters_are_checked_alike():
    given = tensors({**factors({"0.q": 2}), "0.q.base_layer.weight": (6, 5)}, {"0.q.base_layer.weight": "int8"})
    with pytest.raises(InputError, match=r"0\.q\.weight: is int8 in the source, and adapters are merged into"):
        merged_beside(given, replace(base(), shard_files=None), None, 8)


def test_without_adapters_there_is_nothing_to_write():
    with pytest.raises(InputError, match="the source holds no adapters"):
        as_peft(tensors({"0.q.base_layer.weight": (6, 5)}), spelled, base(), Scaling(alpha=8), "toy")


@pytest.mark.parametrize(
    ("known", "given", "alpha"),
    [
        (None, 8.0, 8.0),
        (Scaling(alpha=None, rslora=True), 8.0, 8.0),
        (Scaling(alpha=16), None, 16),
        (Scaling(alpha=16, rslora=True), 16.0, 16),
    ],
)
def test_the_alpha_is_the_one_that_is_known(known, given, alpha):
    found = scaling_of(known, given)
    assert (found.alpha, found.rslora) == (alpha, known is not None and known.rslora)


def test_two_values_of_alpha_contradict():
    known = Scaling(alpha=16, where="/mm/release/distconv.json")
    with pytest.raises(InputError, match=r"lora_alpha=8: /mm/release/distconv\.json says 16; leave it out"):
        scaling_of(known, 8.0)
    with pytest.raises(InputError, match="lora_alpha is missing"):
        scaling_of(None, None)


@pytest.mark.parametrize(
    "scaling",
    [
        Scaling(alpha=8),
        Scaling(alpha=8, rslora=True),
        Scaling(alpha=8, alphas={"0.k": 32, "1.k": 4}, initialisation="olora"),
    ],
)
def test_what_is_written_back_says_the_same_of_every_module(scaling):
    """Differing ranks and alphas as patterns, which PEFT matches to the modules that they are for."""
    adapter = as_peft(tensors(factors()), spelled, base(), scaling, "toy")
    content = json.loads(adapter.config)

    config = AdapterConfig.parse(content, "/back/adapter_config.json")
    assert config.contradictions({each.name: each.tensor.shape for each in adapter.tensors}, ()) == []
    found = config.scaling({module: f"m.{module}" for module in RANKS})
    assert (found.rslora, found.initialisation) == (scaling.rslora, scaling.initialisation)
    assert {module: found.alpha_of(module) for module in RANKS} == {
        module: scaling.alpha_of(module) for module in RANKS
    }
    assert (content["r"], content["rank_pattern"]) == (2, {r"m\.0\.k": 4})
    assert {each.name for each in adapter.tensors} == {
        f"base_model.model.m.{module}.lora_{factor}.weight" for module in RANKS for factor in "AB"
    }
