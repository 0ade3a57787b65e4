"""What the author of a model definition meets: one clear message for each mistake, whatever Hydra says of it.

Every job runs in a directory of its own that holds the checkpoint `hf`, a definition `my_models/model/mine.yaml` that
is wrong in one way, and no more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.checkpoints import load_case, write_source

DEFINITION = Path("my_models/model/mine.yaml")
GOOD = "defaults: [qwen2vl, _self_]\n"
JOB = ["source=hf", "target=mm"]
MINE = [*JOB, "--config-dir", "my_models", "+model=mine"]


def with_rule(target: str) -> str:
    source = "[[lm_head.weight, vocabulary, hidden]]"
    return f"{GOOD}rules: {{text: {{head: [{{target: {target}, sources: {source}, tp: rows, stage: last}}]}}}}\n"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "hf", load_case("qwen2vl__tp1_pp1"))
    DEFINITION.parent.mkdir(parents=True)


def check_refused(outcome, *says: str) -> None:
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("distconv: "), outcome.err
    assert "Traceback" not in outcome.err
    assert [fragment for fragment in says if fragment not in outcome.err] == [], outcome.err
    assert not Path("mm").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("sizes:\n  hidden: [hidden_size\n", ["not valid YAML", "mine.yaml", "line 3"]),
        ("sizes:\n\thidden: [hidden_size]\n", ["not valid YAML", "mine.yaml", "line 2", "cannot start any token"]),
        ("sizes:\n  a: [b]\n  a: [c]\n", ["mine.yaml: line 3: duplicate key a"]),
        (f"{GOOD}ignore: [{{names: [visual.{{layer}}.x], reason: x}}]\n", ["needs quotes", "mine.yaml", "line 2"]),
        (with_rule('"a.${layer}.b"'), ["model.rules.text.head[0].target: ", "'layer' not found", "a placeholder"]),
        (with_rule('"a.{weight, bias}"'), ["a.{weight, bias}: expected placeholders such as {layer}"]),
        ("defaults: [qwen9vl, _self_]\n", ["model/mine.yaml: defaults: no model definition qwen9vl"]),
        ("defaults: [model/qwen2vl, _self_]\n", ["model/mine.yaml: defaults: no model definition model/qwen2vl"]),
        ("defaults: [mine, _self_]\n", ["defaults: a model definition inherits from itself"]),
        ("defaults: qwen2vl\n", ["model/mine.yaml: defaults: expected a list of names of model definitions"]),
        ("- sizes\n", ["model/mine.yaml: expected a mapping, found list"]),
        ("", ["model definition mine: sizes: expected a mapping, found None"]),
        (f"{GOOD}model_types: qwen2_vl\n", ["model definition mine: model_types: expected a list"]),
        (f"{GOOD}model_types: 2\n", ["model definition mine: model_types: expected a list"]),
    ],
)
def test_a_definition_that_cannot_be_read_is_refused(content, says, distconv):
    DEFINITION.write_text(content)
    check_refused(distconv(*MINE), *says)


# 2 ** 40 values.
ALIASES = "\n".join(
    ["a0: &a0 [b, c]", *(f"a{number}: &a{number} [*a{number - 1}, *a{number - 1}]" for number in range(1, 41))]
)


@pytest.mark.parametrize(
    "words",
    [
        ["+model=mine"],
        ["+model='mine.yaml'"],
        ["+model=heir"],
        ["--multirun", "+model=qwen2vl,mine"],
        ["--multirun", "+model=choice(heir,qwen2vl)"],
        [],
    ],
)
def test_aliases_that_stand_for_too_much_are_refused_before_they_are_written_out(words, distconv):
    DEFINITION.write_text(ALIASES)
    DEFINITION.with_name("heir.yaml").write_text("defaults: [mine, _self_]\n")
    start = time.monotonic()
    check_refused(
        distconv(*JOB, "--config-dir", "my_models", *words), "model/mine.yaml: line 15: more than 50,000 keys"
    )
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("words", [["+model=mine"], []])
def test_a_definition_reads_nothing_from_where_it_is(words, distconv, monkeypatch):
    monkeypatch.setenv("SECRET", "sesame")
    DEFINITION.write_text(f"{GOOD}ignore: [{{names: none, reason: '${{oc.env:SECRET}}'}}]\n")
    outcome = distconv(*JOB, "--config-dir", "my_models", *words)
    check_refused(outcome, "model/mine.yaml: line 2: '${oc.env:SECRET}' asks for more than the value of an option")
    assert "sesame" not in outcome.err


def test_an_interpolation_is_resolved_for_a_definition_that_is_named_and_else_refused(distconv):
    DEFINITION.write_text(f"{GOOD}model_types: ['${{model.renamed_prefixes[0][1]}}qwen2_vl']\n")
    outcome = distconv("action=plan", *MINE)
    assert "says model_type 'qwen2_vl', but +model=mine is for visual.qwen2_vl" in outcome.err
    DEFINITION.write_text("model_types: [mine]\nignore: [{names: none, reason: '${action}'}]\n")
    config = Path("hf/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "mine"}))
    check_refused(distconv(*JOB, "--config-dir", "my_models"), "model/mine.yaml: line 2: '${action}': only Hydra")


def test_a_broken_definition_matters_only_to_jobs_that_look_at_it(distconv):
    DEFINITION.write_text("sizes: [\n")
    own = ["--config-dir", "my_models"]
    assert distconv("action=plan", *JOB, *own, "+model=qwen2vl").status == 0
    check_refused(distconv(*JOB, *own), "mine.yaml: not valid YAML")


def test_text_that_is_not_utf_8_is_refused(distconv):
    DEFINITION.write_bytes(GOOD.encode() + b"# caf\xe9\n")
    check_refused(distconv(*MINE), "is not UTF-8")


def test_a_definition_with_the_name_of_another_is_refused(distconv):
    """Hydra would take the one that comes with distconv."""
    own = DEFINITION.with_name("qwen2vl.yaml")
    own.write_text("sizes: {}\n")
    for model in (["+model=qwen2vl"], []):
        check_refused(distconv(*JOB, "--config-dir=my_models", *model), f"+model=qwen2vl: {own.resolve()} has the name")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["+model=mime"], "+model=mime: no such model definition; did you mean +model=mine?"),
        (["+model=[mine,qwen2vl]"], "model: give one definition, +model=NAME"),
        (["+model.ignore=[]"], "model: give one definition, +model=NAME"),
        (["model.ignore=[]"], "model.ignore is not in the configuration by default: write +model=NAME"),
        (
            ["+model=glm4_1v", "model.lists={}"],
            "model.lists: the model definition has no such key; write +model.list",
        ),
        (["+model=mine", "layout.tpp=2"], "unknown option layout.tpp"),
        (["+model=mine", "layout.tp=${tp}"], "layout.tp: Interpolation key 'tp' not found"),
    ],
)
def test_what_is_wrong_beside_the_definition_is_said(options, says, distconv):
    DEFINITION.write_text(GOOD)
    check_refused(distconv("--config-dir", "my_models", *JOB, *options), says)


def orders() -> Sequence[Sequence[str]]:
    flag = ["--config-dir", "my_models"]
    return [[*flag, *JOB, "+model=mine"], [*JOB, *flag, "+model=mine"], [*JOB, "+model=mine", *flag]]


@pytest.mark.parametrize("words", orders(), ids=[0, 1, 2])
def test_flags_may_stand_anywhere(words, distconv):
    DEFINITION.write_text(GOOD)
    outcome = distconv("action=plan", *words)
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("model    mine\n")


def test_the_ending_of_the_file_is_no_part_of_the_name(distconv):
    DEFINITION.write_text(GOOD)
    assert distconv("action=plan", *MINE[:-1], "+model=mine.yaml").out.startswith("model    mine\n")
