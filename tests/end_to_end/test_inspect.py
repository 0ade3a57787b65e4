"""What a directory is said to be, in every format and in every state: never an error but for one that is not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest

from distconv import InputError, inspect
from distconv.cli.show import inspection_text
from tests.checkpoints import case_names, load_case, overrides, write_safetensors, write_source
from tests.here import run_here
from tests.processes.jobs import run, torchrun

CASE = "qwen2vl__tp2_pp2"
PARAMETERS = 211040
TRACKER = "latest_checkpointed_iteration.txt"
FORMATS = {
    "megatron": {"layout__tp": 2, "layout__pp": 2},
    "dcp": {"target_format": "dcp"},
    "dcp hf": {"target_format": "dcp", "naming": "hf", "name_prefix": "module."},
}
TRAINED = pytest.mark.parametrize("form", FORMATS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published directory, and one in each of the other formats."""
    directory = tmp_path_factory.mktemp("made")
    source = write_source(directory / "hf", load_case(CASE))
    for form, options in FORMATS.items():
        run_here(source=str(source), target=str(directory / form), **options)
    return directory


def copied(directory: Path, to: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(directory, to / directory.name))


def described(directory: Path, **options: Any) -> dict[str, Any]:
    """What a directory is, which is plain data, and has words that fit a terminal where no word is too long."""
    report = inspect(directory, **options)
    assert json.loads(json.dumps(report)) == report
    source, *lines = inspection_text(report, tensors=False).splitlines()
    assert source == f"source   {directory}"
    assert all(len(line) <= 80 or len(line[9:].split()) == 1 for line in lines), lines
    assert all(line[:9].strip() == "" or line[8] == " " for line in lines)
    return report


