"""The one prefix under which a checkpoint holds a model, or why it cannot be told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.dcp.prefix import (
    common_prefix,
    count_known,
    find_prefix,
    names_under,
    of_training,
    unwrapped,
)

OLD = {f"model.layers.{n}.{part}.weight" for n in range(4) for part in ("q", "k", "mlp.down")}
VISUAL = {f"visual.blocks.{n}.weight" for n in range(3)}
NEW = {name.replace("model.", "model.language_model.") for name in OLD} | {f"model.{name}" for name in VISUAL}
KNOWN = OLD | VISUAL | NEW | {"lm_head.weight"}
SPELLINGS = {"old": OLD | VISUAL | {"lm_head.weight"}, "new": NEW | {"lm_head.weight"}, "tied": NEW, "old tied": OLD}
OPTIMIZER = {f"optim.state.{name}.{moment}" for name in NEW for moment in ("exp_avg", "exp_avg_sq")} | {"optim.lr"}
PREFIXES = ["", "model.", "model.model.", "base_model.model.", "model.base_model.model.", "a.b.", "model.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_prefix_is_found(prefix, spelling):
    names = SPELLINGS[spelling]
    assert find_prefix({prefix + name for name in names} | OPTIMIZER, KNOWN) == prefix


@given(st.sampled_from(PREFIXES), st.sampled_from(sorted(SPELLINGS)), st.randoms())
def test_a_few_names_may_be_missing_or_strange(prefix, spelling, random):
    names = sorted(SPELLINGS[spelling])
    kept = random.sample(names, len(names) - 3)
    strange = {f"{prefix}new.{n}.weight" for n in range(5)}
    assert find_prefix({prefix + name for name in kept} | strange, KNOWN) == prefix


def test_wrappers_inside_names_are_no_part_of_them():
    names = {f"model._orig_mod.{name}".replace(".q.", "._fsdp_wrapped_module.q.") for name in NEW}
    assert find_prefix(names, KNOWN) == "model."
    assert set(names_under(names, "model.")) == NEW
    assert unwrapped("_orig_mod.a._checkpoint_wrapped_module.b") == "a.b"
    assert unwrapped("my_orig_mod.a._orig_mod") == "my_orig_mod.a._orig_mod"


def test_two_models_beside_each_other_are_ambiguous():
    actor = {f"actor.{name}" for name in SPELLINGS["new"]}
    critic = {f"critic.{name}" for name in NEW}
    with pytest.raises(InputError, match=r"actor\. \(16 tensors\), critic\. \(15 tensors\); choose with name_prefix="):
        find_prefix(actor | critic, KNOWN)
    assert find_prefix(actor | critic, KNOWN, "critic.") == "critic."


def test_a_copy_without_prefix_is_shown_as_such():
    with pytest.raises(InputError, match=r"'' \(16 tensors\), ema\. \(16 tensors\)"):
        find_prefix(SPELLINGS["new"] | {f"ema.{name}" for name in SPELLINGS["new"]}, KNOWN)


def test_a_small_part_under_another_prefix_does_not_matter():
    assert find_prefix(SPELLINGS["new"] | {"draft.lm_head.weight"}, KNOWN) == ""


def test_another_model_is_no_match():
    with pytest.raises(
        InputError, match=r"no tensor of this model under any prefix: it holds net.conv.weight, expected"
    ):
        find_prefix({"net.conv.weight", "optimizer.state.net.conv.weight.exp_avg"}, KNOWN)
    with pytest.raises(InputError, match="no tensor of this model"):
        find_prefix([], KNOWN)


def test_a_prefix_that_is_given_wins_and_is_checked():
    found = {f"model.{name}" for name in SPELLINGS["old"]}
    assert find_prefix(found, KNOWN, "model.") == "model."
    with pytest.raises(
        InputError, match=r"^name_prefix=x\.: .* so; the source holds model.*; expected name_prefix=model\.$"
    ):
        find_prefix(found, KNOWN, "x.")
    with pytest.raises(InputError, match=r"name_prefix=model: .*; expected name_prefix=model\."):
        find_prefix(found, KNOWN, "model")
    with pytest.raises(InputError, match=r"name_prefix='': .*the names are not those of this model"):
        find_prefix({"net.weight"}, KNOWN, "")


def test_a_prefix_may_be_given_as_it_stands_in_the_checkpoint():
    found = {f"model._orig_mod.module.{name}" for name in SPELLINGS["old"]}
    for given_prefix in ("model._orig_mod.module.", "model.module."):
        assert find_prefix(found, KNOWN, given_prefix) == "model.module."


def test_a_part_of_a_segment_is_no_prefix():
    with pytest.raises(InputError, match="no tensor of this model"):
        find_prefix({f"my{name}" for name in SPELLINGS["old tied"]}, KNOWN)


def test_names_under_a_prefix_lead_back_to_the_checkpoint():
    found = ["model._orig_mod.a.w", "model.b", "optim.a", "checkpoint_version"]
    assert names_under(found, "model.") == {"a.w": "model._orig_mod.a.w", "b": "model.b"}
    assert len(names_under(found, "")) == 4


def test_names_that_become_one_are_refused():
    with pytest.raises(InputError, match=r"model\.a and model\._orig_mod\.a are one name"):
        names_under(["model.a", "model._orig_mod.a"], "model.")


def test_how_many_names_are_known_under_the_best_prefix():
    assert count_known({"a.x", "a.y", "b.x", "z"}, {"x", "y"}) == 2
    assert count_known({"z"}, {"x"}) == 0
    assert count_known({"a.x", "a.y", "b.x"}, {"x", "y"}, "b.") == 1


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["app.model.embed.w", "app.model.layers.0.w", "app.model.head.w"], "app.model."),
        (["model.a", "model._orig_mod.b.w", "optim.state.a.exp_avg", "optimizer.state.a.step"], "model."),
        (["app.model.a.w", "app.model.b.w", "app.optim.state.a.w.exp_avg"], "app.model."),
        (["embed.w", "layers.0.w"], ""),
        # What is a number is a part of a model.
        (["model.0.w", "model.0.b"], "model."),
        (["w"], ""),
        ([], ""),
    ],
)
def test_where_nothing_is_known_the_prefix_is_what_all_names_have_in_common(names, prefix):
    assert common_prefix(names) == prefix


def test_a_given_prefix_is_believed_where_nothing_is_known_if_some_name_begins_so():
    names = ["app.model.a", "app.model.b"]
    assert common_prefix(names, "app.") == "app."
    with pytest.raises(
        InputError, match=r"name_prefix=ap\.x: no tensor has a name that begins so; the source holds app"
    ):
        common_prefix(names, "ap.x")


def test_the_state_of_training_is_no_model():
    training = [
        "optimizer.state.a",
        "optim.a",
        "lr_scheduler.b",
        "rng_state.c",
        "rerun_state_machine.d",
        "train_state.e",
    ]
    below = ["app.optim.state.a.step", "app.optimizer.param_groups.a.lr", "x.a.weight.exp_avg", "x.a.momentum_buffer"]
    assert all(map(of_training, training + below))
    assert not any(map(of_training, ["model.optimizer.a", "optical.w", "rope.w", "state.w", "model.rng_state.w"]))
