"""What a result remembers, in every format: later jobs go by it, it proves the result; all else is as without it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from safetensors.torch import load_file

from distconv.errors import InputError
from distconv.version import VERSION
from tests.checkpoints import described, hashes, load_case, overrides, write_source
from tests.here import outcome_here, run_here

CASE = load_case("qwen2vl__tp2_pp2")
RECORD = "distconv.json"
TARGETS: Mapping[str, Mapping[str, Any]] = {
    "megatron": {"layout__tp": 2, "layout__pp": 2},
    "torch_dist": {"target_format": "torch_dist"},
    "dcp": {"target_format": "dcp"},
    "published dcp": {"target_format": "dcp", "naming": "hf"},
    "hf": {"target_format": "hf", "source": "mm"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The model in every format, each result with its record; tests work on copies."""
    directory = tmp_path_factory.mktemp("world")
    source = write_source(directory / "hf-source", CASE)
    (source / "tokenizer.json").write_text("{}")
    run_here(source=str(source), target=str(directory / "mm"))
    for name, options in TARGETS.items():
        run_here(**job(directory, name, directory / name, **options))
    return directory


def job(world: Path, name: str, target: Path, **changes: Any) -> dict[str, Any]:
    """The options of a conversion to a format."""
    options = {**TARGETS[name], "source": "hf-source", **TARGETS[name], **changes}
    return {**options, "source": str(world / options["source"]), "target": str(target)}


def result_in(target: Path) -> Path:
    """The directory of the result of a target."""
    return target / "release" if (target / "release").exists() else target


def record_of(target: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result_in(target) / RECORD).read_text())
    return found


def write_record(target: Path, content: object) -> None:
    path = result_in(target) / RECORD
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")


def with_checksums(target: Path) -> None:
    """Have the record name the checksums of the files that are there."""
    content = record_of(target)
    for name, each in content["files"].items():
        each["crc32"] = f"{crc32((result_in(target) / name).read_bytes()):08x}"
    write_record(target, content)


def copied(world: Path, name: str, directory: Path) -> Path:
    """A copy of a result, whose record has checksums."""
    shutil.copytree(world / name, directory / name)
    with_checksums(directory / name)
    return directory / name


def proved(target: Path, **options: Any) -> tuple[list[str], list[str]]:
    """The differences and the notes of a result alone, without its directory."""
    outcome = outcome_here(action="verify", source=None, target=str(target), **options)
    found = ([line.replace(f"{target}", "") for line in each] for each in (outcome.differences, outcome.notes))
    differences, notes = found
    return differences, notes


@pytest.mark.parametrize("name", TARGETS)
def test_every_result_has_a_record_of_all_its_files(name, world):
    found, result = record_of(world / name), result_in(world / name)
    files = {path.relative_to(result).as_posix(): path.stat().st_size for path in result.rglob("*") if path.is_file()}
    del files[RECORD]
    assert {path: each["bytes"] for path, each in found["files"].items()} == files
    assert list(found["files"]) == sorted(found["files"])
    assert (found["record"], found["distconv"], found["model"]) == (2, VERSION, "qwen2vl")
    assert found["reference"] == str(world / "hf-source")
    assert found["format"] == TARGETS[name].get("target_format", "megatron")
    source = {"path": str(world / "mm"), "format": "megatron", "iteration": "release"}
    assert found["source"] == (source if name == "hf" else {"path": str(world / "hf-source"), "format": "hf"})


def test_a_record_says_layout_dialect_and_options_that_shape_a_result(world, tmp_path):
    options = {"layout__tp": 2, "layout__stages__text": [2, 4], "dialect": "mcore_te", "vocab_multiple": 2}
    run_here(**job(world, "megatron", tmp_path / "mm", **options), io__threads=1, overwrite=True, report="x.json")
    (Path.cwd() / "x.json").unlink()
    found = record_of(tmp_path / "mm")
    assert found["dialect"] == "mcore_te"
    assert {key: found["layout"][key] for key in ("tp", "pp", "vpp", "ep")} == {"tp": 2, "pp": 2, "vpp": 1, "ep": 1}
    assert found["layout"]["stages"]["text"] == [[2, 4]]
    assert found["options"] == {
        "layout": {"tp": 2, "stages": {"text": [[2, 4]]}, "pp": 2}, "vocab_multiple": 2, "dialect": "mcore_te"
    }  # fmt: skip
    assert record_of(world / "dcp")["layout"] is None


