"""LoRA on the way back: adapters as PEFT has them, from the base model alone, and merged into the base."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from distconv.errors import InputError
from distconv.models.adapter_config import AdapterConfig
from distconv.tensors.values import as_bytes, numbers
from tests.checkpoints import hashes, load_case, overrides, write_source
from tests.here import run_here
from tests.quantised import written

ALPHA = 24


@pytest.fixture
def trained(tmp_path) -> Path:
    """Adapters of Qwen2.5-VL in Megatron ranks, which remember nothing."""
    case = load_case("qwen2_5vl__lora_oldnames_pp2")
    run_here(
        *overrides(case), "layout.tp=2", source=str(write_source(tmp_path / "peft", case)), target=str(tmp_path / "mm")
    )
    (tmp_path / "mm" / "release" / "distconv.json").unlink()
    return tmp_path / "mm"


@pytest.fixture
def with_merger(tmp_path) -> Path:
    """Adapters as PEFT saves them, on a module too that the training side does not know."""
    case = load_case("qwen2_5vl__lora_pp1")
    shard = next(iter(case["source_tensors"].values()))[2]
    case["hf_config"]["target_modules"].append("mlp.0")
    for factor, shape in (("A", [4, 128]), ("B", [128, 4])):
        name = f"base_model.model.model.visual.merger.mlp.0.lora_{factor}.weight"
        case["source_tensors"][name] = ["bfloat16", shape, shard]
    return write_source(tmp_path / "peft", case)


@pytest.fixture
def base(tmp_path) -> Path:
    """The model that they are for."""
    return write_source(tmp_path / "base", load_case("qwen2_5vl__canonical_pp1"))


def back(trained: Path, base: Path, target: Path, *options: str) -> None:
    run_here(
        "+model=qwen2_5vl_lora", "target_format=hf", *options,
        source=str(trained), reference=str(base), target=str(target),
    )  # fmt: skip


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ("visual.merger.*", {"image_encoder", "text_decoder"}),
        ("base_model.model.model.visual.merger.*", {"image_encoder", "text_decoder"}),
        ("visual.*", {"text_decoder"}),
    ],
)
def test_an_adapter_is_left_out_by_either_spelling_of_its_name(names, kept, with_merger, tmp_path, distconv):
    job = ["+model=qwen2_5vl_lora", f"source={with_merger}", f"target={tmp_path / 'mm'}"]
    assert "2 source tensors that no rule" in distconv(*job).err

    selected = ["select=[text]"] if kept == {"text_decoder"} else []
    outcome = distconv(*job, *selected, f'model.ignore=[{{names: "{names}", reason: not trained}}]')

    assert outcome.status == 0, outcome.err
    saved = torch.load(next((tmp_path / "mm").rglob("*.pt")), weights_only=True)
    assert {name.partition(".")[0] for name in saved["model"]} == kept


def test_adapters_go_back_to_peft_without_an_example(trained, base, tmp_path):
    back(trained, base, tmp_path / "back", f"lora_alpha={ALPHA}")

    assert {path.name for path in (tmp_path / "back").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "distconv.json"
    }  # fmt: skip
    expected = weights(tmp_path / "peft")
    found = weights(tmp_path / "back")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert name.startswith("base_model.model.")
        assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8))
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    published = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (published["r"], ALPHA, "LORA")
    run_here(
        "+model=qwen2_5vl_lora", source=str(tmp_path / "back"), target=str(tmp_path / "again"), layout__tp=1
    )  # fmt: skip


def test_adapters_are_merged_into_their_base_in_float32_and_cast_once(trained, base, tmp_path):
    options = (f"lora_alpha={ALPHA}", "merge_lora=true")
    back(trained, base, tmp_path / "merged", *options)

    before, merged, adapters = weights(base), weights(tmp_path / "merged"), weights(tmp_path / "peft")
    assert merged.keys() == before.keys()
    modules = {name.removesuffix(".lora_A.weight") for name in adapters if name.endswith(".lora_A.weight")}
    touched = set()
    for module in modules:
        name = module.removeprefix("base_model.model.") + ".weight"
        a, b = (adapters[f"{module}.lora_{factor}.weight"].float() for factor in "AB")
        expected = before[name].float() + ALPHA / len(a) * (b @ a)
        touched.add(name)
        assert merged[name].dtype == before[name].dtype
        torch.testing.assert_close(merged[name], expected.to(before[name].dtype), rtol=1e-2, atol=0, equal_nan=True)
    for name in before.keys() - touched:
        assert torch.equal(merged[name].view(torch.uint8), before[name].view(torch.uint8))
    assert touched
    assert (tmp_path / "merged" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    back(trained, base, tmp_path / "merged", *options, "action=verify")


def test_adapters_are_merged_into_what_a_quantised_base_stands_for(trained, tmp_path):
    """In float32, from which one rounding goes to the type that is asked for."""
    quantised, plain = written(load_case("qwen2_5vl__canonical_pp1"), "fp8", tmp_path / "fp8")
    options = (f"lora_alpha={ALPHA}", "merge_lora=true")
    with pytest.raises(InputError, match=r"dtype=keep: .* quantised, and the result is not"):
        back(trained, quantised, tmp_path / "merged", *options)
    back(trained, quantised, tmp_path / "merged", *options, "dtype=bfloat16")

    before, merged, adapters = weights(plain), weights(tmp_path / "merged"), weights(tmp_path / "peft")
    pieces = weights(quantised)
    assert merged.keys() == before.keys()
    touched = {
        name.removeprefix("base_model.model.").replace(".lora_A.", ".") for name in adapters if ".lora_A." in name
    }
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        if name not in touched:
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
            continue
        a, b = (
            adapters[f"base_model.model.{name.removesuffix('weight')}lora_{factor}.weight"].float() for factor in "AB"
        )
        exact = pieces[name].float()
        if (scales := pieces.get(f"{name}_scale_inv")) is not None:
            rows, columns = tensor.shape
            exact *= scales.repeat_interleave(5, 0).repeat_interleave(3, 1)[:rows, :columns]
        expected = exact + ALPHA / len(a) * (b @ a)
        torch.testing.assert_close(tensor, expected.to(torch.bfloat16), rtol=1e-2, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "reference"])
def test_a_merge_into_another_type_is_rounded_once_to_that(dtype, trained, base, tmp_path):
    """Adapters are cast, too, but not before they have been multiplied."""
    options = (f"lora_alpha={ALPHA}", "merge_lora=true")
    back(trained, base, tmp_path / "plain", *options)
    back(trained, base, tmp_path / "cast", *options, f"dtype={dtype}", "dtype_overflow=allow")

    plain, cast, before = weights(tmp_path / "plain"), weights(tmp_path / "cast"), weights(base)
    assert cast.keys() == plain.keys()
    touched = 0
    for name, tensor in cast.items():
        assert tensor.dtype == (before[name].dtype if dtype == "reference" else getattr(torch, dtype))
        merged = not torch.equal(plain[name].view(torch.uint8), before[name].view(torch.uint8))
        touched += merged
        if dtype == "float32" and merged:
            # Of more places than what was rounded to bfloat16, and the same after that.
            assert not torch.equal(tensor.bfloat16().float().nan_to_num(), tensor.nan_to_num())
        if dtype == "float32":
            torch.testing.assert_close(tensor.bfloat16(), plain[name], rtol=0, atol=0, equal_nan=True)
    assert touched
    back(trained, base, tmp_path / "cast", *options, f"dtype={dtype}", "dtype_overflow=allow", "action=verify")
    back(trained, base, tmp_path / "adapters", options[0], "dtype=float32")
    assert {each.dtype for each in weights(tmp_path / "adapters").values()} == {torch.float32}


@pytest.fixture
def in_memory(trained, base, tmp_path) -> dict[str, torch.Tensor]:
    """The adapters under the names that they have in the memory of a training with FSDP2, and the adapted base."""
    del trained
    factors = weights(tmp_path / "peft")
    modules = {name.partition(".lora_")[0] for name in factors}
    state = {re.sub(r"\.lora_([AB])\.", r".lora_\1.default.", name): tensor for name, tensor in factors.items()}
    for name, tensor in weights(base).items():
        module, _, kind = f"base_model.model.{name}".rpartition(".")
        state[f"{module}.base_layer.{kind}" if module in modules else f"{module}.{kind}"] = tensor
    return state


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("reference", ["peft", "base"])
def test_adapters_of_a_dcp_are_known_by_their_names_in_memory(in_memory, tmp_path, prefix, reference):
    factors = {prefix + name: tensor for name, tensor in in_memory.items() if ".lora_" in name}
    save(factors, tmp_path / "dcp")
    options = () if reference == "peft" else (f"lora_alpha={ALPHA}",)
    back(tmp_path / "dcp", tmp_path / reference, tmp_path / "back", *options)
    expected, found = weights(tmp_path / "peft"), weights(tmp_path / "back")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8))


@pytest.mark.parametrize("options", [(), ("merge_lora=true",)])
def test_what_is_saved_beside_adapters_and_not_converted_is_listed(in_memory, base, tmp_path, options):
    save(in_memory, tmp_path / "dcp")
    report = tmp_path / "report.json"
    back(tmp_path / "dcp", base, tmp_path / "back", f"lora_alpha={ALPHA}", f"report={report}", *options)
    unconverted = json.loads(report.read_text())["not_converted"]
    assert {each["name"] for each in unconverted} == {name for name in in_memory if ".lora_" not in name}
    assert {each["reason"] for each in unconverted} == {"no adapter: +model=qwen2_5vl_lora converts adapters alone"}


def save(state: dict[str, torch.Tensor], directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(directory), no_dist=True)


def configured(directory: Path, **settings: object) -> dict[str, object]:
    """An adapter's configuration with other settings."""
    path = directory / "adapter_config.json"
    content = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps(content))
    return content


