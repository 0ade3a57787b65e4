"""Reading costs time and memory like the length of what is read, and what is no regular file is not waited for."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.dcp.index import DcpDirectory, locate
from distconv.formats.dcp.metadata import Chunk, Entry, Metadata, Place, read_metadata
from distconv.formats.huggingface.safetensors import read_header
from distconv.formats.iterations import iteration_directory
from distconv.formats.jsonfile import read_object
from distconv.formats.megatron.index import read_rank_file
from distconv.formats.torch_zip.archive import read_archive
from distconv.formats.torch_zip.blobs import stored_within
from distconv.formats.torch_zip.write_pickle import Call, Global, Instance, Persistent, dumps
from tests.unit.safetensors_files import entry, shard

META = "torch.distributed.checkpoint.metadata"


def archive(path: Path, content: object) -> Path:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr("archive/data.pkl", dumps(content))
        opened.writestr("archive/data/0", bytes(8))
    path.write_bytes(stream.getvalue())
    return path


def tensor(numbers: list[int]) -> Call:
    storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 2))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, tuple(numbers), tuple(numbers), False, {}))


def box(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Instance:
    return Instance(Global(META, "ChunkStorageMetadata"), {"offsets": offsets, "sizes": sizes})


def place(index: int) -> Instance:
    info = Global("torch.distributed.checkpoint.filesystem", "_StorageInfo")
    return Instance(info, {"relative_path": "__0_0.distcp", "offset": index, "length": 1})


class _Memory(pickle._Pickler):
    """The pickle of calls and instances in which what is one object is written once."""

    def save(self, obj: object, *more: Any) -> None:
        remembered = self.memo.get(id(obj))
        if isinstance(obj, (Instance, list)) and remembered is not None:
            self.write(self.get(remembered[0]))
        elif isinstance(obj, Instance):
            self.write(f"c{obj.kind.module}\n{obj.kind.name}\n".encode() + pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.memoize(obj)
            super().save(obj.state)
            self.write(pickle.BUILD)
        elif isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, *more)


def metadata(path: Path, entries: dict[str, Instance], places: dict[Instance, Instance]) -> Path:
    stream = io.BytesIO()
    _Memory(stream, 2).dump(
        Instance(Global(META, "Metadata"), {"state_dict_metadata": entries, "storage_data": places})
    )
    path.write_bytes(stream.getvalue())
    return path


def tensor_entry(chunks: list[Instance], shape: tuple[int, ...]) -> Instance:
    properties = Instance(Global(META, "TensorProperties"), {"dtype": Global("torch", "float32")})
    return Instance(Global(META, "TensorStorageMetadata"), {"properties": properties, "size": shape, "chunks": chunks})


def json_with_a_key_twice(path: Path, size: int) -> Callable[[], object]:
    path.write_text("{" + ",".join(f'"key{number}":1' for number in range(size)) + ',"key7":1}')
    return lambda: read_object(path, "a test")


def header_with_a_key_twice(path: Path, size: int) -> Callable[[], object]:
    one = json.dumps(entry(0, 0, (0,)))
    shard(path, ("{" + ",".join(f'"{number}":{one}' for number in range(size)) + f',"7":{one}}}').encode(), data=0)
    return lambda: read_header(path)


def header_with_a_shape_of_long_numbers(path: Path, size: int) -> Callable[[], object]:
    shape = ",".join(["1" + "0" * 3999] * (size // 10))
    shard(path, f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,0]}}}}'.encode(), data=0)
    return lambda: read_header(path)


def header_with_many_dims(path: Path, size: int) -> Callable[[], object]:
    shard(path, json.dumps({"a": entry(0, 0, [10**90] * size)}).encode(), data=0)
    return lambda: read_header(path)


def archive_with_large_dims(path: Path, size: int) -> Callable[[], object]:
    archive(path, {"model": {"a": tensor([(1 << 8 * 50 * size) - 1] * 64)}})
    return lambda: read_archive(path)


def archive_with_a_large_version(path: Path, size: int) -> Callable[[], object]:
    archive(path, {"checkpoint_version": (1 << 8 * 50 * size) - 1, "model": {}})
    return lambda: read_rank_file(str(path))


def metadata_whose_tensors_share_chunks(path: Path, size: int) -> Callable[[], object]:
    shared = tensor_entry([box((number,), (1,)) for number in range(size)], (size,))
    metadata(path, {f"name{number}": shared for number in range(size)}, {})
    return lambda: read_metadata(path)


def metadata_with_a_chunk_in_many_places(path: Path, size: int) -> Callable[[], object]:
    one = box((0,), (1,))
    index = Global(META, "MetadataIndex")
    places = {Instance(index, {"fqn": "name", "index": 0, "offset": (0,)}): place(number) for number in range(size)}
    metadata(path, {"name": tensor_entry([one] * size, (1,))}, places)
    found = DcpDirectory(directory=path.parent, metadata=read_metadata(path))
    return lambda: (read_metadata(path), locate(found, lambda _: True))


def chunks_side_by_side(path: Path, size: int) -> Callable[[], object]:
    where = (Place(file=path.name, offset=0, length=1, transforms=("zstd",)),)
    chunks = tuple(Chunk(offsets=(0, number), sizes=(5, 1), places=where) for number in range(size))
    one = Entry(dtype="float32", shape=(5, size + 1), chunks=chunks)
    found = DcpDirectory(directory=path.parent, metadata=Metadata(tensors={"name": one}))
    return lambda: locate(found, lambda _: True)


CASES = {
    json_with_a_key_twice: (5_000, "key given twice: key7"),
    header_with_a_key_twice: (5_000, "key given twice: 7"),
    header_with_a_shape_of_long_numbers: (20_000, "a number of 4000 digits"),
    header_with_many_dims: (20_000, "is not a list of sizes"),
    archive_with_large_dims: (2_000, "its pickle is damaged: TypeError"),
    archive_with_a_large_version: (100_000, "checkpoint_version is Inert, expected 3.0"),
    metadata_whose_tensors_share_chunks: (1_500, "tensors share them"),
    metadata_with_a_chunk_in_many_places: (1_000, "is named 1000 times: __0_0.distcp at 0, __0_0.distcp at 1, "),
    chunks_side_by_side: (2_000, "is stored through zstd"),
}


def refused(read: Callable[[], object]) -> tuple[str, float]:
    """The message of a refusal, and the seconds of computing that it took, of several times the least."""
    seconds = []
    for _ in range(3):
        gc.collect()
        # What other tests have left is not looked through meanwhile.
        gc.disable()
        try:
            start = time.process_time()
            with pytest.raises(InputError) as caught:
                read()
            seconds.append(time.process_time() - start)
        finally:
            gc.enable()
    return str(caught.value), min(seconds)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_four_times_the_input_takes_less_than_ten_times_the_time(tmp_path, make):
    size, message = CASES[make]
    text, once = refused(make(tmp_path / "once", size))
    assert message in text
    assert len(text) < 2000 * 21
    _, more = refused(make(tmp_path / "more", 4 * size))
    assert more < 10 * max(once, 0.02)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_memory_is_in_proportion_to_the_input(tmp_path, make):
    size, _ = CASES[make]
    read = make(tmp_path / "file", size)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    length = (tmp_path / "file").stat().st_size if (tmp_path / "file").exists() else size * 100
    assert peak < 1_000_000 + 60 * length


def in_blobs(path: Path) -> None:
    with stored_within(path) as read:
        read(0, 1)


READERS = {
    "json": lambda path: read_object(path, "a test"),
    "safetensors": read_header,
    "archive": read_archive,
    "blobs": in_blobs,
    "metadata": read_metadata,
    "tracker": lambda path: iteration_directory(path.parent, None),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind, read):
    path = tmp_path / "latest_checkpointed_iteration.txt"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"{path}: cannot be read: expected a regular file, found {kind}"):
        read(path)
