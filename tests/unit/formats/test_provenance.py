"""A result remembers what it was made from; what it remembers wrongly is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distconv.errors import InputError
from distconv.formats.provenance import Provenance, provenance_bytes, read_provenance
from distconv.models.scaling import Scaling


@pytest.mark.parametrize(
    "record", [Provenance(), Provenance(model="toy"), Provenance(model="toy", reference='/hf/ü "x"')]
)
def test_what_is_written_is_read(tmp_path, record):
    (tmp_path / "distconv.json").write_bytes(provenance_bytes(record))
    assert read_provenance(tmp_path) == record


def test_the_scaling_of_adapters_is_remembered(tmp_path):
    scaling = Scaling(alpha=16, rslora=True, alphas={"fc": 4}, where="/hf/adapter_config.json")
    (tmp_path / "distconv.json").write_bytes(provenance_bytes(Provenance(model="toy", scaling=scaling)))
    assert read_provenance(tmp_path) == Provenance(
        model="toy", scaling=replace(scaling, where=f"{tmp_path}/distconv.json")
    )


def test_there_may_be_none(tmp_path):
    assert read_provenance(tmp_path) == Provenance()


def test_keys_of_a_later_version_are_left_alone(tmp_path):
    (tmp_path / "distconv.json").write_text('{"model": "toy", "version": 3}')
    assert read_provenance(tmp_path) == Provenance(model="toy")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"model": ["toy"]}', "model: expected text, found ['toy']; remove the file, or mend it"),
        ('{"reference": 3}', "reference: expected text, found 3; remove the file, or mend it"),
        ('{"adapters": {"alpha": "16"}}', "expected the scaling of adapters, found {'alpha': '16'}; remove the file"),
        ("[]", ""),
        ("{", ""),
    ],
)
def test_a_damaged_one_is_named(tmp_path, text, problem):
    (tmp_path / "distconv.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_provenance(tmp_path)
    assert f"{tmp_path}/distconv.json: {problem}" in str(caught.value)
