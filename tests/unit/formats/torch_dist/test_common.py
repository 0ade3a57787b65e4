"""The common part of a checkpoint is read as data, wherever it is, and is of the checkpoint or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.formats.dcp.index import DcpDirectory
from distconv.formats.dcp.metadata import Metadata, Place
from distconv.formats.torch_dist.common import Common, read_common
from tests.unit.dcp_files import Call, Name, archive

ARGS = Call(Name("argparse", "Namespace"), (), {"num_layers": 4, "hidden_size": 8, "swiglu": True})
CONTENT = {"args": ARGS, "checkpoint_version": 3.0, "iteration": 7, "content_metadata": {}}


def checkpoint(directory: Path, content: object, *, is_file: bool = True, saved_in: str = "") -> DcpDirectory:
    """A checkpoint that has nothing but a common part."""
    directory.mkdir(exist_ok=True)
    blobs = {}
    if is_file:
        (directory / "common.pt").write_bytes(archive(content))
    else:
        data = archive(content)
        (directory / "__0_0.distcp").write_bytes(b"before" + data)
        blobs["common_state/shard_0_1"] = (Place(file="__0_0.distcp", offset=6, length=len(data), transforms=()),)
    return DcpDirectory(directory=directory, metadata=Metadata(tensors={}, blobs=blobs, saved_in=saved_in))


def read(found: DcpDirectory, *, is_file: bool = True) -> Common:
    return read_common(found, [], is_file=is_file)


@pytest.mark.parametrize("is_file", [True, False])
def test_it_tells_sizes_and_the_iteration(is_file, tmp_path):
    content = {**CONTENT, "optimizer": {"param_groups": []}, "num_floating_point_operations_so_far": 0}
    found = read(checkpoint(tmp_path, content if is_file else [content], is_file=is_file), is_file=is_file)
    assert found.told is not None
    assert found.told.sizes == {"num_layers": 4, "hidden_size": 8}
    assert found.told.where.endswith("common.pt: args" if is_file else "__0_0.distcp: common_state/shard_0_1: args")
    assert (found.iteration, found.others) == (7, ("optimizer",))


def test_a_file_is_of_the_source(tmp_path):
    seen = []
    read_common(checkpoint(tmp_path, CONTENT), seen, is_file=True)
    assert [Path(file.path).name for file in seen] == ["common.pt"]


def test_there_may_be_none_where_none_is_told_of(tmp_path):
    found = DcpDirectory(directory=tmp_path, metadata=Metadata(tensors={}))
    assert read(found, is_file=False) == Common()
    with pytest.raises(InputError, match=r"common\.pt: no such file; metadata\.json beside it says"):
        read(found)


@pytest.mark.parametrize("name", ["iter_0000007", "release", "mine"])
def test_its_directory_may_have_any_name_but_that_of_another_iteration(name, tmp_path):
    assert read(checkpoint(tmp_path / name, CONTENT, saved_in="/a/iter_0000007")).iteration == 7
    # NeMo counts otherwise.
    assert read(checkpoint(tmp_path / name, {"epoch": 3}, saved_in="/a/iter_0000009")).iteration is None


@pytest.mark.parametrize(
    ("name", "saved_in", "says"),
    [
        ("iter_0000008", "", "is of iteration 7, but its directory is iter_0000008"),
        ("iter_0000007", "/a/iter_0000008", "is of iteration 7, but .metadata was saved in iter_0000008"),
        ("release", "iter_0000070", "is of iteration 7, but .metadata was saved in iter_0000070"),
    ],
)
def test_files_of_two_iterations_are_refused(name, saved_in, says, tmp_path):
    with pytest.raises(InputError, match=says):
        read(checkpoint(tmp_path / name, CONTENT, saved_in=saved_in))


@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "setattr"),
        ("__builtin__", "execfile"),
        ("commands", "getoutput"),
        ("cPickle", "loads"),
        ("subprocess", "Popen"),
        ("functools", "reduce"),
        ("types", "FunctionType"),
        ("os.path", "join"),
    ],
)
def test_a_program_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=f"names {name[0]}.{name[1]}, which no arguments of training need"):
        read(checkpoint(tmp_path, {**CONTENT, "more": Call(Name(*name), ("true",))}))


@pytest.mark.parametrize(
    "name",
    [
        ("megatron.core.transformer.enums", "AttnBackend"),
        ("numpy", "dtype"),
        ("signal", "Signals"),
        ("__builtin__", "long"),
        ("__builtin__", "getattr"),
        ("copy_reg", "_reconstructor"),
        ("copyreg", "_reconstructor"),
        ("pathlib", "PosixPath"),
        ("types", "GenericAlias"),
        ("functools", "partial"),
    ],
)
def test_what_arguments_are_made_of_is_none(name, tmp_path):
    assert read(checkpoint(tmp_path, {**CONTENT, "more": Call(Name(*name), (1,))})).iteration == 7


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1], "expected a dictionary"),
        ({**CONTENT, "checkpoint_version": 1.0}, "checkpoint_version is 1.0, expected 3.0"),
        ({**CONTENT, "checkpoint_version": [3]}, "checkpoint_version is list, expected 3.0"),
    ],
)
def test_another_content_is_refused(content, says, tmp_path):
    with pytest.raises(InputError, match=says):
        read(checkpoint(tmp_path, content))


@pytest.mark.parametrize("args", [{"num_layers": 4}, None, Call(Name("types", "SimpleNamespace"), (), {})])
def test_arguments_in_another_form_tell_nothing(args, tmp_path):
    told = read(checkpoint(tmp_path, {**CONTENT, "args": args})).told
    assert told is not None
    assert told.sizes == {}
