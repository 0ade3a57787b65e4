"""Parameters as parts of the tensors of a torch_dist result: what is one tensor, and where each parameter is in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.torch_dist.keys import parts_of
from distconv.formats.torch_dist.plan import make_torch_dist_plan
from distconv.formats.torch_dist.stacks import Stacks, stack
from distconv.models.parameter_dialect import Exchange, ParameterDialect
from distconv.models.parameters import Binding, Parameter, Recipe
from distconv.models.rules import TEXT, Rule
from distconv.tensors.virtual import whole

BLOCK = "text.layers.{layer}."
DENSE = f"{BLOCK}mlp.linear_fc1.weight"
NORM = f"{BLOCK}norm.weight"
EXPERT = f"{BLOCK}mlp.experts.local_experts.{{expert}}.linear_fc1.weight"
LOCAL = ParameterDialect(name="local", words="", extra_states=("linear_*",))

# Target, number of the layer and of the expert, shape.
Form = tuple[str, int | None, int | None, tuple[int, ...]]


def binding(forms: Iterable[Form], layers: int, experts: int | None = None, *, dtype: str = "float32") -> Binding:
    """Parameters of these forms; those of equal target and shape share a recipe, as binding has it."""
    recipes: dict[tuple[str, tuple[int, ...]], Recipe] = {}
    parameters = []
    for target, layer, expert, shape in forms:
        rule = Rule(
            modality=TEXT,
            section="all",
            target=target,
            sources=(),
            operator="rename",
            operator_sizes=(),
            tensor_parallel="replicated",
            unit=None,
            stage="first" if layer is None else "layer",
            optional=False,
        )
        recipe = Recipe(rule=rule, tensor=whole(dtype, shape), source_shapes=(shape,), unit=None, dims=())
        parameters.append(Parameter(recipes.setdefault((target, shape), recipe), (), layer, expert))
    return Binding(parameters=tuple(parameters), unconverted=(), layers={TEXT: layers}, experts=experts, tied=False)


def places(found: Stacks) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Key, shape and position of each parameter."""
    return {each.tensor.name: (each.whole.name, each.whole.shape, each.position) for each in found.parts}


def test_layers_that_are_alike_are_one_tensor():
    found = places(stack(binding([(NORM, layer, None, (5,)) for layer in range(3)], 3)))
    assert found == {
        f"text.layers.{layer}.norm.weight": ("text.layers.norm.weight", (3, 5), (layer,)) for layer in range(3)
    }


@pytest.mark.parametrize(
    "forms",
    [
        [(DENSE, 0, None, (4, 2)), (NORM, 0, None, (5,)), (NORM, 1, None, (5,))],
        [(NORM, 0, None, (5,)), (NORM, 1, None, (6,))],
        [(NORM, 1, None, (5,))],
    ],
    ids=["a parameter more", "another shape", "a layer that is not there"],
)
def test_layers_that_differ_are_tensors_of_their_own(forms):
    found = places(stack(binding(forms, 2)))
    assert found == {name: (name, shape, ()) for name, shape in _named(forms)}


def _named(forms: list[Form]) -> Iterable[tuple[str, tuple[int, ...]]]:
    return ((target.replace("{layer}", str(layer)), shape) for target, layer, _, shape in forms)


def test_experts_are_one_tensor_whether_layers_are_or_not():
    experts = [(EXPERT, layer, expert, (4, 2)) for layer in (1, 2) for expert in range(3)]
    apart = places(stack(binding([(DENSE, 0, None, (4, 2)), *experts], 3, 3)))
    key = "text.layers.2.mlp.experts.experts.linear_fc1.weight"
    assert apart["text.layers.2.mlp.experts.local_experts.1.linear_fc1.weight"] == (key, (3, 4, 2), (1,))
    # Layer and expert may have one number.
    together = places(
        stack(binding([(EXPERT, layer, expert, (4, 2)) for layer in (0, 1) for expert in range(3)], 2, 3))
    )
    key = "text.layers.mlp.experts.experts.linear_fc1.weight"
    assert together["text.layers.1.mlp.experts.local_experts.1.linear_fc1.weight"] == (key, (2, 3, 4, 2), (1, 1))


@pytest.mark.parametrize(
    "target",
    [
        f"{BLOCK}mlp.experts.local_experts.{{expert}}.linear_fc2.weight",
        f"{BLOCK}mlp.experts.linear_fc2.weight{{expert}}",
        f"{BLOCK}mlp.experts.weight2[{{expert}}]",
    ],
)
def test_all_ways_to_build_experts_have_one_key(target):
    found = stack(binding([(target, 0, expert, (4, 2)) for expert in range(2)], 1, 2))
    assert {each.whole.name for each in found.parts} == {"text.layers.mlp.experts.experts.linear_fc2.weight"}


