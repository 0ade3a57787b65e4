"""The spellings of one model: its dialects by name, and the one that names and forms are recognised as."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.errors import InputError
from distconv.models.library import Library
from distconv.models.packing import Form, Packing
from distconv.models.spellings import Spellings, dialect_words, forms_in_words

DIALECTS = Library.of_package().dialects()
SIZES = {"num_experts": 2, "hidden_size": 6, "moe_intermediate_size": 4}
IN_OUT, OUT_IN = Packing(transposed=True), Packing(transposed=False)
MATRICES = Packing(transposed=True, flattened=True)


def spellings(model_type: str, **config: Any) -> Spellings:
    return Spellings.parse(DIALECTS, {"model_type": model_type, **SIZES, **config}, "config.json")


def label(model_type: str, form: Form, *, naming: str = "published", prefix: str = "") -> str | None:
    found = spellings(model_type)
    module = found.experts.modules[0]
    return found.label(naming, prefix, {(module, 0): form, (module, 1): form})


@pytest.mark.parametrize(
    ("model_type", "form", "prefix", "expected"),
    [
        ("qwen3_vl_moe", IN_OUT, "", "published"),
        ("qwen3_vl_moe", OUT_IN, "", "transformers5"),
        ("qwen3_vl_moe", MATRICES, "model.", "mm_wrapped"),
        ("qwen3_vl_moe", MATRICES, "", "mm_wrapped"),
        ("qwen3_vl_moe", None, "", None),
        ("qwen3_moe", None, "", "published"),
        ("qwen3_moe", OUT_IN, "", "transformers5"),
        ("qwen3_5_moe", IN_OUT, "", "mm_fsdp2"),
        ("glm4v_moe", MATRICES, "model.", "mm_wrapped"),
    ],
)
def test_a_dialect_is_told_by_how_experts_are_packed(model_type, form, prefix, expected):
    assert label(model_type, form, prefix=prefix) == expected


def test_one_prefix_tells_two_dialects_apart_that_pack_alike():
    assert label("qwen3_omni_moe", IN_OUT, naming="mm_fsdp2") == "mm_fsdp2"
    assert label("qwen3_omni_moe", IN_OUT, naming="mm_fsdp2", prefix="model.") == "mm_wrapped"
    assert label("qwen3_omni_moe", None, naming="mm_fsdp2") is None


def test_of_a_dense_model_all_say_the_same():
    found = Spellings.parse(DIALECTS, {"model_type": "qwen3"}, "config.json")
    assert found.label("published", "", {}) == "published"
    assert found.label("published", "model.", {}) == "mm_wrapped"
    assert [name for name, _ in found.namings()] == ["published"]


def test_dialects_with_the_same_names_are_one_candidate():
    assert [name for name, _ in spellings("qwen3_omni_moe").namings()] == [
        "published", "mm_fsdp2", "transformers5", "transformers5_thinker",
    ]  # fmt: skip
    assert [name for name, _ in spellings("qwen3_moe").namings()] == ["published"]


def test_a_dialect_is_chosen_by_name():
    dialect, holding = spellings("mixtral").chosen("transformers5", "dialect")
    assert (dialect.name, holding.experts) == ("transformers5", OUT_IN)
    assert spellings("mixtral").chosen("published", "dialect")[1].names == ()
    # A model without experts is held under its names, also where the dialect does not know the type.
    _, holding = Spellings.parse(DIALECTS, {"model_type": "qwen3"}, "").chosen("mm_wrapped", "dialect")
    assert holding.names == ()


def test_a_dialect_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(InputError) as caught:
        spellings("mixtral").chosen("transformer5", "dialect")
    assert str(caught.value) == (
        "dialect=transformer5: no such dialect; the nearest is transformers5; known: published, mm_fsdp2, mm_wrapped, "
        "transformers5, transformers5_thinker"
    )


@pytest.mark.parametrize("model_type", ["mixtral", "never_heard_of"])
def test_a_dialect_that_does_not_say_how_experts_are_held_is_refused(model_type):
    who = "transformers5 does" if model_type == "mixtral" else "no dialect does"
    with pytest.raises(InputError) as caught:
        spellings(model_type).chosen("mm_fsdp2", "dialect")
    assert f"how the experts of model_type '{model_type}' are held; {who}" in str(caught.value)


def test_names_of_a_directory_tell_their_dialect():
    mixtral = spellings("mixtral")
    memory = ["model.layers.0.mlp.gate.weight", "model.norm.weight"]
    published = ["model.layers.0.block_sparse_moe.gate.weight", "model.norm.weight"]
    assert mixtral.naming_of(memory)[0] == "transformers5"
    assert mixtral.naming_of(published)[0] == "published"
    # A mixture of both is nobody's.
    assert mixtral.naming_of([*memory, *published])[0] == "published"
    assert mixtral.naming_of(["model.norm.weight"])[0] == "published"
    omni = spellings("qwen3_omni_moe")
    assert omni.naming_of(["thinker.model.norm.weight", "talker.w"])[0] == "published"
    assert omni.naming_of(["model.norm.weight", "talker.w"])[0] == "mm_fsdp2"
    assert omni.naming_of(["thinker.model.language_model.norm.weight"])[0] == "transformers5"


def test_experts_are_known_in_all_forms():
    found = spellings("qwen3_moe").alternatives(["model.layers.1.mlp.experts.down_proj", "lm_head.weight"])
    assert found >= {
        "lm_head.weight",
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.0.gate_proj.weight",
        "model.layers.1.mlp.experts.1.down_proj.weight",
    }
    assert not any(".2." in name for name in found)


def test_words():
    found = spellings("qwen3_vl_moe")
    (module,) = found.experts.modules
    assert forms_in_words({(module, 0): IN_OUT, (module, 1): IN_OUT}) == ["[E, h, 2I]"]
    assert dialect_words({"dialect": "mm_fsdp2", "experts": ["[E, h, 2I]"]}) == ", dialect mm_fsdp2, experts [E, h, 2I]"
    assert dialect_words({"dialect": None, "experts": []}) == ""


def test_what_a_dialect_says_nothing_of_is_said():
    found = spellings("never_heard_of")
    assert found.notes("published") == ()
    assert found.notes("mm_wrapped") == (
        "dialect mm_wrapped says nothing of model_type 'never_heard_of': its names are as published",
    )
    assert spellings("mixtral").notes("transformers5") == ()


def test_of_a_model_that_nothing_describes_no_dialect_is_taken():
    nothing = Spellings.parse(DIALECTS, {}, "")
    assert nothing.chosen("published", "dialect")[0].name == "published"
    with pytest.raises(InputError, match="dialect=mm_wrapped: nothing says of what model the tensors are; give ref"):
        nothing.chosen("mm_wrapped", "dialect")
