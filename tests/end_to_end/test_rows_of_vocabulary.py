"""Rows of the vocabulary that the reference does not have: padding is left out, what was trained is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distconv.errors import InputError
from tests.checkpoints import load_case, read_dcp, write_source
from tests.here import outcome_here, run_here

CASE = load_case("qwen2vl__tp1_pp1")
ROWS = CASE["hf_config"]["vocab_size"]
EMBEDDING, HEAD = NAMES = ("model.embed_tokens.weight", "lm_head.weight")
MORE: dict[str, torch.Tensor] = {
    "zeros": torch.zeros(3, 1),
    "equal": torch.full((3, 1), 2.0),
    "a token": torch.ones(1, 1),
    "trained": torch.arange(3.0).reshape(3, 1),
    "trained, and padded": torch.tensor([[1.0], [0.0], [0.0], [0.0]]),
}
PADDING = ("zeros", "equal")


def trained_with(more: dict[str, torch.Tensor], directory: Path, **config: Any) -> Path:
    """The model with rows more in some of its tensors, as it would be published."""
    source = write_source(directory, CASE, single_file=True)
    tensors = load_file(source / "model.safetensors")
    for name, rows in more.items():
        tensors[name] = torch.cat([tensors[name], rows.expand(-1, tensors[name].shape[1]).to(tensors[name].dtype)])
    if config.get("tie_word_embeddings"):
        del tensors[HEAD]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    said = {**CASE["hf_config"], "vocab_size": tensors[EMBEDDING].shape[0], **config}
    (source / "config.json").write_text(json.dumps(said))
    return source


def reference_of(directory: Path, kind: str, **config: Any) -> Path:
    """The model that training began with, or its configuration alone."""
    if kind == "weights":
        write_source(directory, CASE)
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CASE["hf_config"], **config}))
    return directory


def published(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {name: each for path in directory.glob("*.safetensors") for name, each in load_file(path).items()}
    return tensors, json.loads((directory / "config.json").read_text())


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal bit for bit: elements of the case may be no numbers."""
    return torch.equal(one.view(torch.int16), other.view(torch.int16))


def saved(source: Path, target: Path, kind: str) -> Path:
    """The model as training saves it."""
    rows = load_file(source / "model.safetensors")[EMBEDDING].shape[0]
    options: dict[str, Any] = {
        "megatron": {"layout__tp": 1 if rows % 2 else 2},
        "dcp": {"target_format": "dcp"},
        "published dcp": {"target_format": "dcp", "naming": "hf"},
    }[kind]
    run_here(source=str(source), target=str(target), **options)
    return target


def assert_refused(job: dict[str, Any], target: Path, more: int) -> None:
    """Nothing but `vocab_size` publishes rows that contradict the configuration of a model under published names."""
    with pytest.raises(InputError, match=f"vocab_size={ROWS + more} publishes what is there"):
        outcome_here(**job)
    assert not target.exists()
    outcome_here(**job, vocab_size=ROWS + more)
    found, config = published(target)
    assert {found[name].shape[0] for name in NAMES} == {config["vocab_size"]} == {ROWS + more}


@pytest.mark.parametrize("reference", ["weights", "configuration"])
@pytest.mark.parametrize("kind", ["megatron", "dcp", "published dcp"])
@pytest.mark.parametrize("more", MORE)
def test_padding_is_left_out_and_what_was_trained_is_published(more, kind, reference, tmp_path):
    whole = trained_with(dict.fromkeys(NAMES, MORE[more]), tmp_path / "whole")
    known = reference_of(tmp_path / "reference", reference)
    job = {
        "source": str(saved(whole, tmp_path / "saved", kind)),
        "target": str(tmp_path / "back"),
        "target_format": "hf",
        "reference": str(known),
    }
    if kind == "published dcp" and more not in PADDING:
        assert_refused(job, tmp_path / "back", len(MORE[more]))
        return
    notes = outcome_here(**job).report["notes"]
    expected = load_file(whole / "model.safetensors")
    rows = ROWS if more in PADDING else ROWS + len(MORE[more])
    found, config = published(tmp_path / "back")
    assert config == {**CASE["hf_config"], "vocab_size": rows}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert same(found[name], tensor[:rows] if name in NAMES else tensor), name
    (said,) = [note for note in notes if "beyond" in note]
    assert f"{len(MORE[more])} row" in said
    assert f"beyond the {ROWS} of reference={known}" in said
    other = ROWS + len(MORE[more]) if more in PADDING else ROWS
    assert (": left out as padding" if more in PADDING else ": kept as trained") in said
    assert f"; vocab_size={other} " in said
    # What is proved is the same.
    run_here(action="verify", **job)
    # What is said to decide, does.
    run_here(**{**job, "target": str(tmp_path / "other"), "vocab_size": other})
    found, config = published(tmp_path / "other")
    assert {found[name].shape[0] for name in NAMES} == {config["vocab_size"]} == {other}
    assert all(same(found[name], expected[name][:other]) for name in NAMES)


