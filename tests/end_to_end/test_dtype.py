"""A result in another element type is what the same conversion makes of a source that torch has cast before.

All files are compared, byte for byte, for every pair of formats. The oracle is `tensor.to(dtype)` of torch, with NaN as
it is defined here, and a conversion that casts nothing.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from distconv.cli.show import plan_text
from distconv.commit.journal import Finished, Journal, finished_in
from distconv.errors import InputError, JobError
from distconv.formats.torch_zip.archive import read_archive
from tests.checkpoints import hashes, load_case, overrides, tensor_bytes, write_safetensors, write_source
from tests.golden.test_round_trip import tensors
from tests.here import outcome_here

CASES = {"dense": "qwen2vl__tp2_pp2", "experts": "qwen3vl_moe__tp2_pp1", "biased": "deepseekvl2__ep2"}
QUIET = {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00, torch.float32: 0x7FC00000}
TO_HF = {"target_format": "hf"}
TO_DCP = {"target_format": "dcp"}
PUBLISHED = {"target_format": "dcp", "naming": "hf"}
RESPLIT = {"target_format": "megatron", "layout__tp": 1}
# What is made of a source, and what is made of that with a cast.
PAIRS: dict[str, tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]] = {
    "hf to megatron": (None, {}),
    "hf to dcp": (None, TO_DCP),
    "hf to published dcp": (None, PUBLISHED),
    "megatron to hf": ({}, TO_HF),
    "megatron to dcp": ({}, TO_DCP),
    "megatron to published dcp": ({}, PUBLISHED),
    "megatron to megatron": ({}, RESPLIT),
    "dcp to hf": (TO_DCP, TO_HF),
    "dcp to megatron": (TO_DCP, RESPLIT),
    "dcp to published dcp": (TO_DCP, PUBLISHED),
    "published dcp to hf": (PUBLISHED, TO_HF),
    "published dcp to megatron": (PUBLISHED, RESPLIT),
    "published dcp to dcp": (PUBLISHED, TO_DCP),
    "published dcp to published dcp": (PUBLISHED, PUBLISHED),
}
Tensors = dict[str, torch.Tensor]


def source_tensors(case: Mapping[str, Any], dtype: torch.dtype) -> Tensors:
    """Numbers that weights have, of every magnitude that matters, with a few that are none."""
    found = {}
    for name, (_, shape, _) in case["source_tensors"].items():
        data = tensor_bytes(name, "int32", shape)
        bits = torch.frombuffer(bytearray(data), dtype=torch.int32).reshape(shape)
        # From 2**-30 to 2**19, so that subnormal numbers and overflow of float16 are among them.
        scale = torch.ldexp(torch.ones(shape), bits.remainder(50) - 30)
        values = bits.double() / 2**31 * scale
        special = bits.remainder(97)
        values[special == 0], values[special == 1], values[special == 2] = math.nan, math.inf, -math.nan
        found[name] = values.to(dtype)
    return found


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As torch casts it; a NaN is the quiet one of its sign."""
    if tensor.dtype == dtype:
        return tensor
    made = tensor.to(dtype)
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    nan, negative = torch.isnan(tensor), tensor.view(kind[tensor.element_size()]) < 0
    bits, size = made.view(kind[made.element_size()]), 8 * made.element_size()
    bits[nan] = QUIET[dtype]
    bits[nan & negative] = QUIET[dtype] - 2 ** (size - 1)
    return made


def write_hf(directory: Path, case: Mapping[str, Any], tensors: Tensors) -> Path:
    """The directory of a case, with these tensors in its shards."""
    write_source(directory, case)
    shards: dict[str, dict[str, Any]] = {}
    for name, (_, shape, shard) in case["source_tensors"].items():
        tensor = tensors[name]
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        shards.setdefault(shard, {})[name] = (str(tensor.dtype).removeprefix("torch."), shape, data)
    for shard, held in shards.items():
        write_safetensors(directory / shard, held)
    return directory


def kept(name: str) -> bool:
    return name.endswith("e_score_correction_bias")


