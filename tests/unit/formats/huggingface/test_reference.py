"""What a conversion back follows, as the hub and its cache lay directories out; and which of its files it copies."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.formats.huggingface.reference import check_side_files, read_reference, side_files
from tests.unit.failing import failing_to_open
from tests.unit.safetensors_files import INDEX_NAME, indexed, shard


def configured(directory: Path, name: str = "config.json") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text('{"model_type": "toy"}')
    return directory


def with_index(directory: Path, weight_map: dict[str, str], name: str = INDEX_NAME) -> Path:
    configured(directory)
    (directory / name).write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return directory


def put(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_a_directory_with_shards_says_all(tmp_path):
    directory = configured(indexed(tmp_path / "hf", {"m-1.safetensors": ["a", "b"], "m-2.safetensors": ["c"]}))
    found = read_reference(directory, "reference")
    assert (found.directory, found.config, found.is_adapter) == (str(directory), {"model_type": "toy"}, False)
    assert found.index is not None
    assert sorted(found.index.tensors) == ["a", "b", "c"]
    assert found.shard_files == {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}
    assert found.index_content == json.loads((directory / INDEX_NAME).read_text())


def test_a_single_file_has_no_index(tmp_path):
    shard(configured(tmp_path / "hf") / "model.safetensors")
    found = read_reference(tmp_path / "hf", "reference")
    assert (found.shard_files, found.index_content) == ({"a": "model.safetensors", "b": "model.safetensors"}, None)


@pytest.mark.parametrize("name", ["m-1.safetensors", INDEX_NAME])
def test_weights_that_cannot_be_read_are_not_taken_for_missing(name, tmp_path, monkeypatch):
    """The result would depend on whether the file system answers."""
    directory = configured(indexed(tmp_path / "hf", {"m-1.safetensors": ["a"], "m-2.safetensors": ["b"]}))
    (directory / "m-2.safetensors").unlink()
    failing_to_open(monkeypatch, name)
    with pytest.raises(InputError, match=f"{name}: cannot be read: Input/output error"):
        read_reference(directory, "reference")


def test_an_index_without_its_shards_still_says_where_tensors_go(tmp_path):
    found = read_reference(with_index(tmp_path / "hf", {"a": "m-2.safetensors"}), "reference")
    assert found.index is None
    assert found.shard_files == {"a": "m-2.safetensors"}
    assert found.index_content == {"metadata": {"total_size": 8}, "weight_map": {"a": "m-2.safetensors"}}


def test_a_configuration_alone_leaves_the_shards_open(tmp_path):
    found = read_reference(configured(tmp_path / "hf"), "reference")
    assert (found.index, found.shard_files, found.index_content) == (None, None, None)


def test_weights_that_cannot_be_read_are_no_missing_weights(tmp_path):
    (configured(tmp_path / "hf") / "model.safetensors").write_bytes(b"\0" * 4)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        read_reference(tmp_path / "hf", "reference")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("pytorch_model.bin", "model.safetensors"),
        ("pytorch_model-00001-of-00003.bin", "model-00001-of-00003.safetensors"),
        ("model-00001-of-00003.safetensors", "model-00001-of-00003.safetensors"),
    ],
)
def test_the_result_has_safetensors_where_the_reference_has_state_dicts(tmp_path, stored, expected):
    directory = with_index(tmp_path / "hf", {"a": stored}, "pytorch_model.bin.index.json")
    assert read_reference(directory, "reference").shard_files == {"a": expected}


def test_an_adapter_is_known_by_its_configuration(tmp_path):
    shard(configured(tmp_path / "hf", "adapter_config.json") / "adapter_model.safetensors")
    found = read_reference(tmp_path / "hf", "reference")
    assert found.is_adapter
    assert found.shard_files == {"a": "adapter_model.safetensors", "b": "adapter_model.safetensors"}


def test_an_adapter_without_its_weights_does_not_say_how_they_are_called(tmp_path):
    directory = configured(tmp_path / "hf", "adapter_config.json")
    with pytest.raises(
        InputError, match=f"{directory}: holds no checkpoint; expected one of adapter_model.safetensors"
    ):
        read_reference(directory, "reference")


def test_a_model_with_an_adapter_beside_it_is_a_model(tmp_path):
    directory = configured(configured(tmp_path / "hf"), "adapter_config.json")
    shard(directory / "model.safetensors")
    assert not read_reference(directory, "reference").is_adapter


@pytest.mark.parametrize("shard_name", ["../a.safetensors", "/etc/passwd", "..", "x/y.safetensors", ""])
def test_an_index_that_leaves_the_directory_is_refused(tmp_path, shard_name):
    with pytest.raises(InputError, match="which is not the name of a file in this directory"):
        read_reference(with_index(tmp_path / "hf", {"a": shard_name}), "reference")


def test_what_is_no_hugging_face_directory_is_named_by_its_key(tmp_path):
    with pytest.raises(InputError, match=f"reference={tmp_path}/hf: no such directory"):
        read_reference(tmp_path / "hf", "reference")
    with pytest.raises(InputError, match=r"config\.json: no such file; it is needed for what the model"):
        read_reference(tmp_path, "reference")


SIDE = (
    "chat_template.jinja", "config.json", "merges.txt", "modeling_x.py", "spk_dict.pt", "sub/vocab.json",
    "tokenizer.json",
)  # fmt: skip
WEIGHTS = (
    "model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin", "a.pt", "a.pth", "tf_model.h5",
    "flax_model.msgpack", "onnx/model.onnx", "x.gguf", "MODEL.SAFETENSORS", "sub/more.bin", INDEX_NAME,
    "pytorch_model.bin.index.json", "__0_0.distcp", "a.ckpt",
)  # fmt: skip
HIDDEN = (
    ".gitattributes", ".git/config", ".git/objects/ab", ".cache/huggingface/download/x.metadata", "sub/.DS_Store",
    "__pycache__/modeling_x.cpython-311.pyc", "sub/__pycache__/y.pyc", ".metadata",
)  # fmt: skip


def test_side_files_are_all_that_is_neither_weight_nor_hidden(tmp_path):
    put(tmp_path, (*SIDE, *WEIGHTS, *HIDDEN))
    assert sorted(side_files(tmp_path)) == sorted(SIDE)


def test_links_of_the_cache_are_the_files_behind_them(tmp_path):
    """`snapshots/REVISION/NAME` → `../../blobs/HASH`, whose name says nothing."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    put(blobs, ["1a", "2b", "3c"])
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/1a")
    (snapshot / "sub" / "code.py").symlink_to("../../../blobs/2b")
    (snapshot / "model.safetensors").symlink_to("../../blobs/3c")
    (snapshot / "lost.txt").symlink_to("../../blobs/none")
    assert list(side_files(snapshot)) == ["config.json", "sub/code.py"]
    with pytest.raises(InputError, match=rf"^{snapshot}/lost.txt: is a link to nothing[^\n]*$"):
        check_side_files(snapshot)
    (snapshot / "lost.txt").unlink()
    check_side_files(snapshot)


def test_a_directory_of_side_files_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    put(configured(tmp_path), ["assets/a.json"])
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("assets"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for read in (lambda: read_reference(tmp_path, "reference"), lambda: check_side_files(tmp_path)):
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            read()


def test_what_training_saves_beside_a_model_is_no_part_of_it(tmp_path):
    (tmp_path / "save").mkdir()
    for name in ("config.json", "save/latest_checkpointed_iteration.txt", "save/distconv.json"):
        (tmp_path / name).write_text("{}")
    assert list(side_files(tmp_path)) == ["config.json"]


def test_a_linked_directory_is_not_followed(tmp_path):
    put(tmp_path, ["elsewhere/secret.txt", "hf/config.json"])
    (tmp_path / "hf" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "hf" / "round").symlink_to(tmp_path / "hf")
    assert list(side_files(tmp_path / "hf")) == ["config.json"]
