"""Directories of other programs are named for what they are, and published models never are."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from distconv.errors import InputError
from distconv.formats.foreign import file_words, foreign_problem

TORCH_DIST = '{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'


def made(directory: Path, *paths: str) -> Path:
    for path in paths:
        name, _, content = path.partition("=")
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return directory


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([f"weights/metadata.json={TORCH_DIST}", "context/model.yaml"], ["NeMo", "source={}/weights"]),
        ([f"model_weights/metadata.json={TORCH_DIST}"], ["NeMo", "source={}/model_weights"]),
        (["weights/x/.zarray", "context/model.yaml"], ["NeMo that holds no torch_dist", "llm.export_ckpt"]),
        (["model_weights.ckpt", "model_config.yaml"], ["NeMo that holds no torch_dist"]),
        (["model.nemo"], ["archive of NeMo", "tar -xf {}/model.nemo -C DIR", "source=DIR"]),
        (["iter_0000010/run_config.yaml", "iter_0000010/.metadata"], ["Megatron-Bridge", "ckpt_format torch_dist"]),
        (["model_world_size_8_rank_0.pt", "huggingface/config.json"], ["verl", "verl.model_merger", "local_dir {} "]),
        (["actor/model_world_size_8_rank_3.pt"], ["verl", "--local_dir {}/actor "]),
        (["global_step_20/actor/model_world_size_8_rank_3.pt"], ["verl", "--local_dir {}/global_step_20/actor "]),
        (["actor/huggingface/model.safetensors"], ["verl", "source={}/actor/huggingface"]),
        ([f"actor/dist_ckpt/metadata.json={TORCH_DIST}"], ["verl", "--backend megatron"]),
        (["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], ["DeepSpeed"]),
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], ["DeepSpeed"]),
        (["zero_to_fp32.py", "latest", "global_step10/mp_rank_00_model_states.pt"], ["DeepSpeed", "zero_to_fp32.py"]),
        (["latest", "global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt"], ["DeepSpeed", "zero_to_fp32.py"]),
        (["layer_03-model_00-model_states.pt"], ["DeepSpeed"]),
        (["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"], ["DeepSpeed"]),
        (["refs/main=abc", "snapshots/abc/config.json"], ["cache", "source={}/snapshots/abc"]),
        (["refs/main=def", "snapshots/abc/config.json", "snapshots/def/config.json"], ["source={}/snapshots/def"]),
        (["models--a--b/snapshots/abc/config.json"], ["cache", "source={}/models--a--b/snapshots/abc"]),
        (["config.json", "model-Q4_K_M.gguf"], ["GGUF", "llama.cpp", "safetensors"]),
    ],
)
def test_a_directory_of_another_program_is_named(tmp_path, paths, words):
    found = foreign_problem(made(tmp_path, *paths), "source")
    assert found is not None
    for word in ("source={}: is a ", *words):
        assert word.replace("{}", str(tmp_path)) in found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.gguf", "a GGUF file: which is for llama.cpp, and mostly quantised; give the model in safetensors that"),
        ("model.NEMO", "an archive of NeMo: unpack it (tar -xf {}/model.NEMO -C DIR, into an empty directory), and"),
        ("model.safetensors", "a file; give the directory that holds it: source={}"),
        ("notes.txt", "a file; give the directory that holds it: source={}"),
    ],
)
def test_a_file_is_named_for_what_it_is(tmp_path, name, words):
    assert file_words(tmp_path / name, "source").startswith(words.replace("{}", str(tmp_path)))


@pytest.mark.parametrize(
    "paths",
    [
        [],
        ["config.json", "model.safetensors"],
        # What the trainers of transformers leave in a directory that is a model all the same.
        ["config.json", "model.safetensors", "zero_to_fp32.py", "global_step500/mp_rank_00_model_states.pt"],
        ["config.json", "pytorch_model-00001-of-00002.bin", "zero_to_fp32.py"],
        ["release/mp_rank_00/model_optim_rng.pt"],
        [".metadata", "__0_0.distcp"],
        [".metadata", "common.pt", f"metadata.json={TORCH_DIST}"],
        ["iter_0000010/.metadata", "iter_0000010/run_config.yaml", f"iter_0000010/metadata.json={TORCH_DIST}"],
        ["config.json", "model.safetensors", "model-Q4_K_M.gguf"],
        [".metadata", 'metadata.json={"other": 1}'],
        [".metadata", "metadata.json=damaged"],
    ],
)
def test_other_directories_are_not(tmp_path, paths):
    assert foreign_problem(made(tmp_path, *paths), "source") is None


def test_of_what_cannot_be_read_nothing_is_concluded(tmp_path, monkeypatch):
    made(tmp_path, f"weights/metadata.json={TORCH_DIST}", "context/model.yaml")
    monkeypatch.setattr(os, "open", Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(InputError, match=r"metadata\.json: cannot be read: Input/output error"):
        foreign_problem(tmp_path, "source")