def test_a_published_directory(made):
    report = described(made / "hf")
    tensors = load_case(CASE)["source_tensors"]
    nbytes = sum(2 * prod(shape) for _, shape, _ in tensors.values())
    assert {key: value for key, value in report.items() if key not in ("tensors", "source")} == {
        "action": "inspect",
        "source_format": "hf",
        "title": "a Hugging Face directory",
        "iteration": None,
        "iterations": [],
        "model": "qwen2vl",
        "model_type": "qwen2_vl",
        "resembles": [],
        "reference": None,
        "source_layout": None,
        "source_names": None,
        "parameters": PARAMETERS,
        "bytes": nbytes,
        "dtypes": {"bfloat16": {"tensors": len(tensors), "elements": nbytes // 2, "bytes": nbytes}},
        "record": None,
        "notes": [],
        "problems": [],
    }
    assert {name: [dtype, shape, file] for file, name, dtype, shape in report["tensors"]} == tensors


@TRAINED
@pytest.mark.parametrize("place", [".", "release"])
def test_what_distconv_made_for_training(form, place, made):
    report = described(made / form / place)
    assert report["source_format"] == form.split()[0]
    assert (report["model"], report["model_type"]) == ("qwen2vl", "qwen2_vl")
    assert report["reference"] == str(made / "hf")
    assert report["iteration"] == "release"
    assert report["iterations"] == (["release"] if place == "." else [])
    assert (report["parameters"], report["problems"], report["notes"]) == (PARAMETERS, [], [])
    if form == "megatron":
        assert report["source_layout"]["tp"] == report["source_layout"]["pp"] == 2
        assert report["source_layout"]["stages"]["text"] == [[1, 5]]
    else:
        assert report["source_names"]


@TRAINED
def test_without_a_record_it_is_said_what_it_resembles(form, made, tmp_path):
    saved = copied(made / form, tmp_path)
    (saved / "release" / "distconv.json").unlink()

    report = described(saved)
    assert (report["model"], report["resembles"][0], report["parameters"]) == (None, "qwen2vl", None)
    assert report["notes"] == ["not compared with a model: nothing says which it was trained from; give reference=DIR"]
    assert report["problems"] == []
    assert "model    like qwen2vl" in inspection_text(report, tensors=False)
    if form == "megatron":
        assert "ranks    4 up to mp_rank_01_001" in inspection_text(report, tensors=False)

    report = described(saved, reference=made / "hf")
    assert (report["model"], report["parameters"], report["problems"]) == ("qwen2vl", PARAMETERS, [])


@TRAINED
def test_a_reference_that_has_gone(form, made, tmp_path):
    saved = copied(made / form, tmp_path)
    (saved / "release" / "distconv.json").write_text(json.dumps({"model": "qwen2vl", "reference": "/nowhere"}))
    report = described(saved)
    assert report["problems"][0].endswith("the reference that it names cannot be used; give one with reference=DIR")
    assert report["resembles"][0] == "qwen2vl"
    assert report["bytes"]


@TRAINED
def test_a_directory_of_several_iterations(form, made, tmp_path):
    for number in (1000, 2000):
        shutil.copytree(made / form / "release", tmp_path / f"iter_{number:07d}")
    names = ["iter_0001000", "iter_0002000"]

    report = described(tmp_path)
    assert (report["iterations"], report["iteration"], report["bytes"]) == (names, None, None)
    assert "holds 2 iterations" in report["problems"][0]
    assert described(tmp_path, iteration=1000)["iteration"] == "1000"
    (tmp_path / TRACKER).write_text("2000")
    report = described(tmp_path)
    assert (report["iterations"], report["iteration"], report["problems"]) == (names, "2000", [])
    assert "names iter_0003000, which is not in" in described(tmp_path, iteration=3000)["problems"][0]


def test_a_directory_that_is_no_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tmp_path / "other" / "a.txt").write_text("text")
    kinds = "a Hugging Face directory, a Megatron checkpoint, a torch_dist checkpoint of Megatron-core, "
    none = f"is none of: {kinds}a torch.distributed.checkpoint ({tmp_path}/other/config.json: no such file); it holds "
    empty = "is empty: nothing was saved or downloaded there, or its file system is not mounted"
    for name, problem in (("empty", empty), ("other", f"{none}a.txt, sub")):
        report = described(tmp_path / name)
        assert (report["source_format"], report["title"], report["bytes"]) == (None, None, None)
        assert report["problems"][0] == f"source={tmp_path}/{name}: {problem}"
        assert "format   unknown" in inspection_text(report, tensors=True)
    for name, words in (("nowhere", "no such directory"), ("other/a.txt", "expected a directory, found a file")):
        with pytest.raises(InputError, match=words):
            inspect(tmp_path / name)


def configured(**changes: Any) -> Callable[[Path], object]:
    """A change of the configuration; `None` removes a key."""

    def change(directory: Path) -> None:
        path = directory / "config.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


def quantised(directory: Path) -> None:
    """Weights in eight bits beside their scales, as some are published."""
    name = "model.layers.0.mlp.down_proj.weight"
    index = directory / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = weight_map[name]
    held = {
        each: ("bfloat16", shape, bytes(2 * prod(shape)))
        for each, (_, shape, file) in load_case(CASE)["source_tensors"].items()
        if file == shard
    }
    held[name] = ("float8_e4m3fn", held[name][1], bytes(prod(held[name][1])))
    write_safetensors(directory / shard, held)
    configured(quantization_config={"quant_method": "fp8"})(directory)


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        (
            lambda path: (path / "model-00003-of-00005.safetensors").unlink(),
            {"model": None, "bytes": None},
            "model-00003-of-00005.safetensors: no such file",
        ),
        (lambda path: (path / "config.json").write_text("{"), {"bytes": None}, "config.json: not valid JSON"),
        (
            lambda path: (path / "config.json").unlink(),
            {"source_format": None, "bytes": None},
            "config.json: no such file",
        ),
        (configured(num_hidden_layers=9), {"model": "qwen2vl", "parameters": None}, "model.layers.6."),
        (configured(model_type="qwen9"), {"model": None, "parameters": PARAMETERS}, "no definition is for model_type"),
        (configured(model_type=None), {"model": None, "parameters": PARAMETERS}, "has no model_type; name one with"),
        (quantised, {"model": None, "parameters": None}, "no way to dequantise this is known"),
        (
            lambda path: (path / "model.safetensors.index.json").write_text("[]"),
            {"bytes": None},
            "index.json: expected",
        ),
    ],
)
def test_a_published_directory_that_is_odd(change, expected, words, made, tmp_path):
    directory = copied(made / "hf", tmp_path)
    change(directory)

    report = described(directory)

    assert {key: report[key] for key in expected} == expected
    assert any(words in line for line in [*report["problems"], *report["notes"]])
    assert len(inspection_text(report, tensors=False).splitlines()) < 80


