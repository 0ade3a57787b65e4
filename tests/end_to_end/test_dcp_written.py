"""What torch reads from a DCP result: every element of every tensor, under the names that were asked for."""

from __future__ import annotations

from math import prod
from typing import Any
from zlib import crc32

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import FileSystemReader

from distconv.formats.dcp import plan as dcp_plan
from distconv.formats.dcp.files import DcpFiles
from distconv.formats.dcp.plan import Names, make_dcp_plan
from distconv.formats.frame import write_frame
from distconv.input_output import InputOutput
from distconv.tensors.stored import SourceFile, StoredTensor, as_stored
from distconv.transfer.sources import SourceFiles
from distconv.transfer.write import write_beside
from tests.checkpoints import described, load_case, read_dcp, tensor_bytes, write_source

DTYPES = ["uint8", "int64", "float16", "bfloat16", "float32", "bool", "float8_e4m3fn"]
TIED, TIED_WITH_HEAD, HEAD = "qwen3vl__tied_pp1", "qwen2vl__tied_with_head_pp1", "lm_head.weight"


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 6), max_size=3).map(tuple)), min_size=1, max_size=8
    )
)
def test_torch_finds_each_chunk_where_it_was_laid_out(tmp_path_factory, drawn):
    """Filled by the offsets of the format, in files of a few chunks each, without any other part of distconv."""
    directory = tmp_path_factory.mktemp("dcp")
    file = SourceFile("/hf/model.safetensors", 1 << 20)
    stored = [StoredTensor(f"t{number}.w", *each, file, number) for number, each in enumerate(drawn)]
    values = {each.name: tensor_of(each) for each in stored}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dcp_plan, "CHUNK_BYTES", 32)
        patch.setattr(dcp_plan, "_LEAST_FILE_BYTES", 64)
        plan = make_dcp_plan(as_stored(stored), (), Names(naming="hf"))
    form = DcpFiles(plan)
    for output in reversed(plan.files):
        path = directory / output.path
        frame = form.frame(output, list(plan.entries(output)))
        write_frame(path, frame)
        with path.open("r+b") as stream:
            for chunk, hole in zip(plan.chunks(output), frame.holes, strict=True):
                box = tuple(slice(low, low + size) for low, size in zip(chunk.offsets, chunk.tensor.shape, strict=True))
                stream.seek(hole)
                stream.write(values[chunk.whole.name][box].contiguous().view(-1).view(torch.uint8).numpy().tobytes())

    written = write_beside(directory, form.beside(), SourceFiles(), InputOutput(fsync=False))

    content = (directory / ".metadata").read_bytes()
    assert written == {".metadata": (len(content), crc32(content))}
    expected = {f"model.{name}": value for name, value in values.items()} | {"checkpoint_version": 3.0}
    assert described(read_dcp(directory)) == described(expected)


def tensor_of(stored: StoredTensor) -> torch.Tensor:
    dtype = getattr(torch, stored.dtype)
    if 0 in stored.shape:
        return torch.empty(stored.shape, dtype=dtype)
    data = bytearray(tensor_bytes(stored.name, stored.dtype, stored.shape))
    if stored.dtype == "bool":
        data = bytearray(byte & 1 for byte in data)
    return torch.frombuffer(data, dtype=dtype).reshape(stored.shape)


def names(outcome: Any, directory: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name, as the metadata has them, below `model`."""
    assert outcome.status == 0, outcome.err
    found = FileSystemReader(directory / "mm" / "release").read_metadata().state_dict_metadata
    return {
        key.removeprefix("model."): tuple(value.size) for key, value in found.items() if key != "checkpoint_version"
    }


@pytest.fixture
def save(tmp_path, distconv):
    """Convert a case to DCP with these options; the shapes by name, and those of the source."""

    def run(name: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
        case = load_case(name)
        source = write_source(tmp_path / "hf", case)
        model, target = f"+model={case['model']}", f"target={tmp_path / 'mm'}"
        outcome = distconv(model, f"source={source}", target, "target_format=dcp", "io.fsync=false", *options)
        shapes = {name: tuple(shape) for name, (_, shape, _) in case["source_tensors"].items()}
        return names(outcome, tmp_path), shapes

    return run


@pytest.mark.parametrize("prefix", ["model.", "base_model.model.model."])
def test_published_names_get_the_prefix(prefix, save):
    found, source = save("qwen3vl__tp1_pp1", "naming=hf", f"name_prefix={prefix}")

    assert found == {f"{prefix}{name}": shape for name, shape in source.items()}


def test_megatron_names_get_the_prefix(save):
    found, source = save("qwen3vl__tp1_pp1", "name_prefix=module.")

    assert {name.split(".")[0] for name in found} == {"module"}
    assert {name.split(".")[1] for name in found} == {"text_decoder", "image_encoder"}
    assert sum(map(prod, found.values())) == sum(map(prod, source.values()))


@pytest.mark.parametrize(
    ("case", "tied_head", "written"),
    [
        (TIED, "auto", False),
        (TIED, "write", True),
        (TIED, "omit", False),
        (TIED_WITH_HEAD, "auto", True),
        (TIED_WITH_HEAD, "write", True),
        (TIED_WITH_HEAD, "omit", False),
    ],
)
def test_the_head_of_a_tied_model(case, tied_head, written, save):
    """`auto`: as the source has it."""
    found, source = save(case, "naming=hf", f"tied_head={tied_head}")

    head = {HEAD: next(shape for name, shape in source.items() if name.endswith(".embed_tokens.weight"))}
    assert (HEAD in source) == (case == TIED_WITH_HEAD)
    assert found == {**{name: shape for name, shape in source.items() if name != HEAD}, **(head if written else {})}


@pytest.mark.parametrize(
    ("options", "flattened"),
    [
        ([], False),
        (["name_prefix=model."], True),
        (["name_prefix=model.", "packed_experts=keep"], False),
        (["packed_experts=flatten"], True),
    ],
)
def test_packed_experts_become_matrices_where_the_model_is_wrapped(options, flattened, save):
    found, source = save("qwen3vl_moe__tp1_pp1", "naming=hf", *options)

    packed = [name for name in source if ".mlp.experts." in name]
    assert packed
    for name, shape in source.items():
        experts = (shape[0] * shape[1], shape[2]) if flattened and name in packed else shape
        assert found[f"model.{name}" if "name_prefix=model." in options else name] == experts
    assert len(found) == len(source)
