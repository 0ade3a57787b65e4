"""What README.md says works: its commands run as they stand, its example is a definition, its keys are all the keys."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from distconv.cli.plan_text import plan_text
from distconv.formats.megatron.index import read_megatron
from distconv.layout.request import Layout
from tests.checkpoints import describe_dcp, load_case, overrides, write_safetensors, write_source
from tests.here import run_here
from tests.picture import report_of
from tests.readme import README, blocks, commands, write_qwen2vl

ROOT = Path(__file__).parents[2]
JOBS = [command for command in commands() if re.match(r"distconv |.* -m distconv ", command)]
# Those of the section from download to training and back are by themselves.
QUICK = 5


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A directory that stands for /ckpt."""
    write_qwen2vl(tmp_path / "Qwen2-VL-7B")
    write_source(tmp_path / "Qwen3-VL-4B", load_case("qwen3vl__tied_pp1"))
    write_mistral(tmp_path / "Mistral-7B")
    write_source(tmp_path / "Qwen2.5-VL-7B", load_case("qwen2_5vl__tp1_pp1"))
    adapters = load_case("qwen2_5vl__lora_pp1")
    write_source(tmp_path / "hf-adapters", adapters)
    run_here(*overrides(adapters), source=str(tmp_path / "hf-adapters"), target=str(tmp_path / "adapters"))
    return tmp_path


def write_mistral(directory: Path) -> None:
    """Write a checkpoint that stands for Mistral-7B."""
    directory.mkdir()
    config = {"model_type": "mistral", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "intermediate_size": 10, "vocab_size": 12, "tie_word_embeddings": False}
    shapes = {**decoder_of_two_layers(), "lm_head.weight": [12, 24]}
    written = {name: ("bfloat16", shape, os.urandom(2 * prod(shape))) for name, shape in shapes.items()}
    write_safetensors(directory / "model.safetensors", written)
    (directory / "config.json").write_text(json.dumps(config))