class Pair:
    """A pair of formats: the source in float32, and what is made of it."""

    def __init__(self, tmp_path: Path, kind: str, pair: str, stored: torch.dtype = torch.float32) -> None:
        self.case = load_case(CASES[kind])
        self.first, self.second = PAIRS[pair]
        self.path = tmp_path
        self.tensors = source_tensors(self.case, stored)
        self.reference = write_hf(tmp_path / "reference", self.case, self.as_published())
        self.model, *layout = overrides(self.case)
        self.layout = layout

    def as_published(self) -> Tensors:
        return {name: each if kept(name) else cast(each, torch.bfloat16) for name, each in self.tensors.items()}

    def source(self, name: str, tensors: Tensors) -> Path:
        """These tensors in the format of the source."""
        published = write_hf(self.path / f"{name}-hf", self.case, tensors)
        if self.first is None:
            return published
        target = self.path / f"{name}-source"
        self.run(published, target, self.first)
        return target

    def run(self, source: Path, target: Path, change: Mapping[str, Any], **more: Any) -> Any:
        options = [self.model] if "target_format" in change else [self.model, *self.layout]
        from_hf = (source / "config.json").exists()
        named = {} if from_hf else {"reference": str(self.reference)}
        given = {"source": str(source), "target": str(target), "io__fsync": False} | named | change | more
        return outcome_here(*options, **given)


def content(directory: Path) -> dict[str, str]:
    """All that a result says of tensors; the provenance says of which directory it is made."""
    return {path: digest for path, digest in hashes(directory).items() if not path.endswith("distconv.json")}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("dense", "bfloat16"), ("dense", "float16"), ("experts", "bfloat16"), ("biased", "bfloat16")],
)
def test_a_cast_result_is_that_of_a_source_that_was_cast_before(pair, kind, dtype, tmp_path):
    made = Pair(tmp_path, kind, pair)
    before = {name: each if kept(name) else cast(each, getattr(torch, dtype)) for name, each in made.tensors.items()}
    wide, narrow = made.source("wide", made.tensors), made.source("narrow", before)
    options = {"dtype": dtype, "dtype_overflow": "allow"}

    outcome = made.run(wide, tmp_path / "cast", made.second, **options)
    made.run(narrow, tmp_path / "plain", made.second)

    assert content(tmp_path / "cast") == content(tmp_path / "plain")
    assert [each["to"] for each in outcome.report["casts"]["cast"]] == [dtype]
    assert bool(outcome.report["casts"]["kept"]) == (kind == "biased")
    assert bool(outcome.report["casts"]["overflowed"]) == (dtype == "float16")
    assert made.run(wide, tmp_path / "cast", made.second, action="verify", **options).differences == []
    planned = made.run(wide, tmp_path / "new", made.second, action="plan", **options).report
    assert planned["files"] == outcome.report["files"]
    (process,) = planned["processes"]
    (measured,) = outcome.report["processes"]
    assert (process["bytes_read"], process["bytes_written"]) == (measured["bytes_read"], measured["bytes_written"])


def in_types(tensors: Tensors, dtype: str, *but: str) -> Tensors:
    return {name: each if name in but else cast(each, getattr(torch, dtype)) for name, each in tensors.items()}


def published(directory: Path) -> dict[str, Any]:
    """The tensors of a Hugging Face directory by name, as code, shape and bytes, and its configuration."""
    found = {name: each for path in directory.glob("*.safetensors") for name, each in tensors(path).items()}
    return {"config": json.loads((directory / "config.json").read_text()), "tensors": found}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("known", [True, False])
def test_a_published_directory_in_another_type(dtype, known, tmp_path):
    """With everything that is beside its tensors; also of a model that no definition is for."""
    case = load_case(CASES["dense"])
    if not known:
        case["hf_config"]["model_type"] = "unheard_of"
    given = source_tensors(case, torch.bfloat16 if dtype == "float32" else torch.float32)
    source = write_hf(tmp_path / "hf", case, given)
    (source / "tokenizer.json").write_text("{}")
    options = {"source": str(source), "target": str(tmp_path / "out"), **TO_HF, "dtype": dtype}
    options |= {"dtype_overflow": "allow", "report": str(tmp_path / "report.json")}

    outcome_here(**options)

    expected = write_hf(tmp_path / "expected", case, in_types(given, dtype))
    found = published(tmp_path / "out")
    assert found["tensors"] == published(expected)["tensors"]
    assert found["config"] == {**case["hf_config"], "torch_dtype": dtype}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: shard for name, (_, _, shard) in case["source_tensors"].items()}
    assert outcome_here(**options, action="verify").differences == []
    with pytest.raises(InputError, match="keep_dtype=x: no tensor of the result is called so"):
        outcome_here(**options, overwrite=True, keep_dtype=["x"])


