"""Numbers too large to calculate with, or to print: wherever one can stand, it is refused in words or does not matter.

Python raises an error of its own where an integer of more than 4,300 digits becomes text or is made of it.
"""

from __future__ import annotations

import json
import os
import pickletools
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distconv import inspect, plan
from distconv.errors import InputError
from distconv.layout.request import Layout
from tests.checkpoints import load_case, write_header, write_source
from tests.here import in_every_format

DIGITS = 5000
LARGEST_DOUBLE = int(sys.float_info.max)
# As text in JSON: within what is read, beyond what a double holds, an infinity, and beyond what Python prints.
TEXTS = ["9" * 99, str(LARGEST_DOUBLE)[:90] + "e300", "1e999", "-" + "9" * 99, "9" * DIGITS]
# As bytes in a pickle: what no file can hold, more than is read, and beyond what Python prints.
NUMBERS = [2**62, 2**200, -(2**200), 16**DIGITS]
# Places of numbers that are tried in a file; all of them where there are fewer.
PLACES = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model, what it becomes for training, and adapters."""
    found = in_every_format(tmp_path_factory.mktemp("made"))
    write_source(found / "peft", load_case("qwen2_5vl__lora_pp1"))
    return found


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "world"))


def check(job: Callable[[], object]) -> None:
    """A job does its work, or says in words of a readable length what is wrong."""
    try:
        job()
    except InputError as error:
        assert 0 < len(str(error)) < 20_000  # noqa: PT017 - it may as well succeed
        assert "9" * 1000 not in str(error)  # noqa: PT017


def leaves(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all numbers in JSON data, and of its texts, which may be taken for numbers."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from leaves(value, (*at, key))
    if not isinstance(content, dict | list):
        yield at


def with_number(content: Any, at: tuple[Any, ...], text: str) -> str:
    """JSON data with a number, as text, in the place of another value."""
    *way, last = at
    changed = json.loads(json.dumps(content))
    place = changed
    for key in way:
        place = place[key]
    place[last] = "THE NUMBER"
    return json.dumps(changed).replace('"THE NUMBER"', text)


@pytest.mark.parametrize(
    ("file", "source", "options"),
    [
        ("hf/config.json", "hf", {}),
        ("hf/config.json", "mm", {"target_format": "hf", "reference": "hf"}),
        ("hf/model.safetensors.index.json", "hf", {}),
        ("mm/release/distconv.json", "mm", {"target_format": "hf"}),
        ("peft/adapter_config.json", "peft", {"target_format": "dcp", "model": "qwen2_5vl_lora"}),
    ],
)
@pytest.mark.parametrize("text", TEXTS, ids=["whole", "double", "infinite", "negative", "digits"])
def test_in_json(file, source, options, text, world):
    path, options = world / file, dict(options)
    if "reference" in options:
        options["reference"] = world / options["reference"]
    content = json.loads(path.read_text())
    places = list(leaves(content))
    for at in places[:: max(len(places) // PLACES, 1)]:
        path.write_text(with_number(content, at, text))
        check(lambda: plan(world / source, world / "target", **options))


def integers(data: bytes) -> list[tuple[int, int]]:
    """Begin and end of the instructions of a pickle that give an integer."""
    found = list(pickletools.genops(data))
    ends = [after for _, _, after in found[1:]] + [len(data)]
    return [
        (start, end)
        for (code, _, start), end in zip(found, ends, strict=True)
        if code.name in ("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG")
    ]


def long(number: int) -> list[bytes]:
    """The instructions that give a large number: in binary, and in digits."""
    size = number.bit_length() // 8 + 1
    data = number.to_bytes(size, "little", signed=True)
    words = [b"\x8b" + size.to_bytes(4, "little") + data]
    if size < DIGITS // 3:
        words.append(b"I" + str(number).encode() + b"\n")
    return words


def check_pickle(data: bytes, write: Callable[[bytes], None], job: Callable[[], object]) -> None:
    places = integers(data)
    assert places
    for start, end in places[:: max(len(places) // PLACES, 1)]:
        for number in NUMBERS:
            for word in (*long(number), b"L" + b"9" * DIGITS + b"L\n"):
                write(data[:start] + word + data[end:])
                check(job)


def test_in_the_metadata_of_a_dcp(world):
    (path,) = world.glob("dcp/*/.metadata")
    check_pickle(
        path.read_bytes(),
        path.write_bytes,
        lambda: plan(world / "dcp", world / "target", target_format="hf", reference=world / "hf"),
    )


def test_in_a_file_of_a_rank(world):
    (path,) = world.glob("mm/release/*/*.pt")
    # As torch saves it: distconv leaves out the checksums that `zipfile` looks at.
    torch.save(torch.load(path, weights_only=True), path)
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    (name,) = (each for each in members if each.endswith("data.pkl"))

    def write(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for each, content in members.items():
                archive.writestr(each, data if each == name else content)

    check_pickle(
        members[name],
        write,
        lambda: plan(world / "mm", world / "target", target_format="hf", reference=world / "hf"),
    )


@pytest.mark.parametrize("text", [*TEXTS, "0x" + "f" * DIGITS], ids=range(len(TEXTS) + 1))
@pytest.mark.parametrize(
    "line",
    [
        "sizes: {hidden: [hidden_size, NUMBER]}",
        "sizes: {hidden: [product, NUMBER, NUMBER]}",
        "sizes: {deepstack: [NUMBER]}",
        "modalities: {text: {layers: NUMBER}}",
        "model_types: [NUMBER]",
        "variant_of: NUMBER",
        "rules: {text: {first: [{target: NUMBER, sources: [[a, NUMBER]], operator: [NUMBER], tp: [rows, NUMBER]}]}}",
        "NUMBER: 1",
        "defaults: [NUMBER]",
    ],
)
def test_in_a_definition(line, text, world):
    path = world / "own" / "model" / "mine.yaml"
    path.parent.mkdir(parents=True)
    header = "" if line.startswith("defaults") else "defaults: [qwen2vl, _self_]\n"
    path.write_text(header + line.replace("NUMBER", text) + "\n")
    check(lambda: plan(world / "hf", world / "target", model="mine", config_dir=world / "own"))


def test_in_a_product_of_sizes(world):
    """Each of them can be printed, but not their product."""
    path = world / "own" / "model" / "mine.yaml"
    path.parent.mkdir(parents=True)
    sizes = ", ".join(["hidden"] * 60)
    path.write_text(f"defaults: [qwen2vl, _self_]\nsizes: {{intermediate: [product, {sizes}]}}\n")
    config = world / "hf" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 10**90}))
    check(lambda: plan(world / "hf", world / "target", model="mine", config_dir=world / "own"))


@pytest.mark.parametrize("number", [10**99, 10**DIGITS, -(10**DIGITS), 1e308, float("inf"), float("nan")], ids=range(6))
@pytest.mark.parametrize(
    "option",
    ["iteration", "vocab_size", "processes", "patience", "lora_alpha", "overwrite", "select", "name_prefix", "target"],
)
def test_in_options(option, number, world):
    with pytest.raises((InputError, TypeError)):
        plan(**{"source": world / "hf", "target": world / "target", option: number})


@pytest.mark.parametrize("number", [10**99, 10**DIGITS, -(10**DIGITS)], ids=range(3))
def test_in_a_layout(number, world):
    for layout in (
        lambda: Layout(tp=number),
        lambda: Layout(stages={"text": [number, 1]}),
        lambda: Layout(modality_tp={"vision": number}),
        lambda: Layout(placement=number),
    ):
        with pytest.raises(InputError):
            plan(world / "hf", world / "target", layout=layout())


@pytest.mark.parametrize("digits", [99, DIGITS])
def test_in_digits_of_text(digits, world):
    """Where digits are a part of a text, and are taken for a number: names, trackers, versions."""
    number = "9" * digits
    job = {"source": world / "mm", "target": world / "target", "target_format": "hf", "reference": world / "hf"}
    with pytest.raises(InputError):
        plan(**job, iteration=number)
    (world / "mm" / "latest_checkpointed_iteration.txt").write_text(number)
    with pytest.raises(InputError):
        plan(**job)
    inspect(world / "mm")
    config = world / "hf" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_version": f"{number}.0"}))
    check(lambda: plan(world / "hf", world / "target"))


@pytest.mark.parametrize("digits", [99, DIGITS])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.{}.input_layernorm.weight",
        "visual.blocks.{}.norm1.weight",
        "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight",
    ],
)
@pytest.mark.parametrize("source", ["hf", "peft"])
def test_in_names_of_tensors(name, digits, source, world):
    directory = world / "one"
    directory.mkdir()
    adapter = source == "peft"
    for path in (world / source).glob("*.json"):
        if "index" not in path.name:
            shutil.copy(path, directory)
    file = "adapter_model.safetensors" if adapter else "model.safetensors"
    write_header(directory / file, {name.format("9" * digits): ("float32", [4])})
    with pytest.raises(InputError):
        plan(directory, world / "target", model="qwen2_5vl_lora" if adapter else None)
    inspect(directory, model="qwen2_5vl_lora" if adapter else None)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "PMI_SIZE", "SLURM_PROCID"])
def test_in_what_a_launcher_says(name, world, monkeypatch):
    for key in list(os.environ):
        if key.startswith(("PMI", "OMPI", "SLURM")):
            monkeypatch.delenv(key)
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        if not name.startswith(("PMI", "SLURM")):
            monkeypatch.setenv(key, value)
    if name.startswith("SLURM"):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", "1")
    for number in ("9" * DIGITS, "x"):
        monkeypatch.setenv(name, number)
        with pytest.raises(InputError):
            plan(world / "hf", world / "target", processes="auto")
