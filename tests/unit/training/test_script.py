"""Launch scripts: plain assignments and flags are read, and what only a shell could tell is said to be unread."""

from __future__ import annotations

import pytest

from distconv.training.script import layout_of_script

SCRIPT = r"""
#!/bin/bash
NPUS=8
export TP=2
PP=4   # PP > 1: TP=16 is for larger machines
CP=1
DP=$(($NPUS/$TP/$PP/$CP))
# --tensor-model-parallel-size 16
GPT_ARGS="
    --tensor-model-parallel-size ${TP} \
    --pipeline-model-parallel-size $PP \
    --micro-batch-size ${DP} \
"
torchrun pretrain.py $GPT_ARGS --expert-model-parallel-size "${EP:-8}"
"""


def values(text: str) -> dict[str, object]:
    told = layout_of_script("train.sh", text)
    assert told is not None
    assert not told.unread
    return dict(told.values)


def test_flags_inside_of_variables() -> None:
    assert values(SCRIPT) == {"tp": 2, "pp": 4, "ep": 8}


def test_comments_are_not_read() -> None:
    assert values("TP=2 # TP=4\n#PP=8\nPP=2\n") == {"tp": 2, "pp": 2}


@pytest.mark.parametrize(
    "flag",
    [
        "--tensor-model-parallel-size 4",
        "--tensor-model-parallel-size=4",
        "--tensor-model-parallel-size '4'",
        '--tensor-model-parallel-size "4"',
        "--tensor_model_parallel_size 4",
        "--tensor-model-parallel-size \\\n 4",
        "ARGS=(--tensor-model-parallel-size 4)",
        "ARGS='--seed 1 --tensor-model-parallel-size 4'",
    ],
)
def test_spellings_of_a_flag(flag: str) -> None:
    assert values(f"python train.py {flag}\n") == {"tp": 4}


@pytest.mark.parametrize(
    "line", ["TP=4; PP=2", "TP=4 PP=2 sh train.sh", "declare -i TP=4\nreadonly PP='2'", "TP=4\r\nPP=2\r\n"]
)
def test_assignments_without_flags(line: str) -> None:
    assert values(line) == {"tp": 4, "pp": 2}


def test_variables_of_variables() -> None:
    assert values("N=4\nTP=$N\nA=$TP\nrun --tensor-model-parallel-size $A") == {"tp": 4}


def test_where_there_are_flags_other_assignments_say_nothing() -> None:
    assert values("TP=4\nPP=8\nrun --tensor-model-parallel-size $TP") == {"tp": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "TP=$1\nrun --tensor-model-parallel-size $TP",
            "--tensor-model-parallel-size $TP, which only a shell can tell",
        ),
        ("run --tensor-model-parallel-size $TP", "--tensor-model-parallel-size $TP, which only a shell can tell"),
        ("run --tensor-model-parallel-size $((8/2))", "which only a shell can tell"),
        ("TP=`nproc`\nrun --tensor-model-parallel-size $TP", "which only a shell can tell"),
        ("TP=2\nTP=4\nrun --tensor-model-parallel-size $TP", "--tensor-model-parallel-size $TP, which is 2 or 4"),
        ("TP=$TP\nrun --tensor-model-parallel-size $TP", "which only a shell can tell"),
        ("run --tensor-model-parallel-size 2\nrun --tensor-model-parallel-size 4", "which is 2 or 4"),
        ("run --tensor-model-parallel-size two", "expected a positive integer"),
        ("run --tensor-model-parallel-size 0", "expected a positive integer"),
        ("run --tensor-model-parallel-size --seed 3", "which only a shell can tell"),
    ],
)
def test_what_is_not_plain(text: str, words: str) -> None:
    told = layout_of_script("train.sh", text)
    assert told is not None
    assert "tp" not in told.values
    assert words in told.unread["tp"]


def test_something_else() -> None:
    assert layout_of_script("notes.txt", "Nothing of a layout: --seed 3, X=2") is None
