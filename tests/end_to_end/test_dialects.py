"""Any model both ways, in the dialects of those who train it: what no golden case tells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from distconv import convert, inspect
from distconv.errors import InputError
from tests.checkpoints import describe_dcp, describe_result, load_case, overrides, read_dcp, write_source
from tests.here import run_here

HIDDEN, WIDTH, EXPERTS, VOCABULARY, LAYERS = 6, 5, 3, 11, 2
CONFIG = {
    "model_type": "minimax_m2",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_local_experts": EXPERTS,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def minimax() -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        module = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{module}.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            for part, shape in (("w1", (WIDTH, HIDDEN)), ("w3", (WIDTH, HIDDEN)), ("w2", (HIDDEN, WIDTH))):
                shapes[f"{module}.experts.{expert}.{part}.weight"] = shape
    torch.manual_seed(1)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def in_memory(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As transformers 5 has them, written out."""
    held = {name.replace("block_sparse_moe", "mlp"): each for name, each in tensors.items() if ".experts." not in name}
    for layer in range(LAYERS):
        module = f"model.layers.{layer}.block_sparse_moe.experts"
        experts = [[tensors[f"{module}.{e}.{part}.weight"] for part in ("w1", "w3", "w2")] for e in range(EXPERTS)]
        new = f"model.layers.{layer}.mlp.experts"
        held[f"{new}.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in experts])
        held[f"{new}.down_proj"] = torch.stack([down for _, _, down in experts])
    return held


def published(directory: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    directory.mkdir()
    save_file(minimax() if tensors is None else tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (directory / "tokenizer.json").write_text("{}")
    return directory


def bare(directory: Path, **config: Any) -> Path:
    """A reference that has its configuration alone."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return directory


def trained(directory: Path, tensors: dict[str, torch.Tensor], **beside: Any) -> Path:
    dcp.save({"model": tensors, **beside}, checkpoint_id=directory / "release", no_dist=True)
    (directory / "latest_checkpointed_iteration.txt").write_text("release")
    return directory


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def held(directory: Path) -> dict[str, torch.Tensor]:
    found = read_dcp(directory / "release")
    assert found.pop("checkpoint_version") == 3.0
    return {name.removeprefix("model."): each for name, each in found.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "app.model.", "_orig_mod.", "_fsdp_wrapped_module."])
@pytest.mark.parametrize("reference", ["whole", "bare"])
def test_a_trained_model_is_published_whatever_prefix_it_has(prefix, reference, tmp_path, distconv):
    followed = published(tmp_path / "hf") if reference == "whole" else bare(tmp_path / "bare")
    tensors = {prefix + name: each for name, each in in_memory(minimax()).items()}
    moments = {f"state.{name}.exp_avg": torch.zeros(2) for name in tensors}
    source = trained(tmp_path / "dcp", tensors, optimizer=moments)
    report = tmp_path / "report.json"
    outcome = distconv(
        f"source={source}", f"target={tmp_path / 'out'}", "target_format=hf", f"reference={followed}",
        f"report={report}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), minimax())
    shown = prefix if not prefix.startswith("_") else ""
    words = " ".join(outcome.out.split())
    assert f"found hf names with the prefix model.{shown}, dialect transformers5, experts [E, 2I, h]" in words
    assert f"not carried over: optimizer ({len(tensors)} entries)" in outcome.out
    names = json.loads(report.read_text())["source_names"]
    assert names == {
        "naming": "hf", "prefix": f"model.{shown}", "dialect": "transformers5", "experts": ["[E, 2I, h]"],
    }  # fmt: skip


def test_what_was_saved_packed_is_accepted_as_a_source_and_followed_as_a_reference(tmp_path):
    packed = published(tmp_path / "packed", in_memory(minimax()))
    for dialect, expected in (("published", in_memory(minimax())), ("transformers5", in_memory(minimax()))):
        target = tmp_path / dialect
        convert(source=packed, target=target, target_format="dcp", naming="hf", dialect=dialect)
        names = {name.replace(".mlp.", ".block_sparse_moe.") if dialect == "published" else name for name in expected}
        assert held(target).keys() == names
    single = trained(tmp_path / "single", minimax())
    convert(source=single, target=tmp_path / "out", target_format="hf", reference=packed)
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), in_memory(minimax()))


def test_from_dcp_to_dcp_with_a_reference_and_without(tmp_path, distconv):
    source = trained(tmp_path / "dcp", {f"module.{name}": each for name, each in minimax().items()})
    reference = published(tmp_path / "hf")
    arguments = [f"source={source}", "target_format=dcp", "naming=hf"]
    memory = [*arguments, f"target={tmp_path / 'memory'}", f"reference={reference}", "dialect=transformers5"]
    outcome = distconv(*memory)
    assert outcome.status == 0, outcome.err
    assert "hf names, dialect transformers5: " in " ".join(outcome.out.split())
    assert_same(held(tmp_path / "memory"), in_memory(minimax()))
    # It remembers whom to follow.
    assert distconv(f"source={tmp_path / 'memory'}", f"target={tmp_path / 'out'}", "target_format=hf").status == 0
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), minimax())

    outcome = distconv(*arguments, f"target={tmp_path / 'bare'}", "name_prefix=app.")
    assert outcome.status == 0, outcome.err
    assert_same(held(tmp_path / "bare"), {f"app.{name}": each for name, each in minimax().items()})
    assert json.loads((tmp_path / "bare" / "release" / "distconv.json").read_text())["reference"] is None


def test_where_nothing_tells_the_prefix_it_is_said_which_was_taken(tmp_path, distconv):
    tensors = {f"app.net.{name}": torch.ones(3) for name in ("conv.weight", "head.bias")}
    source = trained(tmp_path / "dcp", tensors)
    arguments = [f"source={source}", "target_format=hf", f"reference={bare(tmp_path / 'bare', model_type='net')}"]
    outcome = distconv(*arguments, f"target={tmp_path / 'out'}")
    assert outcome.status == 0, outcome.err
    assert "prefix model.app.net.: all names have it in common, and nothing else tells it" in " ".join(
        outcome.out.split()
    )
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == {"conv.weight", "head.bias"}
    assert distconv(*arguments, f"target={tmp_path / 'app'}", "name_prefix=model.app.").status == 0
    assert load_file(tmp_path / "app" / "model.safetensors").keys() == {"net.conv.weight", "net.head.bias"}


def test_megatron_names_are_not_published_as_they_are(tmp_path, distconv):
    convert(
        source=write_source(tmp_path / "hf", load_case("qwen2vl__tp1_pp1")), target=tmp_path / "mm", target_format="dcp"
    )
    (tmp_path / "mm" / "release" / "distconv.json").unlink()
    reference = bare(tmp_path / "bare", model_type="never_heard_of")
    outcome = distconv(
        f"source={tmp_path / 'mm'}", f"target={tmp_path / 'out'}", "target_format=hf", f"reference={reference}"
    )
    assert (outcome.status, outcome.out) == (2, "")
    assert "names of Megatron-side parameters, such as " in outcome.err
    assert "none is for model_type 'never_heard_of'; name one with +model=NAME" in outcome.err
    assert not (tmp_path / "out").exists()
    arguments = [f"source={tmp_path / 'mm'}", f"target={tmp_path / 'out'}", f"reference={tmp_path / 'hf'}"]
    outcome = distconv(*arguments, "target_format=hf", "source_dialect=transformers5")
    assert (outcome.status, outcome.out) == (2, "")
    assert "source_dialect=transformers5: " in outcome.err
    assert "has Megatron-side names" in outcome.err


def test_shards_have_the_size_that_is_asked_for(tmp_path, distconv):
    source = trained(tmp_path / "dcp", minimax())
    reference = published(tmp_path / "hf")
    arguments = [f"source={source}", f"target={tmp_path / 'out'}", "target_format=hf", f"reference={reference}"]
    outcome = distconv(*arguments, "shard_size=1KB")
    assert outcome.status == 0, outcome.err
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 1
    weight_map = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for path in files:
        tensors = load_file(path)
        assert sum(each.nbytes for each in tensors.values()) <= 1000
        assert {weight_map[name] for name in tensors} == {path.name}
        found |= tensors
    assert_same(found, minimax())
    assert distconv(*arguments, "shard_size=1KB", "action=verify").status == 0
    assert distconv(*arguments, "shard_size=none").status == 2


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("_orig_mod.", "modules that wrap others, _orig_mod, are in the names of 23 source tensors"),
        ("model._fsdp_wrapped_module.", "modules that wrap others, _fsdp_wrapped_module, are in the names of 23"),
        ("model.", "model. is in front of all names, which a wrapped model is saved with; save the model inside"),
        ("module.", "module. is in front of all names, which a wrapped model is saved with; save the model inside"),
        ("app.model.", "app.model. is in front of all names"),
    ],
)
def test_a_published_directory_with_names_of_training_is_refused(prefix, expected, tmp_path):
    tensors = {prefix + name: each for name, each in minimax().items()}
    source = published(tmp_path / "hf", tensors)
    with pytest.raises(InputError) as caught:
        run_here(source=str(source), target=str(tmp_path / "dcp"), target_format="dcp", naming="hf")
    assert expected in str(caught.value)
    assert not (tmp_path / "dcp").exists()


def test_a_prefix_of_a_model_that_nobody_knows_is_said(tmp_path):
    """It may be the name of its module."""
    tensors = {f"backbone.{name}": each for name, each in minimax().items()}
    source = published(tmp_path / "hf", tensors, model_type="unheard_of")
    report = convert(source, tmp_path / "dcp", target_format="dcp", naming="hf")
    assert any(note.startswith("backbone. is in front of all names") for note in report["notes"])
    assert_same(held(tmp_path / "dcp"), tensors)


def test_a_published_model_goes_into_other_shards(tmp_path, distconv):
    source = published(tmp_path / "hf")
    arguments = [f"source={source}", f"target={tmp_path / 'out'}", "target_format=hf", "shard_size=1KB"]
    outcome = distconv(*arguments)
    assert outcome.status == 0, outcome.err
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert_same({name: each for path in files for name, each in load_file(path).items()}, minimax())
    assert distconv(*arguments, "action=verify").status == 0


@pytest.mark.parametrize("tie", [True, None])
def test_a_tied_head_is_compared_before_it_is_left_out(tie, tmp_path, distconv):
    tensors = minimax()
    del tensors["lm_head.weight"]
    config = {} if tie is None else {"tie_word_embeddings": tie}
    reference = published(tmp_path / "hf", tensors, tie_word_embeddings=tie)
    if tie is None:
        config = json.loads((reference / "config.json").read_text())
        del config["tie_word_embeddings"]
        (reference / "config.json").write_text(json.dumps(config))
    embedding = tensors["model.embed_tokens.weight"]
    for name, head, status in (("equal", embedding.clone(), 0), ("other", embedding + 1, 2)):
        source = trained(tmp_path / name, {**tensors, "lm_head.weight": head})
        target = tmp_path / f"of-{name}"
        outcome = distconv(f"source={source}", f"target={target}", "target_format=hf", f"reference={reference}")
        assert outcome.status == status, outcome.err
        assert target.exists() == (status == 0)
    assert "they must be one" in outcome.err


def test_a_dialect_that_holds_the_tied_head_gets_it(tmp_path):
    tensors = minimax()
    del tensors["lm_head.weight"]
    source = published(tmp_path / "hf", tensors, tie_word_embeddings=True)
    for dialect, there in (("published", False), ("transformers5", True)):
        convert(source=source, target=tmp_path / dialect, target_format="dcp", naming="hf", dialect=dialect)
        assert ("lm_head.weight" in held(tmp_path / dialect)) == there
    # A model that is not said to be tied may be one without a head.
    config = json.loads((source / "config.json").read_text())
    del config["tie_word_embeddings"]
    (source / "config.json").write_text(json.dumps(config))
    for name, given in (("untold", source), ("followed", tmp_path / "published")):
        convert(source=given, target=tmp_path / name, target_format="dcp", naming="hf", dialect="transformers5")
        assert "lm_head.weight" not in held(tmp_path / name)


ERRORS = {
    "no dialect": (["dialect=transformers4"], "dialect=transformers4: no such dialect; the nearest is transformers5"),
    "not of this family": (
        ["dialect=mm_fsdp2"],
        "how the experts of model_type 'minimax_m2' are held; transformers5 does",
    ),
    "a source that is no dcp": (
        ["source_dialect=transformers5"],
        "source_dialect: goes with a Megatron, torch_dist or DCP source",
    ),
    "a dialect of parameters": (["dialect=mcore_te"], "dialect=mcore_te: no such dialect; known: published, "),
    "a size of shards": (["shard_size=5GB"], "shard_size: goes with target_format=hf"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_options_that_cannot_be_meant_are_refused(error, tmp_path, distconv):
    options, says = ERRORS[error]
    source = published(tmp_path / "hf")
    outcome = distconv(f"source={source}", f"target={tmp_path / 'out'}", "target_format=dcp", "naming=hf", *options)
    assert (outcome.status, outcome.out) == (2, "")
    assert says in outcome.err
    assert not (tmp_path / "out").exists()


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: each for key, each in in_memory(minimax()).items() if key != name}


DAMAGE = {
    "a tensor of the experts": (without("model.layers.1.mlp.experts.down_proj"), "layer 1 are not complete"),
    "a further tensor": ({**in_memory(minimax()), "model.extra.weight": torch.ones(2)}, "does not name 1 tensor"),
    "a missing one": (without("model.norm.weight"), "names 1 tensor that the source does not have"),
    "another vocabulary": (
        {**in_memory(minimax()), "model.embed_tokens.weight": torch.ones(12, HIDDEN)},
        "model.embed_tokens.weight",
    ),
    "other experts": (
        {**in_memory(minimax()), "model.layers.0.mlp.experts.gate_up_proj": torch.ones(EXPERTS, HIDDEN, 2 * WIDTH)},
        "in no known layout of these sizes",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reference", ["whole", "bare"])
def test_nothing_is_published_that_the_reference_or_its_configuration_contradicts(damage, reference, tmp_path):
    tensors, says = DAMAGE[damage]
    if reference == "bare" and damage in ("a further tensor", "a missing one"):
        pytest.skip("a configuration does not name tensors")
    followed = published(tmp_path / "hf") if reference == "whole" else bare(tmp_path / "bare")
    source = trained(tmp_path / "dcp", tensors)
    with pytest.raises(InputError, match=says):
        run_here(source=str(source), target=str(tmp_path / "out"), target_format="hf", reference=str(followed))
    assert not (tmp_path / "out").exists()


def test_a_source_dialect_is_checked(tmp_path):
    source = trained(tmp_path / "dcp", in_memory(minimax()))
    reference = published(tmp_path / "hf")
    options = {"source": str(source), "target_format": "hf", "reference": str(reference)}
    run_here(**options, target=str(tmp_path / "out"), source_dialect="transformers5")
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), minimax())
    says = "source_dialect=published: then 3 of the names .* but 9 with the names of transformers5; leave"
    with pytest.raises(InputError, match=says):
        run_here(**options, target=str(tmp_path / "other"), source_dialect="published")
    # Where the reference names nothing, whoever gives a dialect knows better.
    options["reference"] = str(bare(tmp_path / "bare", model_type="never_heard_of"))
    run_here(**options, target=str(tmp_path / "as-named"), source_dialect="published")
    assert load_file(tmp_path / "as-named" / "model.safetensors").keys() == in_memory(minimax()).keys()


def test_inspection_says_dialect_and_prefix(tmp_path, distconv):
    source = trained(tmp_path / "dcp", {f"model.{name}": each for name, each in in_memory(minimax()).items()})
    reference = published(tmp_path / "hf")
    found = inspect(source, reference=reference)
    assert found["problems"] == []
    assert found["source_names"]["dialect"] == "transformers5"
    assert found["parameters"] == sum(each.numel() for each in minimax().values())
    outcome = distconv("action=inspect", f"source={source}", f"reference={reference}")
    words = " ".join(outcome.out.split())
    assert "hf names with the prefix model.model., dialect transformers5, experts [E, 2I, h]" in words
    outcome = distconv("action=inspect", f"source={published(tmp_path / 'packed', in_memory(minimax()))}")
    assert "published names, dialect transformers5, experts [E, 2I, h]" in " ".join(outcome.out.split())


MIXTURE = load_case("qwen3vl_moe__fsdp_dcp")


def saved_by_transformers_5(directory: Path, *, single: bool) -> Path:
    """The model of the golden case as release 5 saves it: packed experts as linear weights, or one tensor each."""
    source = write_source(directory, MIXTURE, single_file=True)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module, _, part = name.rpartition(".")
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensor
        elif not single:
            tensors[name] = tensor.transpose(1, 2).contiguous()
        else:
            for expert, weight in enumerate(tensor.transpose(1, 2)):
                halves = weight.chunk(2) if part == "gate_up_proj" else [weight]
                names = ["gate_proj", "up_proj"] if part == "gate_up_proj" else [part]
                tensors |= {
                    f"{module}.{expert}.{each}.weight": half.contiguous()
                    for each, half in zip(names, halves, strict=True)
                }
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return source


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("wrapped", [["dialect=mm_wrapped"], ["name_prefix=model.", "packed_experts=flatten"]])
def test_whichever_release_saved_a_source_it_is_wrapped_alike(single, wrapped, tmp_path, distconv):
    if single and "dialect" not in wrapped[0]:
        pytest.skip("as published, experts of one tensor each stay so")
    source = saved_by_transformers_5(tmp_path / "hf", single=single)
    arguments = [f"source={source}", f"target={tmp_path / 'dcp'}", "target_format=dcp", "naming=hf", *wrapped]
    outcome = distconv(*arguments)
    assert outcome.status == 0, outcome.err
    assert describe_dcp(tmp_path / "dcp" / "release") == MIXTURE["dcp"]
    back = distconv(f"source={tmp_path / 'dcp'}", f"target={tmp_path / 'out'}", "target_format=hf")
    assert back.status == 0, back.err
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(source / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(each.view(torch.uint8), expected[name].view(torch.uint8)) for name, each in found.items())


@pytest.mark.parametrize("through", ["hf", "dcp"])
@pytest.mark.parametrize("single", [False, True])
def test_whichever_release_saved_a_source_its_parameters_are_the_same(single, through, tmp_path, distconv):
    case = load_case("qwen3vl_moe__ep2")
    source = saved_by_transformers_5(tmp_path / "hf", single=single)
    if through == "dcp":
        convert(source=source, target=tmp_path / "dcp", target_format="dcp", naming="hf", dialect="transformers5")
        source = tmp_path / "dcp"
    outcome = distconv(*overrides(case), f"source={source}", f"target={tmp_path / 'mm'}")
    assert outcome.status == 0, outcome.err
    assert describe_result(tmp_path / "mm") == case["files"]
    # From there into any dialect, as from what is published.
    arguments = [f"source={tmp_path / 'mm'}", f"target={tmp_path / 'of-mm'}", "target_format=dcp", "naming=hf"]
    outcome = distconv(*arguments, "dialect=mm_wrapped")
    assert outcome.status == 0, outcome.err
    assert describe_dcp(tmp_path / "of-mm" / "release") == MIXTURE["dcp"]


@pytest.mark.parametrize("case", ["qwen2vl__tied_pp1", "qwen2_5vl__tp1_pp1", "qwen2_5omni__tp1_pp1"])
def test_a_model_that_has_a_definition_is_held_as_in_memory_and_comes_back(case, tmp_path, distconv):
    source = write_source(tmp_path / "hf", load_case(case))
    arguments = [f"source={source}", f"target={tmp_path / 'dcp'}", "target_format=dcp", "naming=hf"]
    assert distconv(*arguments, "dialect=transformers5").status == 0
    found = held(tmp_path / "dcp")
    outer = "thinker." if "omni" in case else ""
    assert {f"{outer}model.language_model.norm.weight", f"{outer}lm_head.weight"} <= found.keys()
    assert any(name.startswith(f"{outer}model.visual.") for name in found)
    assert not any(name.startswith((f"{outer}visual.", f"{outer}model.layers.")) for name in found)
    outcome = distconv(f"source={tmp_path / 'dcp'}", f"target={tmp_path / 'out'}", "target_format=hf")
    assert outcome.status == 0, outcome.err
    assert "dialect transformers5" in " ".join(outcome.out.split())
    written = {path.name: load_file(path) for path in (tmp_path / "out").glob("*.safetensors")}
    assert written.keys() == {path.name for path in source.glob("*.safetensors")}
    for name, tensors in written.items():
        expected = load_file(source / name)
        assert tensors.keys() == expected.keys()
        assert all(
            torch.equal(each.view(torch.uint8), expected[key].view(torch.uint8)) for key, each in tensors.items()
        )


def test_two_dialects_that_differ_in_their_prefix_are_told_apart(tmp_path):
    omni = {
        "thinker.model.embed_tokens.weight": torch.ones(VOCABULARY, HIDDEN),
        "thinker.model.layers.0.w": torch.ones(2),
        "talker.w": torch.ones(2),
    }
    text = {"hidden_size": HIDDEN, "num_hidden_layers": 1, "vocab_size": VOCABULARY, "num_experts": EXPERTS}
    config = {"model_type": "qwen3_omni_moe", "thinker_config": {"text_config": {**text, "moe_intermediate_size": 4}}}
    for expert in range(EXPERTS):
        module = f"thinker.model.layers.0.mlp.experts.{expert}"
        for part, shape in (("gate", (4, HIDDEN)), ("up", (4, HIDDEN)), ("down", (HIDDEN, 4))):
            omni[f"{module}.{part}_proj.weight"] = torch.randn(shape)
    source = published(tmp_path / "hf", omni, **config)
    for dialect, prefix in (("mm_fsdp2", ""), ("mm_wrapped", "model."), ("transformers5", "thinker.")):
        target = tmp_path / dialect
        convert(source=source, target=target, target_format="dcp", naming="hf", dialect=dialect)
        assert f"{prefix}model.{'language_model.' if prefix == 'thinker.' else ''}layers.0.w" in held(target)
        assert "talker.w" in {name.removeprefix("model.") for name in held(target)}
        assert inspect(target)["source_names"]["dialect"] == dialect
        convert(source=target, target=tmp_path / f"of-{dialect}", target_format="hf")
        assert_same(load_file(tmp_path / f"of-{dialect}" / "model.safetensors"), omni)
    # Of the thinker alone, what else there is comes from the reference.
    thinker = tmp_path / "thinker"
    report = convert(source=source, target=thinker, target_format="dcp", naming="hf", dialect="transformers5_thinker")
    assert {"model.language_model.layers.0.w", "model.language_model.layers.0.mlp.experts.down_proj"} < held(
        thinker
    ).keys()
    assert [(each["name"], each["reason"]) for each in report["not_converted"]] == [
        ("talker.w", "the thinker alone is trained")
    ]
    assert inspect(thinker)["source_names"]["dialect"] == "transformers5_thinker"
    with pytest.raises(InputError, match="names 1 tensor that the source does not have"):
        convert(source=thinker, target=tmp_path / "whole", target_format="hf")
    convert(source=thinker, target=tmp_path / "whole", target_format="hf", fill_from_reference=True)
    assert_same(load_file(tmp_path / "whole" / "model.safetensors"), omni)


MINE = """
words: as my trainer holds them
prefix: net.
families:
  - model_types: [minimax_m2]
    names:
      - ["model.layers.{layer}.block_sparse_moe.", "blocks.{layer}.moe."]
      - ["model.", "trunk."]
    experts: {transposed: true, joined: false, flattened: true}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own" / "dialect").mkdir(parents=True)
    (tmp_path / "own" / "dialect" / "mine.yaml").write_text(MINE)
    return tmp_path / "own"


def test_a_dialect_of_ones_own(own, tmp_path, distconv):
    source = published(tmp_path / "hf")
    arguments = ["--config-dir", own, f"source={source}", "target_format=dcp", "naming=hf"]
    outcome = distconv(*arguments, f"target={tmp_path / 'dcp'}", "dialect=mine")
    assert outcome.status == 0, outcome.err
    found = held(tmp_path / "dcp")
    gate = torch.cat([minimax()[f"model.layers.1.block_sparse_moe.experts.{e}.w1.weight"].T for e in range(EXPERTS)])
    assert torch.equal(found["net.blocks.1.moe.experts.gate_proj"], gate)
    assert {"net.trunk.norm.weight", "net.lm_head.weight", "net.blocks.0.moe.gate.weight"} < found.keys()
    back = distconv("--config-dir", own, f"source={tmp_path / 'dcp'}", f"target={tmp_path / 'out'}", "target_format=hf")
    assert back.status == 0, back.err
    assert "dialect mine, experts [E*h, I]" in " ".join(back.out.split())
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), minimax())


def test_several_dialects_in_one_command_line(tmp_path, distconv):
    source = published(tmp_path / "hf")
    target = f"target={tmp_path}/of-${{dialect.name}}"
    options = (f"source={source}", "target_format=dcp", "naming=hf", "dialect=published,transformers5")
    outcome = distconv("--multirun", *options, target)
    assert outcome.status == 0, outcome.err
    assert_same(held(tmp_path / "of-published"), minimax())
    assert_same(held(tmp_path / "of-transformers5"), in_memory(minimax()))


def test_a_mixture_that_no_dialect_knows_keeps_its_names(tmp_path):
    source = published(tmp_path / "hf", model_type="never_heard_of")
    convert(source=source, target=tmp_path / "dcp", target_format="dcp", naming="hf")
    assert_same(held(tmp_path / "dcp"), minimax())
    with pytest.raises(InputError, match="no dialect does; a dialect of yours can"):
        convert(source=source, target=tmp_path / "other", target_format="dcp", naming="hf", dialect="transformers5")
    shutil.rmtree(tmp_path / "dcp")
