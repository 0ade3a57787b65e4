"""Each plan has its format and its place, and a result remembers what it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distconv.formats.base import Format
from distconv.formats.dcp.files import DcpFormat
from distconv.formats.dcp.plan import make_dcp_plan
from distconv.formats.huggingface.files import HuggingFaceFormat
from distconv.formats.huggingface.plan import make_huggingface_plan
from distconv.formats.megatron.files import MegatronFormat
from distconv.formats.provenance import Record
from distconv.formats.records import Plan
from distconv.formats.results import format_of, record_of, target_of
from distconv.planning.facts import Reference
from tests import configuration
from tests.unit.planning.test_plan import facts, plan

REFERENCE = Reference(directory="/hf", config={}, is_adapter=False, index=None, shards=None, index_content=None)
HF = make_huggingface_plan((), (), (), REFERENCE)
DCP = make_dcp_plan((), (), "hf")


@pytest.mark.parametrize(("made", "form"), [(plan(), MegatronFormat), (DCP, DcpFormat), (HF, HuggingFaceFormat)])
def test_a_plan_is_for_one_format(made: Plan, form: type[Format]):
    assert type(format_of(made)) is form


@pytest.mark.parametrize("made", [plan(), DCP])
@pytest.mark.parametrize(("iteration", "name"), [("release", "release"), ("1000", "iter_0001000")])
def test_training_formats_hold_iterations(made: Plan, iteration, name):
    target = target_of(made, Path("/mm"), iteration)
    assert (target.result, target.home) == (Path("/mm") / name, Path("/mm"))
    assert target.tracker == Path("/mm/latest_checkpointed_iteration.txt")


@pytest.mark.parametrize("iteration", ["release", "1000"])
def test_a_hugging_face_directory_is_the_one_that_was_named(iteration):
    target = target_of(HF, Path("/out/hf"), iteration)
    assert (target.result, target.home, target.tracker) == (Path("/out/hf"), Path("/out"), None)


@pytest.mark.parametrize("target_format", ["megatron", "dcp"])
def test_the_source_or_what_it_followed_is_remembered(target_format, tmp_path, monkeypatch):
    """By absolute paths, since the next job may run elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "link").symlink_to("hf")
    job = configuration.job(source="link", target_format=target_format)
    assert record_of(job, facts()) == Record(model="toy", reference=str(tmp_path / "hf"))
    trained = replace(facts(), reference=replace(REFERENCE, directory="link"))
    assert record_of(replace(job, source=Path("/mm")), trained) == Record(model="toy", reference=str(tmp_path / "hf"))


def test_a_model_of_two_directories_is_followed_by_neither():
    job = configuration.job(text_source="/llm")
    assert record_of(job, facts(text=True)) == Record(model="toy", reference=None)


def test_a_hugging_face_directory_remembers_nothing():
    assert record_of(configuration.job(target_format="hf"), replace(facts(), reference=REFERENCE)) is None
