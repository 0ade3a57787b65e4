"""What an `adapter_config.json` says about weights is understood as PEFT understands it, or refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.models.adapter_config import AdapterConfig

WHERE = "/hf/adapter_config.json"
OTHERS = "; is it the adapter_config.json that was saved with these adapters?"
CONFIG = {"peft_type": "LORA", "bias": "none", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]}
SHAPES = {
    "base_model.model.model.layers.0.q_proj.lora_A.default.weight": (8, 16),
    "base_model.model.model.layers.0.q_proj.lora_B.default.weight": (32, 8),
    "base_model.model.model.layers.1.down_proj.lora_A.weight": (8, 16),
    "base_model.model.model.layers.1.down_proj.lora_B.weight": (32, 8),
}
Q, DOWN = "model.layers.0.q_proj", "model.layers.1.down_proj"
# What PEFT 0.21 writes for LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"]).
AS_PEFT_WRITES = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 16,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["down_proj", "q_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}


def parse(**changes: Any) -> AdapterConfig:
    return AdapterConfig.parse({**CONFIG, **changes}, WHERE)


def refused(**changes: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse(**changes)
    return caught.value.problems


def contradictions(
    shapes: dict[str, tuple[int, ...]] = SHAPES, left_out: tuple[str, ...] = (), **changes: Any
) -> list[str]:
    return parse(**changes).contradictions(shapes, left_out)


def test_what_peft_writes_is_understood():
    config = AdapterConfig.parse(AS_PEFT_WRITES, WHERE)
    assert config.contradictions(SHAPES, ()) == []
    scaling = config.scaling({"q": Q, "down": DOWN})
    assert (scaling.of("q", 8), scaling.initialisation) == (2.0, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("trainable_token_indices", [0, 1]),
        ("trainable_token_indices", {"embed_tokens": [7]}),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
        ("lora_bias", True),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("use_qalora", True),
        ("alora_invocation_tokens", [128000, 9125]),
        ("velora_config", {"num_groups": 64}),
        ("monteclora_config", {"num_samples": 8}),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1e-4}),
    ],
)
def test_a_setting_that_means_more_than_factors_is_refused_by_name(key, value):
    (problem,) = refused(**{key: value})
    assert problem.startswith(f"{WHERE}: {key} is ")
    assert "cannot be converted; merge the adapter with PEFT" in problem


def test_all_that_is_refused_is_said_at_once():
    problems = refused(use_dora=True, modules_to_save=["lm_head"], use_shira=[3], alpha_pattern=["q"], peft_type="LOHA")
    assert [problem.split(": ")[1].split(" is ")[0] for problem in problems] == [
        "peft_type", "use_dora", "modules_to_save", "use_shira", "alpha_pattern",
    ]  # fmt: skip


def test_a_setting_that_is_not_known_is_refused_unless_it_is_off():
    (problem,) = refused(use_shira=3)
    assert problem.startswith(f"{WHERE}: use_shira is 3: not known to this version, and may change the meaning of")
    for off in (None, False, 0, "", [], {}):
        parse(use_shira=off)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", True),
        ("r", "8"),
        ("lora_alpha", "16"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 10**400),
        ("use_rslora", "yes"),
        ("rank_pattern", {"*": 4}),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"(": 4}),
        ("alpha_pattern", {"q_proj": None}),
        ("init_lora_weights", "mystery"),
        ("init_lora_weights", 3),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", "(q_proj"),
        ("exclude_modules", [1]),
        ("layers_to_transform", ["0"]),
        ("layers_pattern", ["("]),
    ],
)
def test_a_malformed_setting_is_refused(key, value):
    (problem,) = refused(**{key: value})
    assert problem.startswith(f"{WHERE}: {key}: expected ")


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"])
def test_an_initialisation_that_changed_the_base_is_remembered(value):
    assert parse(init_lora_weights=value).scaling({}).initialisation == value


@pytest.mark.parametrize("value", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_an_initialisation_that_left_the_base_alone_does_not_matter(value):
    assert parse(init_lora_weights=value).scaling({}).initialisation is None


# As `get_pattern_key` of peft/utils/other.py has it.
def as_peft(patterns: dict[str, int], module: str, default: int) -> int:
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


KEYS = st.sampled_from(
    ["q_proj", "layers.0.q_proj", "^model.layers.0.q_proj", r"layers\.\d+\..*", "q_proj|n_proj", "_proj", "x|q_proj",
     r".*\.q_proj", "^layers.0.q_proj", "model", "layers.0", "0.q_proj$", "down"]
)  # fmt: skip
MODULES = st.sampled_from([Q, DOWN, "visual.blocks.0.q_proj", "q_proj", "n_proj", "model.layers.10.q_proj"])


@given(patterns=st.dictionaries(KEYS, st.integers(1, 64), max_size=4), module=MODULES)
def test_a_pattern_is_for_the_modules_that_peft_takes_it_for(patterns, module):
    config = parse(rank_pattern=patterns, alpha_pattern=patterns)
    scaling = config.scaling({"a module": module})
    expected = as_peft(patterns, module, 16)
    assert scaling.alpha_of("a module") == expected
    rank = as_peft(patterns, module, 8)
    names = {
        f"base_model.model.{module}.lora_A.weight": (rank, 4),
        f"base_model.model.{module}.lora_B.weight": (4, rank),
    }
    assert not [each for each in config.contradictions(names, ()) if "has rank" in each]
    names = {name: tuple(size + 1 if size == rank else size for size in shape) for name, shape in names.items()}
    assert len([each for each in config.contradictions(names, ()) if "has rank" in each]) == 2


def test_an_adapter_that_is_what_its_configuration_says():
    assert contradictions() == []
    assert contradictions(target_modules=[Q, "1.down_proj"]) == []
    assert contradictions(target_modules=r".*_proj") == []
    assert contradictions(target_modules="all-linear") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_modules": ["q_proj", "down_proj", "up_proj"]},
            f"{WHERE}: target module up_proj has no adapter in the checkpoint{OTHERS}",
        ),
        (
            {"target_modules": ["q_proj"]},
            f"{WHERE}: down_proj has adapters in the checkpoint, but is not among its target modules{OTHERS}",
        ),
        (
            {"target_modules": r".*\.q_proj"},
            f"{WHERE}: down_proj has adapters in the checkpoint, but is not among its target modules{OTHERS}",
        ),
        (
            {"exclude_modules": ["layers.1.down_proj"]},
            f"{WHERE}: down_proj has adapters in the checkpoint, but is not among its target modules{OTHERS}",
        ),
        (
            {"exclude_modules": r"model\.layers\.1\..*"},
            f"{WHERE}: down_proj has adapters in the checkpoint, but is not among its target modules{OTHERS}",
        ),
    ],
)
def test_a_contradiction_is_reported(changes, message):
    assert contradictions(**changes) == [message]


@pytest.mark.parametrize(
    ("settings", "strangers"),
    [
        ({"layers_to_transform": [0, 1]}, []),
        ({"layers_to_transform": []}, []),
        ({"layers_to_transform": 1}, ["q_proj"]),
        ({"layers_to_transform": [0], "layers_pattern": "layers"}, ["down_proj"]),
        ({"layers_to_transform": [0, 1], "layers_pattern": ["h", "blocks"]}, ["down_proj", "q_proj"]),
        # A module that is named in full is one whatever its layer.
        ({"layers_to_transform": [7], "target_modules": [Q, DOWN]}, []),
    ],
)
def test_layers_are_transformed_as_peft_does(settings, strangers):
    assert contradictions(**settings) == [
        f"{WHERE}: {each} has adapters in the checkpoint, but is not among its target modules{OTHERS}"
        for each in strangers
    ]


def test_a_module_is_named_in_full_where_others_of_its_kind_are_meant():
    shapes = {**SHAPES, **{name.replace("layers.0", "layers.3"): shape for name, shape in SHAPES.items()}}
    assert contradictions(shapes, layers_to_transform=[0, 1]) == [
        f"{WHERE}: model.layers.3.q_proj has adapters in the checkpoint, but is not among its target modules{OTHERS}"
    ]


def test_a_target_module_may_be_left_out_on_purpose():
    targets = [*CONFIG["target_modules"], "mlp.0"]
    assert contradictions(target_modules=targets) != []
    assert contradictions(target_modules=targets, left_out=("visual.merger.mlp.0.lora_A.weight", "other")) == []


def test_every_factor_of_another_rank_is_reported():
    assert contradictions(r=4) == [f"{name} has rank 8, but {WHERE} says 4{OTHERS}" for name in SHAPES]
    assert contradictions(rank_pattern={"down_proj": 4}) == [
        f"{name} has rank 8, but {WHERE} says 4{OTHERS}" for name in SHAPES if "down" in name
    ]
