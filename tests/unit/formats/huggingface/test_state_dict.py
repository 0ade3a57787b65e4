"""State dicts as sources: the tensors of a file, or the reason why it cannot be one. Archives are given, not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.huggingface import state_dict as torch_index
from distconv.formats.huggingface.state_dict import read_state_dict
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.formats.torch_zip.inert_pickle import Inert
from distconv.tensors.stored import SourceFile, StoredTensor

A = ArchivedTensor("bfloat16", (2, 3), (3, 1), 128)
B = ArchivedTensor("float32", (4,), (1,), 256)
TRANSPOSED = ArchivedTensor("float32", (2, 3), (1, 2), 512)


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The path of a file that holds this."""

    def path(content: Mapping[Any, Any]) -> Path:
        file = SourceFile(str(tmp_path / "pytorch_model.bin"), 1000)
        monkeypatch.setattr(torch_index, "read_source_archive", lambda _: (content, file))
        (tmp_path / "pytorch_model.bin").write_bytes(bytes(1000))
        return tmp_path / "pytorch_model.bin"

    return path


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "module"])
def test_the_tensors_of_a_state_dict_bare_or_wrapped(holding, wrapper):
    content = {"a": A, "b": B, "version": 3.0, "none": None}
    path = holding(content if wrapper is None else {wrapper: content, "epoch": 3, "optimizer": {"state": {}}})
    file = SourceFile(str(path), 1000)
    assert read_state_dict(path) == [
        StoredTensor("a", "bfloat16", (2, 3), file, 128),
        StoredTensor("b", "float32", (4,), file, 256),
    ]


def test_plain_values_may_stand_beside_tensors(holding):
    content = {"a": A, "version": 3.0, "step": 5, "name": "x", "flag": True, "module._extra_state": None}
    assert [tensor.name for tensor in read_state_dict(holding(content))] == ["a"]


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {"model": {}}, {"weights": {"a": A}}, {"model": {"a": A}, "module": {"a": A}}]
)
def test_a_file_without_tensors_is_refused(holding, content):
    path = holding(content)
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    assert str(caught.value) == (
        f"{path}: holds no tensors; expected a state dict, or one under state_dict, model_state_dict, model, module"
    )


def test_tensors_that_are_not_contiguous_are_refused_by_name(holding):
    path = holding({"a": A, "b": TRANSPOSED, "c": TRANSPOSED})
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    assert str(caught.value) == f"{path}: tensors that are not contiguous: b, c; save their .contiguous()"


@pytest.mark.parametrize(
    "content",
    [
        # What is not understood, such as a tensor subclass, might be a tensor: it must not be lost silently.
        {"a": A, "strange": type("_rebuild_from_type_v2", (Inert,), {})()},
        {"a": A, "strange": {"b": B}},
        {"a": A, "strange": [B]},
        {"model": {"a": A, "strange": Inert()}},
    ],
)
def test_an_entry_that_is_neither_a_tensor_nor_plain_is_refused(holding, content):
    path = holding(content)
    with pytest.raises(InputError, match=f"{path}: entries that are no tensors: strange; save a state dict of tensors"):
        read_state_dict(path)


def test_a_name_that_is_no_text_is_refused(holding):
    with pytest.raises(InputError, match="entries that are no tensors: 0; "):
        read_state_dict(holding({0: A, "b": B}))
