"""`.metadata` is read as data: what torch writes becomes records, anything else is named and refused, nothing runs."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distconv.errors import InputError
from distconv.formats.dcp.metadata import Chunk, Entry, Place, read_metadata
from tests.unit.attacks import CALLS
from tests.unit.dcp_files import META, Call, Draft, Name, index, pickled, rows, size


def draft() -> Draft:
    made = Draft(others=["checkpoint_version", "optim.lr"])
    made.put("model.a", np.arange(12, dtype=np.uint32).reshape(4, 3), "float32", rows(2, 4))
    made.put("model.scalar", np.uint16(7).reshape(()), "bfloat16", [()])
    return made


def read(tmp_path: Path, content: Any) -> Any:
    path = tmp_path / ".metadata"
    path.write_bytes(content if isinstance(content, bytes) else pickled(content))
    return read_metadata(path)


def refused(tmp_path: Path, content: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert str(tmp_path / ".metadata") in str(caught.value)
    return str(caught.value)


def test_tensors_chunks_and_other_entries(tmp_path):
    made = draft()
    found = read(tmp_path, made.metadata())
    assert tuple(found.blobs) == ("checkpoint_version", "optim.lr")
    places = [(Place(file=b.file, offset=b.offset, length=b.length, transforms=()),) for b in made.boxes["model.a"]]
    assert found.tensors["model.a"] == Entry(
        dtype="float32",
        shape=(4, 3),
        chunks=(
            Chunk(offsets=(0, 0), sizes=(2, 3), places=places[0]),
            Chunk(offsets=(2, 0), sizes=(2, 3), places=places[1]),
        ),
    )
    assert found.tensors["model.scalar"].dtype == "bfloat16"
    assert found.tensors["model.scalar"].shape == ()


@pytest.mark.parametrize(("path", "saved_in"), [("/a/iter_0000007", "/a/iter_0000007"), (None, ""), (7, "")])
def test_the_directory_that_it_was_saved_in(tmp_path, path, saved_in):
    made = draft().metadata()
    assert read(tmp_path, made).saved_in == ""
    made.state["storage_meta"] = Call(Name(META, "StorageMeta"), (), {"checkpoint_id": path, "save_id": "x"})
    assert read(tmp_path, made).saved_in == saved_in


def test_what_older_versions_of_torch_wrote(tmp_path):
    """Without `version` and `storage_meta`, with another path of `TensorProperties`, and entries without offsets."""
    made = draft().metadata()
    entry = made.state["state_dict_metadata"]["model.a"]
    entry.state["properties"].function = Name("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties")
    encoding = Name("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING")
    entry.state["properties"].state = (*entry.state["properties"].state[:3], Call(encoding, (0,)), False)
    storage = made.state["storage_data"]
    made.state["storage_data"] = {
        index("model.scalar", None) if key.state["fqn"] == "model.scalar" else key: info
        for key, info in storage.items()
    }
    found = read(tmp_path, made)
    assert found.tensors["model.a"].dtype == "float32"
    assert len(found.tensors["model.scalar"].chunks[0].places) == 1


def test_a_place_without_offsets_is_that_of_a_tensor_in_one_chunk_alone(tmp_path):
    """Of several chunks, it is that of none: what is there is not all of each of them."""
    made = draft().metadata()
    (scalar, *_), info = zip(*made.state["storage_data"].items(), strict=True)
    assert scalar.state["fqn"] == "model.a"
    made.state["storage_data"] = {index("model.a", None): info[0], index("model.scalar", None): info[-1]}
    found = read(tmp_path, made)
    assert [chunk.places for chunk in found.tensors["model.a"].chunks] == [(), ()]
    assert len(found.tensors["model.scalar"].chunks[0].places) == 1


def test_what_newer_versions_and_planners_write_besides_is_not_needed(tmp_path):
    made = draft().metadata()
    made.state["version"] = "9.0"
    path = Call(Name("pathlib._local", "PosixPath"), ("/", "save"))
    made.state["storage_meta"] = Call(Name(META, "StorageMeta"), (), {"checkpoint_id": path, "modules": []})
    made.state["planner_data"] = {
        "model.a": ("model", "a"),
        "set": Call(Name("builtins", "set"), ([1, 2],)),
        "plan": Call(Name("torch.distributed.checkpoint.planner", "SavePlan"), (), {"items": []}),
        "ordered": OrderedDict(a=1),
        "all_local_plans": [Call(Name("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"))],
    }
    assert set(read(tmp_path, made).tensors) == {"model.a", "model.scalar"}


def test_a_chunk_that_is_placed_twice_keeps_both_places(tmp_path):
    made = draft().metadata()
    storage = made.state["storage_data"]
    storage[index("model.a", (0, 0))] = draft().boxes["model.a"][1].info()
    places = read(tmp_path, made).tensors["model.a"].chunks[0].places
    assert [place.file for place in places] == ["__0_0.distcp", "__1_0.distcp"]


class Malicious:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


ATTACKS = {
    "posix.system": lambda mark: Malicious(os.system, f"touch {mark}"),
    "posix.mkdir": lambda mark: Malicious(os.mkdir, str(mark)),
    "builtins.eval": lambda mark: Malicious(eval, f"open({str(mark)!r}, 'w').close()"),
    "builtins.exec": lambda mark: Malicious(exec, f"open({str(mark)!r}, 'w').close()"),
    "subprocess.check_call": lambda mark: Malicious(subprocess.check_call, ["touch", str(mark)]),
    "builtins.getattr": lambda mark: Malicious(getattr, str(mark), "title"),
}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_malicious_pickle_is_not_run_and_says_its_name(tmp_path, protocol, name):
    mark = tmp_path / "run"
    data = pickle.dumps(ATTACKS[name](mark), protocol, fix_imports=False)
    message = refused(tmp_path, data)
    assert f"names {name}, which" in message
    assert "nothing of the file was executed" in message
    assert not mark.exists()


def test_an_attack_beside_sound_metadata_is_refused_all_the_same(tmp_path):
    mark = tmp_path / "run"
    made = draft()
    made.planner_data = [Call(Name("os", "system"), (f"touch {mark}",)), Call(Name("torch.hub", "load"), ("a", "b"))]
    assert "names os.system, torch.hub.load, which" in refused(tmp_path, made.metadata())
    assert not mark.exists()
    made.planner_data = None
    assert read(tmp_path, made.metadata()).tensors


@pytest.mark.parametrize(
    "data",
    [
        *CALLS,
        # Known classes called, and given attributes of a class or of an object.
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n(S'touch %s'\ntRcos\nsystem\nb.",
        b"cos\nsystem\n(S'touch %s'\ntRS'then damaged",
    ],
)
def test_no_opcode_runs_anything(tmp_path, data):
    mark = tmp_path / "run"
    assert "names os.system" in refused(tmp_path, data.replace(b"%s", str(mark).encode()))
    assert not mark.exists()


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_damaged_file(tmp_path, cut):
    assert "truncated, or not a pickle" in refused(tmp_path, pickled(draft().metadata())[:cut])


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_metadata(tmp_path / ".metadata")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"a": 1}, "dict"),
        (size((1, 2)), "tuple"),
        (Call(Name(META, "MetadataIndex"), (), {"fqn": "a"}), "MetadataIndex"),
        (Call(Name("torch.distributed.checkpoint.planner", "SavePlan"), ()), "SavePlan"),
    ],
)
def test_another_pickle(tmp_path, content, found):
    assert f"expected the Metadata of torch.distributed.checkpoint, found {found}" in refused(tmp_path, content)


def metadata(**changes: Any) -> Call:
    made = draft().metadata()
    made.state.update(changes)
    return made


def entry(**changes: Any) -> Call:
    made = draft().metadata()
    made.state["state_dict_metadata"]["model.a"].state.update(changes)
    return made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Call(Name(META, "Metadata")), "a Metadata without content"),
        (Call(Name(META, "Metadata"), (), {"storage_data": {}}), "without state_dict_metadata"),
        (metadata(storage_data=None), "damaged"),
        (metadata(state_dict_metadata=[]), "damaged"),
        (metadata(state_dict_metadata={"model.a": 5}), "model.a is a int"),
        (metadata(state_dict_metadata={5: Call(Name(META, "BytesStorageMetadata"))}), "expected text, found int"),
        (metadata(storage_data={"model.a": 5}), "storage_data maps str to int"),
        (entry(size=5), "expected whole numbers, found int"),
        (entry(size=(4, -3)), "expected whole numbers"),
        (entry(size=(4, True)), "expected whole numbers"),
        (entry(size=(4,)), r"model.a of shape [4] has a chunk [2, 3] at [0, 0]"),
        (entry(chunks=[5]), "a int without content"),
        (entry(properties=None), "expected text, found NoneType"),
    ],
)
def test_metadata_that_is_not_as_torch_writes_it(tmp_path, content, message):
    assert message in refused(tmp_path, content)


@pytest.mark.parametrize("file", ["/etc/passwd", "../x", "a/b", "..", ".", "", "a\\b", "a\0b", "a\n/b", "a\ud800"])
def test_no_name_leads_out_of_the_directory(tmp_path, file):
    made = draft()
    made.boxes["model.a"][1].file = file
    assert f"refers to the file {file!r}, which is not a name in this directory" in refused(tmp_path, made.metadata())