@pytest.mark.parametrize("name", TARGETS)
def test_without_a_record_all_else_is_the_same(name, world, tmp_path):
    bare = job(world, name, tmp_path / "bare", provenance=False)
    run_here(**bare)
    with_record = hashes(world / name)
    del with_record[str((result_in(world / name) / RECORD).relative_to(world / name))]
    assert hashes(tmp_path / "bare") == with_record
    # Either is what its own options make.
    run_here(**bare, action="verify")
    run_here(**job(world, name, world / name), action="verify")
    outcome = outcome_here(**{**bare, "provenance": True}, action="verify")
    assert [line.partition(": ")[2] for line in outcome.differences] == [
        "is missing; if it was left out on purpose, give provenance=false"
    ]
    outcome = outcome_here(**job(world, name, world / name, provenance=False), action="verify")
    assert (outcome.differences, [RECORD in note for note in outcome.notes]) == ([], [True])


def test_a_record_depends_on_nothing_but_source_and_options(world, tmp_path, monkeypatch):
    """Not on threads, buffers, or how the source is named."""
    monkeypatch.chdir(world)
    other = {"source": "hf-source", "target": str(tmp_path / "mm")}
    run_here(**{**job(world, "megatron", tmp_path), **other}, io__threads=4, io__buffer_mib=1, io__fsync=False)
    assert hashes(tmp_path / "mm") == hashes(world / "megatron")


def test_records_of_source_and_reference_are_never_copied(world, tmp_path):
    published = copied(world, "hf", tmp_path)
    (published / "more").mkdir()
    (published / "more" / RECORD).write_text("{}")
    run_here(source=str(world / "mm"), reference=str(published), target=str(tmp_path / "back"), target_format="hf")
    assert record_of(tmp_path / "back")["reference"] == str(published)
    assert not (tmp_path / "back" / "more").exists()
    run_here(source=str(published), target=str(tmp_path / "wide"), target_format="hf", dtype="float32")
    assert record_of(tmp_path / "wide")["source"] == {"path": str(published), "format": "hf"}


def test_beside_a_published_model_a_record_changes_nothing(world, tmp_path):
    """Not even a damaged one; a job reads what is published from what is published."""
    published = copied(world, "hf", tmp_path)
    write_record(published, "{")
    run_here(source=str(published), target=str(tmp_path / "mm"), layout__tp=2)
    run_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf")
    expected, found = hashes(world / "hf"), hashes(tmp_path / "back")
    assert expected.pop(RECORD) != found.pop(RECORD)
    assert found == expected


def test_adapters_come_back_without_being_asked_for_their_layout(tmp_path):
    case = load_case("qwen2_5vl__lora_pp1")
    peft = write_source(tmp_path / "peft", case)
    options = [each for each in overrides(case) if "layout" not in each]
    run_here(*options, source=str(peft), target=str(tmp_path / "mm"), layout__tp=2, layout__pp=2)
    back = {"source": str(tmp_path / "mm"), "target": str(tmp_path / "back"), "target_format": "hf"}
    outcome = outcome_here(**back)
    assert (outcome.report["source_layout"]["tp"], outcome.report["source_layout"]["pp"]) == (2, 2)
    assert outcome.report["source_record"] == str(tmp_path / "mm" / "release" / RECORD)
    made, given = (described(load_file(each / "adapter_model.safetensors")) for each in (tmp_path / "back", peft))
    assert made == given

    content = record_of(tmp_path / "mm")
    write_record(tmp_path / "mm", {key: content[key] for key in ("model", "reference", "adapters") if key in content})
    with pytest.raises(InputError, match=r"give source_layout\.tp"):
        run_here(**{**back, "target": str(tmp_path / "asked")})


def test_a_layout_that_the_files_contradict_is_an_error_and_the_user_decides(world, tmp_path, distconv):
    target = copied(world, "megatron", tmp_path)
    content = record_of(target)
    content["layout"]["tp"] = 4
    write_record(target, content)
    arguments = (f"source={target}", f"target={tmp_path / 'back'}", "target_format=hf")
    outcome = distconv(*arguments)
    assert outcome.status == 2
    for words in (f"{target}/release/{RECORD}: ", "source_layout.tp=4", "cut into 2 pieces", "give source_layout.tp"):
        assert words in outcome.err
    assert not (tmp_path / "back").exists()
    assert distconv(*arguments, "source_layout.tp=2").status == 0


def test_a_dialect_that_the_files_contradict_is_an_error(world, tmp_path):
    target = copied(world, "megatron", tmp_path)
    write_record(target, {**record_of(target), "dialect": "bridge"})
    back = {"source": str(target), "target": str(tmp_path / "back"), "target_format": "hf"}
    with pytest.raises(InputError) as caught:
        run_here(**back)
    assert any(f"{target}/release/{RECORD}: what it says of the source" in each for each in caught.value.problems)
    run_here(**back, source_dialect="mindspeed_mm")


