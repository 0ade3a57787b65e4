"""Two checkpoints of any formats are compared by tensor: what differs is found where it is, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distconv import InputError, JobError, diff
from distconv.cli.show import outcome_text
from distconv.observer import Outcome
from tests.checkpoints import load_case, write_source
from tests.end_to_end.test_dialects import in_memory, minimax, published, trained
from tests.here import outcome_here, run_here
from tests.quantised import written

CASE = "qwen2vl__tp2_pp2"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DOWN = "model.layers.3.mlp.down_proj.weight"
FORMATS: dict[str, dict[str, Any]] = {
    "mm": {"layout__tp": 2, "layout__pp": 2},
    "dcp": {"target_format": "dcp"},
    "dcp_hf": {"target_format": "dcp", "naming": "hf", "name_prefix": "module."},
    "torch_dist": {"target_format": "torch_dist"},
}
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published directory of numbers that are no NaN, and one in each of the other formats."""
    directory = tmp_path_factory.mktemp("made")
    source = write_source(directory / "hf", load_case(CASE), single_file=True)
    torch.manual_seed(1)
    tensors = load_file(source / "model.safetensors")
    save_file({name: torch.randn(each.shape).to(each.dtype) for name, each in tensors.items()}, weights(source))
    for form, options in FORMATS.items():
        run_here(source=str(source), target=str(directory / form), **options)
    return directory


def weights(directory: Path) -> Path:
    return directory / "model.safetensors"


