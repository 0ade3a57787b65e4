"""A head that a configuration calls a copy of the embedding is never lost: it is compared, or the user has chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from distconv.errors import InputError
from tests.checkpoints import describe_result, described, load_case, overrides, write_source
from tests.here import outcome_here, run_here

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")

CASE = load_case("qwen2vl__tied_with_head_pp1")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
OUTPUT = "text_decoder.output_layer.weight"
LAYERS = len(CASE["layout"]["llm_pp_layers"][0]) and sum(CASE["layout"]["llm_pp_layers"][0])
VISION = sum(CASE["layout"]["vit_pp_layers"][0])
TWO_STAGES = {"layout__stages__text": [1, LAYERS - 1], "layout__stages__vision": [VISION, 0]}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a single-file model; its head is equal to the embedding, another, or not there."""

    def written(name: str, *, head: str, tie: dict[str, Any] | None = None) -> Path:
        directory = write_source(tmp_path / name, CASE, single_file=True)
        tensors = load_file(directory / "model.safetensors")
        if head == "equal":
            tensors[HEAD] = tensors[EMBEDDING].clone()
        elif head == "none":
            del tensors[HEAD]
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        if tie is not None:
            config = json.loads((directory / "config.json").read_text())
            config.pop("tie_word_embeddings", None)
            (directory / "config.json").write_text(json.dumps({**config, **tie}))
        return directory

    return written


def as_dcp(directory: Path) -> Path:
    target = directory.with_name(f"{directory.name}_dcp")
    dcp.save({"model": load_file(directory / "model.safetensors")}, checkpoint_id=target, no_dist=True)
    return target


def as_megatron(directory: Path) -> Path:
    target = directory.with_name(f"{directory.name}_mm")
    run_here(source=str(directory), target=str(target))
    return target


SOURCES: dict[str, Callable[[Path], Path]] = {"hf": lambda path: path, "dcp": as_dcp, "megatron": as_megatron}
# Source and target, of every pair in which the target has no place for a head of its own.
PAIRS = [(source, "megatron") for source in SOURCES] + [(source, "hf") for source in ("dcp", "megatron")]


def convert(write: Write, source: str, target: str, *, head: str, **options: Any) -> Path:
    model, plain = write("model", head=head), write("reference", head="none")
    given = {"source": str(SOURCES[source](model)), "target": str(plain.with_name("result")), **options}
    if source != "hf":
        given["reference"] = str(plain)
    run_here(**given, **(TWO_STAGES if target == "megatron" else {"target_format": "hf"}))
    return plain.with_name("result")


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_head_that_differs_is_refused_with_both_names_and_the_option(source, target, write, tmp_path):
    with pytest.raises(InputError, match=r"(lm_head|output_layer).weight differs from .*embed.*tied_head=keep"):
        convert(write, source, target, head="other")
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_head_that_is_equal_is_left_out(source, target, write):
    result = convert(write, source, target, head="equal")
    embedding = load_file(result.with_name("model") / "model.safetensors")[EMBEDDING]
    if target == "hf":
        found = load_file(result / "model.safetensors")
        assert HEAD not in found
        assert described(found[EMBEDDING]) == described(embedding)
    else:
        assert head_in(result) == described(embedding)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("tied_head", ["keep", "write"])
def test_the_user_chooses_between_head_and_embedding(source, target, tied_head, write):
    result = convert(write, source, target, head="other", tied_head=tied_head)
    own = load_file(result.with_name("model") / "model.safetensors")
    expected = own[HEAD if tied_head == "keep" else EMBEDDING]
    if target == "megatron":
        assert head_in(result) == described(expected)
        return
    found, config = load_file(result / "model.safetensors"), json.loads((result / "config.json").read_text())
    assert (HEAD in found) == (tied_head == "keep")
    assert tied_head == "write" or described(found[HEAD]) == described(expected)
    # No release of transformers would look at a head beside a flag that says tied.
    assert config["tie_word_embeddings"] is (tied_head == "write")


@pytest.mark.parametrize("head", ["equal", "other"])
@pytest.mark.parametrize("source", ["dcp", "megatron"])
def test_a_head_beside_a_tie_is_written_where_the_reference_has_one_and_that_is_said(source, head, write, tmp_path):
    """Readers may take the embedding for it."""
    model, reference = write("model", head=head), write("reference", head="equal")
    job = {"source": str(SOURCES[source](model)), "target": str(tmp_path / "result"), "reference": str(reference)}
    report = outcome_here(**job, target_format="hf").report
    assert [note for note in report["notes"] if note.startswith("lm_head.weight: is written as the source has it")]
    found, given = (load_file(each / "model.safetensors") for each in (tmp_path / "result", model))
    assert described(found) == described(given)


def head_in(result: Path) -> Any:
    last = describe_result(result)["release/mp_rank_00_001/model_optim_rng.pt"]
    return last["model"][OUTPUT]


V4, V5 = {"transformers_version": "4.57.6"}, {"transformers_version": "5.24.0"}


@pytest.mark.parametrize(
    ("tie", "tied"),
    [
        ({**V5, "tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
        ({**V5, "tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, True),
        ({**V4, "tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
        ({**V4, "tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, False),
        ({**V4, "tie_word_embeddings": True}, True),
        ({**V5, "text_config": {"tie_word_embeddings": True}}, True),
        ({**V5}, False),
    ],
)
def test_the_flag_is_read_as_the_release_does_that_wrote_it(tie, tied, write, tmp_path):
    source = write("model", head="other", tie=tie)
    convert = {"source": str(source), "target": str(tmp_path / "mm"), **TWO_STAGES}
    if tied:
        with pytest.raises(InputError, match=r"to which config\.json ties it"):
            run_here(**convert)
    else:
        run_here(**convert)
        assert head_in(tmp_path / "mm") == described(load_file(source / "model.safetensors")[HEAD])


def test_the_golden_result_of_upstream_is_what_is_asked_for(tmp_path):
    case = load_case("qwen2vl__tied_with_head_pp2")
    source = write_source(tmp_path / "hf", case)
    asked = [each for each in overrides(case) if each != "tied_head=write"]
    with pytest.raises(InputError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        run_here(*asked, source=str(source), target=str(tmp_path / "mm"))
