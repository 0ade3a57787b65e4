"""Which files of a directory are the checkpoint, and that they and their index agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.formats.huggingface import directory as source_directory
from distconv.formats.huggingface.directory import check_directory, find_index, read_directory, unread_weights
from distconv.formats.huggingface.safetensors import read_header
from distconv.tensors.stored import SourceFile, SourceIndex, StoredTensor
from tests.unit.safetensors_files import INDEX_NAME, entry, indexed, shard


def problems(directory: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_directory(directory)
    return caught.value.problems


def test_a_single_file_is_the_checkpoint(tmp_path):
    path = shard(tmp_path / "model.safetensors")
    file = read_header(path)[0].file
    start = file.size - 32
    assert read_directory(tmp_path) == SourceIndex(
        directory=str(tmp_path),
        tensors={
            "a": StoredTensor("a", "float32", (2, 3), file, start),
            "b": StoredTensor("b", "bfloat16", (4,), file, start + 24),
        },
    )


def test_a_single_file_of_another_name_will_do_but_the_usual_name_goes_first(tmp_path):
    shard(tmp_path / "diffusion.safetensors", {"other": entry(0, 32, (8,))})
    assert list(read_directory(tmp_path).tensors) == ["other"]
    shard(tmp_path / "model.safetensors")
    assert list(read_directory(tmp_path).tensors) == ["a", "b"]


def test_the_shards_of_an_index_are_the_source_and_stray_files_are_not_read(tmp_path):
    indexed(tmp_path, {"1.safetensors": ["a", "b"], "2.safetensors": ["c"]})
    for name in ("stray.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "model.index.json"):
        (tmp_path / name).write_bytes(b"not at all")
    found = read_directory(tmp_path)
    assert unread_weights(tmp_path, found) == ("pytorch_model.bin", "pytorch_model.bin.index.json", "stray.safetensors")
    assert {name: Path(tensor.file.path).name for name, tensor in found.tensors.items()} == {
        "a": "1.safetensors",
        "b": "1.safetensors",
        "c": "2.safetensors",
    }


def test_an_index_survives_being_shared(tmp_path):
    found = read_directory(indexed(tmp_path, {"1.safetensors": ["a", "b"], "2.safetensors": ["c"]}))
    assert SourceIndex.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_all_problems_of_all_shards_are_reported_together(tmp_path):
    indexed(tmp_path, {"1.safetensors": ["a"], "2.safetensors": ["b"], "3.safetensors": ["c"], "4.safetensors": ["d"]})
    (tmp_path / "1.safetensors").unlink()
    shard(tmp_path / "2.safetensors", {"b": entry(0, 4, (), "Q4"), "e": entry(4, 8, (2,))}, data=8)
    shard(tmp_path / "3.safetensors", b"{")
    starts = [
        "1.safetensors: no such file",
        "2.safetensors: tensor b",
        "2.safetensors: tensor e",
        "3.safetensors (header)",
    ]
    for problem, start in zip(problems(tmp_path), starts, strict=True):
        assert problem.startswith(f"{tmp_path}/{start}")


def test_a_missing_shard_is_named_with_the_remedy(tmp_path):
    indexed(tmp_path, {"1.safetensors": ["a"], "2.safetensors": ["b"]})
    (tmp_path / "2.safetensors").unlink()
    assert problems(tmp_path) == [
        f"{tmp_path}/2.safetensors: no such file: not downloaded, or a link whose target is gone"
    ]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"},
            "names the tensor c in 2.safetensors, which does not hold it",
        ),
        (
            {"a": "2.safetensors", "b": "2.safetensors", "x": "1.safetensors"},
            "names the tensor a in 2.safetensors, but it is in 1.safetensors",
        ),
        ({"a": "1.safetensors", "b": "2.safetensors"}, "does not name 1 tensor that its shards hold: x"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path, weight_map, message):
    names = ["a", "x"] if "x" in message or "x" in weight_map else ["a"]
    indexed(tmp_path, {"1.safetensors": names, "2.safetensors": ["b"]}, weight_map)
    assert problems(tmp_path) == [f"{tmp_path}/{INDEX_NAME}: {message}; are index and shards of one download?"]


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    indexed(tmp_path, {"1.safetensors": ["a", "b"], "2.safetensors": ["b"]})
    both = f"{tmp_path}/1.safetensors and {tmp_path}/2.safetensors"
    assert f"tensor b is in both {both}; remove the file that is not of the model" in problems(tmp_path)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "", ".", "..", 3, None, ["x"], "x\0", "x\ud800"]
)
def test_a_shard_name_that_leaves_the_directory_is_refused(tmp_path, name):
    directory = indexed(tmp_path / "hf", {"1.safetensors": ["a"]}, {"a": "1.safetensors", "b": name})
    shard(tmp_path / "x.safetensors", {"b": entry(0, 32, (8,))})
    assert problems(directory) == [
        f"{directory}/{INDEX_NAME}: tensor b is in {name!r}, which is not the name of a file in this directory"
    ]


@pytest.mark.parametrize("content", [b"{}", b'{"weight_map": {}}', b'{"weight_map": ["a"]}', b'{"weight_map": null}'])
def test_an_index_without_a_weight_map_is_refused(tmp_path, content):
    (tmp_path / INDEX_NAME).write_bytes(content)
    assert problems(tmp_path) == [
        f"{tmp_path}/{INDEX_NAME}: expected an object 'weight_map' from tensor names to shard files"
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"weight_map": {"a": "1", "a": "2"}}'])
def test_an_index_that_is_not_json_is_refused(tmp_path, content):
    (tmp_path / INDEX_NAME).write_bytes(content)
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{tmp_path}/{INDEX_NAME}: not valid JSON: ")


def test_the_layout_of_the_hugging_face_cache_works(tmp_path):
    """snapshots/<revision>/<name> → ../../blobs/<hash>, the index too."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    indexed(blobs, {"1.safetensors": ["a"], "2.safetensors": ["b"]})
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / f"hash{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash{number}")
    found = read_directory(snapshot)
    assert {name: tensor.file.path for name, tensor in found.tensors.items()} == {
        "a": str(snapshot / "1.safetensors"),
        "b": str(snapshot / "2.safetensors"),
    }


