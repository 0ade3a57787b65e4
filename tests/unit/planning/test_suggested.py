"""What the record of a source suggests counts where the user says nothing, and never against the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.provenance import Provenance
from distconv.formats.registry import Options, format_named
from distconv.layout.request import SourceLayout
from distconv.planning.suggested import Suggested

LAYOUT = {"tp": 2, "pp": 2, "stages": {"text": [[1, 2]], "vision": [[2, 0]]}, "placement": "u_shape"}
WHERE = Path("/mm/release")
DIALECTS = ("mcore_te", "published")


def by(record: Provenance, form: str = "megatron") -> Suggested:
    return Suggested.by(record, WHERE, format_named(form), DIALECTS)


def options(**given: Any) -> Options:
    return Options(source=Path("/mm"), target=Path("/hf"), **given)


SAYS = by(Provenance(layout=LAYOUT, dialect="mcore_te"))


def test_what_the_user_leaves_open_is_as_the_record_says():
    found = SAYS.completed(options())
    assert found.source_dialect == "mcore_te"
    assert found.source_layout == SourceLayout(
        tp=2,
        pp=2,
        stages={"text": ((1, 2),), "vision": ((2, 0),)},
        modality_tp={"vision": 2},
        placement="u_shape",
    )


def test_what_the_user_says_counts():
    given = SourceLayout(tp=4, stages={"text": [2, 1]}, vision_qkv="fused")
    found = SAYS.completed(options(source_layout=given, source_dialect="bridge"))
    assert found.source_dialect == "bridge"
    assert found.source_layout == SourceLayout(
        tp=4,
        pp=2,
        stages={"text": ((2, 1),), "vision": ((2, 0),)},
        placement="u_shape",
        vision_qkv="fused",
    )


def test_the_sizes_of_encoders_count_as_they_are_recorded():
    found = by(Provenance(layout={**LAYOUT, "modality_tp": {"vision": 4}})).completed(options())
    assert found.source_layout.modality_tp == {"vision": 4}


def test_only_what_a_format_takes_is_suggested():
    """And no dialect that is not known, as a definition that is not."""
    record = Provenance(layout=LAYOUT, dialect="mcore_te")
    assert by(record, "dcp") == Suggested(where=f"{WHERE}/distconv.json", dialect="mcore_te")
    assert by(record, "hf") == Suggested()
    assert by(Provenance(dialect="mine")) == by(Provenance(layout={})) == by(Provenance()) == Suggested()
    assert by(Provenance()).completed(options()) == options()


def test_it_comes_back_from_plain_data():
    assert Suggested(**SAYS.to_json()) == SAYS


def test_without_a_suggestion_there_is_one_attempt():
    made = []
    assert Suggested().heeded(options(), lambda each: made.append(each) or "made") == "made"
    assert made == [options()]
    assert SAYS.heeded(options(), lambda each: each) == SAYS.completed(options())


def test_a_contradiction_names_record_files_and_option():
    def make(given: Options) -> None:
        if given.source_layout.tp is not None:
            raise InputError(["source_layout.tp=2: the text tensors in /mm/release are cut into 4 pieces"])

    with pytest.raises(InputError) as caught:
        SAYS.heeded(options(), make)
    (problem,) = caught.value.problems
    assert problem == (
        "/mm/release/distconv.json: what it says of the source is not what the files show: source_layout.tp=2: the "
        "text tensors in /mm/release are cut into 4 pieces; give source_layout.tp as the files have it, or remove this "
        "record"
    )


def test_what_is_wrong_in_any_case_is_no_contradiction():
    def broken(_: Options) -> None:
        raise InputError(["/mm/release: is damaged"])

    with pytest.raises(InputError) as caught:
        SAYS.heeded(options(), broken)
    assert caught.value.problems == ["/mm/release: is damaged"]


def test_what_is_asked_for_is_told_beside_a_suggestion_that_cannot_be():
    def make(given: Options) -> None:
        layout = given.source_layout
        raise InputError(["give source_layout.tp" if layout.tp is None else f"source_layout.pp={layout.pp}: is 1"])

    with pytest.raises(InputError) as caught:
        SAYS.heeded(options(), make)
    asked, contradicted = caught.value.problems
    assert asked == "give source_layout.tp"
    assert "source_layout.pp=2: is 1; give source_layout.pp as the files have it" in contradicted
