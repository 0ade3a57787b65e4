"""Several checkpoints in one job: each is done, skipped or failed for a reason, and none is passed over in silence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from distconv import InputError, UnfinishedError, convert, plan, verify
from tests.checkpoints import describe_result, hashes, load_case, overrides, write_source

CASE = load_case("qwen2vl__tp2_pp1")
PATTERN = ("sources=runs/*/hf_*", "target=mm/{parent}-{name}", *overrides(CASE))


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """Three checkpoints in two runs, and a file that only looks like one."""
    monkeypatch.chdir(tmp_path)
    first = write_source(Path("runs/a/hf_1"), CASE)
    for other in ("runs/a/hf_2", "runs/b/hf_1"):
        shutil.copytree(first, other)
    Path("runs/a/hf_list.txt").write_text("")


def rows(report):
    return [(each["source"], each["target"], each["outcome"]) for each in report["checkpoints"]]


def test_all_that_match_are_converted_each_to_a_target_of_its_own(distconv):
    outcome = distconv(*PATTERN, "report=all.json")
    assert outcome.status == 0, outcome.err
    report = json.loads(Path("all.json").read_text())
    assert rows(report) == [
        ("runs/a/hf_1", "mm/a-hf_1", "done"),
        ("runs/a/hf_2", "mm/a-hf_2", "done"),
        ("runs/b/hf_1", "mm/b-hf_1", "done"),
    ]
    assert (report["action"], report["done"], report["skipped"], report["failed"]) == ("convert", 3, 0, 0)
    for each in report["checkpoints"]:
        assert describe_result(Path(each["target"])) == CASE["files"]
        assert each["report"]["source"] == each["source"]
    assert "3 done, 0 skipped, 0 failed" in outcome.out


def test_what_is_done_is_skipped_and_what_fails_does_not_keep_the_rest(distconv):
    assert distconv(*PATTERN).status == 0
    before = hashes(Path("mm/a-hf_1"))
    shutil.rmtree("mm/a-hf_2")
    shutil.rmtree("mm/b-hf_1")
    Path("runs/a/hf_2/config.json").unlink()
    outcome = distconv(*PATTERN, "report=all.json")
    report = json.loads(Path("all.json").read_text())
    assert [each["outcome"] for each in report["checkpoints"]] == ["skipped", "failed", "done"]
    assert "mm/a-hf_1/release/distconv.json" in report["checkpoints"][0]["why"]
    assert "runs/a/hf_2/config.json" in report["checkpoints"][1]["why"]
    assert outcome.status == 1
    assert "1 of 3 checkpoints failed: runs/a/hf_2" in outcome.err
    assert "1 done, 1 skipped, 1 failed" in outcome.out
    assert hashes(Path("mm/a-hf_1")) == before
    assert not Path("mm/a-hf_2").exists()


def test_a_link_that_leads_nowhere_fails_by_name(distconv):
    Path("runs/a/hf_3").symlink_to("removed")
    outcome = distconv(*PATTERN)
    assert outcome.status == 1
    assert "source=runs/a/hf_3: no such directory; it is a link to removed" in outcome.err
    assert "3 done, 0 skipped, 1 failed; the same command tries again what failed" in outcome.out


def test_nothing_is_done_twice(distconv):
    assert distconv(*PATTERN).status == 0
    outcome = distconv(*PATTERN, "overwrite=true")
    assert outcome.status == 0
    assert "0 done, 3 skipped, 0 failed" in outcome.out


def test_all_refused(distconv):
    for each in Path("runs").glob("*/hf_*/config.json"):
        each.unlink()
    outcome = distconv(*PATTERN)
    assert outcome.status == 2
    assert "3 checkpoints failed: runs/a/hf_1, runs/a/hf_2, runs/b/hf_1" in outcome.err
    assert not Path("mm").exists()


def shortened():
    path = next(Path("mm/a-hf_1/release").glob("mp_rank_*/*.pt"))
    os.truncate(path, path.stat().st_size - 1)


def touched():
    os.utime(next(Path("runs/a/hf_1").glob("*.safetensors")))


def recorded(change):
    """Change the record of a result that is right."""

    def changed():
        path = Path("mm/a-hf_1/release/distconv.json")
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return changed


def without_a_file(record):
    record["files"].pop(next(each for each in record["files"] if each.endswith(".pt")))


def linked():
    """A file of the result is elsewhere, where others may change it."""
    path = next(Path("mm/a-hf_1/release").glob("mp_rank_*/*.pt"))
    shutil.move(path, "elsewhere.pt")
    path.symlink_to(Path("elsewhere.pt").absolute())


NOT_DONE = {
    "a record without a file": (recorded(without_a_file), "does not name mp_rank_0"),
    "a file elsewhere": (linked, "a symbolic link leads out of mm/a-hf_1/release"),
    "a record of a later version": (recorded(lambda record: record.update(record=99)), "a record of version 99"),
    "another source": (lambda: shutil.move("mm/b-hf_1", "mm/a-hf_1"), "runs/b/hf_1"),
    "a shorter file": (shortened, "bytes long, its record says"),
    "a younger source": (touched, "is older than files of the source"),
    "a missing file": (lambda: shutil.rmtree("mm/a-hf_1/release/mp_rank_01"), "is in the record"),
    "no record": (lambda: Path("mm/a-hf_1/release/distconv.json").unlink(), "distconv.json: is missing"),
    "another tracker": (
        lambda: Path("mm/a-hf_1/latest_checkpointed_iteration.txt").write_text("7"),
        "latest_checkpointed_iteration.txt: expected",
    ),
}


@pytest.mark.parametrize("what", NOT_DONE)
def test_what_is_there_and_something_else_is_refused_and_stays(what, distconv):
    change, says = NOT_DONE[what]
    assert distconv(*PATTERN).status == 0
    if what == "another source":
        shutil.rmtree("mm/a-hf_1")
    change()
    before = hashes(Path("mm/a-hf_1"))
    outcome = distconv(*PATTERN, "report=all.json")
    found = json.loads(Path("all.json").read_text())["checkpoints"]
    assert found[0]["outcome"] == "failed"
    assert "already there" in found[0]["why"]
    assert says in outcome.out
    assert hashes(Path("mm/a-hf_1")) == before
    again = distconv(*PATTERN, "overwrite=true")
    assert again.status == 0, again.err
    assert describe_result(Path("mm/a-hf_1")) == CASE["files"]


def test_what_another_release_has_done_is_done(distconv):
    assert "is not what this job would write" not in distconv(*PATTERN).out
    recorded(lambda record: record.update(distconv="0.0.1"))()
    assert "0 done, 3 skipped" in distconv(*PATTERN).out


def test_without_a_record_nothing_is_known(distconv):
    assert distconv(*PATTERN).status == 0
    outcome = distconv(*PATTERN, "provenance=false")
    assert outcome.status == 2
    assert "provenance=false: no record says what a result is" in outcome.out


def test_a_target_in_which_a_commit_is_unfinished_is_not_done(distconv):
    assert distconv(*PATTERN).status == 0
    work = Path("mm/a-hf_1/.distconv-0123abcd")
    work.mkdir()
    (work / "commit.json").write_text("")
    outcome = distconv(*PATTERN)
    assert "0 done, 2 skipped, 1 failed" in outcome.out
    assert "a job was killed while it put release in place" in outcome.out


def test_a_younger_side_file_is_not_done(distconv):
    for each in Path("runs").glob("*/hf_?"):
        (each / "tokenizer.json").write_text("{}")
    copied = ("sources=runs/*/hf_*", "target=hf/{parent}-{name}", "target_format=hf", "dtype=float32")
    assert distconv(*copied).status == 0
    os.utime("runs/a/hf_1/tokenizer.json")
    outcome = distconv(*copied)
    assert "0 done, 2 skipped, 1 failed" in outcome.out
    assert "is older than files of the source: runs/a/hf_1/tokenizer.json" in outcome.out


def test_other_options_are_not_done(distconv):
    assert distconv(*PATTERN).status == 0
    outcome = distconv(*PATTERN, "dtype=float32")
    assert outcome.status == 2
    assert "says options" in outcome.out


REFUSED = {
    "nothing matches": (["sources=runs/*/no_*", "target=mm/{name}"], "matches no directory; nothing to do; runs holds"),
    "only files match": (["sources=runs/*/*.txt", "target=mm/{name}"], "matches no directory"),
    "an empty list": (["sources=@runs/a/hf_list.txt", "target=mm/{name}"], "names no directory"),
    "no list": (["sources=@none.txt", "target=mm/{name}"], "sources=@none.txt: no such file"),
    "one target for two": (["sources=runs/*/hf_*", "target=mm/{name}"], "that of runs/a/hf_1 and of runs/b/hf_1"),
    "one report for two": (
        ["sources=runs/*/hf_*", "target=mm/{parent}-{name}", "report={name}.json"],
        "report=hf_1.json: would be that of runs/a/hf_1 and of runs/b/hf_1",
    ),
    "no placeholder": (["sources=runs/a/hf_*", "target=mm"], "would be that of"),
    "a wrong placeholder": (["sources=runs/a/hf_*", "target=mm/{nmae}"], "{nmae} stands for nothing"),
    "a target that is a source": (["sources=runs/a/hf_*", "target=runs/a/hf_1/{name}"], "is inside of the source"),
    "a report in a source": (
        ["sources=runs/a/hf_*", "target=mm/{name}", "report=runs/a/hf_2/all.json"], "is inside source=runs/a/hf_2"
    ),
    "source and sources": (["sources=runs/a/hf_*", "source=runs/a/hf_1", "target=mm/{name}"], "give one of the two"),
    "another action": (["sources=runs/a/hf_*", "action=inspect"], "sources: goes with action=convert, plan, verify"),
    "a watch of one": (["source=runs/a/hf_1", "target=mm", "watch=true"], "watch: goes with sources"),
    "an empty sweep": (["--multirun", "source=glob(nothing*)", "target=mm"], "nothing to do"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_at_the_start(what, distconv):
    options, says = REFUSED[what]
    before = sorted(Path().rglob("*"))
    outcome = distconv(*options)
    assert outcome.status == 2
    assert says in outcome.err
    assert sorted(Path().rglob("*")) == before


def test_a_list_of_paths_reports_and_references_by_name(distconv):
    Path("list.txt").write_text("runs/b/hf_1\n\nruns/a/hf_2/\n")
    Path("r").mkdir()
    outcome = distconv("sources=@list.txt", "target=mm/{name}", "report=r/{parent}.json", *overrides(CASE))
    assert outcome.status == 0, outcome.err
    assert json.loads(Path("r/a.json").read_text())["source"] == "runs/a/hf_2"
    assert json.loads(Path("r/b.json").read_text())["source"] == "runs/b/hf_1"
    back = ("sources=mm/*", "target=back/{name}", "target_format=hf", "reference=runs/a/{name}")
    shutil.rmtree("runs/b")
    outcome = distconv(*back)
    assert outcome.status == 0, outcome.err
    assert hashes(Path("back/hf_2")).keys() >= hashes(Path("runs/a/hf_2")).keys()


def test_a_pattern_is_one_only_for_sources(distconv):
    outcome = distconv("source=runs/a/hf_*", "target=mm/{name}")
    assert outcome.status == 2
    assert "source=runs/a/hf_*: no such directory" in outcome.err


def test_plan_and_verify(distconv):
    outcome = distconv(*PATTERN, "action=plan")
    assert outcome.status == 0, outcome.err
    assert not Path("mm").exists()
    assert distconv(*PATTERN).status == 0
    assert "3 skipped" in distconv(*PATTERN, "action=plan").out
    assert distconv(*PATTERN, "action=verify").status == 0
    path = next(Path("mm/a-hf_2/release").glob("mp_rank_*/*.pt"))
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)
    outcome = distconv(*PATTERN, "action=verify")
    assert outcome.status == 1
    assert "runs/a/hf_2: " in outcome.err
    assert "2 done, 0 skipped, 1 failed" in outcome.out


def test_from_python():
    given = {"sources": "runs/*/hf_*", "target": "mm/{parent}-{name}", "layout": {"tp": 2}}
    assert [each["outcome"] for each in plan(**given)["checkpoints"]] == ["done"] * 3
    Path("runs/a/hf_1/config.json").rename("config.json")
    with pytest.raises(UnfinishedError, match=r"1 of 3 checkpoints failed: runs/a/hf_1") as caught:
        convert(**given)
    assert [each["outcome"] for each in caught.value.report["checkpoints"]] == ["failed", "done", "done"]
    Path("config.json").rename("runs/a/hf_1/config.json")
    assert [each["outcome"] for each in convert(**given)["checkpoints"]] == ["done", "skipped", "skipped"]
    assert verify(**given) == []
    paths = [Path("runs/a/hf_1"), Path("runs/b/hf_1")]
    assert rows(convert(sources=paths, target="by/{parent}", layout={"tp": 2})) == [
        ("runs/a/hf_1", "by/a", "done"),
        ("runs/b/hf_1", "by/b", "done"),
    ]
    with pytest.raises(InputError, match="nothing to do"):
        convert(sources=[], target="by/{name}")
