"""What rank 0 reads of a source, and which definition it chooses by what the checkpoint says it is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.registry import Options
from distconv.layout.request import Layout
from distconv.models.library import Library
from distconv.planning.facts import Facts
from distconv.planning.look import look
from tests.unit import toy
from tests.unit.planning.test_plan import CONFIG
from tests.unit.safetensors_files import shard

DEFINITIONS = {
    "nameless": {**toy.content(), "model_types": []},
    "one": {**toy.content(), "model_types": ["model_one", "model_uno"]},
    "one_variant": {**toy.content(), "model_types": ["model_one"], "variant_of": "one"},
    "two": {**toy.content(), "model_types": ["model_two"], "unless": ["text_config.num_experts", "moe"]},
}


def at_hand(root: Path) -> Library:
    """A library of these definitions, written below a directory."""
    (root / "model").mkdir()
    for name, content in DEFINITIONS.items():
        (root / "model" / f"{name}.yaml").write_text(json.dumps(content))
    return Library([root])


def checkpoint(directory: Path, **config: Any) -> Path:
    directory.mkdir()
    shard(directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def looked(config: Options, chosen: tuple[str, Mapping[str, Any]] | str | None = None) -> Facts:
    if isinstance(chosen, str):
        chosen = chosen, DEFINITIONS[chosen]
    with tempfile.TemporaryDirectory() as root:
        return look(config, chosen, at_hand(Path(root)))


def refused(config: Options, chosen: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        looked(config, chosen)
    return str(caught.value)


def job(source: Path, text_source: Path | None = None) -> Options:
    return replace(CONFIG, source=source, text_source=text_source)


def test_the_facts_are_the_tensors_the_config_and_the_definition(tmp_path):
    found = looked(job(checkpoint(tmp_path / "hf", model_type="model_uno", hidden_size=8)))
    assert sorted(found.source.model.index.tensors) == ["a", "b"]
    assert found.source.config == {"model_type": "model_uno", "hidden_size": 8}
    assert (found.model, found.definition, found.source.text) == ("one", DEFINITIONS["one"], None)


def test_a_separate_language_model_is_looked_at_too(tmp_path):
    source, text = checkpoint(tmp_path / "hf", model_type="model_two"), checkpoint(tmp_path / "llm", model_type="any")
    found = looked(job(source, text))
    assert found.source.text.index.directory == str(text)
    assert found.model == "two"


@pytest.mark.parametrize(
    ("config", "chosen", "message"),
    [
        ({}, None, "has no model_type; name the model with +model=NAME: nameless, one, one_variant, two"),
        (
            {"model_type": "model_on"},
            None,
            "model_type 'model_on' is of no model definition; the nearest is 'model_one' (+model=one)",
        ),
        (
            {"model_type": "xyz"},
            None,
            "model_type 'xyz' is of no model definition; known: model_one, model_two, model_uno",
        ),
        (
            {"model_type": "model_two"},
            "one",
            "says model_type 'model_two', but +model=one is for model_one, model_uno",
        ),
        ({}, "one", "says model_type None, but +model=one is for model_one, model_uno"),
    ],
)
def test_a_model_that_cannot_be_chosen_is_refused(tmp_path, config, chosen, message):
    found = refused(job(checkpoint(tmp_path / "hf", **config)), chosen)
    assert found.startswith(f"{tmp_path}/hf/config.json: {message}")


def test_a_model_with_a_field_that_a_definition_excludes_is_of_no_definition(tmp_path):
    config = {"model_type": "model_two", "text_config": {"num_experts": 8}}
    source = checkpoint(tmp_path / "hf", **config)
    assert refused(job(source)) == (
        f"{tmp_path}/hf/config.json: has text_config.num_experts: two is for models without, and no other is for it; "
        f"action=skeleton source={source} writes a first definition"
    )
    published = replace(job(source), target_format="dcp", naming="hf", layout=Layout())
    assert looked(published).model is None
    assert looked(job(checkpoint(tmp_path / "dense", model_type="model_two", text_config={}))).model == "two"
    # Who names it has it.
    assert looked(job(source), "two").model == "two"


@pytest.mark.parametrize("chosen", ["one", "one_variant", "nameless"])
def test_a_definition_that_was_named_is_taken_if_it_is_for_such_a_model(tmp_path, chosen):
    assert looked(job(checkpoint(tmp_path / "hf", model_type="model_one")), chosen).model == chosen


def test_a_model_type_that_is_no_text_is_refused(tmp_path):
    assert "model_type" in refused(job(checkpoint(tmp_path / "hf", model_type=["model_one"])))


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path):
    assert refused(job(tmp_path / "hf")) == f"source={tmp_path}/hf: no such directory"
    source = checkpoint(tmp_path / "hf", model_type="model_one")
    assert refused(job(source, tmp_path / "llm")) == f"text_source={tmp_path}/llm: no such directory"
    (source / "config.json").unlink()
    problem = refused(job(source))
    assert problem.startswith(f"source={source}: is none of: a Hugging Face directory, ")
    assert problem.endswith(f"({source}/config.json: no such file); it holds model.safetensors")


def test_the_same_directory_twice_is_refused(tmp_path):
    source = checkpoint(tmp_path / "hf", model_type="model_one")
    (tmp_path / "link").symlink_to(source)
    assert "is the same directory as source; leave it out" in refused(job(source, tmp_path / "link"))


ADAPTER = {"peft_type": "LORA", "r": 8}


def adapter(directory: Path) -> Path:
    directory.mkdir()
    shard(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(ADAPTER))
    return directory


def test_an_adapter_is_read_for_a_definition_of_adapters_alone(tmp_path):
    content = {**toy.content(), "adapters": "only", "model_types": ["model_one"]}
    found = looked(job(adapter(tmp_path / "hf")), ("one_lora", content))
    assert found.source.config == ADAPTER
    assert sorted(found.source.model.index.tensors) == ["a", "b"]


def test_an_adapter_has_no_separate_language_model(tmp_path):
    text = checkpoint(tmp_path / "llm", model_type="model_one")
    with pytest.raises(InputError, match="text_source"):
        looked(job(adapter(tmp_path / "hf"), text), ("one_lora", {"adapters": "only"}))


def test_an_adapter_needs_its_model_to_be_named(tmp_path):
    found = refused(job(adapter(tmp_path / "hf")))
    assert found.startswith(
        f"source={tmp_path}/hf: holds an adapter (adapter_config.json); name the model that it is for"
    )


CUT = Layout(tp=2, pp=2, stages={"text": ((1, 2),)}, modality_tp={"vision": 4})
DCP: dict[str, Any] = {"target_format": "dcp"}
HF: dict[str, Any] = {"target_format": "hf"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({**DCP, "layout": CUT}, ["layout.tp", "layout.stages", "layout.pp", "layout.modality_tp"]),
        ({**HF, "layout": CUT}, ["layout.tp", "layout.stages", "layout.pp", "layout.modality_tp"]),
        ({"naming": "hf"}, ["naming"]),
        ({**HF, "naming": "hf"}, ["naming"]),
        ({"packed_experts": "keep"}, ["packed_experts"]),
        ({**DCP, "packed_experts": "keep"}, ["packed_experts"]),
        ({**HF, "packed_experts": "flatten"}, ["packed_experts"]),
        ({**DCP, "naming": "hf", "vocab_size": 8}, []),
        ({**HF, "vocab_size": 8}, []),
        ({**HF, "tied_head": "write"}, []),
        ({"fill_from_reference": True}, ["fill_from_reference"]),
        ({**DCP, "fill_from_reference": True}, ["fill_from_reference"]),
        ({"merge_lora": True, "lora_alpha": 16}, ["merge_lora", "lora_alpha"]),
        ({**DCP, "name_prefix": "x.", "vocab_size": 8}, []),
        ({**DCP, "naming": "hf", "packed_experts": "keep", "fill_from_reference": True}, []),
        ({**HF, "fill_from_reference": True, "merge_lora": True}, []),
    ],
)
def test_options_that_say_nothing_about_the_result_are_refused_before_the_source_is_looked_at(changes, expected):
    problems = refused(replace(CONFIG, source=Path("/nowhere"), **changes)).splitlines()
    assert [problem.partition(":")[0] for problem in problems] == (expected or ["source=/nowhere"])
