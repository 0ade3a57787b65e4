"""Parameters and published tensors of a Hugging Face directory."""

from __future__ import annotations

from distconv.formats.huggingface.source import HuggingFaceSource
from distconv.tensors.virtual import whole
from tests import configuration
from tests.unit import toy
from tests.unit.toy_facts import PUBLISHED, facts


def test_a_hugging_face_source_gives_its_tensors_as_they_are():
    found = HuggingFaceSource(configuration.job(), PUBLISHED, facts().bound_model())
    tensors = found.published().tensors
    assert [each.name for each in tensors] == list(toy.shapes())
    assert all(each.tensor == whole("bfloat16", each.sources[0].shape) for each in tensors)
    assert {each.name for each in found.parameters().parameters} == {each.name for each in toy.bound().parameters}
    assert (found.replicas, found.notes) == ((), ())


def test_without_a_definition_there_are_published_tensors():
    model = facts(model=None, definition={}).bound_model()
    found = HuggingFaceSource(configuration.job(target_format="dcp", naming="hf"), PUBLISHED, model)
    assert [each.name for each in found.published().tensors] == list(toy.shapes())
