"""What a user meets whose torch_dist checkpoint is damaged, or is not what it seems: one message, nothing touched.

The tables are the specification, as in `test_way_back.py`. Every job runs in a directory of its own with samples that
Megatron-core 0.16 (`td`, with its optimizer) and 0.19 (`td19`) wrote, the rank directories of `td19` (`mp`), and the
configuration of the model.
"""

from __future__ import annotations

import pickle
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.errors.damage import Damage, deleted, longer, written
from tests.errors.test_errors import everything, rows
from tests.errors.test_way_back import Refusal, given, refused
from tests.errors.trained import MARK, Malicious, copied, fields, halved, metadata, replaced
from tests.golden.samples import reference, unpacked
from tests.here import outcome_here, run_here

ITERATION = "td/iter_0000007"
METADATA, KIND, COMMON = (f"{ITERATION}/{name}" for name in (".metadata", "metadata.json", "common.pt"))
METADATA_19, KIND_19 = "td19/iter_0000007/.metadata", "td19/iter_0000007/metadata.json"
CHUNKS = f"{ITERATION}/__0_0.distcp"
FC1, EMBEDDING = "decoder.layers.mlp.linear_fc1.weight", "embedding.word_embeddings.weight"
# Of the same length.
OTHER = EMBEDDING.replace("weight", "wwight")
JOB: Mapping[str, str | None] = {"source": "td", "reference": "config", "target": "back", "target_format": "hf"}
NEWER = {"source": "td19"}