@pytest.mark.parametrize("trained", NAMES)
def test_embedding_and_head_are_decided_together(trained, tmp_path):
    more = {name: MORE["trained" if name == trained else "zeros"] for name in NAMES}
    source = saved(trained_with(more, tmp_path / "whole"), tmp_path / "saved", "megatron")
    known = reference_of(tmp_path / "reference", "weights")
    run_here(source=str(source), target=str(tmp_path / "back"), target_format="hf", reference=str(known))
    found, config = published(tmp_path / "back")
    assert {found[name].shape[0] for name in NAMES} == {config["vocab_size"]} == {ROWS + 3}


@pytest.mark.parametrize("kind", ["megatron", "published dcp"])
@pytest.mark.parametrize("more", ["zeros", "trained"])
def test_a_tied_head_follows_its_embedding(more, kind, tmp_path):
    """Also where the reference stores one."""
    source = trained_with({EMBEDDING: MORE[more]}, tmp_path / "whole", tie_word_embeddings=True)
    known = reference_of(tmp_path / "reference", "weights", tie_word_embeddings=True)
    source = saved(source, tmp_path / "saved", kind)
    # Under published names, trained rows beyond the configuration are asked for.
    given = {"vocab_size": ROWS + 3} if (more, kind) == ("trained", "published dcp") else {}
    run_here(source=str(source), target=str(tmp_path / "back"), target_format="hf", reference=str(known), **given)
    found, config = published(tmp_path / "back")
    assert same(found[HEAD], found[EMBEDDING])
    assert found[HEAD].shape[0] == config["vocab_size"] == (ROWS + 3 if more == "trained" else ROWS)


def test_a_dcp_is_published_with_what_was_trained(tmp_path):
    source = trained_with(dict.fromkeys(NAMES, MORE["trained"]), tmp_path / "whole")
    known = reference_of(tmp_path / "reference", "weights")
    source = saved(source, tmp_path / "saved", "megatron")
    run_here(source=str(source), target=str(tmp_path / "dcp"), target_format="dcp", naming="hf", reference=str(known))
    found = read_dcp(tmp_path / "dcp" / "release")
    assert {found[f"model.{name}"].shape[0] for name in NAMES} == {ROWS + 3}


def test_training_goes_on_with_all_rows(tmp_path):
    """From a DCP as from Megatron: nothing is cut where nothing is published."""
    whole = trained_with(dict.fromkeys(NAMES, MORE["trained"]), tmp_path / "whole")
    known = reference_of(tmp_path / "reference", "configuration")
    for kind in ("megatron", "dcp", "published dcp"):
        source = saved(whole, tmp_path / kind, kind)
        target = tmp_path / f"mm of {kind}"
        assert outcome_here(source=str(source), target=str(target), reference=str(known)).report["notes"] == []
        tensors = torch.load(target / "release" / "mp_rank_00" / "model_optim_rng.pt", weights_only=True)["model"]
        rows = {tensor.shape[0] for name, tensor in tensors.items() if "word_embeddings" in name or "output" in name}
        assert rows == {ROWS + 3}


def test_what_is_cut_for_training_is_said(tmp_path):
    source = trained_with({}, tmp_path / "whole")
    for options in ({}, {"target_format": "dcp"}, {"target_format": "dcp", "naming": "hf"}):
        target = str(tmp_path / "-".join(("mm", *options.values())))
        job = {"source": str(source), "target": target, "vocab_size": ROWS - 4, "action": "plan", **options}
        (note,) = outcome_here(**job).report["notes"]
        assert note.startswith(f"vocab_size={ROWS - 4}: the last 4 rows of ")


def test_a_plan_says_what_it_will_do_and_what_it_reads(tmp_path):
    source = trained_with(dict.fromkeys(NAMES, MORE["trained"]), tmp_path / "whole")
    known = reference_of(tmp_path / "reference", "configuration")
    source = saved(source, tmp_path / "saved", "megatron")
    job = {
        "source": str(source),
        "target": str(tmp_path / "back"),
        "target_format": "hf",
        "reference": str(known),
    }
    planned, done = outcome_here(action="plan", **job).report, outcome_here(**job).report
    assert planned["notes"] == done["notes"]
    (expected,), (counted,) = planned["processes"], done["processes"]
    # The first of the rows is read once, although the others are compared with it one by one.
    width = load_file(tmp_path / "whole" / "model.safetensors")[EMBEDDING].shape[1]
    assert expected["bytes_read"] - counted["bytes_read"] == len(NAMES) * 2 * width
