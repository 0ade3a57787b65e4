"""`verify=true`: a result gets its name only if the readers that programs use give what the source says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.filesystem import FileSystemReader

from distconv import writing
from distconv.errors import InputError, JobError
from distconv.formats import registry
from distconv.formats.dcp import files as dcp_files
from distconv.formats.dcp.plan import Value
from distconv.formats.huggingface.files import HuggingFaceFiles
from distconv.formats.megatron import files as megatron_files
from distconv.formats.megatron.files import MegatronFiles
from distconv.formats.records import Entry
from distconv.formats.torch_dist.files import TorchDistFiles
from distconv.formats.torch_zip.create import value_frame
from distconv.observer import Outcome
from distconv.transfer.write import write_files
from tests.checkpoints import hashes, load_case, overrides, tensor_bytes, write_safetensors, write_source
from tests.here import outcome_here, run_here
from tests.npy_format import Npy

RESULTS: dict[str, dict[str, Any]] = {
    "megatron": {"layout__tp": 2, "layout__pp": 2},
    "vpp": {"layout__pp": 2, "layout__vpp": 2},
    "dcp": {"target_format": "dcp"},
    "published dcp": {"target_format": "dcp", "naming": "hf"},
    "torch_dist": {"target_format": "torch_dist"},
    "hf": {"target_format": "hf"},
    "one file": {"target_format": "hf", "shard_size": "5GB"},
    "npy": {"target_format": "npy"},
}
CASTS = ({}, {"dtype": "float16", "dtype_overflow": "allow"}, {"dtype": "float32"})
Files = Sequence[Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a published model, and a DCP of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FORMATS", (*registry.FORMATS, Npy()))
        directory = tmp_path_factory.mktemp("verified")
        write_source(directory / "model", load_case("qwen2vl__tp1_pp1"))
        run_here(source=str(directory / "model"), target=str(directory / "trained"), target_format="dcp")
        yield directory


def given(made: Path, name: str, target: Path, **more: Any) -> dict[str, Any]:
    source = "trained" if RESULTS[name].get("target_format") == "hf" else "model"
    return {"source": str(made / source), "target": str(target), **RESULTS[name], **more}


def verified(made: Path, name: str, target: Path, **more: Any) -> Outcome:
    return outcome_here(**given(made, name, target, verify=True, **more))


def was_read_back(outcome: Outcome) -> bool:
    (share,) = outcome.report["processes"]
    return "verifying" in share["seconds"]


@pytest.mark.parametrize("cast", CASTS, ids=["as stored", "narrower", "wider"])
@pytest.mark.parametrize("name", RESULTS)
def test_a_right_result_passes_and_is_the_same(name, cast, made, tmp_path):
    outcome = verified(made, name, tmp_path / "checked", **cast)
    unchecked = outcome_here(**given(made, name, tmp_path / "unchecked", **cast))
    (share,), (usual,) = outcome.report["processes"], unchecked.report["processes"]
    assert ("verifying" in share["seconds"], "verifying" in usual["seconds"]) == (True, False)
    # The result once, and the source twice.
    assert share["bytes_read"] == 2 * usual["bytes_read"] + usual["bytes_written"]
    assert hashes(tmp_path / "checked") == hashes(tmp_path / "unchecked")
    # Numbers that a cast makes infinite are counted once, though they are made twice.
    assert outcome.report["casts"] == unchecked.report["casts"]


@pytest.mark.parametrize(
    "name",
    [
        "qwen2vl__tied_pp2",
        "qwen2vl__tied_with_head_pp1",
        "qwen2_5vl__ldt_tied_pp3_vpp3",
        "qwen3vl_moe__ep2",
        "qwen3vl_moe__fsdp_dcp",
        "deepseekvl2__tp1_pp2_vpp2",
        "internvl__hetero_tp2_vit1",
        "qwen2_5vl__lora_pp1",
    ],
)
def test_heads_experts_and_adapters(name, tmp_path):
    case = load_case(name)
    source = write_source(tmp_path / "hf", case)
    kept = ["tied_head=keep"] if "with_head" in name else []
    outcome = outcome_here(*overrides(case), *kept, source=str(source), target=str(tmp_path / "result"), verify=True)
    assert was_read_back(outcome)


def test_merged_adapters(tmp_path):
    """Sums of products, which are computed."""
    case = load_case("qwen2_5vl__lora_oldnames_pp2")
    run_here(*overrides(case), source=str(write_source(tmp_path / "peft", case)), target=str(tmp_path / "mm"))
    base = write_source(tmp_path / "base", load_case("qwen2_5vl__canonical_pp1"))
    options = ["+model=qwen2_5vl_lora", "target_format=hf", "merge_lora=true", f"reference={base}"]
    outcome = outcome_here(*options, source=str(tmp_path / "mm"), target=str(tmp_path / "merged"), verify=True)
    assert was_read_back(outcome)


@pytest.mark.parametrize("target_format", ["hf", "dcp"])
def test_tensors_without_dims_or_elements(target_format, tmp_path):
    shapes = {"scalar": [], "empty": [0, 4], "nothing": [3, 0], "usual": [3, 5]}
    source = tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    tensors = {name: ("float32", shape, tensor_bytes(name, "float32", shape)) for name, shape in shapes.items()}
    write_safetensors(source / "model.safetensors", tensors)
    options = {"target_format": target_format, **({"naming": "hf"} if target_format == "dcp" else {})}
    if target_format == "hf":
        options["shard_size"] = "5GB"
    assert was_read_back(outcome_here(**options, source=str(source), target=str(tmp_path / "result"), verify=True))


def damaging(change: Callable[[Files], object]) -> Callable[..., dict[str, int]]:
    """The writer, and a change of its files before anybody else sees them."""

    def written(*arguments: Any) -> dict[str, int]:
        sizes = write_files(*arguments)
        change([arguments[2] / path for path in sizes])
        return sizes

    return written


def refused(made: Path, name: str, directory: Path, **more: Any) -> str:
    """The message of a job that fails; nothing is in place."""
    with pytest.raises(JobError) as caught:
        verified(made, name, directory / "result", **more)
    assert caught.value.exit_status == 1
    assert list(directory.iterdir()) == []
    message = str(caught.value)
    assert message.startswith("verify=true: the result is not what its source says\n")
    return message


def flipped(files: Files) -> None:
    """One bit of the last tensor of the largest file."""
    path = max(files, key=lambda each: (each.stat().st_size, each))
    content = bytearray(path.read_bytes())
    content[last_data(path)] ^= 1
    path.write_bytes(content)


def last_data(path: Path) -> int:
    """The offset of a byte of data."""
    if path.suffix in (".safetensors", ".npy"):
        return path.stat().st_size - 3
    # The data of the last tensor ends before the last member of the archive, its version.
    return path.read_bytes().rindex(b"PK\x03\x04") - 70


def emptied(files: Files) -> None:
    files[0].write_bytes(b"")


def halved(files: Files) -> None:
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) // 2])


def removed(files: Files) -> None:
    files[0].unlink()


@pytest.mark.parametrize("damage", [flipped, emptied, halved, removed])
@pytest.mark.parametrize("name", RESULTS)
def test_damaged_files_are_no_result(name, damage, made, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "write_files", damaging(damage))
    said = refused(made, name, tmp_path)
    if damage is flipped:
        (line,) = said.splitlines()[1:]
        assert " is not what its source says, from element " in line
    assert all(line.startswith(str(tmp_path)) for line in said.splitlines()[1:])


@pytest.mark.parametrize("name", RESULTS)
def test_an_older_result_stays(name, made, tmp_path, monkeypatch):
    target = tmp_path / "result"
    outcome_here(**given(made, name, target))
    before = hashes(target)
    monkeypatch.setattr(writing, "write_files", damaging(flipped))
    with pytest.raises(JobError, match="is not what its source says"):
        verified(made, name, target, overwrite=True)
    assert hashes(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def renamed(entries: Sequence[Entry]) -> list[Entry]:
    return [replace(entries[0], name="another"), *entries[1:]]


def retyped(entries: Sequence[Entry]) -> list[Entry]:
    """As many bytes of another type."""
    entry = entries[0]
    return [replace(entry, tensor=replace(entry.tensor, dtype="float16")), *entries[1:]]


@pytest.mark.parametrize(
    ("form", "name"), [(MegatronFiles, "megatron"), (MegatronFiles, "vpp"), (HuggingFaceFiles, "hf")]
)
@pytest.mark.parametrize(
    ("change", "says"), [(renamed, ("is missing", "another is not expected")), (retyped, ("is float16",))]
)
def test_what_files_say_wrongly_is_found(form, name, change, says, made, tmp_path, monkeypatch):
    """Their frames are all that `action=verify` compares: it would take them for right."""
    frame = form.frame
    monkeypatch.setattr(form, "frame", lambda self, file, entries: frame(self, file, change(entries)))
    said = refused(made, name, tmp_path)
    for each in says:
        assert each in said


def renamed_dictionary(keys: Sequence[str], tensors: Any, extra: Any) -> tuple[Any, ...]:
    first, *others = keys
    return ["other", *others], (("other" if key == first else key, *rest) for key, *rest in tensors), extra


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda keys, tensors, _: (keys, tensors, {"checkpoint_version": 2.0}), "checkpoint_version is 2.0, expected"),
        (lambda keys, tensors, _: (keys, tensors, {}), "checkpoint_version is None, expected 3.0"),
        (lambda keys, tensors, extra: (keys, tensors, {**extra, "args": 1}), "args is not expected"),
        (renamed_dictionary, "has no model0\n"),
    ],
)
def test_what_rank_files_hold_beside_tensors(change, says, made, tmp_path, monkeypatch):
    frame = megatron_files.dictionaries_frame

    def changed(*given: Any) -> Any:
        found, offsets = frame(*change(*given))
        return found, {("model0" if key == "other" else key, name): at for (key, name), at in offsets.items()}

    monkeypatch.setattr(megatron_files, "dictionaries_frame", changed)
    assert says in refused(made, "vpp", tmp_path) + "\n"


def test_a_value_of_a_dcp(made, tmp_path, monkeypatch):
    """That of the version, as large as the right one."""
    frames = dcp_files.blob_frames

    def changed(values: Sequence[Value], chunks: Any) -> Any:
        return frames([replace(each, frame=value_frame(2.0)) for each in values], chunks)

    monkeypatch.setattr(dcp_files, "blob_frames", changed)
    assert "__0_0.distcp: the value checkpoint_version is another than what was to be written" in refused(
        made, "dcp", tmp_path
    )


DCPS = ("dcp", "published dcp", "torch_dist")
WRONG_METADATA = [
    (DCPS, b"norm.weight", b"norm.weighs", ("norm.weight is missing, expected (", "expected no such tensor")),
    (DCPS, b"bfloat16", b"float16\n", ("does not read it",)),
    (DCPS, b"__0_0.distcp", b"__1_0.distcp", (" is missing",)),
    (DCPS, b"BytesStorageMetadata", b"TensorStorageMetadat", ("does not read it",)),
    (
        DCPS[:2],
        b"checkpoint_version",
        b"checkpoint_versiom",
        ("has no values checkpoint_v", "not expected: checkpoint_v"),
    ),
    (DCPS[2:], b"_extra_state", b"_extra_stage", ("has no values ", "not expected: ")),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "says"), [(name, *wrong) for names, *wrong in WRONG_METADATA for name in names]
)
def test_what_metadata_say_wrongly_is_found(name, old, new, says, made, tmp_path, monkeypatch):
    made_of = dcp_files.metadata_bytes
    monkeypatch.setattr(dcp_files, "metadata_bytes", lambda *arguments: made_of(*arguments).replace(old, new))
    said = refused(made, name, tmp_path)
    assert all(each in said for each in says), said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda right: right[: len(right) // 2], "common.pt: torch.load does not read it: "),
        (lambda right: right.replace(b"argparse", b"argparsf"), "common.pt: torch.load does not read it: "),
        (lambda _: b"".join(data for _, data in value_frame({"args": 1}).pieces), "common.pt: expected a dictionary"),
    ],
)
def test_the_common_part_must_load(content, says, made, tmp_path, monkeypatch):
    beside = TorchDistFiles.beside

    def wrong(self: TorchDistFiles) -> dict[str, Any]:
        found = dict(beside(self))
        return {**found, "common.pt": content(found["common.pt"])}

    monkeypatch.setattr(TorchDistFiles, "beside", wrong)
    assert says in refused(made, "torch_dist", tmp_path)


def test_an_index_that_is_wrong_is_found(made, tmp_path, monkeypatch):
    beside = HuggingFaceFiles.beside

    def wrong(self: HuggingFaceFiles) -> dict[str, Any]:
        found = dict(beside(self))
        (name,) = (each for each in found if each.endswith(".index.json"))
        found[name] = json.dumps({"weight_map": {"lm_head.weight": "model.safetensors"}}).encode()
        return found

    monkeypatch.setattr(HuggingFaceFiles, "beside", wrong)
    assert "model.safetensors.index.json: does not name the file of lm_head.weight" in refused(made, "hf", tmp_path)


def test_an_index_that_is_not_there_is_missed(made, tmp_path, monkeypatch):
    monkeypatch.setattr(HuggingFaceFiles, "beside", lambda _: {})
    assert "has no index" in refused(made, "hf", tmp_path)


def test_files_beside_are_compared(made, tmp_path, monkeypatch):
    """By their bytes, before torch unpickles what they are."""
    beside = writing.write_beside

    def written(directory: Path, *arguments: Any, **options: Any) -> dict[str, int]:
        sizes = beside(directory, *arguments, **options)
        path = directory / ".metadata"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        return sizes

    monkeypatch.setattr(writing, "write_beside", written)
    monkeypatch.setattr(FileSystemReader, "read_metadata", pytest.fail)
    assert "/.metadata: truncated, or not a pickle" in refused(made, "dcp", tmp_path)


def test_the_result_line_says_so(made, tmp_path, distconv):
    outcome = distconv(f"source={made / 'model'}", f"target={tmp_path / 'mm'}", "verify=true")
    assert outcome.status == 0, outcome.err
    assert " as programs read them; on 1 process" in outcome.out


@pytest.mark.parametrize("action", ["plan", "verify", "inspect"])
def test_other_actions_do_not_take_it(action, made, tmp_path):
    with pytest.raises(InputError, match="verify: goes with action=convert"):
        outcome_here(source=str(made / "model"), target=str(tmp_path / "mm"), action=action, verify=True)


def test_without_safetensors_nothing_is_begun(made, tmp_path):
    """One sentence, and nothing of the target is touched; without `verify` it is not needed."""
    code = f"""
import sys
sys.modules["safetensors"] = None
sys.argv = ["distconv", "source={made / "trained"}", "target={tmp_path / "hf"}", "target_format=hf", *sys.argv[1:]]
from distconv.cli.main import main
sys.exit(main())
"""
    finished = subprocess.run([sys.executable, "-c", code, "verify=true"], capture_output=True, text=True, check=False)
    assert finished.returncode == 2, finished.stderr
    assert "reads the result with safetensors, which cannot be imported" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
