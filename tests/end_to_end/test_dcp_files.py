"""Checkpoints that torch.distributed.checkpoint itself writes are found where its bytes are."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._extension import StreamTransformExtension

from distconv.errors import InputError
from distconv.formats.dcp.index import locate, open_dcp
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.formats.torch_zip.blobs import stored_within
from distconv.formats.torch_zip.frame import zip_frame
from tests.end_to_end.assembled import assert_assembled
from tests.unit import dcp_files

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")


def saved(directory: Path, state: Mapping[str, Any], **given: Any) -> Path:
    dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(directory, **given), no_dist=True)
    return directory


GRID = torch.arange(24.0).reshape(4, 6)
TENSORS = {
    "plain": GRID,
    "parameter": torch.nn.Parameter(GRID),
    "transposed": GRID.T,
    "columns": GRID[:, 1:3],
    "permuted": GRID.reshape(2, 3, 4).permute(2, 0, 1).bfloat16(),
    "scalar": torch.tensor(3.5, dtype=torch.float16),
    "empty": torch.empty(0, 3),
    "numbers": torch.arange(5),
    "flags": torch.tensor([True, False]),
    "eighth": GRID.to(torch.float8_e4m3fn),
    "big": torch.arange(3e5).reshape(300, 1000),
}


@pytest.mark.parametrize("single_file", [True, False])
def test_tensors_of_all_kinds_beside_what_is_no_tensor(tmp_path, single_file):
    state = {"model": TENSORS, "optim": {"lr": 0.1, "state": [GRID, {"step": 1}]}, "rng": {"torch": b"x"}}
    checkpoint = open_dcp(saved(tmp_path / "dcp", state, single_file_per_rank=single_file), None)
    found = locate(checkpoint, lambda name: name.startswith("model."))
    assert set(found.tensors) == {f"model.{name}" for name in TENSORS}
    assert {"optim.lr", "optim.state.1.step", "rng.torch"} <= set(found.others)
    for name, tensor in TENSORS.items():
        assert_assembled(found.tensors[f"model.{name}"], tensor)


class Compression(StreamTransformExtension):
    """Stands for those that torch knows, which need packages of their own."""

    @staticmethod
    def registry_name() -> str:
        return "stream.gzip"

    @staticmethod
    def from_descriptor(version: str) -> Compression:
        raise NotImplementedError

    def get_descriptor(self) -> str:
        return "stream.gzip/1"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        return gzip.GzipFile(fileobj=output, mode="wb")

    def transform_from(self, source: IO[bytes]) -> IO[bytes]:
        raise NotImplementedError


def test_compressed_tensors_are_refused(tmp_path):
    checkpoint = open_dcp(saved(tmp_path / "dcp", {"a": GRID}, _extensions=[Compression()]), None)
    with pytest.raises(InputError, match=r"tensor a: .* is stored through stream.gzip/1, which is not supported"):
        locate(checkpoint, lambda _: True)


def test_a_tensor_whose_elements_overlap_is_refused(tmp_path):
    draft = dcp_files.Draft(shapes={"x": ("float32", (5, 6))})
    stream = io.BytesIO()
    torch.save(GRID[:1].expand(5, 6), stream)
    draft.add("x", (0, 0), (5, 6), stream.getvalue(), "__0_0.distcp")
    with pytest.raises(InputError, match=r"x cannot be read: .* is no box of a tensor; save its \.contiguous\(\)"):
        locate(open_dcp(draft.save(tmp_path), None), lambda _: True)


def test_what_the_unit_tests_write_is_read_alike_by_torch(tmp_path):
    draft = dcp_files.Draft()
    array = GRID.numpy()
    draft.put("x", array, "float32", dcp_files.rows(2, 4))
    draft.put("y", array, "float32", dcp_files.rows(2, 4), order=(1, 0))
    loaded = {"x": torch.zeros(4, 6), "y": torch.zeros(4, 6)}
    dcp.load(loaded, checkpoint_id=draft.save(tmp_path), no_dist=True)
    assert loaded["x"].equal(GRID)
    assert loaded["y"].equal(GRID)


class TestArchivesAlike:
    """An archive like one before it is not parsed again; it must be like it in all but its data."""

    def write(self, path: Path, tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
        spans = []
        with path.open("wb") as stream:
            stream.write(b"\0" * 5)
            for tensor in tensors:
                start = stream.tell()
                torch.save(tensor, stream)
                spans.append((start, stream.tell() - start))
        return spans

    def test_each_has_its_own_offset(self, tmp_path):
        tensors = [torch.full((n % 3 + 1, 5), float(n)) for n in range(40)]
        spans = self.write(tmp_path / "f", tensors)
        data = (tmp_path / "f").read_bytes()
        with stored_within(tmp_path / "f") as read:
            for span, tensor in zip(spans, tensors, strict=True):
                found = read(*span)
                assert (found.dtype, found.shape, found.is_contiguous) == ("float32", tuple(tensor.shape), True)
                assert data[found.offset :].startswith(tensor.numpy().tobytes())

    @pytest.mark.parametrize("shapes", [[(2, 6), (6, 2)], [(3, 4), (4, 3)]])
    def test_equal_lengths_are_told_apart(self, tmp_path, shapes):
        tensors = [torch.zeros(shapes[n % 2]) for n in range(6)] + [torch.zeros(shapes[0]).int().float().T]
        spans = self.write(tmp_path / "f", tensors)
        assert len({length for _, length in spans}) == 1
        with stored_within(tmp_path / "f") as read:
            for span, tensor in zip(spans, tensors, strict=True):
                assert (read(*span).shape, read(*span).strides) == (tuple(tensor.shape), tensor.stride())

    def test_it_is_damaged_wherever_it_was_changed(self, tmp_path):
        """Each byte around the data: an archive with it changed is what a fresh reader says that it is."""
        (first, length), (second, _) = self.write(tmp_path / "f", [torch.zeros(2, 3), torch.ones(2, 3)])
        data = (tmp_path / "f").read_bytes()
        with stored_within(tmp_path / "f") as read:
            offset = read(first, length).offset - first
        for place in [*range(0, offset, 7), *range(length - 600, length, 5)]:
            changed = bytearray(data)
            changed[second + place] ^= 0x5A
            (tmp_path / "g").write_bytes(changed)
            with stored_within(tmp_path / "g") as read, stored_within(tmp_path / "g") as fresh:
                read(first, length)
                assert self.outcome(read, second, length) == self.outcome(fresh, second, length), place

    def test_one_with_its_pickle_behind_the_data_is_parsed_again(self, tmp_path):
        """What stands before the data does not tell its shape then; here a checksum is wrong, too."""
        stream = io.BytesIO()
        torch.save(torch.zeros(2, 6), stream)
        pickle = zipfile.ZipFile(stream).read("archive/data.pkl")
        turned = pickle.replace(b"K\x02K\x06", b"K\x06K\x02", 1)
        assert turned != pickle
        frame = zip_frame([("archive/data/0", bytes(48)), ("archive/data.pkl", pickle), ("archive/version", b"3\n")])
        ((_, first),) = frame.pieces
        second = first.replace(pickle, turned)
        (tmp_path / "f").write_bytes(first + second)
        with stored_within(tmp_path / "f") as read, stored_within(tmp_path / "f") as fresh:
            assert read(0, len(first)).shape == (2, 6)
            assert self.outcome(read, len(first), len(second)) == self.outcome(fresh, len(first), len(second))

    def outcome(self, read: Any, offset: int, length: int) -> ArchivedTensor | str:
        try:
            return read(offset, length)
        except InputError as error:
            return str(error)
