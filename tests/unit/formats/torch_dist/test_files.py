"""What lies beside the tensors of a torch_dist result, as readers and the verification see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.formats.base import FileFormat
from distconv.formats.dcp.metadata import read_metadata
from distconv.formats.dcp.plan import DcpPlan, Names, Part, Value, plan_parts
from distconv.formats.torch_dist.files import TorchDistFiles
from distconv.formats.torch_dist.kind import check_kind, kind_content
from distconv.formats.torch_zip.archive import read_archive
from distconv.formats.torch_zip.create import empty_state_frame
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import whole

STATES = tuple(f"layers.linear._extra_state/shard_{layer}_2" for layer in range(2))
ARGUMENTS = {"num_layers": 2, "moe_layer_freq": [0, 1], "virtual_pipeline_model_parallel_size": None}


def files(**changes: object) -> FileFormat:
    """The files of one tensor, and two states that are one value."""
    files, chunks = plan_parts([Part.all_of(NamedTensor((), whole("float32", (3, 2)), "a"))])
    plan = DcpPlan(
        files=files,
        chunks_of_files=chunks,
        unconverted=(),
        names=Names(naming="megatron"),
        values=(Value(keys=STATES, frame=empty_state_frame()),),
        state=None,
        form="torch_dist",
    )
    return TorchDistFiles(plan, {**ARGUMENTS, **changes}, 7)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    for name, content in files().beside().items():
        assert isinstance(content, bytes)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_the_kind_is_one_that_all_versions_know(written):
    assert json.loads((written / "metadata.json").read_text()) == {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    assert check_kind(written, [])


def test_what_makes_it_a_checkpoint_comes_last():
    assert list(files().beside())[-1] == "metadata.json"


def test_the_metadata_has_a_state_under_each_key(written):
    found = read_metadata(written / ".metadata")
    assert found.tensors.keys() == {"a"}
    assert found.blobs.keys() == set(STATES)
    assert len({(place.file, place.offset, place.length) for places in found.blobs.values() for place in places}) == 1


def test_the_common_part_has_arguments_and_iteration(written):
    content = read_archive(written / "common.pt")
    assert content.pop("args").values == ARGUMENTS
    assert content == {
        "checkpoint_version": 3.0,
        "iteration": 7,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": {"singleton_local_shards": False},
    }


def test_what_another_program_wrote_in_other_words_is_the_same(written):
    kind = {**kind_content(), "more": 1}
    (written / "metadata.json").write_text(json.dumps(kind, indent=2))
    for name in ("metadata.json", "common.pt"):
        assert not files().locate_beside(written, name).differences


def test_what_it_says_otherwise_is_a_difference(written):
    found = files(num_layers=3, hidden_size=4).locate_beside(written, "common.pt")
    assert found.differences == [
        f"{written}/common.pt: args.num_layers is 2, expected 3",
        f"{written}/common.pt: args.hidden_size is None, expected 4",
    ]
    (written / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    with pytest.raises(InputError, match="zarr"):
        files().locate_beside(written, "metadata.json")
