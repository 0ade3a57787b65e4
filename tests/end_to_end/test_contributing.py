"""What CONTRIBUTING.md says works: its examples run, its changes applied to a copy of the package."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.checkpoints import load_case, write_source
from tests.documents import ROOT, blocks, commands, text_of
from tests.end_to_end.test_readme import tensors

TEXT = text_of("CONTRIBUTING.md")
MODEL, CAPTIONER = blocks(TEXT, "yaml")
OPERATOR, OPTION = blocks(TEXT, "diff")
HIDDEN, LAYERS, HEADS, HEAD = 6, 2, 4, 3
NAMES = ("layers.{}.cross_attn.k_proj.weight", "layers.{}.cross_attn.v_proj.weight")


def define(directory: Path, name: str, content: str) -> None:
    path = directory / "my_models" / "model" / f"{name}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(content)


class Checkout:
    """The files of a checkout that a change of the package needs, with the change, beside the work of a user."""

    def __init__(self, directory: Path, change: str) -> None:
        self.root, self._work = directory / "checkout", directory
        for name in ("distconv", "conf"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "README.md", self.root)
        (self.root / "distconv" / "conf").symlink_to(self.root / "conf")
        (self.root / "change.diff").write_text(change)
        apply = ["git", "apply", "--verbose", "change.diff"]
        # Git takes no patch from a directory that a repository around it does not know.
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(directory)}
        done = subprocess.run(
            apply, cwd=self.root, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

    def run(self, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run Python with the changed package; its outcome."""
        environment = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(
            command,
            cwd=cwd or self._work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def output(self, *words: object, cwd: Path | None = None) -> str:
        done = self.run(*words, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.mark.parametrize("change", [OPERATOR, OPTION], ids=["operator", "option"])
def test_a_change_is_formatted_and_has_no_lint(change, tmp_path):
    checkout = Checkout(tmp_path, change)
    changed = [line.removeprefix("+++ b/") for line in change.splitlines() if line.startswith("+++ ")]
    for command in (["format", "--diff"], ["check", "--no-cache"]):
        checkout.output("-m", "ruff", *command, "--config", ROOT / "pyproject.toml", *changed, cwd=checkout.root)


def test_a_model_is_a_file_in_a_directory_of_ones_own(tmp_path, monkeypatch, distconv):
    monkeypatch.chdir(tmp_path)
    define(tmp_path, "qwen2_of_vl", MODEL)
    source = write_source(tmp_path / "Qwen2-7B", load_case("qwen2vl__llm_hf_dir_pp1")["llm"])
    assert json.loads((source / "config.json").read_text())["model_type"] == "qwen2"
    jobs = [shlex.split(each.replace("/ckpt", str(tmp_path))) for each in commands(TEXT)]
    assert [words[:1] for words in jobs] == [["distconv"]] * 2
    for words in jobs:
        outcome = distconv(*words[1:])
        assert outcome.status == 0, outcome.err
    assert len(list((tmp_path / "mm").rglob("*.pt"))) == 2
    assert tensors(tmp_path / "Qwen2-7B-mine") == tensors(source)


def write_captioner(directory: Path) -> dict[str, np.ndarray]:
    """A checkpoint of k and v alone, each element a number of its own; k and v by name."""
    directory.mkdir()
    config = {
        "model_type": "captioner",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
    }
    (directory / "config.json").write_text(json.dumps(config))
    names = [name.format(layer) for layer in range(LAYERS) for name in NAMES]
    shape = (len(names), HEADS * HEAD, HIDDEN)
    found = dict(zip(names, np.arange(np.prod(shape), dtype=np.float32).reshape(shape), strict=True))
    save_file(found, directory / "model.safetensors", {"format": "pt"})
    return found


def by_head(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """What a training program with one parameter for both has."""
    return np.stack([each.reshape(HEADS, HEAD, HIDDEN) for each in (key, value)], axis=1).reshape(-1, HIDDEN)


def test_an_operator_is_a_change_of_its_module(tmp_path, monkeypatch, distconv):
    monkeypatch.chdir(tmp_path)
    define(tmp_path, "captioner", CAPTIONER)
    source = write_captioner(tmp_path / "hf")
    mine = ("--config-dir", "my_models")
    unchanged = distconv(*mine, "source=hf", "target=mm")
    assert (unchanged.status, "unknown 'kv_group'" in unchanged.err) == (2, True)

    checkout = Checkout(tmp_path, OPERATOR)
    program = ("-m", "distconv", *mine)
    checkout.output(*program, "source=hf", "target=mm", "layout.tp=2")
    ranks = [torch.load(path, weights_only=True)["model"] for path in sorted((tmp_path / "mm").rglob("*.pt"))]
    for layer in range(LAYERS):
        name = f"decoder.layers.{layer}.cross_attention.linear_kv.weight"
        expected = by_head(*(source[each.format(layer)] for each in NAMES))
        assert np.array_equal(np.concatenate([rank[name].numpy() for rank in ranks]), expected)

    # Nothing but the operator tells how many rows are of k, and how many of v.
    (tmp_path / "sizes").mkdir()
    shutil.copy(tmp_path / "hf" / "config.json", tmp_path / "sizes")
    back = (*program, "source=mm", "target=back", "target_format=hf", "reference=sizes")
    checkout.output(*back)
    assert tensors(tmp_path / "back") == tensors(tmp_path / "hf")
    checkout.output(*back, "action=verify")


def test_an_option_is_one_line_and_its_use(tmp_path, monkeypatch, distconv):
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "hf", load_case("qwen2vl__tp1_pp1"))
    job = ("source=hf", "target=mm", "action=plan", "label=of tonight", "report=plan.json")
    unchanged = distconv(*job)
    assert (unchanged.status, "label" in unchanged.err) == (2, True)

    checkout = Checkout(tmp_path, OPTION)
    (rewritten,) = [line.strip() for line in text_of("Makefile").splitlines() if "config.rewrite" in line]
    checkout.output(*shlex.split(rewritten)[1:], cwd=checkout.root)
    words = "a text of yours that the report carries"
    assert f"| `label` |  | {words} |" in (checkout.root / "README.md").read_text()
    assert "label: null" in (checkout.root / "conf" / "config.yaml").read_text().splitlines()
    assert words in checkout.output("-m", "distconv", "--help")

    checkout.output("-m", "distconv", *job)
    assert json.loads((tmp_path / "plan.json").read_text())["label"] == "of tonight"
    assert labelled(checkout, {"label": "of Python"}) == "of Python"
    assert labelled(checkout, {}) is None
    assert "label=7: expected text" in str(labelled(checkout, {"label": 7}))


def labelled(checkout: Checkout, options: Mapping[str, object]) -> Any:
    """The label in the report of a plan that a program makes, or what is wrong."""
    code = f"""
import json, distconv
try:
    print(json.dumps(distconv.plan("hf", "mm", **{options!r})["label"]))
except distconv.InputError as error:
    print(json.dumps(str(error)))
"""
    return json.loads(checkout.output("-c", code))