# Settings that change the scaling, and what PEFT makes of them for a module and its rank.
SCALINGS = [
    ({}, lambda _, rank: 16 / rank),
    ({"use_rslora": True}, lambda _, rank: 16 / math.sqrt(rank)),
    (
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 64, "^model.layers.0..*": 2}},
        lambda module, rank: (
            (64 if module.endswith("layers.1.self_attn.q_proj") else 2 if module.startswith("model.layers.0") else 16)
            / rank
        ),
    ),
]


@pytest.fixture
def adapter(tmp_path) -> Path:
    """Adapters of ranks that differ by module, with an alpha of 16."""
    source = write_source(tmp_path / "peft", load_case("qwen2_5vl__lora_oldnames_pp2"))
    found = weights(source)
    for name, tensor in found.items():
        if "down_proj.lora_A" in name:
            found[name] = torch.cat([tensor, tensor[:1]])
        elif "down_proj.lora_B" in name:
            found[name] = torch.cat([tensor, tensor[:, 1:2]], dim=1).contiguous()
    save_file(found, source / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = configured(source)["r"]
    configured(source, lora_alpha=16, rank_pattern={"down_proj": rank + 1})
    return source


@pytest.mark.parametrize(("settings", "scaling"), SCALINGS)
@pytest.mark.parametrize("through", ["megatron", "dcp"])
def test_adapters_keep_their_scaling(adapter, base, tmp_path, settings, scaling, through):
    """Whatever has no configuration remembers it: merged, and written back, as PEFT would have it."""
    configured(adapter, **settings)
    for source, target in ((adapter, "mm"), (tmp_path / "mm", "again")):
        run_here("+model=qwen2_5vl_lora", source=str(source), target=str(tmp_path / target), target_format=through)

    back(tmp_path / "again", base, tmp_path / "merged", "merge_lora=true")
    before, merged, factors = weights(base), weights(tmp_path / "merged"), weights(adapter)
    modules = {name.removesuffix(".lora_A.weight") for name in factors if name.endswith(".lora_A.weight")}
    for module in modules:
        a, b = (factors[f"{module}.lora_{factor}.weight"].float() for factor in "AB")
        plain = module.removeprefix("base_model.model.")
        expected = before[f"{plain}.weight"].float() + b @ a * scaling(plain, len(a))
        found = merged[f"{plain}.weight"]
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=0, equal_nan=True)

    back(tmp_path / "again", base, tmp_path / "back")
    given = {name: tensor.view(torch.uint8) for name, tensor in factors.items()}
    assert {name: tensor.view(torch.uint8).tolist() for name, tensor in weights(tmp_path / "back").items()} == {
        name: tensor.tolist() for name, tensor in given.items()
    }
    config = AdapterConfig.parse(json.loads((tmp_path / "back" / "adapter_config.json").read_text()), "back")
    assert config.contradictions({name: tensor.shape for name, tensor in factors.items()}, ()) == []
    names = {module: module.removeprefix("base_model.model.") for module in modules}
    found_scaling = config.scaling(names)
    for module, plain in names.items():
        rank = len(factors[f"{module}.lora_A.weight"])
        assert found_scaling.of(module, rank) == scaling(plain, rank)


