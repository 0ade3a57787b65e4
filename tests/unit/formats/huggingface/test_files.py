"""A Hugging Face directory is complete when it is finished, and every file that is not as it should be is named."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from distconv.commit.journal import Journal
from distconv.commit.target import Target
from distconv.formats.frame import write_frame
from distconv.formats.huggingface.files import HuggingFaceFiles
from distconv.formats.huggingface.format import HuggingFace
from distconv.formats.huggingface.plan import HuggingFacePlan, make_huggingface_plan
from distconv.formats.huggingface.reference import read_reference
from distconv.formats.huggingface.safetensors import read_header, safetensors_frame
from distconv.formats.model import Reference
from distconv.formats.records import Written
from distconv.input_output import InputOutput
from distconv.tensors.stored import NamedTensor, SourceFile, StoredTensor, as_stored
from distconv.tensors.virtual import permute, whole
from distconv.transfer.means import Means
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles
from distconv.transfer.surroundings import compare_beside, look_around
from distconv.transfer.verify import Compared, compare_files, together
from distconv.transfer.write import write_beside, write_files
from tests.unit.buffers import small_buffers
from tests.unit.safetensors_files import INDEX_NAME

IO = InputOutput(fsync=False)
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SIDE = {"config.json": '{"dtype":  "bfloat16"}', "sub/code.py": "pass", "tokenizer.json": "{ }"}
# "z" has no elements, and begins where "b" does: wide elements come first.
MAP = {"a": ONE, "b": TWO, "c": TWO, "z": TWO}


def reference(directory: Path, total: int = 62) -> Reference:
    """A directory with an index, side files, something hidden, and no weights."""
    (directory / "sub").mkdir(parents=True)
    for name, text in {**SIDE, ".gitattributes": "x"}.items():
        (directory / name).write_text(text)
    index = {"metadata": {"total_size": total}, "weight_map": MAP}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=4))
    return read_reference(directory, "reference")


def plan(directory: Path, known: Reference) -> HuggingFacePlan:
    """Tensors of 62 bytes out of a file that holds consecutive bytes; one is transposed, one has no elements."""
    content = bytes(range(62))
    (directory / "source").write_bytes(content)
    file = SourceFile(str(directory / "source"), len(content))

    def tensor(name: str, shape: tuple[int, ...], offset: int, dtype: str = "bfloat16") -> NamedTensor:
        stored = StoredTensor(name, dtype, shape, file, offset)
        return NamedTensor((stored,), whole(dtype, shape), name)

    first = tensor("a", (3, 4), 0)
    tensors = [
        replace(first, tensor=permute(first.tensor, (1, 0))),
        tensor("b", (2, 4), 24),
        tensor("c", (11,), 40),
        tensor("z", (0,), 62, "float32"),
    ]
    return make_huggingface_plan(tensors, (), (), known)


@pytest.fixture
def made(tmp_path: Path) -> HuggingFacePlan:
    """With its result in `out`."""
    found = plan(tmp_path, reference(tmp_path / "hf"))
    write(found, tmp_path / "out")
    return found


def means(sources: SourceFiles) -> Means:
    return Means(
        io=IO,
        counters=Counters(lambda _: None),
        sources=sources,
        buffers=small_buffers(1),
        must_stop=lambda: False,
    )


def write(found: HuggingFacePlan, directory: Path) -> dict[str, Written]:
    directory.mkdir()
    form = HuggingFaceFiles(found)
    journal = Journal(directory.parent, 0, durable=False)
    with SourceFiles() as sources:
        written = write_files(found, found.files, directory, form, means(sources), journal)
        return written | write_beside(directory, form.beside(), sources, IO)


def compared(found: HuggingFacePlan, directory: Path) -> Compared:
    form = HuggingFaceFiles(found)
    target = Target(directory=directory, iteration=None, readers_names=HuggingFace.readers_names)
    with SourceFiles() as sources:
        shards = compare_files(found, found.files, directory, form, means(sources))
        beside = compare_beside(form, directory, form.beside(), sources)
    around = look_around({*form.beside(), *(each.path for each in found.files)}, target)
    return together(map(vars, (shards, beside, around)))


def differences(found: HuggingFacePlan, directory: Path) -> list[str]:
    return [line.replace(f"{directory}/", "") for line in compared(found, directory).differences]


def test_a_result_is_the_tensors_the_index_and_all_side_files(tmp_path):
    found = plan(tmp_path, reference(tmp_path / "hf"))
    written = write(found, tmp_path / "out")
    out = tmp_path / "out"
    files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    assert files.keys() == written.keys() == {ONE, TWO, INDEX_NAME, *SIDE}
    contents = {name: path.read_bytes() for name, path in files.items()}
    assert written == {name: (len(content), crc32(content)) for name, content in contents.items()}
    for name in (*SIDE, INDEX_NAME):
        assert files[name].read_bytes() == (tmp_path / "hf" / name).read_bytes()
    (a,) = read_header(out / ONE)
    assert (a.name, a.dtype, a.shape) == ("a", "bfloat16", (4, 3))
    columns = [bytes([8 * row + 2 * column, 8 * row + 2 * column + 1]) for column in range(4) for row in range(3)]
    assert files[ONE].read_bytes()[a.offset :] == b"".join(columns)
    z, b, c = read_header(out / TWO)
    assert (z.shape, z.offset) == ((0,), b.offset)
    assert files[TWO].read_bytes()[b.offset : b.offset + 16] == bytes(range(24, 40))
    assert files[TWO].read_bytes()[c.offset :] == bytes(range(40, 62))
    assert differences(found, out) == []


def test_what_the_plan_says_anew_is_not_copied(tmp_path):
    found = plan(tmp_path, reference(tmp_path / "hf", total=1000))
    assert found.texts.keys() == {INDEX_NAME}
    write(found, tmp_path / "out")
    assert json.loads((tmp_path / "out" / INDEX_NAME).read_text())["metadata"] == {"total_size": 62}
    assert differences(found, tmp_path / "out") == []


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at, os.SEEK_END)
        (byte,) = stream.read(1)
        stream.seek(at, os.SEEK_END)
        stream.write(bytes([byte ^ 1]))


def test_one_byte_of_any_tensor_is_seen(made, tmp_path):
    for file, at, name in ((ONE, -1, "a"), (ONE, -24, "a"), (TWO, -38, "b"), (TWO, -1, "c")):
        flip(tmp_path / "out" / file, at)
        assert differences(made, tmp_path / "out") == [f"{file}: {name} differs from the source"]
        flip(tmp_path / "out" / file, at)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"c": None}, ["c is missing"]),
        ({"b": ("bfloat16", (4, 2))}, ["b is bfloat16 [4, 2], expected bfloat16 [2, 4]"]),
        ({"b": ("float16", (2, 4))}, ["b is float16 [2, 4], expected bfloat16 [2, 4]"]),
        ({"x": ("uint8", ())}, ["x is not expected"]),
    ],
)
def test_the_tensors_of_a_file_are_compared(made, tmp_path, changes: dict[str, Any], expected):
    path = tmp_path / "out" / TWO
    whole_file = {"b": ("bfloat16", (2, 4)), "c": ("bfloat16", (11,)), "z": ("float32", (0,))}
    tensors = {name: form for name, form in (whole_file | changes).items() if form is not None}
    stored = {each.name: each.offset for each in read_header(path)}
    data = path.read_bytes()
    frame = safetensors_frame([(name, *form) for name, form in tensors.items()])
    write_frame(path, frame)
    offsets = dict(zip(tensors, frame.holes, strict=True))
    with path.open("r+b") as stream:
        for name in offsets.keys() & stored.keys():
            stream.seek(offsets[name])
            stream.write(data[stored[name] :][: {"b": 16, "c": 22, "z": 0}[name]])
    assert differences(made, tmp_path / "out") == [f"{TWO}: {line}" for line in expected]


def test_a_difference_is_never_one_of_a_tensor_without_elements(tmp_path):
    """Where another program wrote the file in an order of its own, so that one begins where a tensor with some does."""
    (tmp_path / "source").write_bytes(bytes(range(8)))
    file = SourceFile(str(tmp_path / "source"), 8)
    shapes = {"full": (4,), "none": (0,)}
    stored = [StoredTensor(name, "bfloat16", shape, file, 0) for name, shape in shapes.items()]
    bare = Reference(
        directory=str(tmp_path), config={}, is_adapter=False, index=None, shard_files=None, index_content=None
    )
    found = make_huggingface_plan(list(as_stored(stored)), (), (), bare)
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / found.files[0].path
    frame = safetensors_frame([(name, "bfloat16", shapes[name]) for name in ("none", "full")])
    write_frame(path, frame)
    with path.open("r+b") as stream:
        stream.seek(frame.holes[1])
        stream.write(bytes([0, 1, 2, 3, 4, 5, 6, 9]))
    form = HuggingFaceFiles(found)
    with SourceFiles() as sources:
        shards = compare_files(found, found.files, path.parent, form, means(sources))
    assert [line for line in shards.differences if "from the source" in line] == [
        f"{path}: full differs from the source"
    ]


def test_the_files_beside_the_tensors_are_compared(made, tmp_path):
    out = tmp_path / "out"
    (out / "config.json").write_text(SIDE["config.json"] + " ")
    (out / "sub" / "code.py").unlink()
    flip(out / INDEX_NAME, -1)
    last = (out / INDEX_NAME).stat().st_size - 1
    assert differences(made, out) == [
        f"config.json: differs from that of {tmp_path}/hf/config.json at byte 22",
        "sub/code.py: cannot be compared: No such file or directory",
        f"{INDEX_NAME}: differs from that of {tmp_path}/hf/{INDEX_NAME} at byte {last}",
    ]


def test_a_text_of_the_plan_is_compared(tmp_path):
    found = plan(tmp_path, reference(tmp_path / "hf", total=1000))
    write(found, tmp_path / "out")
    (tmp_path / "out" / INDEX_NAME).write_text((tmp_path / "hf" / INDEX_NAME).read_text())
    (line,) = differences(found, tmp_path / "out")
    assert line.startswith(f"{INDEX_NAME}: differs from what it should be at byte ")


@pytest.mark.parametrize("name", ["README.md", "mine.py", "sub/more.py", "training_args.bin", "checkpoint-7/"])
def test_what_is_added_beside_a_result_is_named_and_no_difference(made, tmp_path, name):
    add(tmp_path / "out" / name)
    found = compared(made, tmp_path / "out")
    assert found.differences == []
    assert found.notes == [f"{tmp_path}/out: holds more than belongs to the result: {name.rstrip('/')}"]


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_config.json"],
)
def test_what_a_reader_would_take_for_the_model_is_a_difference(made, tmp_path, name):
    add(tmp_path / "out" / name)
    (line,) = differences(made, tmp_path / "out")
    assert line.startswith(f"{name}: is not expected")


def add(path: Path) -> None:
    if path.name.startswith("checkpoint"):
        path.mkdir()
        path /= "model.safetensors"
    path.write_bytes(b"")


def test_a_missing_and_a_damaged_file_are_differences(made, tmp_path):
    path = tmp_path / "out" / TWO
    path.write_bytes(path.read_bytes()[:-1])
    (line,) = differences(made, tmp_path / "out")
    assert line.startswith(f"{TWO}: tensor c: its data ends at byte ")
    path.unlink()
    assert differences(made, tmp_path / "out") == [f"{TWO}: cannot be compared: No such file or directory"]
