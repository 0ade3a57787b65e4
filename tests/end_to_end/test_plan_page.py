"""The page of a plan from the command line, of a conversion, and of several sources."""

from __future__ import annotations

import pytest

from distconv.page.page import BEGINNING
from tests.checkpoints import load_case, overrides, write_source

CASE = load_case("qwen2vl__tp2_pp2")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "hf", CASE)
    return "hf"


def test_a_plan_and_a_conversion_write_the_page(source, tmp_path, distconv):
    page = tmp_path / "plan.html"
    outcome = distconv(
        "action=plan", f"source={source}", "target=mm", *overrides(CASE), "processes=3", f"plan_html={page}"
    )
    assert outcome.status == 0, outcome.err
    text = page.read_text()
    assert text.startswith(BEGINNING)
    assert "written by process 2" in text
    assert "a conversion would do" in text
    outcome = distconv(f"source={source}", "target=mm", *overrides(CASE), f"plan_html={page}")
    assert outcome.status == 0, outcome.err
    text = page.read_text()
    assert "A conversion that is done" in text
    assert text.count("written by process 0") >= 4
    assert "model-00001" in text


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("plan_html=hf/plan.html", "plan_html=hf/plan.html: is inside source=hf"),
        ("plan_html=mm/release/plan.html", "plan_html=mm/release/plan.html: cannot be written there"),
        ("plan_html=hf/config.json", "plan_html=hf/config.json: is there already, and no page of an earlier job"),
    ],
)
def test_a_page_has_a_place_of_its_own(option, says, source, distconv):
    outcome = distconv(f"source={source}", "target=mm", *overrides(CASE), option)
    assert outcome.status == 2
    assert says in outcome.err


def test_several_sources_have_a_page_each(source, tmp_path, distconv):
    write_source(tmp_path / f"{source}2", CASE)
    outcome = distconv(
        "action=plan", f"sources={source}*", "target=mm-{name}", *overrides(CASE), "plan_html={name}.html"
    )
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "hf.html").exists()
    assert (tmp_path / "hf2.html").exists()