def test_an_alpha_that_contradicts_what_is_remembered_is_refused(adapter, base, tmp_path):
    run_here("+model=qwen2_5vl_lora", source=str(adapter), target=str(tmp_path / "mm"))
    with pytest.raises(InputError, match=r"lora_alpha=8: .*/mm/release/distconv\.json says 16; leave it out"):
        back(tmp_path / "mm", base, tmp_path / "merged", "merge_lora=true", "lora_alpha=8")
    assert not (tmp_path / "merged").exists()


def test_a_reference_that_scales_otherwise_than_the_source_is_refused(adapter, tmp_path):
    run_here("+model=qwen2_5vl_lora", source=str(adapter), target=str(tmp_path / "mm"))
    back(tmp_path / "mm", adapter, tmp_path / "back")
    configured(adapter, use_rslora=True)
    with pytest.raises(InputError, match=r"adapter_config\.json: scales adapters otherwise .* by .*distconv\.json"):
        back(tmp_path / "mm", adapter, tmp_path / "again")


@pytest.mark.parametrize("target_format", ["megatron", "dcp", "dcp naming=megatron"])
def test_settings_that_cannot_be_converted_are_refused_all_at_once(adapter, tmp_path, distconv, target_format):
    configured(adapter, use_dora=True, modules_to_save=["lm_head"], use_shira=1)
    outcome = distconv(
        "+model=qwen2_5vl_lora", f"source={adapter}", f"target={tmp_path / 'mm'}",
        *f"target_format={target_format}".split(),
    )  # fmt: skip
    assert outcome.status == 2
    assert [line.split("adapter_config.json: ")[1].split(" is ")[0] for line in outcome.err.splitlines()] == [
        "use_dora", "modules_to_save", "use_shira",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["{module}.lora_magnitude_vector.default.weight", "base_model.model.lm_head.modules_to_save.default.weight"]
)
@pytest.mark.parametrize("options", [(), ("merge_lora=true",)])
def test_what_was_trained_beside_factors_does_not_disappear(in_memory, base, tmp_path, name, options):
    module = next(each.partition(".lora_A")[0] for each in in_memory if ".lora_A" in each)
    name = name.format(module=module)
    save({**in_memory, name: torch.ones(3)}, tmp_path / "dcp")
    with pytest.raises(InputError, match=rf"trained beside the factors of adapters, .*{re.escape(name[-30:])};"):
        back(tmp_path / "dcp", base, tmp_path / "back", f"lora_alpha={ALPHA}", *options)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_quantised_base_is_refused_before_anything_is_written(trained, base, tmp_path, dtype):
    found = {name: tensor.to(dtype) if "q_proj.weight" in name else tensor for name, tensor in weights(base).items()}
    for path in base.glob("model*.safetensors*"):
        path.unlink()
    save_file(found, base / "model.safetensors", metadata={"format": "pt"})
    for action in ("plan", "convert"):
        with pytest.raises(InputError, match=r"q_proj\.weight: is (float8_e4m3fn|int8) in reference="):
            back(trained, base, tmp_path / "merged", "merge_lora=true", f"lora_alpha={ALPHA}", f"action={action}")