def decoder_of_two_layers() -> dict[str, list[int]]:
    """The shapes of a small decoder, without a head."""
    shapes = {"model.embed_tokens.weight": [12, 24], "model.norm.weight": [24]}
    for layer in range(2):
        for name, shape in {
            "self_attn.q_proj": [24, 24], "self_attn.k_proj": [12, 24], "self_attn.v_proj": [12, 24],
            "self_attn.o_proj": [24, 24], "mlp.gate_proj": [10, 24], "mlp.up_proj": [10, 24], "mlp.down_proj": [24, 10],
            "input_layernorm": [24], "post_attention_layernorm": [24],
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes


def save(result: Path, directory: Path) -> None:
    """What training saves that began with a result: an iteration, and nothing of distconv's."""
    shutil.copytree(result / "release", directory / "iter_0001000", ignore=shutil.ignore_patterns("distconv.json"))
    (directory / "latest_checkpointed_iteration.txt").write_text("1000")


def tensors(directory: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """All tensors of a Hugging Face directory."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                tensor = file.get_tensor(name)
                found[name] = (str(tensor.dtype), list(tensor.shape), bytes(tensor.untyped_storage()))
    return found


def test_the_commands_are_those_expected():
    assert [shlex.split(job)[0] for job in JOBS] == [
        "distconv", "torchrun", "distconv", "torchrun", "distconv",
        "torchrun", "mpirun", "distconv", "distconv", "distconv", "distconv", "distconv", "distconv", "torchrun",
        "distconv", "distconv", "distconv", "distconv", "torchrun", "torchrun", "mpirun", "torchrun", "distconv",
        "torchrun",
    ]  # fmt: skip
    assert commands()[:2] == ["make demo", "make test"]


@pytest.mark.timeout(900)
def test_the_jobs_run(checkpoints):
    """In order: some read what others have written."""
    first, *others = JOBS[QUICK:]
    check_job(first, checkpoints)
    save(checkpoints / "mm", checkpoints / "save")
    # The second command has the same target.
    (checkpoints / "mm").rename(checkpoints / "mm-of-the-first-command")
    for job in others:
        check_job(job, checkpoints)


def test_a_model_goes_from_download_to_training_and_back(checkpoints):
    plan, there, verify, back, diff = JOBS[:QUICK]
    check_job(plan, checkpoints)
    check_job(there, checkpoints)
    check_job(verify, checkpoints)
    save(checkpoints / "mm-7b", checkpoints / "save-7b")
    check_job(back, checkpoints)
    check_job(diff, checkpoints)


def test_the_plan_that_is_shown_is_that_of_the_published_model():
    report = report_of("Qwen2.5-VL-7B", Layout(tp=2, pp=2), 1)
    report |= {"source": "/ckpt/Qwen2.5-VL-7B", "target": "/ckpt/mm-7b"}
    (shown,) = (each for each in blocks("text") if "qwen2_5vl" in each)
    assert plan_text(report, full=True).startswith(shown)


def check_job(command: str, checkpoints: Path) -> None:
    """A command of the README does what the text around it says."""
    words = shlex.split(command.replace("/ckpt", str(checkpoints)))
    options = dict(word.split("=", 1) for word in words if "=" in word)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    job = subprocess.run(
        words, cwd=checkpoints, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert job.returncode == 0, f"{command}\n{job.stderr}"
    assert "Traceback" not in job.stderr, command
    if options.get("action") == "inspect":
        assert "model    qwen2vl; model_type qwen2_vl\n" in job.stdout, command
        return
    if options.get("action") == "diff":
        assert re.search(r"^both     (\d+) tensors in both, \1 of them equal; ", job.stdout, re.MULTILINE), command
        return
    if options.get("action") == "plan" and not Path(options["target"]).exists():
        assert "\nflags of the training that loads it\n  --tensor-model-parallel-size 2\n" in job.stdout, command
        return
    if "sources" in options:
        (each,) = json.loads((checkpoints / options["report"]).read_text())["checkpoints"]
        assert tensors(Path(each["target"])) == tensors(Path(options["reference"])), command
        assert Path(each["target"]).name == "iter_0001000"
        return
    target = Path(options["target"])
    if options.get("action") == "clean":
        assert job.stdout == f"nothing is left of killed jobs in or beside {target}\n"
        return
    if options.get("target_format") != "hf":
        assert (target / "latest_checkpointed_iteration.txt").read_text() == "release", command
    elif "merge_lora" in options:
        base, merged = tensors(Path(options["reference"])), tensors(target)
        changed = {name for name in base if merged[name] != base[name]}
        assert base.keys() == merged.keys(), command
        assert "model.layers.0.mlp.down_proj.weight" in changed, command
        assert "model.embed_tokens.weight" not in changed, command
    else:
        assert tensors(target) == tensors(target.with_name(target.name.removesuffix("-mine"))), command


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("make")])
def test_target_exists(command):
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_requirements_are_installed():
    for command in commands():
        if command.startswith("pip install --no-deps") or not command.startswith("pip install"):
            continue
        dry_run = [sys.executable, "-m", "pip", *shlex.split(command)[1:], "--dry-run", "--no-build-isolation"]
        plan = subprocess.run(dry_run, cwd=ROOT, check=True, capture_output=True, text=True, timeout=240).stdout
        would_install = re.findall(r"^Would install (.*)$", plan, re.MULTILINE)
        assert [name for line in would_install for name in line.split() if not name.startswith("distconv-")] == [], plan


def test_example_dialect_converts(tmp_path, distconv):
    """The example is put where the text says, and a model of that type goes there and back."""
    _, example, _ = blocks("yaml")
    dialects = tmp_path / "my_models" / "dialect"
    dialects.mkdir(parents=True)
    (dialects / "mine.yaml").write_text(example)
    shapes = {"model.embed_tokens.weight": [8, 6], "mtp.layers.0.weight": [3]}
    for expert in range(2):
        for part, shape in (("w1", [5, 6]), ("w3", [5, 6]), ("w2", [6, 5])):
            shapes[f"model.layers.0.mixture.experts.{expert}.{part}.weight"] = shape
    source = tmp_path / "source"
    source.mkdir()
    config = {"model_type": "my_moe", "num_experts": 2, "hidden_size": 6, "moe_intermediate_size": 5}
    (source / "config.json").write_text(json.dumps(config))
    written = {name: ("float32", shape, os.urandom(4 * prod(shape))) for name, shape in shapes.items()}
    write_safetensors(source / "model.safetensors", written)
    arguments = ["--config-dir", tmp_path / "my_models", f"source={source}", f"target={tmp_path / 'dcp'}"]
    outcome = distconv(*arguments, "target_format=dcp", "naming=hf", "dialect=mine")
    assert outcome.status == 0, outcome.err
    assert "1 tensor: not trained: mtp.layers.0.weight" in outcome.out
    found = {
        name: each[1]
        for name, each in describe_dcp(tmp_path / "dcp" / "release").items()
        if name != "checkpoint_version"
    }
    assert found == {
        "model.net.model.embed_tokens.weight": [8, 6],
        "model.net.model.blocks.0.moe.experts.gate_up_proj": [2, 6, 10],
        "model.net.model.blocks.0.moe.experts.down_proj": [2, 5, 6],
    }
    arguments = ["--config-dir", tmp_path / "my_models", f"source={tmp_path / 'dcp'}", f"target={tmp_path / 'out'}"]
    outcome = distconv(*arguments, "target_format=hf", "fill_from_reference=true")
    assert outcome.status == 0, outcome.err
    assert tensors(tmp_path / "out") == tensors(source)


def test_example_dialect_of_parameters_converts(tmp_path, distconv):
    """The example is put where the text says, and is recognised in what it has named."""
    example, _, _ = blocks("yaml")
    dialects = tmp_path / "my_models" / "dialect"
    dialects.mkdir(parents=True)
    (dialects / "mine.yaml").write_text(example)
    write_mistral(tmp_path / "source")
    mine = ["--config-dir", tmp_path / "my_models"]
    outcome = distconv(*mine, f"source={tmp_path / 'source'}", f"target={tmp_path / 'mm'}", "dialect=mine")
    assert outcome.status == 0, outcome.err
    index = read_megatron(tmp_path / "mm", None)
    names = {name for file in index.files for _, name in file.tensors}
    assert "lm.decoder.layers.1.mlp.linear_fc1.layer_norm_weight" in names
    assert all(name.startswith("lm.") for name in names)
    outcome = distconv(*mine, f"source={tmp_path / 'mm'}", f"target={tmp_path / 'back'}", "target_format=hf")
    assert outcome.status == 0, outcome.err
    assert "dialect mine" in outcome.out
    assert tensors(tmp_path / "back") == tensors(tmp_path / "source")


def test_example_definition_converts(tmp_path, distconv):
    """The example is put where the text says, and converts a checkpoint of that architecture."""
    _, _, example = blocks("yaml")
    definitions = tmp_path / "my_models" / "model"
    definitions.mkdir(parents=True)
    (definitions / "minicpm.yaml").write_text(example)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": "minicpm", "intermediate_size": 10, "vocab_size": 12, **sizes}
    shapes = decoder_of_two_layers()
    shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = [3]
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    write_safetensors(
        source / "model.safetensors",
        {name: ("float32", shape, os.urandom(4 * prod(shape))) for name, shape in shapes.items()},
    )
    job = [
        "--config-dir",
        tmp_path / "my_models",
        f"source={source}",
        f"target={tmp_path / 'mm'}",
        "layout.pp=2",
        "layout.tp=2",
    ]

    for model in ("+model=minicpm", "action=verify"):
        outcome = distconv(*job, model)
        assert outcome.status == 0, outcome.err
    assert "computed from the configuration" in outcome.out
    assert len(list((tmp_path / "mm").rglob("*.pt"))) == 4


def test_every_key_is_documented_here_and_in_help(distconv):
    configuration = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())
    help_text = distconv("--help").out
    for group, value in configuration.items():
        if group in ("defaults", "hydra"):
            continue
        for key in [f"{group}.{name}" for name in value] if isinstance(value, dict) else [group]:
            assert f"`{key}" in README, key
            assert key in help_text, key
