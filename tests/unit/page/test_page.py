"""A plan as a page: whole, on its own, small; and whatever a report holds is text on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from distconv.layout.request import Layout
from distconv.page.mesh import mesh_svg
from distconv.page.page import BEGINNING, page_of
from distconv.page.words import common_ending, names_in_words, ranks_in_words
from distconv.planning.assign import assign
from distconv.planning.summary import plan_report, planned_processes
from distconv.words import binary
from tests.unit.planning.test_plan import CONFIG, facts, planned

VOID = {"meta"}
RESULT = Path("/mm/release")


class Reader(HTMLParser):
    """The elements and texts of a page, whose elements must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def report_of(processes: int = 2, **changes: Any) -> dict[str, Any]:
    config = replace(CONFIG, **changes)
    found = planned(**changes)
    sources = [{"/hf/model-00001-of-00002.safetensors": 100 + rank} for rank in range(processes)]
    report = plan_report(config, found, facts(), RESULT)
    return {
        **report,
        "processes": planned_processes(assign(found.plan.files, processes), sources, [0] * processes, 2048),
    }


CUT = {"layout": Layout(tp=2, pp=2)}


def numbered(tensor: int, pipeline: int, expert: int) -> str:
    return f"release/mp_rank_{tensor:02d}_{pipeline:03d}_{expert:03d}/model_optim_rng.pt"


def large(tensor: int, pipeline: int, expert: int) -> dict[str, Any]:
    """The report of so many ranks, a process each, which reads of many files."""
    ranks = [(t, p, e) for e in range(expert) for t in range(tensor) for p in range(pipeline)]
    report = report_of(**CUT)
    layer = {"layers": {"text": 1}, "parameters": 10**9, "bytes": 2 * 10**9, "modality_bytes": {"text": 2 * 10**9}}
    sources = [{"path": f"/hf/model-{at:05d}-of-00163.safetensors", "bytes": 10**9} for at in range(1, 164, 2)]
    return report | {
        "layout": {**report["layout"], "tp": tensor, "pp": pipeline, "ep": expert},
        "stages": [{"virtual_stage": 0, "pipeline_rank": each, **layer} for each in range(pipeline)],
        "ranks": list(map(list, ranks)),
        "files": [{"path": numbered(*rank), "bytes": 10**9} for rank in ranks],
        "processes": [
            {
                **report["processes"][0],
                "rank": at,
                "files": [numbered(*rank).removeprefix("release/")],
                "sources": sources,
            }
            for at, rank in enumerate(ranks)
        ],
    }


