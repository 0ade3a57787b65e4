"""The result of a case, moved to the layout of another case of the same model, is the result of that other case."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from tests.checkpoints import case_names, describe_result, load_case, overrides, write_source
from tests.here import run_here

# A head that differs from the embedding it is tied to: one of the two is lost where the head is a copy.
CASES = [name for name in case_names() if "files" in load_case(name) and name != "qwen2vl__tied_with_head_pp2"]


def _alike(name: str) -> str:
    """What cases of the same source and the same variant have in common."""
    case = load_case(name)
    variant = [case["model"], "__lora_" in name, "llm" in case, case["options"]]
    return json.dumps([variant, case["hf_config"], case["source_tensors"]], sort_keys=True)


GROUPS: dict[str, list[str]] = defaultdict(list)
for each in CASES:
    GROUPS[_alike(each)].append(each)
PAIRS = [(name, others) for others in GROUPS.values() for name in others if len(others) > 1]


@pytest.mark.parametrize(("name", "others"), PAIRS, ids=[name for name, _ in PAIRS])
def test_a_result_moves_to_every_other_layout(name, others, tmp_path, distconv):
    case = load_case(name)
    source = write_source(tmp_path / "hf", case)
    assert distconv(*overrides(case), f"source={source}", f"target={tmp_path / 'mm'}").status == 0
    for other in others:
        expected = load_case(other)
        # The model is remembered; the layout of the source is found.
        options = overrides(expected)[1:]
        run_here(*options, source=str(tmp_path / "mm"), target=str(tmp_path / other), io__fsync=False)
        assert describe_result(tmp_path / other) == expected["files"], other


def test_the_iteration_is_kept_and_another_one_can_be_chosen(tmp_path, distconv):
    case = load_case("qwen2vl__tp1_pp1")
    source = write_source(tmp_path / "hf", case)
    for number in (10, 20):
        arguments = [*overrides(case), f"source={source}", f"target={tmp_path / 'mm'}", f"iteration={number}"]
        assert distconv(*arguments, "overwrite=true").status == 0
    assert distconv(f"source={tmp_path / 'mm'}", f"target={tmp_path / 'latest'}", "layout.tp=2").status == 0
    assert distconv(f"source={tmp_path / 'mm'}", f"target={tmp_path / 'older'}", "iteration=10").status == 0
    assert names(tmp_path / "latest") == ["iter_0000020", "latest_checkpointed_iteration.txt"]
    assert names(tmp_path / "older") == ["iter_0000010", "latest_checkpointed_iteration.txt"]
    assert (tmp_path / "older" / "latest_checkpointed_iteration.txt").read_text() == "10"


@pytest.mark.parametrize("naming", ["naming=megatron", "naming=hf name_prefix=module."])
def test_every_format_becomes_every_other(naming, tmp_path, distconv):
    """From Megatron ranks to a DCP and back, in both namings."""
    case = load_case("qwen3vl_moe__tp2_pp2")
    source = write_source(tmp_path / "hf", case)
    steps = [
        (source, "mm", overrides(case)),
        (tmp_path / "mm", "dcp", ["target_format=dcp", *naming.split()]),
        (tmp_path / "dcp", "again", overrides(case)[1:]),
    ]
    for start, end, options in steps:
        outcome = distconv(*options, f"source={start}", f"target={tmp_path / end}")
        assert outcome.status == 0, outcome.err
    assert describe_result(tmp_path / "again") == case["files"]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
