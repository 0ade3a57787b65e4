"""Names of models on the hub, where a directory was asked for: found in the cache, or the command that downloads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distconv.formats.hub import cached_snapshot, hub_words, snapshot_in

NAME = "Qwen/Qwen2.5-VL-7B-Instruct"


def cached(hub: Path, main: str | None, *snapshots: str, name: str = NAME) -> Path:
    """The directory of a model in a cache."""
    model = hub / f"models--{name.replace('/', '--')}"
    for number, each in enumerate(snapshots):
        (model / "snapshots" / each).mkdir(parents=True)
        os.utime(model / "snapshots" / each, (number, number))
    if main is not None:
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text(main)
    return model


@pytest.mark.parametrize(
    ("variables", "hub"),
    [
        ({"HF_HUB_CACHE": "{}/a", "HF_HOME": "{}/b"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/c"}, "c"),
        ({"HF_HOME": "{}/b", "XDG_CACHE_HOME": "{}/x"}, "b/hub"),
        ({"XDG_CACHE_HOME": "{}/x"}, "x/huggingface/hub"),
        ({"HF_HUB_CACHE": ""}, "home/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_hub_library_has_it(variables, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    environment = {name: value.replace("{}", str(tmp_path)) for name, value in variables.items()}
    model = cached(tmp_path / hub, "abc", "abc")
    assert cached_snapshot(NAME, environment) == model / "snapshots" / "abc"
    assert hub_words(Path(NAME), "reference", environment) == (
        f"; the local cache of the Hugging Face hub has a model of this name: give reference={model}/snapshots/abc"
    )
    assert cached_snapshot("Qwen/Other", environment) is None


@pytest.mark.parametrize(
    ("main", "snapshots", "found"),
    [
        ("abc", ["abc", "def"], "abc"),
        ("abc\n", ["abc", "def"], "abc"),
        (None, ["abc", "def"], "def"),
        ("gone", ["abc", "def"], "def"),
        ("", ["abc"], "abc"),
        ("a\0b", ["abc"], "abc"),
        (None, [], None),
        ("abc", [], None),
    ],
)
def test_the_snapshot_is_that_of_the_main_branch_or_the_newest(main, snapshots, found, tmp_path):
    model = cached(tmp_path, main, *snapshots)
    assert snapshot_in(model) == (None if found is None else model / "snapshots" / found)


@pytest.mark.parametrize("text", [NAME, f"https://huggingface.co/{NAME}", f"https://huggingface.co/{NAME}/tree/main"])
def test_what_is_not_in_the_cache_is_to_be_downloaded(text, tmp_path):
    assert hub_words(Path(text), "source", {"HF_HOME": str(tmp_path)}) == (
        f"; if it is the name of a model on the Hugging Face hub: hf download {NAME} gets it, and prints the directory "
        "to give"
    )


@pytest.mark.parametrize("text", ["nowhere", "/Qwen/Qwen2", "./Qwen2", "../Qwen/Qwen2", "a/b/c", "~/Qwen2", "a b/c"])
def test_other_paths_are_no_names(text, tmp_path):
    assert hub_words(Path(text), "source", {"HF_HOME": str(tmp_path)}) == ""


def test_a_path_in_a_directory_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    environment = {"HF_HOME": str(tmp_path / "home")}
    assert hub_words(Path(NAME), "source", environment) == ""
    cached(tmp_path / "home" / "hub", "abc", "abc")
    assert "snapshots/abc" in hub_words(Path(NAME), "source", environment)