def test_published_adapters_in_another_type(tmp_path):
    case = load_case("qwen2_5vl__lora_pp1")
    given = source_tensors(case, torch.float32)
    source = write_hf(tmp_path / "hf", case, given)
    options = {"source": str(source), "target": str(tmp_path / "out"), **TO_HF, "dtype": "bfloat16"}

    outcome_here(overrides(case)[0], **options)

    expected = write_hf(tmp_path / "expected", case, in_types(given, "bfloat16"))
    (made,), (wanted,) = (list(each.glob("*.safetensors")) for each in (tmp_path / "out", expected))
    assert (made.name, tensors(made)) == (wanted.name, tensors(wanted))
    assert (tmp_path / "out" / "adapter_config.json").read_bytes() == (source / "adapter_config.json").read_bytes()


@pytest.mark.parametrize("kind", ["dense", "biased"])
@pytest.mark.parametrize("trained", [{}, TO_DCP, PUBLISHED])
def test_a_float32_training_state_is_published_as_its_reference_is(kind, trained, tmp_path):
    """All of it: config.json, index, and what is float32 there."""
    made = Pair(tmp_path, kind, "megatron to hf")
    wide = tmp_path / "trained"
    made.run(write_hf(tmp_path / "wide", made.case, made.tensors), wide, trained)

    outcome = made.run(wide, tmp_path / "out", TO_HF, dtype="reference")

    assert published(tmp_path / "out") == published(made.reference)
    assert outcome.report["notes"] == []
    (cast_,) = outcome.report["casts"]["cast"]
    assert (cast_["from"], cast_["to"]) == ("float32", "bfloat16")
    assert cast_["tensors"] == sum(not kept(name) for name in made.tensors)


@pytest.mark.parametrize(
    ("dtype", "changes", "patterns", "but"),
    [
        ("bfloat16", {}, ["language.*.norm.weight"], ["language.model.norm.weight"]),
        ("float16", {}, [], []),
        # A reference that has it in float32 says so, too.
        ("bfloat16", {"language.model.norm.weight": torch.float32}, [], ["language.model.norm.weight"]),
    ],
)
def test_what_is_kept_stays_as_it_is_and_is_counted(dtype, changes, patterns, but, tmp_path):
    made = Pair(tmp_path, "biased", "megatron to hf")
    for name in changes:
        write_hf(tmp_path / "other", made.case, {**made.as_published(), name: made.tensors[name]})
        made.reference = tmp_path / "other"
    wide = made.source("wide", made.tensors)
    options = {"dtype": dtype, "dtype_overflow": "allow"} | ({"keep_dtype": patterns} if patterns else {})

    outcome = made.run(wide, tmp_path / "out", TO_HF, **options)

    biases = [name for name in made.tensors if kept(name)]
    expected = write_hf(tmp_path / "expected", made.case, in_types(made.tensors, dtype, *biases, *but))
    assert published(tmp_path / "out")["tensors"] == published(expected)["tensors"]
    config = json.loads(json.dumps(made.case["hf_config"]).replace('"bfloat16"', f'"{dtype}"'))
    assert published(tmp_path / "out")["config"] == config
    names = [name for each in outcome.report["casts"]["kept"] for name in each["names"]]
    assert sorted(names) == sorted([*biases, *but])
    text = plan_text(outcome.report, full=False)
    assert f"kept     {len(biases)} tensors as stored: the bias of the router" in text
    assert f"cast     float32 to {dtype}: {len(made.tensors) - len(names)} tensors, " in text


@pytest.mark.parametrize("pattern", ["model.norm.weight", "module.model.norm.*", "module.text_decoder.*final*"])
def test_a_dcp_keeps_tensors_by_their_names_with_and_without_a_prefix(pattern, tmp_path):
    made = Pair(tmp_path, "dense", "hf to dcp")
    wide = made.source("wide", made.tensors)
    change = TO_DCP if "text_decoder" in pattern else PUBLISHED

    report = made.run(
        wide, tmp_path / "out", change, dtype="bfloat16", keep_dtype=[pattern], name_prefix="module."
    ).report

    ((name,),) = (each["names"] for each in report["casts"]["kept"])
    assert name in ("model.norm.weight", "text_decoder.decoder.final_layernorm.weight")


def test_what_nobody_asked_for_is_told(tmp_path):
    made = Pair(tmp_path, "dense", "megatron to hf")
    wide = made.source("wide", made.tensors)

    outcome = made.run(wide, tmp_path / "out", TO_HF)

    assert published(tmp_path / "out")["config"]["torch_dtype"] == "float32"
    (note,) = outcome.report["notes"]
    assert note == (
        f"the result is float32, 824.4 KiB, as the source; {made.reference} is bfloat16: dtype=reference makes it so"
    )
    # To training that is what it is for.
    assert made.run(wide, tmp_path / "resplit", RESPLIT).report["notes"] == []


