"""The heads of the definitions are what Hydra's own composition would say, and nothing else is composed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from distconv.errors import InputError
from distconv.models.library import head_of, read_heads

KEYS = {"model_types", "variant_of", "adapters"}
PACKAGED = files("distconv.conf")
# What a user may write beside the definitions of the package, and whether only Hydra can tell what it comes to.
BY_HAND = {
    "own": ("model_types: [own]\nsizes: {a: [b]}\n", False),
    "child": ("defaults: [qwen2_5vl_lora, _self_]\nmodel_types:\n- child\n", False),
    "without_self": ("defaults: [qwen2_5vl_lora]\nvariant_of: null\n", False),
    "self_first": ("defaults: [_self_, videoalign_canonical]\nmodel_types: [lost]\nadapters: only\n", False),
    "two": ("defaults: [internvl, qwen2vl_canonical, _self_]\n", False),
    # Hydra puts these elsewhere than into the model itself.
    "absolute": ("defaults: [/model/child, _self_]\nadapters: null\n", True),
    "nested": ("defaults: [base/below, _self_]\n", True),
    "lifted": ("# @package model\ndefaults: [own]\n", True),
    "child_of_lifted": ("defaults: [lifted, _self_]\nadapters: only\n", True),
    "in_a_mapping": ("defaults: [{base@_here_: below}, _self_]\nadapters: beside\n", True),
    "placed": ("defaults: [glm4_1v@_here_, _self_]\n", True),
    "child_of_placed": ("defaults: [placed, _self_]\nvariant_of: glm4_1v\n", True),
    # Hydra takes the package's.
    "qwen2vl": ("model_types: [shadowed]\n", False),
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "base").mkdir(parents=True)
    for name, (content, _) in BY_HAND.items():
        (directory / f"{name}.yaml").write_text(content)
    (directory / "base" / "below.yaml").write_text("defaults: [next, _self_]\nvariant_of: below\n")
    (directory / "base" / "next.yaml").write_text("model_types: [next]\nvariant_of: next\n")
    (directory / "README.md").write_text("model_types: [none]")
    return tmp_path


def never(name: str) -> Mapping[str, Any]:
    raise AssertionError(f"{name} was composed")


def test_the_heads_are_those_of_the_composed_definitions(own):
    search_path = f"hydra.searchpath=[{own}]"
    composed: list[str] = []

    def by_hydra(name: str) -> dict[str, Any]:
        composed.append(name)
        content: Any = OmegaConf.to_container(compose("config", [search_path, f"+model={name}"]).model)
        return content

    with initialize_config_module("distconv.conf", version_base="1.3"):
        heads = read_heads([PACKAGED, own], by_hydra)
        assert set(composed) == {name for name, (_, only_hydra) in BY_HAND.items() if only_hydra}
        expected = {name: by_hydra(name) for name in heads}

    assert set(BY_HAND) < set(heads)
    assert heads == {name: {key: content[key] for key in KEYS & set(content)} for name, content in expected.items()}
    assert heads["qwen2vl"] == {"model_types": ["qwen2_vl"]}
    assert heads["without_self"]["variant_of"] is None


@pytest.mark.parametrize("value", [2, [["own"]], {"own": 1}])
def test_what_is_no_head_is_left_to_the_parser_of_the_definition(value):
    assert head_of({"model_types": value, "variant_of": value, "adapters": "only"}) == {"adapters": "only"}


def test_the_first_place_counts(own):
    assert read_heads([own, PACKAGED], lambda _: {})["qwen2vl"] == {"model_types": ["shadowed"]}


def test_none_of_the_package_is_composed():
    heads = read_heads([PACKAGED], never)
    assert heads["videoalign_canonical"] == {
        "model_types": ["qwen2_vl"],
        "variant_of": "qwen2vl",
        "adapters": "beside",
    }


def test_places_without_definitions_are_passed_over(tmp_path):
    assert read_heads([tmp_path, tmp_path / "none"], never) == {}


@pytest.mark.parametrize("parent", ["loop", "other", "absent"])
def test_an_inheritance_that_leads_nowhere_is_left_to_hydra(tmp_path, parent):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "loop.yaml").write_text(f"defaults: [{parent}, _self_]\nmodel_types: [a]\n")
    (tmp_path / "model" / "other.yaml").write_text("defaults: [loop, _self_]\n")
    assert read_heads([tmp_path], never)["loop"] == {"model_types": ["a"]}


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\xfa"])
def test_a_file_that_is_not_yaml_is_named(tmp_path, content):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"model/broken\.yaml: not a YAML file"):
        read_heads([tmp_path], never)
