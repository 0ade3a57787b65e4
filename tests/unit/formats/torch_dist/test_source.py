"""A torch_dist checkpoint as a source: its parameters, and what its training contradicts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.base import Source
from distconv.formats.dcp.index import DcpIndex
from distconv.formats.torch_dist.sizes import Told
from distconv.formats.torch_dist.source import TorchDistFacts
from distconv.tensors.stored import SourceFile
from tests.unit import toy
from tests.unit.formats.dcp.test_source import (
    Pieces,
    assert_same,
    bound,
    halves,
    made,
    parameters_of,
    published_of,
)

TOLD = Told(where="args", sizes={"num_layers": toy.LAYERS})


def facts(pieces: Pieces, **changes: Any) -> TorchDistFacts:
    index = DcpIndex(directory="/td", tensors=pieces.tensors, others=(), described_by=(SourceFile("/td/.metadata", 9),))
    given: dict[str, Any] = {"others": ("x: 3 entries",), "told": (TOLD,), "prefix": "module.", "spec": "local"}
    return TorchDistFacts(index=index, **{**given, **changes})


def test_it_gives_parameters_and_published_tensors():
    arrays = toy.arrays()
    pieces = Pieces(made(arrays), halves, "/td")
    found = bound(facts(pieces))
    assert_same(parameters_of(found, pieces), made(arrays))
    assert_same(published_of(found, pieces), arrays)
    assert found.notes == ("not carried over: x: 3 entries",)
    names = found.summary()["source_names"]
    assert names["modules"] == ["text", "vision"]
    assert (names["prefix"], names["spec"], names["dialect"]) == ("module.", "local", None)


def test_facts_are_shared_as_plain_data():
    known = facts(Pieces(made(toy.arrays()), halves, "/td"))
    again = TorchDistFacts.from_json(json.loads(json.dumps(known.to_json())))
    assert again.to_json() == known.to_json()
    assert (again.told, again.others, again.prefix, again.spec) == (known.told, known.others, "module.", "local")
    assert [file.path for file in again.looked_at] == ["/td/.metadata", "/td/__0_0.distcp", "/td/__1_0.distcp"]


def notes_of(**changes: Any) -> tuple[str, ...]:
    source: Source = bound(facts(Pieces(made(toy.arrays()), halves, "/td"), others=(), **changes))
    return source.notes


def test_a_model_of_several_modalities_may_be_configured_otherwise():
    """As the arguments of MindSpeed-MM are, which its own configuration replaces."""
    (note,) = notes_of(told=(Told(where="args", sizes={"num_layers": 99}),))
    assert note.startswith("args: num_layers is 99, but /hf/config.json says layers (3")
    assert note.endswith(", which is taken")


@pytest.mark.parametrize("told", [(), (Told(where="args", sizes={}),)])
def test_that_nothing_was_configured_is_said(told):
    assert notes_of(told=told) == (
        "nothing says how training was configured, so that only shapes of tensors are compared with config.json",
    )


def test_a_parameter_that_is_missing_is_said_with_the_directory():
    arrays = made(toy.arrays())
    name = next(name for name in arrays if ".1." in name)
    del arrays[name]
    with pytest.raises(InputError) as caught:
        bound(facts(Pieces(arrays, halves, "/td")))
    assert caught.value.problems == [f"/td: 1 tensor is missing: model/{name}; are the files of one checkpoint?"]