def test_what_overflows_float16_leaves_nothing_behind(tmp_path):
    made = Pair(tmp_path, "dense", "megatron to hf")
    wide, name = made.source("wide", made.tensors), "model.norm.weight"
    finite = {each: int((torch.isinf(t.half()) & torch.isfinite(t)).sum()) for each, t in made.tensors.items()}
    total, tensors_ = sum(finite.values()), sum(map(bool, finite.values()))
    before = sorted(tmp_path.iterdir())

    with pytest.raises(JobError) as caught:
        made.run(wide, tmp_path / "out", TO_HF, dtype="float16")

    assert f"dtype: {total} numbers of {tensors_} tensors too large for float16: model-" in str(caught.value)
    assert "dtype_overflow=allow makes them infinite" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    outcome = made.run(wide, tmp_path / "out", TO_HF, dtype="float16", dtype_overflow="allow")
    counted = {each["tensor"].partition(": ")[2]: each["elements"] for each in outcome.report["casts"]["overflowed"]}
    assert counted == {each: count for each, count in finite.items() if count}
    assert name in counted
    assert any(f"now infinite: {total} numbers" in note for note in outcome.notes)


def test_what_overflowed_before_a_job_ended_is_counted_when_it_is_continued(tmp_path, monkeypatch):
    made = Pair(tmp_path, "dense", "megatron to hf")
    wide = made.source("wide", made.tensors)
    finite = sum(int((torch.isinf(t.half()) & torch.isfinite(t)).sum()) for t in made.tensors.values())
    add = Journal.add

    def ended(journal: Journal, finished: Mapping[str, Finished]) -> None:
        add(journal, finished)
        raise OSError(errno.EIO, "Input/output error")

    before = sorted(tmp_path.iterdir())
    for allowed in ("error", "allow"):
        options = {**TO_HF, "dtype": "float16", "dtype_overflow": allowed}
        monkeypatch.setattr(Journal, "add", ended)
        with pytest.raises(JobError, match="Input/output error"):
            made.run(wide, tmp_path / "out", options)
        monkeypatch.setattr(Journal, "add", add)
        (work,) = tmp_path.glob(".distconv-out-*")
        assert any(each.overflowed for each in finished_in(work).values())
        if allowed == "error":
            with pytest.raises(JobError, match=f"dtype: {finite} numbers of "):
                made.run(wide, tmp_path / "out", options)
            # The same command would only fail again.
            assert sorted(tmp_path.iterdir()) == before
    report = made.run(wide, tmp_path / "out", options).report
    assert report["continued"]["files"] == 1
    assert sum(each["elements"] for each in report["casts"]["overflowed"]) == finite


def test_a_byte_that_is_not_what_was_cast_is_found(tmp_path):
    made = Pair(tmp_path, "experts", "hf to megatron")
    wide = made.source("wide", made.tensors)
    made.run(wide, tmp_path / "out", {}, dtype="bfloat16")
    for path in sorted((tmp_path / "out").rglob("*.pt")):
        data = bytearray(path.read_bytes())
        last = max(each.offset for each in read_archive(path)["model"].values())
        data[last] ^= 1
        path.write_bytes(data)

    found = made.run(wide, tmp_path / "out", {}, dtype="bfloat16", action="verify").differences

    assert len(found) == len(list((tmp_path / "out").rglob("*.pt")))
    assert all("differs from the source" in each for each in found)
    # Without the cast it would be another result altogether.
    assert made.run(wide, tmp_path / "out", {}, action="verify").differences != []


@pytest.mark.parametrize(
    ("pair", "options", "says"),
    [
        ("hf to megatron", {"dtype": "reference"}, "dtype=reference: there is no reference; give dtype=bfloat16"),
        ("hf to megatron", {"dtype": "bfloat16", "keep_dtype": ["*.A_log"]}, r"keep_dtype=\*.A_log: no tensor of"),
        ("megatron to hf", {"keep_dtype": ["*"]}, "keep_dtype: goes with dtype"),
        (
            "megatron to megatron",
            {"dtype": "reference", "reference": "bare"},
            "bare holds no weights, which would tell",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(pair, options, says, tmp_path):
    made = Pair(tmp_path, "dense", pair)
    source = made.source("wide", made.tensors)
    if "reference" in options:
        bare = tmp_path / options["reference"]
        bare.mkdir()
        for name in ("config.json", "model.safetensors.index.json"):
            shutil.copy(made.reference / name, bare)
        options = {**options, "reference": str(bare)}
    with pytest.raises(InputError, match=says):
        made.run(source, tmp_path / "out", made.second, **options)
    assert not (tmp_path / "out").exists()
