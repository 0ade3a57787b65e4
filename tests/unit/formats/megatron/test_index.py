"""The tensors of every rank's file, and what the files must have in common. Archives are given, not read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.megatron import index as megatron_index
from distconv.formats.megatron.directory import FILE_NAME
from distconv.formats.megatron.index import MegatronIndex, read_megatron
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.formats.torch_zip.inert_pickle import Inert
from distconv.tensors.stored import SourceFile

A = ArchivedTensor("bfloat16", (2, 3), (3, 1), 128)
B = ArchivedTensor("float32", (4,), (1,), 256)
VIEW = ArchivedTensor("float32", (2, 3), (1, 2), 512)
OVERLAPPING = ArchivedTensor("float32", (2, 3), (0, 1), 512)

Content = Mapping[Any, Any]
Read = Callable[..., MegatronIndex]


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Read:
    """The index of a checkpoint whose tensor parallel ranks hold this."""

    def read(*contents: Content) -> MegatronIndex:
        by_path = {}
        for number, content in enumerate(contents):
            path = tmp_path / "release" / f"mp_rank_{number:02d}" / FILE_NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(1000 + number))
            by_path[path] = content, SourceFile(str(path), 1000 + number)
        monkeypatch.setattr(megatron_index, "read_source_archive", by_path.__getitem__)
        return read_megatron(tmp_path, None)

    return read


def refused(reading: Read, *contents: Content) -> list[str]:
    with pytest.raises(InputError) as caught:
        reading(*contents)
    return caught.value.problems


def test_the_tensors_of_each_rank(reading, tmp_path):
    index = reading({"model": {"a": A, "b": B}}, {"model": {"a": VIEW}})
    assert (index.directory, index.iteration, index.dictionaries) == (str(tmp_path / "release"), "release", ("model",))
    first, second = index.files
    assert (first.rank, first.tensors) == ((0,), {("model", "a"): A, ("model", "b"): B})
    assert (second.rank, second.tensors) == ((1,), {("model", "a"): VIEW})
    assert second.file == SourceFile(str(tmp_path / "release" / "mp_rank_01" / FILE_NAME), 1001)


def test_virtual_stages_are_in_the_order_of_their_numbers(reading):
    content = {f"model{number}": {f"a{number}": A} for number in (2, 0, 10, *range(3, 10), 1)}
    index = reading(content)
    assert index.dictionaries == tuple(f"model{number}" for number in range(11))
    assert list(index.files[0].tensors) == [(f"model{number}", f"a{number}") for number in range(11)]


def test_what_training_puts_beside_the_tensors_is_named_or_says_nothing(reading):
    content = {
        "args": Inert(),
        "checkpoint_version": 3.0,
        "iteration": 1000,
        "model": OrderedDict(a=A, **{"a.linear._extra_state": None, "b.linear._extra_state": Inert(), "none": None}),
        "optimizer": {"state": {0: {"exp_avg": A}}},
        "rng_state": [{}],
        7: 8,
    }
    index = reading(content)
    assert index.others == ("args", "optimizer", "rng_state", "7")
    assert list(index.files[0].tensors) == [("model", "a")]


@pytest.mark.parametrize("state", [replace(A, dtype="uint8"), b"scales", {"scale": A}])
def test_the_state_that_a_module_keeps_is_not_of_the_model_and_named_once(reading, state):
    names = "a._extra_state", "b._extra_state"
    index = reading({"model": {"a": A, **dict.fromkeys(names, state)}}, {"model": {"a": A, "b._extra_state": None}})
    assert [list(file.tensors) for file in index.files] == [[("model", "a")]] * 2
    assert index.others == ("_extra_state",)


def test_a_state_without_content_is_not_named(reading):
    empty = ArchivedTensor("uint8", (0,), (1,), 0)
    assert reading({"model": {"a": A, "a._extra_state": empty}}).others == ()


def test_plain_data_says_it_all_again(reading):
    index = reading(*({"model0": {"a": A, "b": VIEW}, "model1": {"c": B}, "optimizer": {}} for _ in range(4)))
    data = index.to_json()
    again = MegatronIndex.from_json(data)
    assert again.to_json() == data
    for here, there in zip(again.files, index.files, strict=True):
        assert (here.rank, here.file, here.tensors) == (there.rank, there.file, there.tensors)
    # Ranks that hold tensors of the same names and shapes are described once.
    assert (len(data["forms"]), len(data["patterns"])) == (3, 1)


def test_where_the_directory_does_not_say_it_the_files_say_the_iteration(reading, tmp_path):
    reading({"model": {"a": A}, "iteration": 12})
    (tmp_path / "release").rename(tmp_path / "copy")
    path = tmp_path / "copy" / "mp_rank_00" / FILE_NAME
    contents = {path: ({"model": {"a": A}, "iteration": 12}, SourceFile(str(path), 1000))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron_index, "read_source_archive", contents.__getitem__)
        assert read_megatron(tmp_path / "copy", None).iteration == "12"


def test_ranks_of_two_iterations_are_refused(reading, tmp_path):
    first, second = (tmp_path / "release" / f"mp_rank_{number:02d}" / FILE_NAME for number in (0, 2))
    contents = [{"model": {"a": A}, "iteration": number} for number in (100, 100, 200)]
    assert refused(reading, *contents) == [
        (
            f"the files are of different checkpoints: they differ in iteration: {first} has iteration 100, {second} "
            "has iteration 200; give those of one"
        )
    ]


def test_ranks_of_different_dictionaries_are_refused(reading, tmp_path):
    first, second = (tmp_path / "release" / f"mp_rank_{number:02d}" / FILE_NAME for number in (0, 1))
    assert refused(reading, {"model": {"a": A}}, {"model0": {"a": A}, "model1": {}}) == [
        (
            f"the files are of different checkpoints: they differ in dictionaries of tensors: {first} has model, "
            f"{second} has model0, model1; give those of one"
        )
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {"a": A}, "model0": {"a": A}},
            "expected model, or model0, model1 … for virtual stages; found model, ",
        ),
        (
            {"model0": {"a": A}, "model2": {"a": A}},
            "expected model, or model0, model1 … for virtual stages; found model0,",
        ),
        ({"state_dict": {"a": A}}, "expected model, or model0, model1 … for virtual stages; found state_dict"),
        ({"model": [A]}, "model is list, expected a dictionary of tensors"),
        ({"model": {"a": Inert()}}, "model/a is Inert, expected a tensor"),
        ({"model": {"a": 3.0}}, "model/a is float, expected a tensor"),
        ({"model": {"a": {"b": A}}}, "model/a is dict, expected a tensor"),
        ({"model": {0: A}}, "model/0 is ArchivedTensor, expected a tensor"),
        (
            {"model": {"a": OVERLAPPING}},
            "model/a: a view of shape [2, 3] with strides [0, 1] is no box of a tensor; save",
        ),
        (
            {"model": {"a": A}, "checkpoint_version": 2.0},
            "checkpoint_version is 2.0, expected 3.0: older ones order qkv",
        ),
        (
            {"model": {"a": A}, "checkpoint_version": [2]},
            "checkpoint_version is list, expected 3.0: older ones order qkv",
        ),
        ({"model": {"a": A}, "iteration": -3}, "expected an iteration from 0 to 10^12, found a negative one"),
        ({"model": {"a": A}, "iteration": 10**5000}, "expected an iteration from 0 to 10^12, found a larger one"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(reading, tmp_path, content, message):
    (problem,) = refused(reading, content)
    assert problem.startswith(f"{tmp_path}/release/mp_rank_00/{FILE_NAME}: {message}")


def test_all_files_that_cannot_be_used_are_named(reading):
    assert len(refused(reading, {"model": {"a": 1, "b": 2}}, {"model": {"a": A}}, {"other": {}})) == 3


def test_files_without_a_tensor_are_no_checkpoint(reading, tmp_path):
    (problem,) = refused(reading, {"model": {"_extra_state": None}})
    assert problem == (
        f"{tmp_path}/release: no file holds a tensor of a model: mp_rank_00; if they are of pipeline stages without "
        "layers, the directories of the others are missing"
    )
