"""`torch.save` files are read as data: every tensor is found where its bytes are, and nothing in a file is ever run.

Torch writes the files.
"""

from __future__ import annotations

import argparse
import enum
import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.torch_zip.archive import ArchivedTensor, read_archive
from distconv.formats.torch_zip.blobs import stored_within
from distconv.formats.torch_zip.inert_pickle import Inert, Namespace
from distconv.tensors.dtypes import ITEM_SIZE
from tests.unit.attacks import CALLS


def saved(path: Path, content: Any, **given: Any) -> Mapping[str, Any]:
    torch.save(content, path, **given)
    return read_archive(path)


def elements(path: Path, tensor: ArchivedTensor) -> np.ndarray:
    """The elements of an archived tensor as unsigned integers, from the bytes of the file."""
    item_size = ITEM_SIZE[tensor.dtype]
    strides = [stride * item_size for stride in tensor.strides]
    return np.ndarray(tensor.shape, f"u{item_size}", path.read_bytes(), tensor.offset, strides)


def assert_archived(path: Path, found: ArchivedTensor, tensor: torch.Tensor) -> None:
    assert found.dtype == str(tensor.dtype).removeprefix("torch.")
    assert (found.shape, found.strides) == (tuple(tensor.shape), tuple(tensor.stride()))
    assert found.is_contiguous == tensor.is_contiguous()
    bits = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert elements(path, found).tobytes() == bits


DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "float8_e4m3fn",
    "float8_e5m2",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_of_any_element_type(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    assert_archived(tmp_path / "f", saved(tmp_path / "f", {"x": tensor})["x"], tensor)


def test_many_tensors_are_told_apart(tmp_path):
    tensors = {f"layer.{number}": torch.randn(number, 3) for number in range(1, 20)}
    found = saved(tmp_path / "f", {"model": tensors})["model"]
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert_archived(tmp_path / "f", found[name], tensor)


@pytest.mark.parametrize(
    "view",
    [
        lambda whole: whole[1:, :2],
        lambda whole: whole.T,
        lambda whole: whole[::2],
        lambda whole: whole[2],
        lambda whole: whole[1, 2],
        lambda whole: whole[:0],
        lambda whole: whole[:1].expand(5, 6),
        lambda whole: whole[:1, :3],
        lambda whole: whole.reshape(2, 3, 4)[:, 1:, ::2].permute(2, 0, 1),
    ],
)
def test_a_view_has_its_own_offset_and_strides(tmp_path, view: Callable[[torch.Tensor], torch.Tensor]):
    tensor = view(torch.arange(24.0).reshape(4, 6))
    assert_archived(tmp_path / "f", saved(tmp_path / "f", {"x": tensor})["x"], tensor)


def test_tensors_that_share_a_storage_share_bytes(tmp_path):
    whole = torch.arange(12.0)
    found = saved(tmp_path / "f", {"whole": whole, "part": whole[4:8], "again": whole})
    assert found["whole"] == found["again"]
    assert found["part"].offset == found["whole"].offset + 4 * 4


def test_scalars_and_empty_tensors(tmp_path):
    content = {
        "scalar": torch.tensor(3.5),
        "one": torch.ones(1, 1),
        "empty": torch.empty(0, 4),
        "without columns": torch.empty(3, 0),
        "between": torch.empty(3, 0, 2),
        "view": torch.ones(3, 2)[:, 2:],
        "turned": torch.empty(0, 3).t(),
    }
    found = saved(tmp_path / "f", content)
    for name, tensor in content.items():
        assert_archived(tmp_path / "f", found[name], tensor)


def test_tensors_that_were_not_written_have_their_place(tmp_path):
    """Files of `torch_zip.create` have such holes."""
    content = {"model": {"a": torch.empty(5, 3), "b": torch.empty(7, dtype=torch.bfloat16)}}
    with torch.serialization.skip_data():
        torch.save(content, tmp_path / "f")
    found = read_archive(tmp_path / "f")["model"]
    with (tmp_path / "f").open("r+b") as stream:
        for name, tensor in found.items():
            stream.seek(tensor.offset)
            stream.write((np.arange(15 if name == "a" else 7) + 1).astype(f"u{ITEM_SIZE[tensor.dtype]}").tobytes())
    loaded = torch.load(tmp_path / "f", weights_only=True)["model"]
    assert loaded["a"].view(torch.int32).flatten().tolist() == list(range(1, 16))
    assert loaded["b"].view(torch.int16).tolist() == list(range(1, 8))


def test_modules_and_parameters(tmp_path):
    module = torch.nn.Linear(3, 2)
    state = module.state_dict()
    assert isinstance(state, OrderedDict)
    assert hasattr(state, "_metadata")
    found = saved(tmp_path / "f", {"state": state, "parameter": module.weight})
    assert list(found["state"]) == ["weight", "bias"]
    assert_archived(tmp_path / "f", found["state"]["weight"], module.weight.detach())
    assert found["parameter"] == found["state"]["weight"]


def test_a_parameter_with_attributes_is_a_tensor_all_the_same(tmp_path):
    """Megatron marks its parameters."""
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    parameter.tensor_model_parallel = True
    assert_archived(tmp_path / "f", saved(tmp_path / "f", {"x": parameter})["x"], parameter.detach())


def test_a_tensor_that_needs_code_of_its_own_is_inert(tmp_path):
    marked = torch.ones(2)
    marked.mark = True
    found = saved(tmp_path / "f", {"marked": marked, "sparse": torch.eye(3).to_sparse(), "meta": marked.to("meta")})
    assert all(isinstance(each, Inert) for each in found.values())


def test_plain_values_are_themselves(tmp_path):
    content = {
        "checkpoint_version": 3.0,
        "iteration": 5,
        "none": None,
        "text": "é",
        "list": [1, (2, True)],
        7: 1 << 100,
    }
    assert saved(tmp_path / "f", content) == content


class Foreign:
    """A class that only the writer of the file has."""

    def __init__(self, value: int) -> None:
        self.value = value


class ForeignList(list):
    pass


class ForeignDict(dict):
    pass


class ForeignSet(set):
    pass


def test_foreign_objects_are_inert_and_hide_nothing_else(tmp_path):
    rng = {"numpy": np.random.RandomState(0).get_state(), "torch": torch.get_rng_state()}
    content = {
        "args": argparse.Namespace(tp=2, nested=Foreign(3)),
        "foreign": [Foreign(1), ForeignList([1]), ForeignDict(a=1), ForeignSet([1])],
        "types": (
            torch.float32,
            torch.device("cpu"),
            Path("/x"),
            complex(1, 2),
            {1, 2},
            frozenset({3}),
            torch.Size([2]),
        ),
        "rng_state": [rng],
        "model": {"x": torch.ones(2)},
    }
    found = saved(tmp_path / "f", content)
    assert list(found) == list(content)
    assert all(isinstance(each, Inert) for each in found["foreign"])
    assert isinstance(found["args"], Namespace)
    assert found["args"].values["tp"] == 2
    assert isinstance(found["args"].values["nested"], Inert)
    assert_archived(tmp_path / "f", found["model"]["x"], torch.ones(2))
    assert_archived(tmp_path / "f", found["rng_state"][0]["torch"], torch.get_rng_state())


class Outer:
    class Inner:
        pass

    class Kind(enum.Enum):
        ONE = 1


@pytest.mark.parametrize(
    "value",
    [
        # What protocol 2 writes of a nested class is a call of the result of a call.
        argparse.Namespace(kind=Outer.Kind.ONE),
        argparse.Namespace(nested=Outer.Inner()),
        torch.ones(2).to(torch.complex64),
        torch.ones(2).to(torch.uint16),
        torch.ones(2).untyped_storage(),
    ],
    ids=["nested enum", "nested class", "complex", "uint16", "storage"],
)
def test_whatever_stands_beside_the_tensors_does_not_hide_them(tmp_path, value):
    found = saved(tmp_path / "f", {"other": value, "model": {"x": torch.ones(2)}})
    assert_archived(tmp_path / "f", found["model"]["x"], torch.ones(2))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_any_pickle_protocol(tmp_path, protocol):
    content = {"x": torch.ones(2), "args": Foreign(3), "set": {1}}
    found = saved(tmp_path / "f", content, pickle_protocol=protocol)
    assert_archived(tmp_path / "f", found["x"], content["x"])


def archive(path: Path, data: bytes, **members: bytes) -> Path:
    """A zip with a pickle and members of these names."""
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("archive/data.pkl", data)
        for name, content in members.items():
            stream.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


class Malicious:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "attack",
    [
        lambda mark: Malicious(os.system, f"touch {mark}"),
        lambda mark: Malicious(os.mkdir, str(mark)),
        lambda mark: Malicious(eval, f"open({str(mark)!r}, 'w').close()"),
        lambda mark: Malicious(exec, f"open({str(mark)!r}, 'w').close()"),
        lambda mark: Malicious(subprocess.check_call, ["touch", str(mark)]),
    ],
)
def test_a_malicious_pickle_is_not_run(tmp_path, protocol, attack: Callable[[Path], Malicious]):
    mark = tmp_path / "run"
    data = pickle.dumps({"model": attack(mark), "x": 1}, protocol)
    found = read_archive(archive(tmp_path / "f", data))
    assert found["x"] == 1
    assert isinstance(found["model"], Inert)
    assert not mark.exists()
    # The attack is real: unpickled, it leaves its mark.
    pickle.loads(data)  # noqa: S301
    assert mark.exists()


