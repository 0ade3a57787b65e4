"""What is said of two checkpoints: counted, the largest differences first, in the width of a terminal."""

from __future__ import annotations

from typing import Any

from distconv.cli.diff_text import SHOWN, diff_text

FORM = {"dtype": "bfloat16", "shape": [4, 8]}


def difference(name: str, apart: float | str | None, **changes: Any) -> dict[str, Any]:
    largest = None if apart is None else {"difference": apart, "index": [1, 2], "source": 0.5, "target": "nan"}
    entry = {"name": name, "source": FORM, "target": FORM, "compared": 32, "differing": 3, "first": [0, 7]}
    return {**entry, "largest": largest, **changes}


def text(**changes: Any) -> list[str]:
    report = {
        "source": "/a", "source_format": "hf", "target": "/b", "target_format": "megatron", "model": "qwen2vl",
        "tensors": {"in_both": 40, "different": len(changes.get("different", ()))}, "bytes": 2**21,
        "only_in_source": [], "only_in_target": [], "different": [], "copies": [], "notes": [],
        "processes": [{"seconds": {"transfer": 0.5}}, {"seconds": {"transfer": 1.5}}],
    }  # fmt: skip
    lines = diff_text({**report, **changes}).splitlines()
    assert all(len(line) <= 80 for line in lines), lines
    return lines


def test_equal_checkpoints():
    assert text() == [
        "source   /a, a Hugging Face directory",
        "target   /b, a Megatron checkpoint",
        "model    qwen2vl",
        "both     40 tensors in both, 40 of them equal; compared 2.0 MiB on 2 processes",
        "         in 1.5 s",
    ]


def test_what_only_one_has_is_counted():
    alone = [{"name": f"layers.{each}.weight", **FORM} for each in range(SHOWN + 2)]
    found = text(only_in_source=alone, only_in_target=alone[:1])
    assert found[5:8] == ["", "only in the source: 18", "  layers.0.weight  bfloat16 [4, 8]"]
    assert found[-4:] == [
        "  … and 2 more; report=FILE lists all",
        "",
        "only in the target: 1",
        "  layers.0.weight  bfloat16 [4, 8]",
    ]


def test_other_shapes_come_first_then_the_largest_differences():
    other = {**FORM, "shape": [3, 8]}
    different = [
        difference("small", 0.25),
        difference("none", None, differing=0, first=None, compared=24, target=other),
        difference("endless", "inf"),
        difference("integers", None),
        difference("large", 2.0, differing=1),
        difference("deep", None, compared=None, differing=None, first=None, target={**FORM, "shape": [4, 8, 1]}),
    ]
    assert text(different=different)[6:] == [
        "different: 6",
        "  deep",
        "      bfloat16 [4, 8] in the source, bfloat16 [4, 8, 1] in the target",
        "      not compared element by element",
        "  none",
        "      bfloat16 [4, 8] in the source, bfloat16 [3, 8] in the target",
        "      none of the 24 elements compared differs",
        "  endless",
        "      3 of 32 elements differ; largest difference inf at [1, 2]: 0.5 and nan",
        "  integers",
        "      3 of 32 elements differ; the first at [0, 7]",
        "  large",
        "      1 of 32 elements differs; largest difference 2 at [1, 2]: 0.5 and nan",
        "  small",
        "      3 of 32 elements differ; largest difference 0.25 at [1, 2]: 0.5 and nan",
    ]


def test_tensors_of_another_type_alone_are_told_together():
    wide = {**FORM, "dtype": "float32"}
    different = [difference(each, None, differing=0, first=None, target=wide) for each in ("a", "b", "c")]
    assert text(different=different)[5:] == [
        "",
        "of another type, with equal elements: 3",
        "  bfloat16 in the source, float32 in the target: a, b and 1 more",
    ]


def test_copies_and_notes_are_folded_and_visible():
    found = text(copies=["mm/a\x1b: its copy differs"], notes=["source: " + "word " * 30])
    assert found[5:8] == ["", "copies that differ: 1", "  mm/a\\x1b: its copy differs"]
    assert found[8:10] == ["", "note: source: " + "word " * 12 + "word"]
