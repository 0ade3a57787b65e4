"""The jobs of several sources: their paths by name, and that none of them takes what is another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from distconv.campaign.names import checkpoints
from distconv.errors import InputError
from tests.configuration import job


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def options(**changes):
    return job(**{"source": None, "sources": "runs/*", **changes})


def targets(target, *sources):
    return [each.target for each in checkpoints(options(target=target), sources)]


def test_placeholders_stand_for_names_of_directories():
    assert targets("hf/{parent}/x-{name}", "runs/a/iter_1", "/b/c/") == ["hf/a/x-iter_1", "hf/b/x-c"]
    assert targets("/x/{name}", ".", "..") == [f"/x/{Path.cwd().name}", f"/x/{Path.cwd().parent.name}"]


def test_names_with_braces_are_names():
    assert targets("mm/{parent}/{name}", "{name}/{parent}") == ["mm/{name}/{parent}"]


def test_a_job_has_the_options_of_all_and_its_own_paths():
    given = options(
        target="mm/{name}",
        reference="base/{name}",
        report="r/{name}.json",
        plan_html="{name}.html",
        layout__tp=2,
        watch=True,
    )
    (found,) = checkpoints(given, ["runs/a"])
    made = found.options(given)
    assert (made.source, made.target, made.reference) == (Path("runs/a"), Path("mm/a"), Path("base/a"))
    assert (made.sources, made.watch, made.report) == (None, False, Path("r/a.json"))
    assert made.plan_html == Path("a.html")
    assert made.layout == given.layout


def test_one_report_for_all_is_that_of_no_job():
    assert checkpoints(options(target="mm/{name}", report="r.json"), ["a"])[0].report is None


@pytest.mark.parametrize(
    ("target", "sources", "says"),
    [
        ("mm", ["a", "b"], "target=mm: would be that of a and of b; tell them apart by {name} or {parent}"),
        ("mm/{name}", ["a/x", "b/x"], "target=mm/x: would be that of a/x and of b/x"),
        ("mm/{name}", ["a/x", "a/../a/x"], "target=mm/x: would be that of a/x and of a/../a/x"),
        ("{name}-mm", ["a", "a-mm"], "target=a-mm: is inside of the source a-mm"),
        ("b/{name}", ["a", "b"], "target=b/a: is inside of the source b"),
        ("{parent}", ["r/a/x", "r/q"], "sources: r/a/x is inside of r, the target of r/q"),
        ("mm/{nmae}", ["a"], "target=mm/{nmae}: {nmae} stands for nothing; with sources there are {name} and {parent}"),
    ],
)
def test_jobs_that_do_not_go_together_are_refused(target, sources, says):
    with pytest.raises(InputError) as caught:
        targets(target, *sources)
    assert any(says in each for each in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("report", [None, "{name}.json"])
def test_the_same_one_twice_is_said_once(report):
    with pytest.raises(InputError) as caught:
        checkpoints(options(target="mm/{name}", report=report), ["a"] * 2)
    assert caught.value.problems == ["sources: a is there twice; name it once"]


def test_each_job_has_a_page_of_its_own():
    with pytest.raises(
        InputError, match=r"plan_html=p\.html: would be that of a and of b; tell them apart by \{name\}"
    ):
        checkpoints(options(target="mm/{name}", plan_html="p.html"), ["a", "b"])


def test_the_page_of_a_job_is_no_report_of_another(tmp_path):
    (tmp_path / "b.html").symlink_to("a.json")
    with pytest.raises(InputError, match=r"plan_html=b\.html: would be that of a and of b"):
        checkpoints(options(target="mm/{name}", report="{name}.json", plan_html="{name}.html"), ["a", "b"])


def test_links_to_one_place_are_one_target(tmp_path):
    (tmp_path / "mm").mkdir()
    (tmp_path / "mm/b").symlink_to("a")
    with pytest.raises(InputError, match="target=mm/b: would be that of a and of b"):
        targets("mm/{name}", "a", "b")


def test_those_whose_jobs_have_run_count():
    given = options(target="mm/{name}")
    before = checkpoints(given, ["a/x"])
    with pytest.raises(InputError, match="target=mm/x: would be that of a/x and of b/x"):
        checkpoints(given, ["b/x"], before)
