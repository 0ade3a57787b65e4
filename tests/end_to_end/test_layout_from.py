"""`layout.from`: the layout of a result from the configuration of its training, and that configuration from a plan."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import describe_result, load_case, overrides, write_source

CASE = load_case("qwen2vl__tp2_pp2")
WORDS = [each for each in overrides(CASE) if not each.startswith("layout.")]
SCRIPT = """
TP=2
PP=2
ARGS="
    --tensor-model-parallel-size ${TP} \\
    --pipeline-model-parallel-size ${PP} \\
    --mm-model /somewhere/model.json
"
torchrun pretrain_vlm.py $ARGS
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    stages = {
        each.split("=")[0].rpartition(".")[2]: json.loads(each.partition("=")[2])
        for each in overrides(CASE)
        if "stages" in each
    }
    content: dict[str, Any] = {"text_decoder": {"pipeline_num_layers": stages["text"]}}
    content["image_encoder"] = {"vision_encoder": {"pipeline_num_layers": stages["vision"]}, "tp": 1}
    path = tmp_path / "model of mine.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.sh"
    path.write_text(SCRIPT)
    return path


def test_a_script_and_a_model_file_give_the_golden_result(script, model_file, tmp_path, distconv):
    source, target = write_source(tmp_path / "hf", CASE), tmp_path / "mm"
    outcome = distconv(*WORDS, f"source={source}", f"target={target}", f'layout.from=["{script}","{model_file}"]')
    assert outcome.status == 0, outcome.err
    assert describe_result(target) == CASE["files"]
    assert "note: layout.from: tp=2, pp=2, vpp=1, stages.text=" in outcome.out


def test_the_result_remembers_the_layout_and_not_where_it_is_from(script, model_file, tmp_path, distconv):
    source = write_source(tmp_path / "hf", CASE)
    words = (*WORDS, f"source={source}")
    assert distconv(*words, f"target={tmp_path / 'a'}", f'layout.from=["{script}","{model_file}"]').status == 0
    assert distconv(*overrides(CASE), f"source={source}", f"target={tmp_path / 'b'}").status == 0
    a, b = (json.loads((tmp_path / each / "release" / "distconv.json").read_text()) for each in "ab")
    assert a["layout"] == b["layout"]
    assert a["files"] == b["files"]
    assert "train.sh" not in json.dumps(a)


def test_the_arguments_in_a_checkpoint(tmp_path, distconv):
    args = Namespace(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, mm_model="model.json", num_layers=1)
    rank = tmp_path / "trained" / "iter_0000005" / "mp_rank_00_000"
    rank.mkdir(parents=True)
    torch.save({"args": args, "model": {}}, rank / "model_optim_rng.pt")
    source = write_source(tmp_path / "hf", CASE)
    words = [each for each in overrides(CASE) if "stages" in each]
    outcome = distconv(
        *WORDS, *words, f"source={source}", f"target={tmp_path / 'mm'}", f"layout.from={tmp_path / 'trained'}"
    )
    assert outcome.status == 0, outcome.err
    assert describe_result(tmp_path / "mm") == CASE["files"]


def test_a_plan_prints_what_training_is_configured_with(script, model_file, tmp_path, distconv):
    source, report = write_source(tmp_path / "hf", CASE), tmp_path / "report.json"
    words = (*WORDS, f"source={source}", f"target={tmp_path / 'mm'}", f"report={report}", "action=plan")
    outcome = distconv(*words, f'layout.from=["{script}","{model_file}"]')
    assert outcome.status == 0, outcome.err
    assert "  --tensor-model-parallel-size 2\n  --pipeline-model-parallel-size 2\n" in outcome.out
    told = json.loads(report.read_text())["training"]["model_file"]
    content = json.loads(model_file.read_text())
    assert told["text_decoder.pipeline_num_layers"] == content["text_decoder"]["pipeline_num_layers"]


def test_a_checkpoint_without_arguments(tmp_path, distconv):
    source = write_source(tmp_path / "hf", CASE)
    outcome = distconv(*WORDS, f"source={source}", f"target={tmp_path / 'mm'}", f"layout.from={source}")
    assert outcome.status == 2
    assert f"layout.from={source}: holds no arguments of training" in outcome.err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("no.sh", None, "no such file; expected a launch script"),
        ("empty.sh", "echo nothing", "says no size of a parallel axis; expected a launch script"),
        ("odd.sh", "run --tensor-model-parallel-size $1", "which only a shell can tell; or give layout.tp"),
        ("config.json", "{}", "is no model file of MindSpeed-MM"),
        ("broken.json", "{", "not valid JSON"),
        ("broken.pt", "x", "broken.pt"),
        ("large.sh", " " * (2**22 + 1), "is larger than"),
    ],
)
def test_files_that_say_nothing(name, content, words, tmp_path, distconv):
    if content is not None:
        (tmp_path / name).write_text(content)
    source = write_source(tmp_path / "hf", CASE)
    outcome = distconv(*WORDS, f"source={source}", f"target={tmp_path / 'mm'}", f"layout.from={tmp_path / name}")
    assert outcome.status == 2
    assert words in outcome.err
    assert not (tmp_path / "mm").exists()
