"""What `metadata.json` says of a checkpoint: whether it is read, and where its common part is."""

from __future__ import annotations

import json

import pytest

from distconv.errors import InputError
from distconv.formats.torch_dist.kind import check_kind

SHARDED = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
COMMON = {"common_backend": "torch", "common_backend_version": 1}


@pytest.mark.parametrize(("content", "has_common_file"), [({**SHARDED, **COMMON}, True), (SHARDED, False)])
def test_both_generations_are_read(content, has_common_file, tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    seen = []
    assert check_kind(tmp_path, seen) is has_common_file
    assert [file.path for file in seen] == [str(tmp_path / "metadata.json")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "sharded_backend is None; expected 'torch_dist'"),
        ({**SHARDED, "sharded_backend": "zarr"}, "'zarr': a zarr checkpoint"),
        ({**SHARDED, "sharded_backend": "fsdp_dtensor"}, "'fsdp_dtensor': a checkpoint of Megatron-FSDP"),
        ({**SHARDED, "sharded_backend": "torch_dcp"}, "'torch_dcp': a checkpoint of torch.distributed.checkpoint"),
        ({**SHARDED, "sharded_backend": {}}, "sharded_backend is {}; expected"),
        ({**SHARDED, "sharded_backend_version": 2}, "version 2 of the sharded backend torch_dist; expected 1"),
        ({**SHARDED, "common_backend": "msgpack"}, "common_backend is 'msgpack'; expected 'torch'"),
        ({**SHARDED, "common_backend": "torch"}, "version None of the common backend torch; expected 1"),
    ],
)
def test_others_are_named(content, says, tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        check_kind(tmp_path, [])
    assert says in str(caught.value)
    assert "--ckpt-format torch_dist" in str(caught.value)