@pytest.mark.parametrize("changes", [{}, CUT, {"layout": Layout(tp=4, ep=4)}, {"select": ("vision",)}])
def test_a_page_is_whole_and_needs_nothing_else(changes):
    page = page_of(report_of(**changes))
    assert page.startswith(BEGINNING)
    found = Reader(page)
    kinds = {tag for tag, _ in found.seen}
    assert not kinds & {"script", "link", "img", "iframe", "object", "base"}
    attributes = {name for _, attrs in found.seen for name in attrs}
    assert not {name for name in attributes if name in ("src", "href") or name.startswith("on")}
    assert set(re.findall(r"https?://[^\"]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert "url(" not in page
    assert "@import" not in page


def test_whatever_a_report_says_is_text():
    bad = "</title><script>alert(1)</script>\"'&\x1b[2J"
    report = report_of(**CUT)

    def spoiled(value: Any) -> Any:
        if isinstance(value, str):
            return value + bad
        if isinstance(value, Mapping):
            return {key: spoiled(each) for key, each in value.items()}
        return [spoiled(each) for each in value] if isinstance(value, (list, tuple)) else value

    casts = {"cast": [{"from": "a", "to": "b", "tensors": 1, "bytes": 2}], "kept": []}
    left = [{"directory": "/hf", "name": "a", "bytes": 2, "reason": "not wanted"}]
    told = spoiled({**report, "casts": casts, "not_converted": left, "notes": ["a note"], "model": "m"})
    # Its paths must go on fitting each other.
    told |= {key: report[key] for key in ("files", "processes", "iteration", "action")}
    for each in (told, told | {"iteration": None, "files": spoiled(report["files"]), "processes": [
        {**process, "files": spoiled([f"release/{path}" for path in process["files"]])}
        for process in report["processes"]
    ]}):  # fmt: skip
        page = page_of(each)
        found = Reader(page)
        assert "script" not in {tag for tag, _ in found.seen}
        assert "\x1b" not in page
        assert "<script>" in "".join(found.texts)


def test_the_picture_has_a_box_for_each_rank_with_its_writer():
    report = report_of(processes=4, **CUT)
    names = {file["path"]: file["path"].split("/")[1] for file in report["files"]}
    writers = {f"release/{path}": [each["rank"]] for each in report["processes"] for path in each["files"]}
    picture = ET.fromstring(mesh_svg(report, names, writers))  # noqa: S314 - of our own making
    space = "{http://www.w3.org/2000/svg}"
    boxes = [[text.text for text in group.iter(f"{space}text")] for group in picture.iter(f"{space}g")]
    assert [name for name, _, _ in boxes] == ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    told = {name: writer for name, _, writer in boxes}
    assert told == {names[path]: f"written by process {rank}" for path, (rank,) in writers.items()}
    words = [text.text for text in picture.iter(f"{space}text")]
    assert {"pipeline rank 0", "pipeline rank 1", "tensor rank 0", "tensor rank 1"} <= set(words)
    held = sum(each["layers"].get("vision", 0) for each in report["stages"])
    assert f"vision: {held} layers" in words


def test_of_many_writers_of_a_box_the_number_is_said():
    texts = Reader(page_of(large(2, 2, 8))).texts
    assert texts.count("written by 8 processes") == 4
    assert "mp_rank_00_000_000 … mp_rank_00_000_007: 7.5 GiB, written by processes 0, 4, 8, 12, 16, 20, 24, 28" in texts


def test_a_file_that_several_processes_write_names_them_all():
    report = report_of(processes=4)
    path = report["processes"][0]["files"][0]
    for each in report["processes"]:
        each["files"] = [path] if each["rank"] in {1, 2, 3} else []
    assert any(text.endswith("written by processes 1–3") for text in Reader(page_of(report)).texts)
    del report["ranks"]
    assert "1–3" in Reader(page_of(report)).texts


def test_a_process_has_a_row_with_what_it_reads_and_writes():
    found = Reader(page_of(report_of(**CUT)))
    text = "|".join(found.texts)
    assert "|0|model-00001-of-00002.safetensors|100 B|mp_rank_00_000 … mp_rank_00_001 (2 files)|" in text


def test_a_conversion_says_how_long_it_took():
    report = report_of(**CUT) | {"action": "convert"}
    report["processes"] = [{**each, "seconds": {"transfer": 2.0 + each["rank"]}} for each in report["processes"]]
    texts = Reader(page_of(report)).texts
    nbytes = sum(file["bytes"] for file in report["files"])
    assert f"3.0 s, {binary(nbytes / 3)}/s over all processes" in texts
    continued = Reader(page_of(report | {"continued": {"files": 1, "bytes": nbytes - 3000}})).texts
    assert "3.0 s, 1000 B/s over all processes" in continued
    assert {"2.0", "3.0", "seconds"} <= set(texts)


@pytest.mark.parametrize("sizes", [(8, 16, 8), (8, 128, 1)])
def test_a_page_of_1024_processes_is_below_a_megabyte(sizes):
    page = page_of(large(*sizes))
    Reader(page)
    assert page.count("<tr>") >= 1024
    assert len(page.encode()) < 1_000_000


@pytest.mark.parametrize(("ranks", "words"), [([0], "0"), ([0, 1, 2, 5], "0–2, 5"), ([], "")])
def test_ranks_that_follow_each_other_are_a_range(ranks, words):
    assert ranks_in_words(ranks) == words


def test_names_that_follow_each_other_are_the_first_and_the_last():
    places = {name: place for place, name in enumerate("abcdefghij")}
    assert names_in_words(["c", "a", "b", "g"], places) == "a … c (3 files), g"
    assert names_in_words(["a", "c", "e", "g", "i"], places) == "a, c, e, and 2 more places"


@pytest.mark.parametrize(
    ("names", "ending"),
    [
        (["model-00001-of-00012.safetensors", "model-00002-of-00012.safetensors"], "-of-00012.safetensors"),
        (["a.pt", "ba.pt"], ".pt"),
        (["one"], ""),
        (["ab", "cb"], ""),
    ],
)
def test_the_ending_that_all_have_is_told_once(names, ending):
    assert common_ending(names) == ending
