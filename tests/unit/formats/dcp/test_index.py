"""A checkpoint of torch.distributed.checkpoint is found piece by piece, or what is wrong with it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.dcp.index import DcpIndex, locate, open_dcp
from distconv.formats.torch_zip import blobs as torch_blobs
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import NamedTensor
from distconv.tensors.tiling import gaps
from tests.unit.dcp_files import Draft, Name, archive, index, rows, stored
from tests.unit.reference import evaluate

A = np.arange(24, dtype=np.uint32).reshape(6, 4)
B = np.arange(100, 116, dtype=np.uint16).reshape(4, 4)


def draft() -> Draft:
    made = Draft(others=["checkpoint_version"])
    made.put("model.a", A, "float32", rows(3, 6))
    made.put("model.b", B, "bfloat16", rows(2, 4))
    return made


def located(directory: Path) -> DcpIndex:
    return locate(open_dcp(directory, None), lambda _: True)


def elements(tensor: NamedTensor) -> np.ndarray:
    """The elements that a tensor is assembled from, from the bytes of the files."""
    assert all(part.dtype == tensor.tensor.dtype for part in tensor.sources)
    item = np.dtype(f"u{ITEM_SIZE[tensor.tensor.dtype]}")
    parts = []
    for part in tensor.sources:
        data = Path(part.file.path).read_bytes()
        assert len(data) == part.file.size
        parts.append(np.ndarray(part.shape, item, data, part.offset))
    return evaluate(tensor.tensor, parts, item)


def refused(made: Draft, directory: Path) -> str:
    made.save(directory)
    with pytest.raises(InputError) as caught:
        located(directory)
    return str(caught.value)


def test_each_tensor_is_assembled_from_its_pieces(tmp_path):
    found = located(draft().save(tmp_path))
    assert found.directory == str(tmp_path)
    assert found.others == ("checkpoint_version",)
    assert (elements(found.tensors["model.a"]) == A).all()
    assert (elements(found.tensors["model.b"]) == B).all()
    assert [part.file.path[-12:] for part in found.tensors["model.a"].sources] == [f"__{n}_0.distcp" for n in range(3)]


@given(st.data())
def test_any_grid_of_pieces_in_any_order_of_memory(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
    array = np.arange(1, 1 + np.prod(shape, dtype=int), dtype=np.uint32).reshape(shape)
    cuts: list[tuple[slice, ...]] = [()]
    for length in shape:
        ends = sorted({length, *data.draw(st.lists(st.integers(min(1, length), length), max_size=2))})
        starts = [0, *ends[:-1]]
        cuts = [(*cut, slice(a, b)) for cut in cuts for a, b in zip(starts, ends, strict=True)]
    made = Draft()
    made.put(
        "x", array, "float32", data.draw(st.permutations(cuts)), order=data.draw(st.permutations(range(len(shape))))
    )
    directory = made.save(tmp_path_factory.mktemp("dcp"))
    found = located(directory)
    assert found.tensors["x"].tensor.shape == tuple(shape)
    assert gaps(found.tensors["x"].tensor) == 0
    assert (elements(found.tensors["x"]) == array).all()
    assert DcpIndex.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_tensors_that_are_cut_alike_share_a_table(tmp_path):
    made = draft()
    made.put("model.a2", A + 1, "float32", rows(3, 6))
    made.put("model.a3", A + 1, "float32", rows(2, 6))
    made.put("model.t", A + 1, "float32", rows(3, 6), order=(1, 0))
    made.put("model.t2", A + 2, "float32", rows(3, 6), order=(1, 0))
    found = located(made.save(tmp_path))
    data = found.to_json()
    assert len(data["tables"]) == 4
    assert len(data["files"]) == 3
    for each in (found, DcpIndex.from_json(json.loads(json.dumps(data)))):
        tables = {name: tensor.tensor for name, tensor in each.tensors.items()}
        assert tables["model.a"] is tables["model.a2"]
        assert tables["model.t"] is tables["model.t2"]
        assert len({id(table) for table in tables.values()}) == 4
    assert (elements(found.tensors["model.t2"]) == A + 2).all()


def test_tensors_share_a_table_only_if_all_their_pieces_lie_alike(tmp_path):
    """Also the pieces after the first: here the last one of some is stored with its dims in another order."""
    made = Draft()
    for name, turned in {"a": (), "b": (2,), "c": (0, 2), "d": (2,)}.items():
        array = A + 100 * (ord(name) - ord("a"))
        made.shapes[name] = "float32", array.shape
        for number in range(3):
            piece, order = array[2 * number : 2 * number + 2], (1, 0) if number in turned else (0, 1)
            made.add(name, (2 * number, 0), (2, 4), stored(piece, "float32", order), f"__{number}_0.distcp")
    found = located(made.save(tmp_path))
    for each in (found, DcpIndex.from_json(json.loads(json.dumps(found.to_json())))):
        for number, name in enumerate("abcd"):
            assert (elements(each.tensors[name]) == A + 100 * number).all()
        assert len({id(each.tensors[name].tensor) for name in "abcd"}) == 3


def test_tensors_share_a_table_only_if_their_pieces_are_listed_alike_and_of_one_element_type(tmp_path):
    made = Draft()
    made.put("rows", A, "float32", rows(3, 6))
    made.put("turned", A + 100, "float32", rows(3, 6)[::-1])
    made.put("narrow", (A + 200).astype(np.uint16), "bfloat16", rows(3, 6))
    found = located(made.save(tmp_path))
    for number, (name, dtype) in enumerate({"rows": "float32", "turned": "float32", "narrow": "bfloat16"}.items()):
        assert found.tensors[name].tensor.dtype == dtype
        assert (elements(found.tensors[name]) == A + 100 * number).all()


def test_only_what_is_wanted_is_looked_at(tmp_path):
    made = draft()
    made.put("optim.a", A, "float32", [(slice(None), slice(None))])
    made.add("optim.x", (0,), (4,), b"damaged", "__9_0.distcp")
    made.shapes["optim.x"] = "complex64", (8,)
    made.save(tmp_path)
    (tmp_path / "__9_0.distcp").unlink()
    checkpoint = open_dcp(tmp_path, None)
    assert set(checkpoint.metadata.tensors) == {"model.a", "model.b", "optim.a", "optim.x"}
    assert set(locate(checkpoint, lambda name: name.startswith("model.")).tensors) == {"model.a", "model.b"}


def test_pieces_without_elements_need_no_place(tmp_path):
    """As sharding leaves them on ranks for which nothing is left."""
    made = draft()
    made.add("model.a", (6, 0), (0, 4), b"", "__3_0.distcp")
    made.unplaced.add(("model.a", (6, 0)))
    made.add("model.a", (0, 4), (6, 0), b"", "__3_0.distcp")
    made.unplaced.add(("model.a", (0, 4)))
    made.put("model.empty", A[:0], "float32", [(slice(None), slice(None))])
    made.put("model.narrow", A[:, :0], "float32", rows(2, 6))
    made.put("model.none", A[:0], "float32", [])
    found = located(made.save(tmp_path))
    assert len(found.tensors["model.a"].sources) == 3
    for name, shape in {"empty": (0, 4), "none": (0, 4), "narrow": (6, 0)}.items():
        assert found.tensors[f"model.{name}"].sources == ()
        assert found.tensors[f"model.{name}"].tensor.shape == shape


def test_a_tensor_costs_one_short_read(tmp_path, monkeypatch):
    made = Draft()
    big = np.arange(3 * 40_000, dtype=np.uint32).reshape(3, 40_000)
    for number in range(30):
        made.put(f"model.{number}", big + number, "float32", [(slice(None), slice(None))])
    made.save(tmp_path)
    reads: list[int] = []
    pread = torch_blobs.os.pread
    monkeypatch.setattr(torch_blobs.os, "pread", lambda *given: [pread(*given), reads.append(given[1])][0])
    assert (elements(located(tmp_path).tensors["model.29"]) == big + 29).all()
    assert len(reads) <= 45
    assert max(reads) <= 16 << 10


def test_archives_of_one_length_are_told_apart(tmp_path):
    """Shapes of the same number of digits, and the same elements in another order of memory."""
    made = Draft()
    for number in range(12):
        shape = [(2, 6), (6, 2), (3, 4), (4, 3)][number % 4]
        array = (np.arange(12, dtype=np.uint32) + 100 * number).reshape(shape)
        made.put(f"x{number}", array, "float32", [(slice(None), slice(None))], order=(0, 1) if number % 3 else (1, 0))
    found = located(made.save(tmp_path))
    for number in range(12):
        assert sorted(elements(found.tensors[f"x{number}"]).flat) == list(range(100 * number, 100 * number + 12))
        assert found.tensors[f"x{number}"].tensor.shape == made.shapes[f"x{number}"][1]


class TestDirectory:
    def test_the_iteration_of_the_tracker(self, tmp_path):
        draft().save(tmp_path / "iter_0000005")
        draft().save(tmp_path / "release")
        (tmp_path / "latest_checkpointed_iteration.txt").write_text("5\n")
        assert open_dcp(tmp_path, None).directory.name == "iter_0000005"
        assert open_dcp(tmp_path, "release").directory.name == "release"

    def test_the_checkpoint_itself(self, tmp_path):
        directory = draft().save(tmp_path / "iter_0000005")
        assert open_dcp(directory, None).directory == directory
        assert open_dcp(directory, "5").directory == directory
        with pytest.raises(InputError, match=r"iteration=7: source=.*iter_0000005 is one checkpoint itself"):
            open_dcp(directory, "7")

    def test_no_metadata(self, tmp_path):
        (draft().save(tmp_path) / ".metadata").unlink()
        with pytest.raises(InputError, match=r"holds no \.metadata, which a save that was interrupted leaves behind"):
            open_dcp(tmp_path, None)

    def test_an_iteration_without_metadata(self, tmp_path):
        (tmp_path / "release").mkdir()
        with pytest.raises(InputError, match=r"source=.*release: holds no \.metadata; expected"):
            open_dcp(tmp_path, "release")

    def test_no_directory(self, tmp_path):
        with pytest.raises(InputError, match=r"source=.*missing: no such directory"):
            open_dcp(tmp_path / "missing", None)

    @pytest.mark.parametrize("beside", [True, False])
    def test_metadata_of_each_rank(self, tmp_path, beside):
        draft().save(tmp_path)
        for rank in range(2):
            (tmp_path / f"__{rank}.metadata").write_bytes((tmp_path / ".metadata").read_bytes())
        if not beside:
            (tmp_path / ".metadata").unlink()
        with pytest.raises(InputError, match=r"in 2 files \(__0.metadata, __1.metadata\), one for each rank"):
            open_dcp(tmp_path, None)


class TestDamage:
    def test_a_missing_file(self, tmp_path):
        made = draft()
        del made.files["__1_0.distcp"]
        message = refused(made, tmp_path)
        says = "no such file; .metadata says that it holds model.a, model.b; was it copied completely?"
        assert message == f"{tmp_path}/__1_0.distcp: {says}"

    def test_a_truncated_file(self, tmp_path):
        made = draft()
        made.files["__2_0.distcp"] = made.files["__2_0.distcp"][:-1]
        length = made.boxes["model.a"][2].length
        assert f"has {length - 1} bytes, and .metadata places model.a in it up to byte {length}" in refused(
            made, tmp_path
        )

    def test_an_entry_that_points_elsewhere(self, tmp_path):
        made = draft()
        made.boxes["model.a"][1].offset += 7
        made.boxes["model.b"][0].length -= 7
        message = refused(made, tmp_path)
        first, second = message.splitlines()
        assert f"{tmp_path}/__0_0.distcp, {made.boxes['model.b'][0].length} bytes from " in first
        assert "truncated, or not in the zip format" in first
        assert f"{tmp_path}/__1_0.distcp, {made.boxes['model.a'][1].length} bytes from 7: cannot be read: dam" in second

    def test_all_problems_are_said_at_once(self, tmp_path):
        made = draft()
        del made.files["__0_0.distcp"]
        made.files["__2_0.distcp"] = b""
        assert len(refused(made, tmp_path).splitlines()) == 2

    @pytest.mark.parametrize("big", [False, True])
    def test_another_tensor_than_the_metadata_says(self, tmp_path, big):
        made = draft()
        made.shapes["model.b"] = "float16", (4, 4)
        if big:
            for box in made.boxes["model.a"]:
                box.sizes, box.offsets = (4, 2), (0, box.offsets[0])
            made.shapes["model.a"] = "float32", (4, 6)
        message = refused(made, tmp_path)
        assert "says that model.b has a chunk float16 [2, 4] here, found bfloat16 [2, 4]" in message
        assert ("says that model.a has a chunk float32 [4, 2] here, found float32 [2, 4]" in message) == big

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ({"x": 1}, "dict"),
            (3.0, "float"),
            (Name("torch._tensor", "_rebuild_from_type_v2"), "type"),
        ],
    )
    def test_something_else_than_a_tensor(self, tmp_path, content, found):
        made = draft()
        made.shapes["model.x"] = "float32", (2,)
        made.add("model.x", (0,), (2,), archive(content), "__0_0.distcp")
        assert f"expected a plain tensor for model.x, found {found}" in refused(made, tmp_path)

    def test_elements_that_overlap(self, tmp_path):
        made = draft()
        made.shapes["model.x"] = "float32", (3, 2)
        content = stored(A[:1, :2], "float32")
        made.add("model.x", (0, 0), (3, 2), content, "__0_0.distcp")
        message = refused(made, tmp_path)
        assert "says that model.x has a chunk float32 [3, 2] here, found float32 [1, 2]" in message

    def test_chunks_that_overlap(self, tmp_path):
        made = draft()
        made.boxes["model.a"][1].offsets = (1, 0)
        assert "tensor model.a: its chunks overlap: two sources for the box at" in refused(made, tmp_path)

    def test_a_chunk_that_is_listed_twice(self, tmp_path):
        made = draft()
        made.boxes["model.a"].append(made.boxes["model.a"][0])
        assert "tensor model.a: its chunks overlap" in refused(made, tmp_path)

    def test_chunks_that_leave_gaps(self, tmp_path):
        made = draft()
        del made.boxes["model.a"][1]
        assert "its chunks leave out 8 of the 24 elements of shape [6, 4]" in refused(made, tmp_path)

    def test_gaps_of_a_tensor_that_looks_like_a_sound_one(self, tmp_path):
        """Of its element type and shape, and with chunks of the same sizes."""
        made = draft()
        for name in ("model.less", "model.elsewhere"):
            made.put(name, A + 1, "float32", rows(3, 6))
        del made.boxes["model.less"][1]
        made.boxes["model.elsewhere"][1].offsets = (1, 0)
        first, second = refused(made, tmp_path).splitlines()
        assert "tensor model.less: its chunks leave out 8 of the 24 elements of shape [6, 4]" in first
        assert "tensor model.elsewhere: its chunks overlap" in second

    def test_a_chunk_outside_of_the_tensor(self, tmp_path):
        made = draft()
        made.shapes["model.a"] = "float32", (6, 3)
        assert "its chunk [2, 4] at [0, 0] leaves its shape [6, 3]" in refused(made, tmp_path)

    def test_a_chunk_that_is_stored_nowhere(self, tmp_path):
        made = draft()
        made.unplaced.add(("model.a", (2, 0)))
        assert "tensor model.a: its chunk [2, 4] at [2, 0] is stored nowhere" in refused(made, tmp_path)

    def test_a_chunk_that_is_named_twice(self, tmp_path, monkeypatch):
        made = draft()
        content = made.metadata()
        content.state["storage_data"][index("model.a", (2, 0))] = made.boxes["model.a"][0].info()
        monkeypatch.setattr(Draft, "metadata", lambda _: content)
        message = refused(made, tmp_path)
        assert "its chunk [2, 4] at [2, 0] is named 2 times: __1_0.distcp at 0, __0_0.distcp at 0" in message

    def test_a_chunk_that_is_compressed(self, tmp_path):
        made = draft()
        made.boxes["model.a"][0].more["transform_descriptors"] = ["stream.zstd"]
        assert "is stored through stream.zstd, which is not supported" in refused(made, tmp_path)

    def test_an_element_type_that_is_not_supported(self, tmp_path):
        made = draft()
        made.shapes["model.b"] = "complex64", (4, 4)
        assert "tensor model.b: has the element type complex64; supported: float64" in refused(made, tmp_path)

    @pytest.mark.parametrize("attack", [{"x": Name("os", "system")}, Name("os", "system")])
    def test_a_malicious_entry_is_not_run(self, tmp_path, attack: Any):
        made = draft()
        made.shapes["model.x"] = "float32", (2,)
        made.add("model.x", (0,), (2,), archive(attack), "__0_0.distcp")
        assert "expected a plain tensor for model.x" in refused(made, tmp_path)