def test_records_of_other_versions(world, tmp_path):
    target = copied(world, "megatron", tmp_path)
    back = {"source": str(target), "target_format": "hf"}
    first = json.dumps({"model": "qwen2vl", "reference": str(world / "hf-source")}, indent=2) + "\n"
    write_record(target, first)
    assert outcome_here(**back, target=str(tmp_path / "back")).report["source_record"] is None
    assert {**hashes(tmp_path / "back"), RECORD: ""} == {**hashes(world / "hf"), RECORD: ""}
    outcome = outcome_here(**job(world, "megatron", target), action="verify")
    assert (outcome.differences, [note.partition(": ")[2] for note in outcome.notes]) == (
        [], ["was written by an earlier version, and names no files"]
    )  # fmt: skip
    write_record(target, {"record": 9, "model": 1})
    with pytest.raises(InputError, match=r"reference is missing: .*ignored: a record of version 9"):
        run_here(**back, target=str(tmp_path / "newer"))
    outcome = outcome_here(**back, target=str(tmp_path / "newer"), reference=str(world / "hf-source"), action="plan")
    assert [note for note in outcome.report["notes"] if "ignored: a record of version 9" in note]
    with pytest.raises(InputError, match=r"ignored: a record of version 9.*give source=DIR"):
        proved(target)


@pytest.mark.parametrize("name", TARGETS)
def test_a_result_is_proved_by_its_record(name, world, tmp_path, distconv):
    target = copied(world, name, tmp_path)
    assert proved(target) == ([], [])
    assert proved(result_in(target)) == ([], [])
    outcome = distconv("action=verify", f"target={target}", f"report={tmp_path / 'report.json'}")
    assert outcome.status == 0, outcome.err
    assert "what the record says" in outcome.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["source"] is None
    assert sum(each["bytes"] for each in report["files"]) == sum(each["bytes_read"] for each in report["processes"])


@pytest.mark.parametrize("name", TARGETS)
def test_one_other_byte_is_found(name, world, tmp_path, distconv):
    target = copied(world, name, tmp_path)
    name, *_ = sorted(record_of(target)["files"], key=lambda each: -record_of(target)["files"][each]["bytes"])
    path = result_in(target) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    outcome = distconv("action=verify", f"target={target}")
    assert (outcome.status, f"{path}: has the checksum " in outcome.err) == (1, True)


def lost(target: Path) -> str:
    (target / "release" / "mp_rank_01_000" / "model_optim_rng.pt").unlink()
    return "/release/mp_rank_01_000/model_optim_rng.pt: cannot be compared with its record: No such file or directory"


def cut(target: Path) -> str:
    path = target / "release" / "mp_rank_01_000" / "model_optim_rng.pt"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    return f"/release/mp_rank_01_000/model_optim_rng.pt: is {size - 1:,} bytes long, its record says {size:,}"


def one_more_rank(target: Path) -> str:
    shutil.copytree(target / "release" / "mp_rank_01_000", target / "release" / "mp_rank_02_000")
    return (
        "/release/mp_rank_02_000: is not expected, and readers may take it for a part of the result; move it elsewhere"
    )


def no_tracker(target: Path) -> str:
    (target / "latest_checkpointed_iteration.txt").unlink()
    return "/latest_checkpointed_iteration.txt: expected 'release', cannot be read: No such file or directory"


@pytest.mark.parametrize("damage", [lost, cut, one_more_rank, no_tracker])
def test_what_is_missing_or_too_much_is_found(damage: Callable[[Path], str], world, tmp_path):
    target = copied(world, "megatron", tmp_path)
    expected = damage(target)
    assert proved(target) == ([expected], [])


def test_what_no_reader_takes_is_a_note(world, tmp_path):
    target = copied(world, "hf", tmp_path)
    (target / "README.md").touch()
    assert proved(target) == ([], [": holds more than belongs to the result: README.md"])


def test_without_checksums_sizes_are_compared_and_that_is_said(world, tmp_path):
    target = copied(world, "megatron", tmp_path)
    content = record_of(target)
    for each in content["files"].values():
        del each["crc32"]
    write_record(target, content)
    assert proved(target) == (
        [], [f"/release/{RECORD}: only the sizes were compared: it has no checksums of them"]
    )  # fmt: skip
    name = next(iter(content["files"]))
    content["files"][name]["crc32"] = f"{crc32((result_in(target) / name).read_bytes()):08x}"
    write_record(target, content)
    assert "of 3 files only the sizes were compared" in proved(target)[1][0]