def test_a_side_file_that_is_a_link_to_nothing_matters_where_it_is_copied(trained, base, tmp_path):
    (base / "tokenizer.json").symlink_to("nothing")
    alpha = f"lora_alpha={ALPHA}"
    for action in ("plan", "convert"):
        with pytest.raises(InputError, match=r"tokenizer\.json: is a link to nothing"):
            back(trained, base, tmp_path / "merged", alpha, "merge_lora=true", f"action={action}")
    assert not (tmp_path / "merged").exists()
    back(trained, base, tmp_path / "adapters", alpha)
    assert weights(tmp_path / "adapters").keys() == weights(tmp_path / "peft").keys()


@pytest.mark.parametrize("configured", [False, True])
def test_base_weights_beside_the_adapters_take_them_up(tmp_path, configured):
    """As the option says, or as the configuration that lies beside them does."""
    case = load_case("videoalign__peft_canonical_pp1")
    source = write_source(tmp_path / "hf", case)
    if configured:
        settings = {"peft_type": "LORA", "lora_alpha": 4, "use_rslora": True}
        (source / "adapter_config.json").write_text(json.dumps(settings))
    run_here(*overrides(case), source=str(source), target=str(tmp_path / "mm"))

    options = ["merge_lora=true", *([] if configured else ["lora_alpha=4"]), "target_format=hf"]
    run_here(*options, source=str(tmp_path / "mm"), target=str(tmp_path / "back"))
    # The reference has the base weights under other names.
    run_here(*options, source=str(tmp_path / "mm"), target=str(tmp_path / "same"), dtype="reference")
    same, made = hashes(tmp_path / "same"), hashes(tmp_path / "back")
    # It says which options there were.
    assert same.pop("distconv.json") != made.pop("distconv.json")
    assert same == made

    found, before = weights(tmp_path / "back"), weights(source)
    assert found.keys() == {
        name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in before if ".lora_" not in name
    }
    module = next(name for name in before if name.endswith((".lora_A.default.weight", ".lora_A.weight")))
    stem, _, ending = module.partition(".lora_A.")
    a, b = before[module].float(), before[f"{stem}.lora_B.{ending}"].float()
    plain = stem.removeprefix("base_model.model.") + ".weight"
    scaling = 4 / (math.sqrt(len(a)) if configured else len(a))
    expected = (before[f"{stem}.base_layer.weight"].float() + scaling * (b @ a)).to(found[plain].dtype)
    torch.testing.assert_close(found[plain], expected, rtol=1e-2, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "lora_alpha is missing"),
        (("merge_lora=true",), "lora_alpha is missing"),
        (("lora_alpha=0",), "lora_alpha=0: expected a positive number"),
    ],
)
def test_what_is_not_known_is_asked_for(trained, base, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        back(trained, base, tmp_path / "back", *options)
    assert not (tmp_path / "back").exists()


def test_an_alpha_that_nothing_needs_is_refused(trained, tmp_path):
    """The configuration of a reference is copied, with the alpha that it has."""
    options = "source_layout.tp=2", "source_layout.modality_tp.vision=2", f"lora_alpha={ALPHA}"
    with pytest.raises(InputError, match=f"lora_alpha={ALPHA}: goes with .* nothing of reference={tmp_path / 'peft'}"):
        back(trained, tmp_path / "peft", tmp_path / "back", *options)
    assert not (tmp_path / "back").exists()


def test_a_merge_needs_adapters(tmp_path):
    case = load_case("qwen2vl__tp1_pp1")
    run_here(*overrides(case), source=str(write_source(tmp_path / "hf", case)), target=str(tmp_path / "mm"))
    with pytest.raises(InputError, match="merge_lora=true: the source holds no adapters"):
        run_here(
            "merge_lora=true",
            "lora_alpha=1",
            source=str(tmp_path / "mm"),
            target=str(tmp_path / "x"),
            target_format="hf",
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_numbers_are_cast_as_torch_casts_them(dtype):
    wide = np.float64 if dtype == "float64" else np.float32
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        values = bits.view(np.float32).astype(wide)
    with np.errstate(over="ignore", invalid="ignore"):
        data, _ = as_bytes(values, dtype)
    kind = getattr(torch, dtype)
    found = torch.frombuffer(bytearray(data), dtype=kind)
    torch.testing.assert_close(found, torch.from_numpy(values).to(kind), rtol=0, atol=0, equal_nan=True)
    again = numbers(bytearray(data), dtype, (100_000,))
    np.testing.assert_array_equal(again, found.to(torch.float64 if dtype == "float64" else torch.float32).numpy())
