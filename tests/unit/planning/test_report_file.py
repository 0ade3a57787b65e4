"""A report gets a file of its own: whatever else is there is not overwritten, nor mixed with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.page.page import BEGINNING
from distconv.planning.report_file import PageFile, ReportFile, ReportFiles

REPORT = {"action": "plan", "files": [1]}


def test_a_report_is_written_and_refused_before_anything_is_done(tmp_path):
    path = tmp_path / "report.json"
    ReportFile(path).check()
    assert not path.exists()
    ReportFile(path).write(REPORT)
    ReportFile(path).check()
    assert json.loads(path.read_text()) == REPORT
    for wrong in (tmp_path, tmp_path / "none" / "report.json"):
        with pytest.raises(InputError, match=f"report={wrong}: cannot be written"):
            ReportFile(wrong).check()
        with pytest.raises(InputError, match=f"report={wrong}: cannot be written"):
            ReportFile(wrong).write({})


@pytest.mark.parametrize(
    "content", ['{"model_type": "qwen2_vl"}', "thesis", '[{"action": "plan"}]', '{"action": 1}', "\0" * 100]
)
def test_another_file_is_not_overwritten(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    (tmp_path / "link").symlink_to(path)
    os.link(path, tmp_path / "same")
    for name in ("config.json", "link", "same"):
        with pytest.raises(InputError, match=f"report={tmp_path}/{name}: is there already, and no report"):
            ReportFile(tmp_path / name).check()
    assert path.read_text() == content


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    path = tmp_path / "plan.html"
    path.write_text(f"{BEGINNING}<html>")
    PageFile(path).check()
    for content in ("<!doctype html>\n<html>", '{"action": "plan"}'):
        path.write_text(content)
        with pytest.raises(InputError, match=f"plan_html={path}: is there already, and no page of an earlier job"):
            PageFile(path).check()
    path.write_text(f"{BEGINNING}<html>")
    with pytest.raises(InputError, match=f"report={path}: is there already, and no report"):
        ReportFile(path).check()


@pytest.mark.parametrize("page", ["r", "./r", "here/r", "none/../r"])
def test_a_report_and_a_page_are_two_files(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "here").symlink_to(".")
    ReportFiles(Path("r"), Path("r.html")).check()
    with pytest.raises(InputError, match=f"plan_html={Path(page)}: is the file of report=r, too; give each its own"):
        ReportFiles(Path("r"), Path(page)).check()


def test_a_file_without_content_and_a_device_hold_nothing_to_lose(tmp_path):
    (tmp_path / "empty").touch()
    ReportFile(tmp_path / "empty").check()
    ReportFile(Path(os.devnull)).check()


@pytest.fixture
def places(tmp_path):
    for name in ("hf", "llm", "base", "mm/release", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("hf")
    (tmp_path / "r.json").symlink_to("hf/r.json")
    (tmp_path / "t.json").symlink_to("mm/latest_checkpointed_iteration.txt")
    return tmp_path


SOURCES = {"source": "hf", "text_source": "llm", "reference": "base"}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("hf/r.json", "is inside source={tmp}/hf; choose a place outside of it"),
        ("link/r.json", "is inside source={tmp}/hf"),
        ("r.json", "is inside source={tmp}/hf"),
        ("llm/r.json", "is inside text_source={tmp}/llm"),
        ("base/r.json", "is inside reference={tmp}/base"),
        ("mm/release/r.json", "is inside target={tmp}/mm/release"),
        ("mm/latest_checkpointed_iteration.txt", "has the name of the file that points to the iteration"),
        ("t.json", "has the name of the file that points to the iteration"),
        ("mm/r.json", None),
        ("elsewhere/r.json", None),
        ("x.json", None),
    ],
)
def test_a_report_becomes_no_part_of_what_is_read_or_written(places, path, says):
    sources = {key: places / name for key, name in SOURCES.items()}
    directories = {**sources, "target": places / "mm" / "release"}
    tracker = places / "mm" / "latest_checkpointed_iteration.txt"
    if says is None:
        ReportFile(places / path).check_place(directories, tracker)
        return
    with pytest.raises(InputError) as caught:
        ReportFile(places / path).check_place(directories, tracker)
    assert str(caught.value).startswith(f"report={places / path}: {says.format(tmp=places)}")