def changed(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A published directory with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(weights(source))
    change(tensors)
    save_file(tensors, weights(target))
    return target


def found(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    """The report, which is plain data with words that fit a terminal where no word is too long."""
    report = diff(source, target, **options)
    assert json.loads(json.dumps(report)) == report
    lines = outcome_text(Outcome(report=report)).splitlines()
    assert all(len(line) <= 80 or len(line.split()) < 3 for line in lines), lines
    return report


def assert_equal(report: dict[str, Any]) -> None:
    differences = {key: report[key] for key in ("different", "only_in_source", "only_in_target", "copies")}
    assert not any(differences.values()), differences
    assert report["tensors"]["in_both"] > 0


@pytest.mark.parametrize(("source", "target"), list(combinations(["hf", *FORMATS], 2)))
def test_the_same_model_in_any_two_formats_is_equal(source, target, made):
    report = found(made / source, made / target)
    assert_equal(report)
    assert report["tensors"] == {"in_both": 142, "different": 0}
    assert report["model"] == "qwen2vl"


@pytest.mark.parametrize("form", ["hf", *FORMATS])
def test_a_changed_number_is_found_with_its_index(form, made, tmp_path):
    def change(tensors):
        tensors[DOWN][5, 7] += 2
        tensors[DOWN][40, 3] = 64
        tensors[HEAD][-1, -1] = float("nan")

    other = changed(made / "hf", tmp_path / "changed", change)
    report = found(made / form, other)
    before, after = (load_file(weights(each)) for each in (made / "hf", other))
    of_head, of_down = sorted(report["different"], key=lambda each: each["name"])
    distance = (before[DOWN].double() - after[DOWN].double()).abs()
    assert of_down == {
        "name": DOWN,
        "source": {"dtype": "bfloat16", "shape": list(before[DOWN].shape)},
        "target": {"dtype": "bfloat16", "shape": list(before[DOWN].shape)},
        "compared": before[DOWN].numel(),
        "differing": 2,
        "first": [5, 7],
        "largest": {
            "difference": distance.max().item(),
            "index": [40, 3],
            "source": before[DOWN][40, 3].item(),
            "target": 64.0,
        },
    }
    assert of_head["largest"] == {
        "difference": "inf",
        "index": [each - 1 for each in before[HEAD].shape],
        "source": before[HEAD][-1, -1].item(),
        "target": "nan",
    }
    assert report["tensors"] == {"in_both": 142, "different": 2}
    assert report["only_in_source"] == report["only_in_target"] == []


def test_every_changed_tensor_of_a_trained_checkpoint_is_found(made, tmp_path):
    """What differs between two trainings, in two layouts, is what differs between what they publish."""

    def change(tensors):
        for name in list(tensors)[::5]:
            tensors[name].view(-1)[0] += 1

    other = changed(made / "hf", tmp_path / "changed", change)
    run_here(source=str(other), target=str(tmp_path / "mm"), layout__pp=3)
    report = found(made / "mm", tmp_path / "mm")
    assert {each["name"] for each in report["different"]} == set(list(load_file(weights(made / "hf")))[::5])
    assert {each["differing"] for each in report["different"]} == {1}


def test_tensors_of_one_alone_and_other_forms_are_told(made, tmp_path):
    def change(tensors):
        tensors["extra.weight"] = torch.zeros(3, 4)
        del tensors[DOWN]
        tensors[EMBEDDING] = tensors[EMBEDDING][:-5].clone()
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
        tensors["model.layers.0.input_layernorm.weight"] = torch.zeros(2, 2, dtype=torch.bfloat16)

    other = changed(made / "hf", tmp_path / "changed", change)
    report = found(made / "hf", other)
    shape = list(load_file(weights(made / "hf"))[DOWN].shape)
    assert report["only_in_source"] == [{"name": DOWN, "dtype": "bfloat16", "shape": shape}]
    assert report["only_in_target"] == [{"name": "extra.weight", "dtype": "float32", "shape": [3, 4]}]
    different = {each["name"]: each for each in report["different"]}
    assert different.keys() == {EMBEDDING, "model.norm.weight", "model.layers.0.input_layernorm.weight"}
    rows = different[EMBEDDING]
    assert (rows["source"]["shape"], rows["target"]["shape"]) == ([104, 48], [99, 48])
    assert (rows["compared"], rows["differing"]) == (99 * 48, 0)
    cast = different["model.norm.weight"]
    assert (cast["source"]["dtype"], cast["target"]["dtype"], cast["differing"]) == ("bfloat16", "float32", 0)
    # Of which no element has a counterpart.
    assert different["model.layers.0.input_layernorm.weight"]["compared"] is None
    text = outcome_text(Outcome(report=report))
    assert "bfloat16 [104, 48] in the source, bfloat16 [99, 48] in the target\n" in text
    assert "of another type, with equal elements: 1\n  bfloat16 in the source, float32 in the target: " in text


def test_bits_decide_what_is_equal(made, tmp_path):
    def change(tensors):
        tensors[DOWN][0, :4] = torch.tensor([float("nan"), float("inf"), 0.0, 1.0])

    def negated(tensors):
        change(tensors)
        tensors[DOWN][0, 2] = -0.0

    one, other = (changed(made / "hf", tmp_path / each.__name__, each) for each in (change, negated))
    assert_equal(found(one, changed(made / "hf", tmp_path / "again", change)))
    (only,) = found(one, other)["different"]
    assert (only["differing"], only["first"]) == (1, [0, 2])
    assert only["largest"] == {"difference": 0.0, "index": [0, 2], "source": 0.0, "target": -0.0}


@pytest.mark.parametrize(("name", "scheme"), [(CASE, "fp8"), (CASE, "int4"), ("qwen3vl_moe__ep2", "fp8")])
def test_quantised_weights_are_compared_as_the_numbers_that_they_are(name, scheme, tmp_path):
    quantised, plain = written(load_case(name), scheme, tmp_path)
    run_here(source=str(quantised), target=str(tmp_path / "mm"), dtype="bfloat16")
    for other in (plain, tmp_path / "mm"):
        report = found(quantised, other)
        assert report["only_in_source"] == report["only_in_target"] == report["copies"] == []
        assert report["different"]
        # They differ in how they are stored alone.
        assert {each["differing"] for each in report["different"]} == {0}
        assert {each["target"]["dtype"] for each in report["different"]} == {"bfloat16"}
        assert {each["source"]["dtype"] for each in report["different"]}.isdisjoint({"bfloat16", "float32"})
    assert_equal(found(quantised, quantised))


def test_a_changed_scale_is_a_difference(tmp_path):
    quantised, _ = written(load_case(CASE), "fp8", tmp_path)
    other = tmp_path / "other"

    def change(tensors):
        (scale,) = (name for name in tensors if name.startswith("model.layers.2.mlp.down_proj.weight_scale"))
        tensors[scale] *= 2

    shutil.copytree(quantised, other)
    tensors = load_file(weights(quantised))
    change(tensors)
    save_file(tensors, weights(other))
    (only,) = found(quantised, other)["different"]
    assert only["name"] == "model.layers.2.mlp.down_proj.weight"
    assert only["source"] == only["target"]
    assert only["differing"] > 0


def test_copies_in_a_checkpoint_that_differ_are_told(made, tmp_path):
    shutil.copytree(made / "mm", tmp_path / "mm")
    (path,) = (tmp_path / "mm").glob("release/mp_rank_01_000/model_optim_rng.pt")
    content = torch.load(path, weights_only=True)
    (name,) = (
        each for each in content["model"] if each.endswith("text_decoder.decoder.layers.0.input_layernorm.weight")
    )
    content["model"][name][3] += 1
    torch.save(content, path)
    report = found(made / "hf", tmp_path / "mm")
    assert report["different"] == []
    (line,) = report["copies"]
    assert str(path) in line
    assert name in line


def test_a_model_without_a_definition_is_compared_by_its_names_however_experts_are_packed(tmp_path):
    hub = published(tmp_path / "hf", minimax())
    tensors = in_memory(minimax())
    source = trained(tmp_path / "dcp", {f"model.{name}": each for name, each in tensors.items()})
    assert_equal(found(hub, source))
    packed = "model.layers.1.mlp.experts.down_proj"
    tensors[packed][2, 4, 1] += 3
    (only,) = found(hub, trained(tmp_path / "other", tensors))["different"]
    assert (only["name"], only["first"]) == ("model.layers.1.block_sparse_moe.experts.2.w2.weight", [4, 1])


def test_two_models_that_nothing_describes_are_compared_by_their_names(tmp_path):
    tensors = in_memory(minimax())
    source = trained(tmp_path / "one", tensors)
    assert_equal(found(source, source))
    tensors["lm_head.weight"][1, 1] += 1
    (only,) = found(source, trained(tmp_path / "two", tensors))["different"]
    assert (only["name"], only["first"], only["differing"]) == ("lm_head.weight", [1, 1], 1)


def test_two_results_have_the_definitions_that_their_records_name(made, tmp_path):
    run_here("+model=qwen2vl_canonical", source=str(made / "hf"), target=str(tmp_path / "apart"))
    for source, target in ((made / "mm", tmp_path / "apart"), (tmp_path / "apart", made / "hf")):
        assert_equal(found(source, target))


def test_what_parameters_never_hold_is_no_difference_of_theirs(tmp_path):
    """Of an omni model, the talker."""
    source = write_source(tmp_path / "hf", load_case("qwen2_5omni__tp1_pp1"), single_file=True)
    run_here(source=str(source), target=str(tmp_path / "mm"))
    spoken = sorted(name for name in load_file(weights(source)) if name.startswith(("talker.", "token2wav.")))
    report = found(source, tmp_path / "mm")
    assert_equal(report)
    assert sum("of the source alone: talker: " in note for note in report["notes"]) == 1

    def change(tensors):
        for name in spoken:
            del tensors[name]

    other = changed(source, tmp_path / "silent", change)
    assert sorted(each["name"] for each in found(source, other)["only_in_source"]) == spoken


def test_a_side_that_does_not_describe_itself_is_taken_for_the_model_of_the_other(made, tmp_path):
    shutil.copytree(made / "mm", tmp_path / "mm")
    (tmp_path / "mm" / "release" / "distconv.json").unlink()
    for source, target, key in ((tmp_path / "mm", made / "hf", "source"), (made / "dcp", tmp_path / "mm", "target")):
        report = found(source, target)
        assert_equal(report)
        assert f"{key}: read as the model in {made / 'hf'}" in report["notes"]
    with pytest.raises(InputError, match="reference is missing: give reference=DIR"):
        diff(tmp_path / "mm", tmp_path / "mm")
    assert_equal(found(tmp_path / "mm", tmp_path / "mm", reference=made / "hf"))


def test_iterations_of_a_training(made, tmp_path):
    shutil.copytree(made / "mm", tmp_path / "run")
    (tmp_path / "run" / "release").rename(tmp_path / "run" / "iter_0000010")

    def change(tensors):
        tensors[DOWN][0, 0] += 1

    other = changed(made / "hf", tmp_path / "changed", change)
    run_here(source=str(other), target=str(tmp_path / "run"), iteration="20", layout__tp=2, overwrite=True)
    assert len(found(tmp_path / "run", made / "hf")["different"]) == 1
    assert_equal(found(tmp_path / "run", made / "hf", iteration=10))
    (only,) = found(tmp_path / "run" / "iter_0000010", tmp_path / "run" / "iter_0000020")["different"]
    assert only["name"] == DOWN


def test_the_layout_of_the_target_has_its_own_keys(made):
    assert_equal(found(made / "hf", made / "mm", layout={"tp": 2, "pp": 2}))
    assert_equal(found(made / "mm", made / "hf", source_layout={"tp": 2}))
    with pytest.raises(InputError) as caught:
        diff(made / "hf", made / "mm", layout={"tp": 4})
    assert str(caught.value).startswith("layout.tp=4")
    assert "source_layout" not in str(caught.value)


def test_what_is_wrong_with_either_is_told_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        diff(tmp_path / "one", tmp_path / "two")
    assert caught.value.problems == [
        f"source={tmp_path / 'one'}: no such directory",
        f"target={tmp_path / 'two'}: no such directory",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dtype": "bfloat16"}, "dtype: shapes a result; action=diff compares what is there"),
        ({"target_format": "hf"}, "target_format: shapes a result; action=diff compares what is there"),
        ({"select": ["text"]}, "select: shapes a result; action=diff compares what is there"),
        ({"layout": {"check": False}}, "layout.check: is of a result; with action=diff, layout says how the target is"),
        ({"source_layout": {"tp": 2}}, "source_layout: goes with a Megatron source; source="),
        ({"layout": {"tp": 2}}, "layout: goes with a Megatron target; target="),
        ({"dialect": "mcore_te"}, "dialect: goes with a "),
        ({"iteration": 3}, "iteration=3: neither source nor target holds iterations; leave it out"),
        ({"reference": "HF"}, "reference: goes with a "),
    ],
)
def test_an_option_that_says_nothing_of_two_published_models_is_refused(options, problem, made):
    given = {key: made / "hf" if value == "HF" else value for key, value in options.items()}
    with pytest.raises(InputError) as caught:
        diff(made / "hf", made / "hf", **given)
    assert str(caught.value).startswith(problem), caught.value


def test_the_command_line(made, tmp_path, distconv):
    other = changed(made / "hf", tmp_path / "other", lambda tensors: tensors.pop(DOWN))
    report = tmp_path / "report.json"
    outcome = distconv("action=diff", f"source={made / 'mm'}", f"target={other}", f"report={report}")
    assert outcome.status == 1
    assert f"only in the source: 1\n  {DOWN}  bfloat16 [" in outcome.out
    assert outcome.err.endswith(f"distconv: {made / 'mm'} and {other}: 1 is only in the source\n")
    assert json.loads(report.read_text())["only_in_source"][0]["name"] == DOWN
    outcome = distconv("action=diff", f"source={made / 'mm'}", f"target={made / 'hf'}", f"report={report}")
    assert outcome.status == 0
    assert "142 tensors in both, 142 of them equal" in outcome.out
    assert json.loads(report.read_text())["different"] == []
    (tmp_path / "empty").mkdir()
    assert distconv("action=diff", f"source={made / 'mm'}", f"target={tmp_path / 'empty'}").status == 2


def test_nothing_is_written(made):
    report = made / "hf" / "report.json"
    with pytest.raises(InputError, match="is inside source="):
        diff(made / "hf", made / "mm", report=report)
    assert not report.exists()


def test_a_source_that_changes_meanwhile_is_an_error(made, tmp_path):
    other = changed(made / "hf", tmp_path / "other", lambda tensors: tensors[DOWN].add_(1))

    def begin(phase: str, done: int, nbytes: int) -> None:
        if phase == "comparing" and done == nbytes:
            shutil.copy(weights(made / "hf"), weights(other))

    with pytest.raises(JobError, match="it is being changed"):
        diff(made / "hf", other, progress=begin)


def test_a_campaign_does_not_compare(made):
    with pytest.raises(InputError, match="sources: goes with action=convert, plan, verify"):
        outcome_here(action="diff", sources=str(made / "*"), source=None, target=str(made / "hf"))