def test_an_iteration_is_chosen(world, tmp_path):
    target = copied(world, "megatron", tmp_path)
    shutil.copytree(target / "release", target / "iter_0000007")
    (target / "release" / "mp_rank_00_000" / "model_optim_rng.pt").write_bytes(b"")
    differences, notes = proved(target, iteration=7)
    assert (differences, notes) == ([], [": holds more than belongs to the result: release"])
    assert len(proved(target)[0]) == 1
    with pytest.raises(InputError, match="iteration=8: names iter_0000008"):
        proved(target, iteration=8)
    with pytest.raises(InputError, match="is a result itself, not one of several"):
        proved(target / "release", iteration=7)


def test_a_record_leads_nowhere_else(world, tmp_path):
    """By no name and by no link; nothing that lies outside is read."""
    target = copied(world, "megatron", tmp_path)
    content = record_of(target)
    for name in ("../../secret", str(tmp_path / "secret")):
        write_record(target, {**content, "files": {**content["files"], name: {"bytes": 1}}})
        with pytest.raises(InputError, match="is not the path of a file inside of the result"):
            proved(target)
    (tmp_path / "secret").write_text("x")
    (target / "release" / "link").symlink_to(tmp_path / "secret")
    write_record(target, {**content, "files": {**content["files"], "link": {"bytes": 1}}})
    with pytest.raises(InputError, match="link: a symbolic link leads out of "):
        proved(target)
    outcome = outcome_here(**job(world, "megatron", target), action="verify")
    assert any("link: a symbolic link leads out of " in each for each in outcome.differences)


def test_what_cannot_be_proved_is_refused_in_a_sentence(world, tmp_path):
    target = copied(world, "hf", tmp_path)
    write_record(target, {"model": "qwen2vl"})
    with pytest.raises(InputError, match=f"{RECORD}: names no files; give source=DIR"):
        proved(target)
    write_record(target, {**record_of(copied(world, "dcp", tmp_path)), "format": "zip"})
    with pytest.raises(InputError, match="format: expected one of hf, megatron"):
        proved(target)
    write_record(target, "{")
    with pytest.raises(InputError, match="not valid JSON"):
        proved(target)
    (target / RECORD).unlink()
    with pytest.raises(InputError, match=rf"has no {RECORD} to be compared with; give source=DIR"):
        proved(target)
    with pytest.raises(InputError, match=r"target=.*nowhere: no such directory"):
        proved(tmp_path / "nowhere")


def test_options_of_a_source_need_one(world, distconv):
    found = distconv("action=verify", f"target={world / 'megatron'}", "layout.tp=2", "provenance=false")
    assert found.status == 2
    for key in ("layout", "provenance"):
        assert f"{key}: goes with source=DIR; a result alone is compared with its record" in found.err
    found = distconv("action=verify", f"target={world / 'megatron'}", "+model=qwen2vl")
    assert (found.status, "+model=qwen2vl: goes with source=DIR" in found.err) == (2, True)


def test_a_wrong_record_is_a_difference_to_the_source(world, tmp_path):
    target = copied(world, "megatron", tmp_path)
    again = {**job(world, "megatron", target), "action": "verify"}
    assert outcome_here(**again).differences == []
    content = record_of(target)
    name = next(iter(content["files"]))
    content["files"][name]["crc32"] = "00000000"
    write_record(target, content)
    (difference,) = outcome_here(**again).differences
    assert difference.startswith(f"{target}/release/{name}: has the checksum ")
    assert difference.endswith("its record says 00000000")


def test_a_directory_is_described_with_what_its_record_says(world, tmp_path, distconv):
    target = copied(world, "megatron", tmp_path)
    found = distconv("action=inspect", f"source={target}")
    says = f"record made by distconv {VERSION} from {world / 'hf-source'}; format megatron; model qwen2vl;"
    assert says in " ".join(found.out.split())
    report = outcome_here(action="inspect", source=str(target), target=None).report
    assert (report["record"]["layout"]["tp"], report["problems"]) == (2, [])
    chunks = copied(world, "dcp", tmp_path) / "release" / "__0_0.distcp"
    size = chunks.stat().st_size
    os.truncate(chunks, size + 1)
    report = outcome_here(action="inspect", source=str(chunks.parent), target=None).report
    assert report["problems"] == [f"{chunks}: is {size + 1:,} bytes long, its record says {size:,}"]
    published = copied(world, "hf", tmp_path)
    report = outcome_here(action="inspect", source=str(published), target=None).report
    assert (report["record"]["format"], report["record"]["files"], report["problems"]) == (
        "hf", len(record_of(published)["files"]), []
    )  # fmt: skip
    write_record(published, "{")
    report = outcome_here(action="inspect", source=str(published), target=None).report
    assert [each.partition(": ")[0] for each in report["problems"]] == [f"{published}/{RECORD}"]