def common(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the common part."""

    def damage(directory: Path) -> None:
        content = torch.load(directory / COMMON, weights_only=False)
        change(content)
        torch.save(content, directory / COMMON)

    return damage


def args(**values: object) -> Damage:
    """Give arguments of training other values."""
    return common(lambda content: vars(content["args"]).update(values))


def moved_chunk(found: Any) -> None:
    """The second half of a tensor is a row further on: there is a gap before it."""
    entry = found.state_dict_metadata[FC1]
    last = entry.chunks[-1]
    index = next(each for each in found.storage_data if each.fqn == FC1 and each.offset == last.offsets)
    entry.chunks[-1] = replace(last, offsets=torch.Size([last.offsets[0], last.offsets[1] - 1, 0]))
    found.storage_data[replace(index, offset=entry.chunks[-1].offsets)] = found.storage_data.pop(index)


def copied_file(path: str, other: str) -> Damage:
    return lambda directory: shutil.copy(directory / path, directory / other) and None


def common_saved(value: object) -> Damage:
    return lambda directory: torch.save(value, directory / COMMON)


def lost_chunk(found: Any) -> None:
    found.state_dict_metadata[FC1].chunks.pop()


def named_twice(found: Any) -> None:
    index = next(each for each in found.storage_data if each.fqn == EMBEDDING)
    found.storage_data[replace(index, fqn=OTHER)] = replace(found.storage_data[index], offset=0)


def listed_twice(found: Any) -> None:
    chunks = found.state_dict_metadata[EMBEDDING].chunks
    chunks.append(chunks[0])


def elsewhere(found: Any) -> None:
    for index in found.storage_data:
        found.storage_data[index] = replace(found.storage_data[index], relative_path="../other.distcp")


def saved_in(path: str) -> Callable[[Any], None]:
    return lambda found: setattr(found.storage_meta, "checkpoint_id", path)


def under_another_key(old: str, new: str) -> Callable[[Any], None]:
    """Give a tensor of the metadata another key."""

    def change(found: Any) -> None:
        found.state_dict_metadata[new] = found.state_dict_metadata.pop(old)
        for index in [each for each in found.storage_data if each.fqn == old]:
            found.storage_data[replace(index, fqn=new)] = found.storage_data.pop(index)

    return change


def common_entry(value: object) -> Damage:
    """Replace the common part that lies beside the tensors."""

    def damage(directory: Path) -> None:
        path = directory / METADATA_19
        found = pickle.loads(path.read_bytes())  # noqa: S301 - the test's own file
        index = next(each for each in found.storage_data if each.fqn == "common_state/shard_0_1")
        place = found.storage_data[index]
        chunks = path.parent / place.relative_path
        start = chunks.stat().st_size
        with chunks.open("r+b") as stream:
            stream.seek(start)
            torch.save(value, stream)
        found.storage_data[index] = replace(place, offset=start, length=chunks.stat().st_size - start)
        path.write_bytes(pickle.dumps(found))

    return damage


FILES = {
    "a file of chunks is missing": Refusal(files=[deleted(CHUNKS)], says=[f"{CHUNKS}: no such file", ".metadata"]),
    "a file of chunks is truncated": Refusal(files=[halved(CHUNKS)], says=[f"{CHUNKS}: truncated", ".metadata places"]),
    "a file of chunks is too long": Refusal(
        files=[longer(CHUNKS, 64)], says=[f"{CHUNKS}: has ", ".metadata tells of ", "two saves, are mixed"]
    ),
    "no metadata": Refusal(files=[deleted(METADATA)], says=[f"{ITERATION}: holds no .metadata", "interrupted"]),
    "metadata that are truncated": Refusal(files=[halved(METADATA)], says=[f"{METADATA}: truncated"]),
    "a chunk that is named twice": Refusal(
        files=[metadata(METADATA, named_twice), replaced(METADATA, OTHER, EMBEDDING)],
        says=[f"{METADATA}: tensor {EMBEDDING}: its chunk ", "is named 2 times"],
    ),
    "a chunk that is listed twice": Refusal(
        files=[metadata(METADATA, listed_twice)], says=[f"{METADATA}: tensor {EMBEDDING}: its chunks overlap"]
    ),
    "a gap between chunks": Refusal(
        files=[metadata(METADATA, lost_chunk)], says=[f"{METADATA}: tensor {FC1}: its chunks leave out 768 of the 6144"]
    ),
    "chunks that overlap": Refusal(
        files=[metadata(METADATA, moved_chunk)], says=[f"{METADATA}: tensor {FC1}: its chunks overlap"]
    ),
    "metadata that name a file elsewhere": Refusal(
        files=[metadata(METADATA, elsewhere)], says=[f"{METADATA}: refers to the file '../other.distcp'"]
    ),
    "metadata of another save": Refusal(
        files=[metadata(METADATA, saved_in("/other/iter_0000008"))],
        says=[f"{COMMON}: is of iteration 7, but .metadata was saved in iter_0000008", "two checkpoints are mixed"],
    ),
    "metadata that hold a program": Refusal(
        files=[metadata(METADATA, lambda found: setattr(found, "planner_data", Malicious()))],
        says=[f"{METADATA}: names posix.system", "nothing of the file was executed"],
    ),
    "files of the checkpoint of another version": Refusal(
        files=[copied_file(METADATA_19, METADATA)], says=[f"{ITERATION}/__", "tells of", "are mixed"]
    ),
    "a tensor that no rule knows": Refusal(
        files=[metadata(METADATA, under_another_key("output_layer.weight", "output_layers.weight"))],
        says=["that no rule of model definition qwen3 knows: model/output_layers.weight", "model/output_layer.weight"],
    ),
    "half of a parameter": Refusal(
        files=[metadata(METADATA, under_another_key(FC1, f"{FC1}_w"))],
        says=[f"linear_fc1.weight is stored as gate and up apart ({FC1}_w) and the other one is missing"],
    ),
}

KINDS = {
    "zarr": Refusal(
        files=[fields(KIND, sharded_backend="zarr")],
        says=[f"{KIND}: sharded_backend is 'zarr': a zarr checkpoint", "expected 'torch_dist'", "--ckpt-format"],
    ),
    "zarr, with nothing else in the directory": Refusal(
        files=[written("zarr/metadata.json", '{"sharded_backend": "zarr", "sharded_backend_version": 1}')],
        options={"source": "zarr"},
        says=["zarr/metadata.json: sharded_backend is 'zarr': a zarr checkpoint", "--ckpt-format torch_dist"],
    ),
    "fsdp_dtensor": Refusal(
        files=[fields(KIND, sharded_backend="fsdp_dtensor")],
        says=[f"{KIND}: sharded_backend is 'fsdp_dtensor': a checkpoint of Megatron-FSDP", "expected 'torch_dist'"],
    ),
    "a backend that nobody knows": Refusal(
        files=[fields(KIND, sharded_backend=["new"])], says=[f"{KIND}: sharded_backend is ['new']; expected"]
    ),
    "another version of the backend": Refusal(
        files=[fields(KIND_19, sharded_backend_version=2)],
        options=NEWER,
        says=[f"{KIND_19}: version 2 of the sharded backend torch_dist; expected 1"],
    ),
    "another version of the common part": Refusal(
        files=[fields(KIND, common_backend_version=2)],
        says=[f"{KIND}: version 2 of the common backend torch; expected 1"],
    ),
    "a kind that is damaged": Refusal(files=[halved(KIND)], says=[f"{KIND}: not valid JSON"]),
    "rank directories in the same directory": Refusal(
        files=[copied("mp/iter_0000007/mp_rank_00", f"{ITERATION}/mp_rank_00")],
        says=[
            f"{ITERATION}: holds a Megatron checkpoint and a torch_dist checkpoint of Megatron-core in one directory"
        ],
    ),
    "rank directories in the same directory, which is the source": Refusal(
        files=[copied("mp/iter_0000007/mp_rank_00", f"{ITERATION}/mp_rank_00")],
        options={"source": ITERATION},
        says=[f"{ITERATION}: holds a Megatron checkpoint and a torch_dist checkpoint"],
    ),
    "an iteration that is not there": Refusal(
        options={"iteration": "8"}, says=["iteration=8: names iter_0000008", "it holds iter_0000007"]
    ),
    "an iteration that is not there, of several formats": Refusal(
        files=[copied("mp/iter_0000007", "td/iter_0000009")],
        options={"iteration": "8"},
        says=["iteration=8: names iter_0000008", "it holds iter_0000007, iter_0000009"],
    ),
}

COMMONS = {
    "the common part is missing": Refusal(
        files=[deleted(COMMON)], says=[f"{COMMON}: no such file; metadata.json", "not copied completely"]
    ),
    "a common part that is truncated": Refusal(files=[halved(COMMON)], says=[f"{COMMON}: truncated"]),
    "a common part that is a program": Refusal(
        files=[common_saved(Malicious())], says=[f"{COMMON}: expected a dictionary"], never=["Inert"]
    ),
    "a common part that holds a program": Refusal(
        files=[common(lambda content: content.update(more=Malicious()))],
        says=[f"{COMMON}: names posix.system", "nothing of it was executed"],
    ),
    "arguments that hold a program": Refusal(
        files=[args(rope_theta=Malicious())], says=[f"{COMMON}: names posix.system", "nothing of it was executed"]
    ),
    "a common part of another iteration": Refusal(
        files=[common(lambda content: content.update(iteration=8)), metadata(METADATA, saved_in("memory"))],
        says=[f"{COMMON}: is of iteration 8, but its directory is iter_0000007", "two checkpoints are mixed"],
    ),
    "a common part of another version": Refusal(
        files=[common(lambda content: content.update(checkpoint_version=1.0))],
        says=[f"{COMMON}: checkpoint_version is 1.0, expected 3.0"],
    ),
    "a common entry of another iteration": Refusal(
        files=[common_entry([{"iteration": 6}])],
        options=NEWER,
        says=["__0_0.distcp: common_state/shard_0_1: is of iteration 6, but its directory is iter_0000007"],
    ),
    "a common entry that holds a program": Refusal(
        files=[common_entry([{"iteration": 7, "args": Malicious()}])],
        options=NEWER,
        says=["__0_0.distcp: common_state/shard_0_1: names posix.system", "nothing of it was executed"],
    ),
    "a common entry that is no dictionary": Refusal(
        files=[common_entry([[7]])],
        options=NEWER,
        says=["__0_0.distcp: common_state/shard_0_1: expected a dictionary, found list"],
    ),
    "arguments that contradict the configuration": Refusal(
        files=[args(num_query_groups=4, kv_channels=8)],
        says=[
            f"{COMMON}: args: num_query_groups is 4, but config/config.json says kv_heads (2, num_key_value_heads",
            f"{COMMON}: args: kv_channels is 8, but config/config.json says head_dim (16, head_dim in config.json)",
            "give the configuration that the model was trained with",
        ],
    ),
    "a configuration of Megatron-Bridge that contradicts": Refusal(
        files=[written(f"{ITERATION}/run_config.yaml", "model:\n  num_attention_heads: 8\n")],
        says=["run_config.yaml: model: num_attention_heads is 8, but config/config.json says heads (4, num_attention"],
    ),
    "a configuration of Megatron-Bridge that is none": Refusal(
        files=[written(f"{ITERATION}/run_config.yaml", "model: [")], says=["run_config.yaml: not valid YAML"]
    ),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    unpacked("qwen3_19_tp2", "td", root).rename(root / "td19")
    unpacked("qwen3_19_tp2", "mp", root)
    unpacked("qwen3_16_optim", "td", root)
    reference("qwen3_16_optim", root)
    (root / "config").rename(root / "config16")
    reference("qwen3_19_tp2", root).rename(root / "config19")
    (root / "config16").rename(root / "config")
    return root


@pytest.fixture
def world(checkpoints, tmp_path, monkeypatch):
    """The directory of a job, in which it runs."""
    directory = tmp_path / "world"
    shutil.copytree(checkpoints, directory)
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    monkeypatch.chdir(directory)
    return directory


@rows({**FILES, **KINDS, **COMMONS})
def test_a_checkpoint_is_refused(row, world):
    refused(row, world, JOB)


@pytest.mark.parametrize(
    "row", [FILES["a gap between chunks"], KINDS["zarr"], COMMONS["arguments that hold a program"]]
)
def test_the_command_line_ends_with_2(row, world, distconv):
    for damage in row.files:
        damage(world)
    before = everything(world)
    outcome = distconv(*given(row, JOB))
    assert outcome.status == 2
    assert outcome.err.count("distconv: ") == 1
    assert "Traceback" not in outcome.err
    assert everything(world) == before
    assert not (world / MARK).exists()


@pytest.mark.parametrize(("iteration", "form"), [(None, "megatron"), ("9", "megatron"), ("7", "torch_dist")])
def test_of_iterations_in_several_formats_the_chosen_one_decides(iteration, form, world):
    copied("mp/iter_0000007", "td19/iter_0000009")(world)
    (world / "td19" / "latest_checkpointed_iteration.txt").write_text("9")
    options = {**JOB, "reference": "config19", "source": "td19", "iteration": iteration}
    assert outcome_here(*given(Refusal(says=[]), options)).report["source_format"] == form


def test_objects_of_training_are_no_programs(world):
    """Classes that are not installed, types, signals and enumerations."""
    args(exit_signal=signal.SIGTERM, params_dtype=torch.bfloat16, pattern=re.compile("x"), of=list[int])(world)
    run_here(*given(Refusal(says=[]), JOB))
    assert (world / "back" / "config.json").exists()


def test_a_checkpoint_without_a_configuration_of_training_says_so(world):
    common_entry([{"content_metadata": {}}])(world)
    outcome = outcome_here(*given(Refusal(options=NEWER, says=[]), {**JOB, "reference": "config19"}))
    (note,) = [note for note in outcome.report["notes"] if "configured" in note]
    assert note.startswith("nothing says how training was configured")