def test_a_dangling_link_of_a_single_file_is_refused_without_speaking_of_an_index(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("../blobs/gone")
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{tmp_path}/model.safetensors: no such file")
    assert "index" not in problem


def test_a_shard_that_is_a_directory_is_refused(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    assert problems(tmp_path) == [f"{tmp_path}/model.safetensors: cannot be read: Is a directory"]


def test_what_is_no_directory_is_refused_by_its_key(tmp_path):
    with pytest.raises(InputError, match=f"text_source={tmp_path}/none: no such directory"):
        check_directory(tmp_path / "none", "text_source")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"source={tmp_path}/file: expected a directory, found a file"):
        check_directory(tmp_path / "file", "source")
    check_directory(tmp_path, "source")


def test_a_directory_without_a_checkpoint_or_with_too_many_is_refused(tmp_path):
    (problem,) = problems(tmp_path)
    assert problem.startswith(
        f"{tmp_path}: holds no checkpoint; expected one of model.safetensors, pytorch_model.bin, or"
    )
    for number in range(3):
        shard(tmp_path / f"{number}.safetensors")
    (problem,) = problems(tmp_path)
    assert problem.startswith(
        f"{tmp_path}: holds 3 files that may be the model (0.safetensors, 1.safetensors, 2.safetensors) "
        f"but no {INDEX_NAME}"
    )


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the state dicts that were read; each holds one tensor of its own name."""
    names: list[str] = []

    def read_state_dict(path: Path) -> list[StoredTensor]:
        names.append(path.name)
        return [StoredTensor(f"in {path.name}", "float32", (1,), SourceFile(str(path), 4), 0)]

    for formats in ("_MODEL", "_ADAPTER"):
        safetensors, torch = getattr(source_directory, formats)
        monkeypatch.setattr(source_directory, formats, (safetensors, replace(torch, read=read_state_dict)))
    return names


@pytest.mark.parametrize(
    ("files", "adapter", "expected"),
    [
        (["pytorch_model.bin"], False, ["pytorch_model.bin"]),
        (["model.pth"], False, ["model.pth"]),
        (["model.pt"], False, ["model.pt"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], False, ["pytorch_model.bin"]),
        # Safetensors go before state dicts.
        (["model.safetensors", "pytorch_model.bin"], False, []),
        (["adapter_model.bin"], True, ["adapter_model.bin"]),
        (["adapter_model.bin", "pytorch_model.bin", "model.safetensors"], True, ["adapter_model.bin"]),
        (["adapter_model.safetensors", "adapter_model.bin"], True, []),
    ],
)
def test_which_file_is_the_checkpoint(tmp_path, read, files, adapter, expected):
    for name in files:
        shard(tmp_path / name)
    found = read_directory(tmp_path, adapter=adapter)
    assert read == expected
    assert list(found.tensors) == ([f"in {name}" for name in expected] or ["a", "b"])


def test_state_dicts_in_shards_have_an_index_too(tmp_path, read):
    weight_map = {"in 1.bin": "1.bin", "in 2.bin": "2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert list(read_directory(tmp_path).tensors) == ["in 1.bin", "in 2.bin"]
    assert read == ["1.bin", "2.bin"]


def test_several_state_dicts_without_an_index_are_refused(tmp_path):
    for name in ("a.bin", "b.pth"):
        (tmp_path / name).touch()
    (problem,) = problems(tmp_path)
    assert problem.startswith(
        f"{tmp_path}: holds 2 files that may be the model (a.bin, b.pth) but no pytorch_model.bin"
    )


def test_an_adapter_is_not_a_model(tmp_path):
    shard(tmp_path / "model.safetensors")
    with pytest.raises(
        InputError, match=r"holds no checkpoint; expected one of adapter_model\.safetensors, adapter_model"
    ):
        read_directory(tmp_path, adapter=True)


@pytest.mark.parametrize(
    ("single", "index", "adapter"),
    [
        ("model.safetensors", "model.safetensors.index.json", False),
        ("pytorch_model.bin", "pytorch_model.bin.index.json", False),
        ("adapter_model.safetensors", "adapter_model.safetensors.index.json", True),
    ],
)
def test_a_single_file_that_the_index_beside_it_does_not_name_is_refused(single, index, adapter, tmp_path):
    (tmp_path / single).write_bytes(b"not at all")
    (tmp_path / index).write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    for read in (read_directory, find_index):
        with pytest.raises(InputError) as caught:
            read(tmp_path, adapter=adapter)
        (problem,) = caught.value.problems
        assert problem.startswith(f"{tmp_path}: holds {single} beside {index}, which does not name it: ")


def test_a_single_file_that_the_index_names_is_the_shard(tmp_path):
    indexed(tmp_path, {"model.safetensors": ["a", "b"]})
    assert list(read_directory(tmp_path).tensors) == ["a", "b"]


def test_a_single_file_goes_before_the_index_of_other_files(tmp_path):
    shard(tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin.index.json").write_bytes(b"not at all")
    (tmp_path / "spk_dict.pt").write_bytes(b"a side file")
    assert find_index(tmp_path) is None
    assert unread_weights(tmp_path, read_directory(tmp_path)) == ("pytorch_model.bin.index.json",)
