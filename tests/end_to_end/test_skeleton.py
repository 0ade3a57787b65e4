"""A skeleton on the command line and from Python: written, read back once it is decided, and refused until then."""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path
from typing import Any

import pytest

from distconv import InputError, convert, diff, plan, skeleton
from tests.checkpoints import load_case, write_safetensors, write_source

CONFIG = {
    "model_type": "unheard_of",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 10,
    "vocab_size": 12,
}
LAYER = {
    "self_attn.q_proj": [24, 24], "self_attn.k_proj": [12, 24], "self_attn.v_proj": [12, 24],
    "self_attn.o_proj": [24, 24], "mlp.gate_proj": [10, 24], "mlp.up_proj": [10, 24], "mlp.down_proj": [24, 10],
    "input_layernorm": [24], "post_attention_layernorm": [24], "novelty.mix": [20, 24],
}  # fmt: skip
FILE = Path("my_models/model/mine.yaml")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FILE.parent.mkdir(parents=True)
    shapes = {"model.embed_tokens.weight": [12, 24], "model.norm.weight": [24]}
    shapes |= {f"model.layers.{layer}.{name}.weight": shape for layer in range(2) for name, shape in LAYER.items()}
    Path("hf").mkdir()
    written = {name: ("bfloat16", shape, os.urandom(2 * prod(shape))) for name, shape in shapes.items()}
    write_safetensors(Path("hf/model.safetensors"), written)
    Path("hf/config.json").write_text(json.dumps(CONFIG))


def decide() -> None:
    """Decide what a skeleton has left."""
    text = FILE.read_text().replace('"TODO ', '"').replace("tp: TODO", "tp: rows")
    FILE.write_text(text)


def test_a_skeleton_is_a_definition_once_it_is_decided():
    report = skeleton("hf", FILE)
    assert (report["model_type"], report["undecided"]) == ("unheard_of", 2)
    assert FILE.read_text() == report["definition"]
    job: dict[str, Any] = {"source": "hf", "target": "mm", "layout": {"tp": 2}, "config_dir": "my_models"}
    with pytest.raises(InputError) as refused:
        convert(**job)
    where = "model definition mine: rules.text.layers[6]"
    target = "TODO text_decoder.decoder.layers.{layer}.novelty.mix.weight"
    assert refused.value.problems == [
        f"{where}.target: {target}: still to be decided",
        f"{where}.tp: TODO: still to be decided",
    ]
    decide()
    found = plan(**job)
    assert found["model"] == "mine"
    assert found["not_converted"] == []
    convert(**job)
    back = {"source": "mm", "target": "again", "target_format": "hf", "config_dir": "my_models"}
    convert(**back)
    found = diff("hf", "again", config_dir="my_models")
    assert (found["only_in_source"], found["only_in_target"], found["different"]) == ([], [], [])
    assert found["tensors"]["in_both"] == 2 + 2 * len(LAYER)


def test_without_a_file_it_is_printed(distconv):
    outcome = distconv("action=skeleton", "source=hf")
    assert outcome.status == 0
    assert outcome.out.startswith("# A skeleton: ")
    assert outcome.out == skeleton("hf")["definition"]


def test_a_file_is_told_of_with_what_is_left_to_do(distconv):
    outcome = distconv("action=skeleton", "source=hf", f"target={FILE}", "report=report.json")
    said = " ".join(outcome.out.split())
    use = f"--config-dir {Path.cwd()}/my_models +model=mine is then the definition"
    assert said == f"wrote {FILE}; 2 lines have a TODO for you to decide. {use}"
    assert json.loads(Path("report.json").read_text())["undecided"] == 2
    assert sorted(each.name for each in FILE.parent.iterdir()) == ["mine.yaml"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["target=my_models"], "target=my_models: action=skeleton writes a file; give its name"),
        (["target=hf/mine.yaml"], "target=hf/mine.yaml: is inside source=hf"),
        (["target=nowhere/mine.yaml"], "target=nowhere/mine.yaml: cannot be written there"),
        (["target=old.yaml"], "target=old.yaml: is there already; choose another name, or overwrite=true"),
        (["layout.tp=2"], "layout: shapes a result; action=skeleton writes a definition"),
        (["+model=llama"], "+model=llama: action=skeleton writes a definition, and takes none"),
        (["source=known"], "has a definition, qwen2vl: convert it as it is; one of your own inherits it with"),
        (["source=empty"], "source=empty: "),
    ],
)
def test_what_makes_no_sense_is_refused(words, says, distconv):
    write_source(Path("known"), load_case("qwen2vl__tp1_pp1"))
    Path("empty").mkdir()
    Path("old.yaml").write_text("mine")
    given = words if words[0].startswith("source") else ["source=hf", *words]
    outcome = distconv("action=skeleton", *given)
    assert outcome.status == 2
    assert says in outcome.err
    assert Path("old.yaml").read_text() == "mine"


def test_what_training_saved_has_no_skeleton():
    skeleton("hf", FILE)
    decide()
    convert("hf", "mm", config_dir="my_models")
    with pytest.raises(InputError, match="without the configuration of a model; action=skeleton is for the published"):
        skeleton("mm")


def test_a_file_is_replaced_if_that_is_asked_for():
    FILE.write_text("old")
    skeleton("hf", FILE, overwrite=True)
    assert FILE.read_text().startswith("# A skeleton: ")


def test_a_result_remembers_the_file_of_its_definition_and_says_where_it_was(distconv):
    skeleton("hf", FILE)
    decide()
    convert("hf", "mm", config_dir="my_models")
    record = json.loads(Path("mm/release/distconv.json").read_text())
    assert (record["model"], record["definition"]) == ("mine", str(FILE.absolute()))
    outcome = distconv("action=inspect", "source=mm")
    assert f"definition {FILE.absolute()}" in " ".join(outcome.out.split())
    back = ("source=mm", "target=again", "layout.tp=2")
    outcome = distconv(*back)
    assert outcome.status == 2
    own = FILE.absolute()
    assert outcome.err == (
        f"distconv: mm/release/distconv.json: says that the source was made as mine, the definition in {own}, and no "
        f"definition of this name is at hand; give --config-dir {own.parent.parent}, or +model=NAME for another one\n"
    )
    # Wherever it is now.
    FILE.parent.parent.rename("elsewhere")
    assert distconv(*back, "--config-dir", "elsewhere").status == 0
    record = json.loads(Path("again/release/distconv.json").read_text())
    assert record["definition"] == str(Path("elsewhere/model/mine.yaml").absolute())


def test_one_that_came_with_distconv_is_known_by_its_name(distconv):
    write_source(Path("known"), load_case("qwen2vl__tp1_pp1"))
    # A key that is there twice is Hydra's to compose.
    assert distconv("source=known", "target=composed", "io.fsync=true", "io.fsync=false").status == 0
    assert "definition" not in json.loads(Path("composed/release/distconv.json").read_text())
    FILE.write_text("defaults: [qwen2vl, _self_]\nmodel_types: [other]\n")
    convert("known", "mm", config_dir="my_models")
    assert "definition" not in json.loads(Path("mm/release/distconv.json").read_text())
