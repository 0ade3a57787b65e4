"""Sources of one parameter whose rows config.json does not tell: right from a reference that has them, or refused.

The definition is an author's own: a layer is one parameter, made of two tensors of unequal rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.checkpoints import hashes, hashes_but_record, tensor_bytes

HIDDEN, LONG, SHORT = 6, 8, 4
A, B = "model.layers.{}.a.weight", "model.layers.{}.b.weight"
SHAPES = {
    A.format(0): [LONG, HIDDEN],
    B.format(0): [SHORT, HIDDEN],
    A.format(1): [SHORT, HIDDEN],
    B.format(1): [LONG, HIDDEN],
}
SHARDS = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(SHAPES)}
INDEX = "model.safetensors.index.json"
DEFINITION = """
sizes: {{hidden: [hidden_size], layers: [num_hidden_layers]}}
modalities: {{text: {{layers: layers}}}}
rules:
  text:
    layers:
      - target: "layers.{{layer}}.fused.weight"
        sources: [["model.layers.{{layer}}.a.weight", any, hidden], ["model.layers.{{layer}}.b.weight", any, hidden]]
        operator: concat
        tp: {cut}
"""
MINE = ("--config-dir", "my_models", "+model=mine")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("hf"))
    write_checkpoint(Path("other"), {**SHAPES, A.format(1): [SHORT + 2, HIDDEN]})
    for name, copied in (("config_alone", ()), ("names_alone", (INDEX,))):
        Path(name).mkdir()
        for file in ("config.json", *copied):
            Path(name, file).write_bytes(Path("hf", file).read_bytes())
    write_definition("rows")


def write_definition(cut: str) -> None:
    path = Path("my_models/model/mine.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(DEFINITION.format(cut=cut))


def write_checkpoint(directory: Path, shapes: dict[str, list[int]] | None = None) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"hidden_size": HIDDEN, "num_hidden_layers": 2}))
    for shard in sorted(set(SHARDS.values())):
        tensors = {
            name: np.frombuffer(tensor_bytes(name, "float32", shape), np.float32).reshape(shape)
            for name, shape in (shapes or SHAPES).items()
            if SHARDS[name] == shard
        }
        save_file(tensors, directory / shard, {"format": "pt"})
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 576}, "weight_map": SHARDS}))


def trained(kind: str, distconv) -> str:
    """What training has: Megatron ranks, or a DCP of whole parameters."""
    jobs = {
        "ranks": ["source=hf", "target=mm", "layout.tp=2", "layout.pp=2"],
        "dcp": ["source=hf", "target=dcp", "target_format=dcp"],
    }
    outcome = distconv(*MINE, *jobs[kind])
    assert outcome.status == 0, outcome.err
    return "mm" if kind == "ranks" else "dcp"


@pytest.mark.parametrize("kind", ["ranks", "dcp"])
def test_a_reference_with_weights_tells_the_rows(kind, distconv):
    back = [*MINE, f"source={trained(kind, distconv)}", "reference=hf", "target=back", "target_format=hf"]
    outcome = distconv(*back)
    assert outcome.status == 0, outcome.err
    assert hashes_but_record(Path("back")) == hashes(Path("hf"))
    outcome = distconv(*back, "action=verify")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("kind", ["ranks", "dcp"])
@pytest.mark.parametrize("reference", ["config_alone", "names_alone"])
def test_rows_that_nothing_tells_are_never_shared(kind, reference, distconv):
    source = trained(kind, distconv)
    before = hashes(Path())
    for action in ("convert", "plan", "verify"):
        outcome = distconv(
            *MINE,
            f"source={source}",
            f"reference={reference}",
            "target=hf_again",
            "target_format=hf",
            f"action={action}",
        )
        assert outcome.status == 2, outcome
        for fragment in (
            "layers.{layer}.fused.weight",
            f"made of {A} and {B}".replace("{}", "{layer}"),
            "rule text.layers",
            f"shape [{LONG + SHORT}, {HIDDEN}] does not tell how many rows are of which",
            "give a reference with their weights",
        ):
            assert fragment in outcome.err
    assert hashes(Path()) == before


def test_a_verification_does_not_share_what_the_conversion_did_not(distconv):
    """A result that is right is not found different because the rows are not known any more."""
    back = [*MINE, f"source={trained('ranks', distconv)}", "target=back", "target_format=hf"]
    assert distconv(*back, "reference=hf").status == 0
    outcome = distconv(*back, "reference=config_alone", "action=verify")
    assert outcome.status == 2
    assert "does not tell how many rows are of which" in outcome.err


def test_a_reference_that_contradicts_is_refused(distconv):
    outcome = distconv(
        *MINE, f"source={trained('ranks', distconv)}", "reference=other", "target=back", "target_format=hf"
    )
    assert outcome.status == 2
    assert f"sources of {SHORT + 2} + {LONG} rows do not make {LONG + SHORT} rows" in outcome.err
    assert "is this the reference of the model?" in outcome.err
    assert not Path("back").exists()


def test_another_layout_needs_the_rows_too_and_keeps_them(distconv):
    source = trained("ranks", distconv)
    resplit = [*MINE, f"source={source}", "target=other_mm", "layout.tp=4", "layout.pp=1"]
    assert distconv(*resplit, "reference=config_alone").status == 2
    assert distconv(*resplit, "reference=hf").status == 0
    outcome = distconv(*MINE, "source=other_mm", "reference=hf", "target=back", "target_format=hf")
    assert outcome.status == 0, outcome.err
    assert hashes_but_record(Path("back")) == hashes(Path("hf"))


def test_a_cut_into_gate_and_up_is_refused_for_sources_that_are_no_halves(distconv):
    write_definition("glu")
    outcome = distconv(*MINE, "source=hf", "target=mm")
    assert outcome.status == 2
    for fragment in ("layers.{layer}.fused.weight (rule text.layers)", "tp rule glu", f"{LONG} and {SHORT} rows"):
        assert fragment in outcome.err
    assert not Path("mm").exists()


def test_a_cut_into_gate_and_up_says_that_they_are_halves(distconv):
    write_definition("glu")
    write_checkpoint(Path("halves"), {name: [SHORT, HIDDEN] for name in SHAPES})
    assert distconv(*MINE, "source=halves", "target=mm", "layout.tp=2").status == 0
    outcome = distconv(*MINE, "source=mm", "reference=names_alone", "target=back", "target_format=hf")
    assert outcome.status == 0, outcome.err
    found, expected = hashes(Path("back")), hashes(Path("halves"))
    assert {shard: found[shard] for shard in SHARDS.values()} == {shard: expected[shard] for shard in SHARDS.values()}