@pytest.mark.parametrize("data", CALLS)
def test_no_opcode_runs_anything(tmp_path, data):
    mark = tmp_path / "run"
    data = data.replace(b"%s", str(mark).encode())
    with pytest.raises(InputError, match="expected a dictionary at the top, found system"):
        read_archive(archive(tmp_path / "f", data))
    assert not mark.exists()


def storage_pickle(
    *, key: object = "0", kind: str = "storage", rebuild: tuple[Any, ...] = (0, (2, 3), (3, 1))
) -> bytes:
    """The pickle of `{"x": tensor}` with anything in its place."""

    class Rebuilt:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (Reference(), *rebuild, False, OrderedDict())

    class Reference:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: object) -> object:
            return (kind, torch.FloatStorage, key, "cpu", 6) if isinstance(item, Reference) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"x": Rebuilt()})
    return stream.getvalue()


def test_a_tensor_that_was_on_an_npu(tmp_path):
    """Saved as the function of torch_npu, with the format on the device as one argument more."""
    data = storage_pickle(rebuild=(0, (2, 3), (3, 1), False, OrderedDict(), 2)).replace(
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch_npu.utils.storage\n_rebuild_npu_tensor\n"
    )
    assert b"torch_npu" in data
    found = read_archive(archive(tmp_path / "f", data, data__0=bytes(24)))
    assert (found["x"].dtype, found["x"].shape, found["x"].strides) == ("float32", (2, 3), (3, 1))


def test_the_pickle_of_the_next_tests_is_valid(tmp_path):
    found = read_archive(archive(tmp_path / "f", storage_pickle(), data__0=bytes(24)))
    assert (found["x"].shape, found["x"].strides) == ((2, 3), (3, 1))