def test_experts_that_no_program_stacks_have_their_numbers():
    found = places(stack(binding([(f"{BLOCK}moe.{{expert}}.w", 0, expert, (4, 2)) for expert in range(2)], 1, 2)))
    assert found["text.layers.0.moe.1.w"] == ("text.layers.moe.1.w", (1, 4, 2), (0,))


@pytest.mark.parametrize(
    ("forms", "says"),
    [
        (
            [(EXPERT, 0, 0, (4, 2)), (EXPERT, 0, 1, (4, 3))],
            r"parameters that it stacks are float32 \[4, 2\] and float32 \[4, 3\]",
        ),
        ([(EXPERT, 0, 0, (4, 2))], "is one tensor of 2 parameters in torch_dist, found 1"),
    ],
)
def test_experts_that_are_no_tensor_together_are_refused(forms, says):
    with pytest.raises(InputError, match=says):
        stack(binding(forms, 1, 2))


def test_layers_that_differ_in_element_type_alone_are_refused():
    """Training would look for one tensor."""
    one, other = (
        binding([(NORM, layer, None, (5,))], 2, dtype=dtype) for layer, dtype in ((0, "float32"), (1, "int8"))
    )
    with pytest.raises(InputError, match=r"text\.layers\.norm\.weight: .*float32 \[5\] and int8 \[5\]"):
        stack(replace(one, parameters=one.parameters + other.parameters))


@given(st.integers(1, 3), st.integers(1, 3), st.sets(st.sampled_from([DENSE, NORM, EXPERT]), min_size=1), st.booleans())
def test_readers_find_each_parameter_where_it_is(layers, experts, targets, alike):
    forms: list[Form] = [
        (target, layer, expert, (4, 2))
        for layer in range(layers)
        for target in sorted(targets)
        for expert in (range(experts) if target == EXPERT else (None,))
    ]
    if not alike:
        forms.append((f"{BLOCK}more.weight", 0, None, (3,)))
    found = stack(binding(forms, layers, experts))
    read = {
        (part.name, key, part.position)
        for key, shape in {(each.whole.name, each.whole.shape) for each in found.parts}
        for part in parts_of(key, shape)
    }
    assert read == {(each.tensor.name, each.whole.name, each.position) for each in found.parts}


def test_modules_save_states_for_each_layer_and_expert():
    forms = [(target, layer, None, (4, 2)) for layer in range(2) for target in (DENSE, NORM)]
    forms += [(EXPERT, layer, expert, (4, 2)) for layer in range(2) for expert in range(2)]
    forms += [("head.linear_out.weight", None, None, (4, 2)), ("head.linear_out.bias", None, None, (4,))]
    # The norm of a module that is not there.
    forms += [(f"{BLOCK}other.linear_fc1.layer_norm_weight", layer, None, (4,)) for layer in range(2)]
    found = list(stack(binding(forms, 2, 2)).extra_states(LOCAL))
    assert sorted(found) == [
        "head.linear_out._extra_state/shard_0_1",
        *(
            f"text.layers.mlp.experts.experts.linear_fc1._extra_state/shard_{at}_2.2"
            for at in ("0.0", "0.1", "1.0", "1.1")
        ),
        "text.layers.mlp.linear_fc1._extra_state/shard_0_2",
        "text.layers.mlp.linear_fc1._extra_state/shard_1_2",
    ]


def test_a_module_without_parameters_may_save_a_state():
    forms = [(f"{BLOCK}self_attention.linear_qkv.weight", layer, None, (4, 2)) for layer in range(2)]
    forms += [(f"{BLOCK}self_attention.linear_proj.weight", layer, None, (4, 2)) for layer in range(2)]
    dialect = replace(LOCAL, extra_states=("self_attention.core_attention",))
    assert list(stack(binding(forms, 2)).extra_states(dialect)) == [
        f"text.layers.self_attention.core_attention._extra_state/shard_{layer}_2" for layer in range(2)
    ]


def test_a_plan_has_the_names_of_distributed_checkpoints():
    """Which the dialect may name otherwise in files of ranks."""
    exchange = Exchange(old=NORM, new=f"{BLOCK}linear_qkv.layer_norm_weight", beside=f"{BLOCK}mlp.")
    dialect = ParameterDialect(
        name="local",
        words="",
        exchanges=(Exchange(old="text.", new="gpt."),),
        distributed=(exchange,),
        extra_states=("linear_fc1",),
    )
    forms = [(target, layer, None, (4, 2)) for layer in range(2) for target in (DENSE, NORM)]
    plan = make_torch_dist_plan(binding(forms, 2), dialect)
    assert {each.name for each in plan.tensors()} == {
        "gpt.layers.mlp.linear_fc1.weight",
        "gpt.layers.linear_qkv.layer_norm_weight",
    }
    (states,) = plan.values
    assert states.keys == tuple(f"gpt.layers.mlp.linear_fc1._extra_state/shard_{layer}_2" for layer in range(2))
    assert plan.summary()["torch_dist"]["dialect"] == "local"
