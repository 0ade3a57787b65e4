"""A result remembers what it was made from; what it remembers wrongly is refused by name."""

from __future__ import annotations

import pytest

from distconv.errors import InputError
from distconv.formats.provenance import Provenance, read_provenance, write_provenance


@pytest.mark.parametrize(
    "provenance", [Provenance(), Provenance(model="toy"), Provenance(model="toy", reference='/hf/ü "x"')]
)
def test_what_is_written_is_read(tmp_path, provenance):
    assert write_provenance(tmp_path, provenance) == {"distconv.json": (tmp_path / "distconv.json").stat().st_size}
    assert read_provenance(tmp_path) == provenance


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
        ("[]", ""),
        ("{", ""),
    ],
)
def test_a_damaged_one_is_named(tmp_path, text, problem):
    (tmp_path / "distconv.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_provenance(tmp_path)
    assert f"{tmp_path}/distconv.json: {problem}" in str(caught.value)
