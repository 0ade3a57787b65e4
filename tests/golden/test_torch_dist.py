"""torch_dist checkpoints as Megatron-core saved them become what they are in every other format, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.checkpoints import hashes_but_record
from tests.golden.samples import DIALECTS, TRAINED, cases, held, published, reference, stacked, told, unpacked
from tests.here import outcome_here, run_here

# One of each kind: layers in one, layers apart with experts in one, layers and experts in one, and of a vision model.
KINDS = ["qwen2_12_pp2_tied", "dsv3_16_tp2", "te_q3moe_19_ep2", TRAINED]


@pytest.mark.parametrize("case", cases("td"))
def test_a_sample_is_its_published_model(case, tmp_path):
    outcome_here(**source(case, tmp_path), target=str(tmp_path / "hf"), target_format="hf")
    assert published(tmp_path / "hf") == told(case, "expected")


@pytest.mark.parametrize("case", [*cases("mp"), TRAINED])
def test_a_sample_is_its_rank_directories(case, tmp_path):
    dialect = {"dialect": DIALECTS[case]} if case in DIALECTS else {}
    run_here(**source(case, tmp_path), target=str(tmp_path / "mm"), **layout(case), **dialect)
    expected = told(case, "mp") if case == TRAINED else held(unpacked(case, "mp", tmp_path))
    assert held(tmp_path / "mm") == expected


@pytest.mark.parametrize("naming", ["hf", "megatron"])
@pytest.mark.parametrize("case", KINDS)
def test_a_sample_comes_through_a_dcp(case, naming, tmp_path):
    given = source(case, tmp_path)
    run_here(**given, target=str(tmp_path / "dcp"), target_format="dcp", naming=naming)
    run_here(**{**given, "source": str(tmp_path / "dcp")}, target=str(tmp_path / "hf"), target_format="hf")
    assert published(tmp_path / "hf") == told(case, "expected")


@pytest.mark.parametrize("case", KINDS)
def test_the_iteration_is_kept_and_the_result_verified(case, tmp_path):
    options = {**source(case, tmp_path), "target": str(tmp_path / "mm"), **layout(case)}
    run_here(**options)
    assert sorted(path.name for path in (tmp_path / "mm").iterdir() if path.is_dir()) == ["iter_0000007"]
    run_here(**options, action="verify")


@pytest.mark.parametrize("case", cases("td"))
def test_a_published_model_becomes_its_sample(case, tmp_path):
    """The keys, shapes, bytes, states of modules, and what is told of the model; and back."""
    given = source(case, tmp_path)
    expected, states = stacked(unpacked(case, "td", tmp_path) / "iter_0000007")
    run_here(**given, target=str(tmp_path / "hf"), target_format="hf")
    options = {"source": str(tmp_path / "hf"), "target": str(tmp_path / "again"), **into(case, expected)}

    run_here(**options)

    found, found_states = stacked(tmp_path / "again" / "release")
    embedding = next(key for key in expected if key.endswith("word_embeddings.weight"))
    for key in (embedding, embedding.replace("embedding.word_embeddings", "output_layer")):
        # Padding of the vocabulary is whatever was in memory.
        for each in (found, expected):
            if key in each and "vocab_multiple" in options:
                each[key] = each[key]["shape"]
    assert found == expected
    assert found_states == states
    run_here(**options, action="verify")
    back = {"source": str(tmp_path / "again"), "reference": str(tmp_path / "hf"), "target": str(tmp_path / "back")}
    run_here(**back, target_format="hf")
    assert hashes_but_record(tmp_path / "back") == hashes_but_record(tmp_path / "hf")


@pytest.mark.parametrize("case", ["llama12_tp1", "qwen2_12_pp2_tied", "q3moe_16_ep2", "glm4moe_16", "dsv3_16_tp2"])
def test_arguments_of_training_are_told(case, tmp_path):
    """As the training was configured that saved the sample, but for the layout, which a result has none of."""
    given = source(case, tmp_path)
    run_here(**given, target=str(tmp_path / "td-again"), target_format="torch_dist")
    saved, told = (
        vars(torch.load(directory / "iter_0000007" / "common.pt", weights_only=False)["args"])
        for directory in (tmp_path / "td", tmp_path / "td-again")
    )
    of_layout = {name for name in saved if "parallel" in name} | {"decoder_first_pipeline_num_layers"}
    latent = {"kv_channels", "num_query_groups", "group_query_attention"} if "dsv3" in case else set()
    for name in saved.keys() - of_layout - latent - {"make_vocab_size_divisible_by"}:
        if saved[name] is not None:
            assert told[name] == saved[name], name
    assert (told["tensor_model_parallel_size"], told["pipeline_model_parallel_size"]) == (1, 1)
    assert told["multi_latent_attention"] == bool(latent)
    assert told.get("moe_layer_freq") == ([0, 1, 1] if case in ("glm4moe_16", "dsv3_16_tp2") else None)


@pytest.mark.parametrize("case", KINDS)
def test_every_format_becomes_one_torch_dist(case, tmp_path):
    """From torch_dist, ranks, a DCP, and the published model."""
    given = source(case, tmp_path)
    ways: Mapping[str, Mapping[str, Any]] = {
        "mm": layout(case),
        "dcp": {"target_format": "dcp"},
        "hf": {"target_format": "hf"},
    }
    # What is published has no padding of the vocabulary.
    wanted = into(case, {}) | {"vocab_size": told(case, "config")["vocab_size"]}
    run_here(**given, target=str(tmp_path / "of td"), **wanted)
    for way, options in ways.items():
        run_here(**given, target=str(tmp_path / way), **options)
        known = {} if way == "hf" else {"reference": given["reference"]}
        run_here(source=str(tmp_path / way), **known, target=str(tmp_path / f"of {way}"), **wanted)
        (result,) = (path for path in (tmp_path / f"of {way}").iterdir() if path.is_dir())
        assert stacked(result) == stacked(tmp_path / "of td" / "iter_0000007")


def into(case: str, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make a torch_dist of a case, whose vocabulary is padded to that of expected tensors."""
    options: dict[str, Any] = {"target_format": "torch_dist"}
    if "te" in case.split("_"):
        options["dialect"] = "mcore_te"
    rows = [each["shape"][0] for key, each in expected.items() if key.endswith("word_embeddings.weight")]
    if rows and rows[0] != told(case, "config")["vocab_size"]:
        options["vocab_multiple"] = rows[0]
    return options


def source(case: str, directory: Any) -> dict[str, Any]:
    """The options that name a sample and the configuration of its model."""
    return {"source": str(unpacked(case, "td", directory)), "reference": str(reference(case, directory))}


def layout(case: str) -> Mapping[str, Any]:
    """The options of the layout that a sample was saved under."""
    how = told(case, "how")["case"]
    options = {f"layout__{axis}": how[axis] for axis in ("tp", "pp", "vpp", "ep") if axis in how}
    if (first := how.get("first_stage_layers")) is not None:
        options["layout__stages__text"] = [first, how["hf"]["num_hidden_layers"] - first]
    return options