def test_adapters(tmp_path):
    directory = write_source(tmp_path / "adapters", load_case("qwen2_5vl__lora_pp1"))
    report = described(directory)
    assert (report["model"], report["resembles"], report["problems"]) == (None, ["qwen2_5vl_lora"], [])
    assert report["notes"][0].startswith("not compared with a model: adapters do not say of which model they are;")
    named = described(directory, model="qwen2_5vl_lora")
    assert (named["model"], named["notes"], named["problems"]) == ("qwen2_5vl_lora", [], [])
    assert named["parameters"] == report["parameters"]


@pytest.mark.parametrize("form", ["hf", *FORMATS])
def test_damage_is_a_problem(form, made, tmp_path):
    """Of any file: shorter, empty, of other content, not there, or a directory."""
    directory = copied(made / form, tmp_path)
    for path in [path for path in directory.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for data in (content[: len(content) // 2], b"", b"\x80\x02}.", bytes(len(content)), None):
            path.unlink()
            if data is None:
                path.mkdir()
            else:
                path.write_bytes(data)
            report = described(directory)
            if path.suffix in (".safetensors", ".pt", ".distcp"):
                assert report["problems"], (path, data)
            if data is None:
                path.rmdir()
            path.write_bytes(content)
        path.unlink()
        described(directory)
        path.write_bytes(content)
    assert described(directory)["problems"] == []


@pytest.mark.parametrize("name", [name for name in case_names() if "__tp1_pp1" in name or "tied" in name])
def test_parameters_are_counted(name, tmp_path):
    """A head that is stored although it is tied is none of its own."""
    case = load_case(name)
    source = write_source(tmp_path / "hf", case)
    shapes = {name: shape for name, (_, shape, _) in case["source_tensors"].items()}
    if case["hf_config"].get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)
    published = sum(map(prod, shapes.values()))
    assert described(source)["parameters"] == published

    if "save_vit_only" not in name:
        run_here(*overrides(case), source=str(source), target=str(tmp_path / "mm"))
        # What is not trained is not there any more.
        trained = published - sum(
            prod(shape) for each, shape in shapes.items() if each.startswith(("talker", "token2"))
        )
        assert described(tmp_path / "mm")["parameters"] == trained


def test_on_the_command_line(made, tmp_path, distconv):
    found = distconv("action=inspect", f"source={made}/megatron", f"report={tmp_path}/report.json", "tensors=true")

    assert (found.status, found.err) == (0, "")
    report = inspect(made / "megatron")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert found.out == inspection_text(report, tensors=True) + "\n"
    table = [line.split() for line in found.out.splitlines() if line.startswith("  mp_rank_")]
    assert [line[:3] for line in table] == [each[:3] for each in report["tensors"]]
    assert "bfloat16  [" in found.out
    assert "mp_rank" not in distconv("action=inspect", f"source={made}/megatron").out
    refused = distconv("action=inspect", f"source={tmp_path}/nowhere")
    assert (refused.status, refused.err) == (2, f"distconv: source={tmp_path}/nowhere: no such directory\n")
    refused = distconv("action=inspect", f"source={made}/hf", f"report={tmp_path}/none/report.json")
    assert refused.status == 2


def test_on_several_processes(made, tmp_path):
    outcome = run(torchrun(2, "action=inspect", f"source={made}/megatron", "report=report.json"), tmp_path)

    assert outcome.status == 0, outcome.err
    report = inspect(made / "megatron")
    assert outcome.out == inspection_text(report, tensors=False) + "\n"
    assert json.loads((tmp_path / "report.json").read_text()) == report
