"""A source that changes while a job runs is refused, whatever its format: no result is a mix of two checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from distconv import job, writing
from distconv.errors import DistconvError, InputError, SpoiledError
from distconv.formats.iterations import TRACKER_NAME
from tests.checkpoints import hashes, load_case, overrides, tensor_bytes, write_safetensors, write_source
from tests.here import run_here

CASE = load_case("qwen2vl__tp2_pp2")
TEXT_CASE = load_case("qwen2vl__llm_hf_dir_pp1")
LORA_CASE = load_case("qwen2_5vl__lora_pp1")
BASE_CASE = load_case("qwen2_5vl__canonical_pp1")
SIDE = "tokenizer.json"


def made(target: Path, case: Mapping[str, Any], source: Path, **changes: Any) -> Path:
    run_here(overrides(case)[0], source=str(source), target=str(target), **changes)
    return target


def published(directory: Path) -> dict[str, Any]:
    write_source(directory / "hf", CASE)
    return {"options": overrides(CASE), "source": "hf"}


def single_file(directory: Path) -> dict[str, Any]:
    write_source(directory / "hf", CASE, single_file=True)
    return {"options": overrides(CASE)[:1], "source": "hf", "target_format": "dcp", "naming": "hf"}


def state_dict(directory: Path) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - slow to import
    from safetensors.torch import load_file  # noqa: PLC0415

    single_file(directory)
    torch.save(load_file(directory / "hf" / "model.safetensors"), directory / "hf" / "pytorch_model.bin")
    (directory / "hf" / "model.safetensors").unlink()
    return {"options": overrides(CASE), "source": "hf"}


def two_directories(directory: Path) -> dict[str, Any]:
    write_source(directory / "hf", TEXT_CASE)
    write_source(directory / "llm", TEXT_CASE["llm"])
    return {"options": overrides(TEXT_CASE), "source": "hf", "text_source": "llm"}


def adapters(directory: Path) -> dict[str, Any]:
    write_source(directory / "peft", LORA_CASE)
    return {"options": overrides(LORA_CASE), "source": "peft"}


def ranks(directory: Path) -> dict[str, Any]:
    """With a reference whose weights say shapes, and with side files."""
    hf = write_source(directory / "hf", CASE)
    (hf / SIDE).write_text("{}")
    made(directory / "mm", CASE, hf, layout__tp=2)
    return {"options": [], "source": "mm", "target_format": "hf"}


def ranks_and_weights_alone(directory: Path) -> dict[str, Any]:
    """The reference is a configuration, named by the user."""
    ranks(directory)
    shutil.rmtree(directory / "hf")
    (directory / "hf").mkdir()
    (directory / "hf" / "config.json").write_text(json.dumps(CASE["hf_config"]))
    return {"options": overrides(CASE), "source": "mm", "reference": "hf"}


def merged(directory: Path) -> dict[str, Any]:
    """Adapters of training, merged into the weights of the reference."""
    made(directory / "mm", LORA_CASE, write_source(directory / "peft", LORA_CASE), layout__tp=2)
    (directory / "mm" / "release" / "distconv.json").unlink()
    shutil.rmtree(directory / "peft")
    write_source(directory / "base", BASE_CASE)
    options = ["+model=qwen2_5vl_lora", "merge_lora=true", "lora_alpha=16"]
    return {"options": options, "source": "mm", "reference": "base", "target_format": "hf"}


def chunks(directory: Path) -> dict[str, Any]:
    made(directory / "dcp", CASE, write_source(directory / "hf", CASE), target_format="dcp", naming="hf")
    return {"options": [], "source": "dcp", "target_format": "hf"}


def chunks_of_parameters(directory: Path) -> dict[str, Any]:
    made(directory / "dcp", CASE, write_source(directory / "hf", CASE), target_format="dcp")
    return {"options": overrides(CASE)[1:], "source": "dcp"}


Setting = Callable[[Path], dict[str, Any]]
SETTINGS: tuple[Setting, ...] = (
    published,
    single_file,
    state_dict,
    two_directories,
    adapters,
    ranks,
    ranks_and_weights_alone,
    merged,
    chunks,
    chunks_of_parameters,
)
# Of what these jobs find beside their sources they need nothing.
NOT_NEEDED = {TRACKER_NAME}


def arguments(setting: Setting, directory: Path, **changes: Any) -> tuple[list[str], dict[str, Any]]:
    """The options of a job, with its directories."""
    given = setting(directory)
    options = given.pop("options")
    for key in ("source", "text_source", "reference"):
        if key in given:
            given[key] = str(directory / given[key])
    return options, {**given, "target": str(directory / "result"), **changes}


def needed(directory: Path) -> set[Path]:
    """The files below the directory that the job reads."""
    return {path for path in directory.rglob("*") if path.is_file() and path.name not in NOT_NEEDED}


def saved_again(path: Path) -> None:
    """Another file of the same size and content, a nanosecond younger."""
    status = path.stat()
    shutil.copy(path, path.with_name("new"))
    os.utime(path.with_name("new"), ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    path.with_name("new").rename(path)


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, phase: str, before: Callable[[], object], after: Callable[[], object]
) -> None:
    """Have something happen just before and just after a phase of the job."""
    module = writing if phase == "write_files" else job
    function = getattr(module, phase)

    def overtaken(*arguments: Any) -> Any:
        before()
        result = function(*arguments)
        after()
        return result

    monkeypatch.setattr(module, phase, overtaken)


def nothing() -> None:
    pass


def refused(options: list[str], changes: Mapping[str, Any], kind: type[DistconvError]) -> str:
    with pytest.raises(kind) as caught:
        run_here(*options, **changes)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_all_files_that_change_while_a_job_writes_are_named(setting, when, tmp_path, monkeypatch):
    options, changes = arguments(setting, tmp_path)
    if when == "before":
        # Else copies in the source, which are compared first, would hide it.
        monkeypatch.setattr(job, "compare_replicas", lambda *_: [])
    files = needed(tmp_path)
    monkeypatch.setattr("distconv.errors.LINES_SHOWN", 100)

    def change() -> None:
        for path in files:
            saved_again(path)

    meanwhile(monkeypatch, "write_files", *((change, nothing) if when == "before" else (nothing, change)))
    message = refused(options, changes, SpoiledError)

    # Side files are copied, and compared, when all else is done.
    assert {path for path in files if f"{path}: was modified at " not in message} == {
        path for path in files if path.name == SIDE
    }
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_source_that_nobody_changes_is_converted_and_verified(setting, tmp_path, monkeypatch):
    """It may gain files, and its tracker may go on to the next iteration."""
    options, changes = arguments(setting, tmp_path)

    def gain() -> None:
        (Path(changes["source"]) / "optimizer.bin").write_bytes(b"more")
        (Path(changes["source"]) / "notes.txt").write_text("more")
        if (tracker := Path(changes["source"]) / TRACKER_NAME).exists():
            (tracker.parent / "iter_0000100").mkdir()
            tracker.write_text("100")

    meanwhile(monkeypatch, "write_files", gain, nothing)
    run_here(*options, **changes)
    assert not list((tmp_path / "result").rglob("notes.txt"))
    if (tracker := Path(changes["source"]) / TRACKER_NAME).exists():
        tracker.write_text("release")
    run_here(*options, **changes, action="verify")


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_source_that_changes_while_a_result_is_verified(setting, tmp_path, monkeypatch):
    options, changes = arguments(setting, tmp_path)
    run_here(*options, **changes)
    monkeypatch.setattr("distconv.errors.LINES_SHOWN", 100)
    files = needed(tmp_path) - set((tmp_path / "result").rglob("*"))
    before = hashes(tmp_path / "result")

    def change() -> None:
        for path in files:
            saved_again(path)

    meanwhile(monkeypatch, "compare_beside", nothing, change)
    message = refused(options, {**changes, "action": "verify"}, SpoiledError)
    assert {path for path in files if f"{path}: was modified at " not in message} <= {
        path for path in files if path.name == SIDE and "target_format" not in changes
    }
    assert hashes(tmp_path / "result") == before


SHARDS = [f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)]
THREE = (SHARDS[0], SHARDS[2], SHARDS[3])
FILES_OF_A_JOB = ["config.json", "model.safetensors.index.json", *SHARDS]


@pytest.mark.parametrize("name", FILES_OF_A_JOB)
def test_one_file_that_changes_is_named_alone(name, tmp_path, monkeypatch):
    options, changes = arguments(published, tmp_path)
    path = tmp_path / "hf" / name
    meanwhile(monkeypatch, "write_files", nothing, lambda: saved_again(path))
    assert [line.partition(": was modified")[0] for line in refused(options, changes, SpoiledError).splitlines()] == [
        f"rank 0 on {os.uname().nodename}: {path}"
    ]


def replace_three(directory: Path) -> None:
    """By shards of another checkpoint of the same model: the same headers and sizes, other elements."""
    other = write_source(directory / "other", {**CASE, "salt": "other"})
    for name in THREE:
        assert (other / name).stat().st_size == (directory / "hf" / name).stat().st_size
        (other / name).rename(directory / "hf" / name)


def test_three_of_five_shards_are_replaced_by_others_of_the_same_size(tmp_path, monkeypatch):
    options, changes = arguments(published, tmp_path)
    meanwhile(monkeypatch, "write_files", lambda: replace_three(tmp_path), nothing)
    message = refused(options, changes, SpoiledError)
    named = {name for name in FILES_OF_A_JOB if f"{tmp_path}/hf/{name}: " in message}
    assert named == set(THREE)
    assert message.count("another file has taken its name") == 3
    assert not (tmp_path / "result").exists()


def save_in_another_order(directory: Path) -> None:
    """In place, and with the times of before, as a program that copies them may leave them."""
    for path in sorted((directory / "hf").glob("*.safetensors")):
        status = path.stat()
        held = {name: each for name, each in CASE["source_tensors"].items() if each[2] == path.name}
        tensors = {
            name: (dtype, shape, tensor_bytes(name, dtype, shape, CASE.get("salt", "")))
            for name, (dtype, shape, _) in reversed(held.items())
        }
        write_safetensors(directory / "again", tensors)
        content = (directory / "again").read_bytes()
        assert abs(len(content) - status.st_size) < 8 * len(tensors)
        with path.open("r+b") as stream:
            stream.write(content[: status.st_size].ljust(status.st_size, b"\0"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("when", ["before", "after"])
def test_shards_are_saved_again_with_another_order_of_tensors(when, tmp_path, monkeypatch):
    options, changes = arguments(published, tmp_path)

    def change() -> None:
        save_in_another_order(tmp_path)

    meanwhile(monkeypatch, "write_files", *((change, nothing) if when == "before" else (nothing, change)))
    message = refused(options, changes, SpoiledError)
    assert message.count(": its header is another: it is being changed") == 5


def flip_a_byte_of_the_header(path: Path) -> None:
    """In place, and with the time of before."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(20 if path.suffix in (".safetensors", ".json") or path.name == ".metadata" else status.st_size - 30)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_was_interpreted_is_compared_although_size_and_time_are_as_before(setting, tmp_path, monkeypatch):
    options, changes = arguments(setting, tmp_path)
    monkeypatch.setattr("distconv.errors.LINES_SHOWN", 100)
    files = {path for path in needed(tmp_path) if path.name != SIDE}

    def change() -> None:
        for path in files:
            flip_a_byte_of_the_header(path)

    meanwhile(monkeypatch, "write_files", nothing, change)
    message = refused(options, changes, SpoiledError)
    for path in files:
        what = "content" if path.suffix == ".json" or path.name == ".metadata" else "header"
        assert f"{path}: its {what} is another: it is being changed" in message


