"""What is said of a plan, and that it fits a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distconv.cli.plan_text import plan_text
from distconv.formats.registry import Options
from distconv.planning.assign import assign
from distconv.planning.plan import Planned
from distconv.planning.summary import plan_report, planned_nodes, planned_processes
from tests.unit.planning.test_plan import CONFIG, facts, planned

RESULT = Path("/mm/release")


def report_of(config: Options, found: Planned) -> dict[str, Any]:
    return plan_report(config, found, facts(), RESULT)


def test_the_text_of_a_plan_names_the_layout_and_what_is_left_out():
    config = replace(CONFIG, text_source=Path("/llm"))
    text = plan_text(report_of(config, planned(select=("vision",))), full=False)
    for line in ("model    toy", "text     /llm", "target   /mm/release", "stages   vision=[2]"):
        assert line in text.splitlines()
    assert "layout   tp=1 pp=1 vpp=1 ep=1" in text.splitlines()
    assert "names    dialect mindspeed_mm" in text.splitlines()
    reason = "not selected: text (select=[vision]): lm_head.weight, model.embed.weight and 44 more"
    assert f"46 tensors: {reason}" in " ".join(text.split())
    one = {"reason": "not wanted", "name": "a"}
    text = plan_text({**report_of(CONFIG, planned()), "not_converted": [one]}, full=False)
    assert "  1 tensor: not wanted: a" in text.splitlines()
    assert "projected peak memory" not in text


def test_processes_that_do_the_same_share_a_line():
    found = planned()
    processes = planned_processes(assign(found.plan.files, 3), [{"/a": 5}, {}, {}], [2, 0, 0], 2048)
    assert [each["rank"] for each in processes] == [0, 1, 2]
    assert processes[0]["bytes_read"] == 7
    assert processes[0]["sources"] == [{"path": "/a", "bytes": 5}]
    assert processes[0]["bytes_written"] == sum(file.nbytes for file in found.plan.files)
    assert processes[0]["buffer_bytes"] == 2048
    text = plan_text({**report_of(CONFIG, found), "processes": processes}, full=True)
    table = [line.split()[:2] for line in text.splitlines()[-2:]]
    assert table == [["0", "1"], ["1-2", "0"]]


@pytest.mark.parametrize(
    ("fetched", "words"),
    [
        ([1024, 1024], "per node of 4 processes: 1.0 KiB; by all 2 nodes 2.0 KiB, 1.33 times what is there"),
        ([1024, 2048], "per node of 4 processes: 1.0 KiB to 2.0 KiB; by all 2 nodes 3.0 KiB, 2.00 times what is there"),
    ],
)
def test_a_plan_says_what_nodes_read_from_the_file_system(fetched, words):
    nodes = planned_nodes(4, fetched, 1536, [0] * 7)
    text = plan_text({**report_of(CONFIG, planned()), "nodes": nodes}, full=True)
    assert " ".join(text.split()).endswith(f" read from the file system, {words}")


def test_copies_that_are_compared_are_read_by_their_nodes():
    assert planned_nodes(2, [10, 20], 25, [1, 2, 4]) == {
        "processes_per_node": 2, "bytes_fetched": [13, 24], "bytes_distinct": 32
    }  # fmt: skip


def test_many_files_are_not_all_shown():
    found = planned(layout=replace(CONFIG.layout, tp=4, ep=4, modality_tp={"vision": 8}))
    files = found.plan.files
    processes = planned_processes([files], [{}], [0], 2048)
    text = plan_text({**report_of(CONFIG, found), "processes": processes}, full=True)
    assert f"files    {len(files)}" in text
    assert text.count("model_optim_rng.pt") == 16
    assert f"… and {len(files) - 16} more" in text


def test_a_plan_fits_a_terminal():
    found = planned()
    report = report_of(CONFIG, found)
    stages = {each: [[1] * 64, [2] * 64] for each in ("text", "vision", "audio")}
    stage = {"virtual_stage": 1, "pipeline_rank": 63, "parameters": 10**11, "bytes": 10**12}
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(9)]
    report |= {
        "not_checked": ["what nothing is known of " * 8],
        "layout": {**report["layout"], "stages": stages, "modality_tp": {"vision": 8, "audio": 16}, "expert_tp": 4},
        "stages": [{**stage, "layers": {"text": 100, "vision": 100, "audio": 100}}],
        "casts": {
            "cast": [{"from": "float32", "to": "bfloat16", "tensors": 10**6, "bytes": 10**12}],
            "kept": [{"reason": "its model keeps it as it is", "names": names}],
        },
        "not_converted": [{"reason": "it is of no use to a training, " * 4, "name": name} for name in names],
        "notes": ["what nothing is known of", "a note that is long and goes on, " * 8],
        "processes": [
            {**each, "rank": 10**5 + each["rank"], "projected_peak_bytes": 10**15}
            for each in planned_processes(assign(found.plan.files, 3), [{"/a": 10**14}] * 3, [0] * 3, 2048)
        ],
        "nodes": planned_nodes(8, [10**15, 10**14] * 500, 10**15, [0] * 8000),
    }
    text = plan_text(report, full=True)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    # Nothing is lost by that.
    assert "".join(["audio=[[", "1," * 63, "1],[", "2," * 63, "2]]"]) in "".join(text.split())