@pytest.mark.parametrize(
    ("data", "members", "message"),
    [
        (storage_pickle(), {}, "its storage 0 is missing"),
        (storage_pickle(key="7"), {"data__0": bytes(24)}, "its storage 7 is missing"),
        (storage_pickle(), {"data__0": bytes(24), "byteorder": b"big"}, "written on a big-endian machine"),
        (storage_pickle(), {"data__0": bytes(24), "byteorder": b"other"}, "written on a big-endian machine"),
        (pickle.dumps([1]), {}, "expected a dictionary at the top, found list"),
        (pickle.dumps({"a": 1})[:-1], {}, "its pickle is damaged"),
        (b"", {}, "its pickle is damaged"),
        (b"\x80\x04K\x01}h\x09.", {}, "its pickle is damaged"),
        (b"\x8b\xff\xff\xff\x7f.", {}, "its pickle is damaged"),
        (b"cos\nsy\0stem\n.", {}, "its pickle is damaged"),
        (storage_pickle(rebuild=()), {"data__0": bytes(24)}, "its pickle is damaged"),
        (storage_pickle(rebuild=(0, (2, "3"), (3, 1))), {"data__0": bytes(24)}, "its pickle is damaged"),
    ],
)
def test_a_damaged_archive_is_refused_by_name(tmp_path, data, members, message):
    path = archive(tmp_path / "f", data, **members)
    with pytest.raises(InputError) as caught:
        read_archive(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (storage_pickle(), "a tensor of shape [2, 3] leaves its storage of 20 bytes"),
        (storage_pickle(rebuild=(1, (5,), (1,))), "a tensor of shape [5] leaves its storage of 20 bytes"),
        (storage_pickle(rebuild=(0, (2, 2), (4, 1))), "a tensor of shape [2, 2] leaves its storage of 20 bytes"),
        (storage_pickle(rebuild=(6, (0,), (1,))), "a tensor of shape [0] leaves its storage of 20 bytes"),
        (storage_pickle(rebuild=(0, (2**62, 4), (0, 1))), None),
        (storage_pickle(rebuild=(-1, (2,), (1,))), "a tensor has shape [2], strides [1] and offset -1"),
        (storage_pickle(rebuild=(0, (-2,), (1,))), "a tensor has shape [-2], strides [1] and offset 0"),
        (storage_pickle(rebuild=(0, (2,), (-1,))), "a tensor has shape [2], strides [-1] and offset 0"),
        (storage_pickle(rebuild=(0, (2, 2), (1,))), "a tensor has shape [2, 2], strides [1] and offset 0"),
        (storage_pickle(kind="module"), "unknown reference 'module' in the pickle"),
        (storage_pickle(key=3), "unknown reference 'storage' in the pickle"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, data, message):
    path = archive(tmp_path / "f", data, data__0=bytes(20))
    if message is None:
        assert not read_archive(path)["x"].is_contiguous
        return
    with pytest.raises(InputError) as caught:
        read_archive(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "data", [storage_pickle(), storage_pickle(kind="module"), storage_pickle(rebuild=(-1, (2,), (1,)))]
)
def test_a_tensor_outside_its_storage_is_refused_by_the_name_of_the_file(tmp_path, data):
    path = archive(tmp_path / "f", data, data__0=bytes(20))
    with pytest.raises(InputError) as caught:
        read_archive(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("before", [0, 1000])
@pytest.mark.parametrize("beyond", [0, 1, 999])
def test_a_storage_that_leaves_its_archive_is_refused(tmp_path, before, beyond):
    """By however few bytes, and although there may be more in the file before and behind the archive."""
    data = archive(tmp_path / "f", storage_pickle(), data__0=bytes(24)).read_bytes()
    entry = data.rindex(b"archive/data/0") - 46
    (header,) = struct.unpack_from("<I", data, entry + 42)
    size = len(data) - (header + 30 + len("archive/data/0")) + beyond
    data = data[: entry + 20] + struct.pack("<II", size, size) + data[entry + 28 :]
    path = tmp_path / "blobs"
    path.write_bytes(bytes(before) + data + bytes(2000))
    with stored_within(path) as read:
        if not beyond:
            assert read(before, len(data))["x"].shape == (2, 3)
            return
        with pytest.raises(InputError, match="its storage 0 leaves the file"):
            read(before, len(data))


@pytest.mark.parametrize(
    ("member", "message"),
    [("data/0", "its storage 0"), ("data.pkl", "its data.pkl"), ("byteorder", "its byteorder")],
)
def test_what_is_compressed_is_refused(tmp_path, member, message):
    with zipfile.ZipFile(tmp_path / "f", "w") as stream:
        for name, data in {"data.pkl": storage_pickle(), "data/0": bytes(24), "byteorder": b"little"}.items():
            how = zipfile.ZIP_DEFLATED if name == member else zipfile.ZIP_STORED
            stream.writestr(f"archive/{name}", data, how)
    with pytest.raises(InputError, match=f"{message} is compressed, which torch never does"):
        read_archive(tmp_path / "f")


def test_a_file_that_torch_did_not_write_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "f", "w") as stream:
        stream.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=f"{tmp_path}/f: not a file that torch.save wrote: it holds no data.pkl"):
        read_archive(tmp_path / "f")


def test_the_format_before_torch_1_6_is_refused_with_the_remedy(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "f", _use_new_zipfile_serialization=False)
    with pytest.raises(
        InputError, match=rf"{tmp_path}/f: truncated, or not in the zip format .* can be saved again with"
    ):
        read_archive(tmp_path / "f")


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/none: no such file"):
        read_archive(tmp_path / "none")
    with pytest.raises(InputError, match=f"{tmp_path}: cannot be read: Is a directory"):
        read_archive(tmp_path)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "model_optim_rng.pt"
    torch.save({"model": {"a": torch.ones(3, 4), "b": torch.ones(5)}, "checkpoint_version": 3.0}, path)
    return path


def test_a_file_truncated_anywhere_is_refused(whole_file, tmp_path):
    data = whole_file.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        (tmp_path / "f").write_bytes(data[:length])
        with pytest.raises(InputError, match=f"{tmp_path}/f: truncated, or not in the zip format"):
            read_archive(tmp_path / "f")


@settings(max_examples=200)
@given(st.data())
def test_damage_is_an_input_error_or_without_effect_never_a_defect(whole_file, data):
    content = bytearray(whole_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = whole_file.with_suffix(".damaged")
    damaged.write_bytes(content)
    try:
        found = read_archive(damaged)
    except InputError:
        return
    assert set(found) <= {"model", "checkpoint_version"}