def test_a_cache_that_is_pointed_to_another_snapshot(tmp_path, monkeypatch):
    options, changes = arguments(published, tmp_path)
    (tmp_path / "hf").rename(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    (tmp_path / "hf").symlink_to(tmp_path / "first")

    def point() -> None:
        (tmp_path / "hf").unlink()
        (tmp_path / "hf").symlink_to(tmp_path / "second")

    meanwhile(monkeypatch, "write_files", nothing, point)
    message = refused(options, changes, SpoiledError)
    assert message.count("another file has taken its name") == len(FILES_OF_A_JOB)


def test_a_source_that_is_removed(tmp_path, monkeypatch):
    options, changes = arguments(published, tmp_path)
    meanwhile(monkeypatch, "write_files", nothing, lambda: shutil.rmtree(tmp_path / "hf"))
    message = refused(options, changes, SpoiledError)
    assert message.count("cannot be read now: No such file or directory") == len(FILES_OF_A_JOB)
    assert not (tmp_path / "result").exists()


def test_side_files_that_change_before_they_are_copied(tmp_path, monkeypatch):
    options, changes = arguments(ranks, tmp_path)
    meanwhile(monkeypatch, "write_files", nothing, lambda: saved_again(tmp_path / "hf" / SIDE))
    assert f"{tmp_path}/hf/{SIDE}: was modified at " in refused(options, changes, SpoiledError)
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize("setting", [ranks, ranks_and_weights_alone])
def test_what_is_seen_before_anything_is_written_is_wrong_input(setting, tmp_path, monkeypatch):
    options, changes = arguments(setting, tmp_path)

    def change() -> None:
        for path in (tmp_path / "mm").rglob("*.pt"):
            saved_again(path)

    meanwhile(monkeypatch, "compare_replicas", change, nothing)
    assert "model_optim_rng.pt: was modified at " in refused(options, changes, InputError)
    assert not (tmp_path / "result").exists()


def test_few_descriptors_are_enough(tmp_path, monkeypatch):
    options, changes = arguments(published, tmp_path)
    run_here(*options, **changes)
    expected = hashes(tmp_path / "result")
    shutil.rmtree(tmp_path / "result")
    monkeypatch.setattr("distconv.transfer.sources._half_of_the_descriptors", lambda: 1)
    run_here(*options, **changes)
    assert hashes(tmp_path / "result") == expected
