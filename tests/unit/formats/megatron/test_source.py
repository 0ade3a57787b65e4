"""Parameters and published tensors of a Megatron checkpoint, over the pieces in its files."""

from __future__ import annotations

from distconv.formats.megatron.source import MegatronSource
from tests import configuration
from tests.unit import toy, toy_megatron
from tests.unit.formats.dcp.test_source import INT, assert_same, made
from tests.unit.reference import evaluate
from tests.unit.toy_facts import facts, reference
from tests.unit.toy_megatron import layout


def test_a_megatron_source_gives_both_and_the_replicas_that_must_agree():
    files = toy_megatron.source(layout(((1, 2),), tp=2))
    index = files.index(others=("optimizer",))
    found = MegatronSource(configuration.job(), index, facts(index, reference()).bound_model())
    expected = toy.arrays()
    tensors = {
        each.name: evaluate(each.tensor, [files.stored(source) for source in each.sources], INT)
        for each in found.published().tensors
    }
    assert_same(tensors, expected)
    assert_same({each.name: files.elements(each) for each in found.parameters().parameters}, made(expected))
    assert found.replicas
    assert found.notes == ("not carried over: optimizer: training state; only the model is converted",)
