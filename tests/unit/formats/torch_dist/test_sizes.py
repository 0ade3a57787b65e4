"""The sizes that training was configured with, against those of config.json."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.model import Model
from distconv.formats.torch_dist.sizes import Told, contradictions, is_configured_alone, read_run_config, told_by
from distconv.models.library import Library
from distconv.planning.facts import model_of

LIBRARY = Library.of_package()
CONFIG = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
ARGS = {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 16}


def model(name: str, **config: Any) -> Model:
    return model_of(name, LIBRARY.content(name), None, {**CONFIG, **config}, "/hf", {})


def test_sizes_are_whole_numbers():
    values = {**ARGS, "num_experts": None, "hidden_size": True, "seed": 1, "num_layers": "4"}
    assert told_by("args", values) == Told(
        where="args", sizes={"num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 16}
    )


@pytest.mark.parametrize(("grouped", "told"), [(None, True), (True, True), (False, False)])
def test_groups_mean_nothing_without_grouped_attention(grouped, told):
    values = ARGS if grouped is None else {**ARGS, "group_query_attention": grouped}
    assert ("num_query_groups" in told_by("args", values).sizes) is told


def test_what_agrees_is_no_contradiction():
    assert contradictions(told_by("args", {**ARGS, "num_experts": 8}), model("qwen3")) == []


@pytest.mark.parametrize("name", ARGS)
def test_every_size_is_compared(name):
    (problem,) = contradictions(told_by("args", {**ARGS, name: 7}), model("qwen3"))
    assert problem.startswith(f"args: {name} is 7, but /hf/config.json says ")
    assert f"({ARGS[name]}, " in problem


@pytest.mark.parametrize("name", ["num_experts", "num_moe_experts"])
def test_experts_are_compared_under_both_names(name):
    (problem,) = contradictions(told_by("args", {name: 7}), model("qwen3_moe", num_experts=8))
    assert f"{name} is 7" in problem


def test_latent_attention_has_no_groups():
    told = told_by("args", {"num_query_groups": 7, "kv_channels": 7, "num_layers": 7})
    (problem,) = contradictions(told, model("deepseek_v3"))
    assert "num_layers" in problem


def test_what_the_configuration_lacks_is_not_compared():
    bare = model_of("qwen3", LIBRARY.content("qwen3"), None, {}, "/hf", {})
    assert contradictions(told_by("args", {"num_layers": 7}), bare) == []


def test_of_several_modalities_training_may_have_placeholders():
    assert is_configured_alone(model("qwen3"))
    assert not is_configured_alone(model("qwen2vl"))


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("model:\n  num_layers: 4\n  hidden_size: 8\n  _target_: x\n", {"num_layers": 4, "hidden_size": 8}),
        ("model:\n  num_layers: four\n  hidden_size: [8]\n", {}),
        ("model: 7\n", {}),
        ("num_layers: 4\n", {}),
        ("[model]\n", {}),
        ("", {}),
        # A tag makes nothing.
        ("model: !!python/object/apply:os.system\n  num_layers: 4\n", {"num_layers": 4}),
    ],
)
def test_a_configuration_of_bridge_is_data(text, sizes, tmp_path):
    (tmp_path / "run_config.yaml").write_text(text)
    seen = []
    told = read_run_config(tmp_path, seen)
    assert told is not None
    assert (told.where, told.sizes) == (f"{tmp_path / 'run_config.yaml'}: model", sizes)
    assert [file.path for file in seen] == [str(tmp_path / "run_config.yaml")]


def test_there_may_be_no_configuration_of_bridge(tmp_path):
    assert read_run_config(tmp_path, []) is None


@pytest.mark.parametrize("text", ["model: [", "a: b: c", "\0", "model: *unknown"])
def test_a_configuration_that_is_no_yaml_is_refused(text, tmp_path):
    (tmp_path / "run_config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"run_config\.yaml: not valid YAML"):
        read_run_config(tmp_path, [])
