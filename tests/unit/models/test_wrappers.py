"""Names that are unknown because of what training put into them: it is named, with what to do."""

from __future__ import annotations

import pytest

from distconv.models.wrappers import common_prefix, unwrapped, wrapping_problem
from tests.unit import toy

DEFINITION = toy.definition()
NAMES = sorted(toy.shapes())
# A name with a module inside that wraps another.
WRAPPED = next(name for name in NAMES if ".layers." in name).replace(".layers.", ".layers._fsdp_wrapped_module.")


def problem(unknown: list[str], missing: list[str] = NAMES) -> str | None:
    return wrapping_problem(unknown, set(missing).__contains__, DEFINITION)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_a_prefix_is_named_and_how_it_is_taken_off(prefix):
    found = problem([prefix + name for name in NAMES])
    assert found is not None
    assert found.startswith(f"{prefix} is in front of the names of {len(NAMES)} source tensors")
    assert f'+model=toy \'model.renamed_prefixes=[[{prefix},""],' in found
    for old, new in DEFINITION.renamed_prefixes:
        assert f"[{old},{new}]" in found


def test_a_prefix_is_named_if_some_names_are_known_with_it():
    assert "model. is in front of the names of 1 source tensor" in str(
        problem(["model.lm_head.weight"], ["lm_head.weight"])
    )


def test_modules_inside_names_are_named():
    names = [name.replace(".layers.", ".layers._fsdp_wrapped_module.") for name in NAMES if ".layers." in name]
    found = problem(names)
    assert found is not None
    assert f"_fsdp_wrapped_module, are in the names of {len(names)} source tensors" in found


@pytest.mark.parametrize(
    ("unknown", "missing"),
    [
        ([], NAMES),
        (["other"], NAMES),
        (["x.other", "y.other"], NAMES),
        # A second copy explains nothing: the first is there.
        ([f"ema.{name}" for name in NAMES], []),
        # One of many is by chance.
        (["x.lm_head.weight", "a", "b", "c"], NAMES),
        ([WRAPPED, "a", "b", "c"], NAMES),
    ],
)
def test_names_that_nothing_explains_are_left_as_they_are(unknown, missing):
    assert problem(unknown, missing) is None


def test_the_prefix_is_the_one_that_explains_most():
    assert common_prefix(["a.b.x", "a.b.y", "a.z"], {"x", "y", "b.x", "z"}.__contains__) == "a."
    assert common_prefix(["a.b.x", "a.b.y"], {"x", "y", "b.x"}.__contains__) == "a.b."
    assert common_prefix([], {"x"}.__contains__) == ""


def test_a_name_without_wrappers_stays():
    assert [unwrapped(name) for name in NAMES] == NAMES


def test_a_module_whose_name_ends_like_a_wrapper_stays():
    assert unwrapped("my_orig_mod.a._orig_mod.b") == "my_orig_mod.a.b"
