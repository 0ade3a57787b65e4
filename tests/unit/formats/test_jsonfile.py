"""JSON of others is read without trusting it."""

from __future__ import annotations

import pytest

from distconv.errors import InputError
from distconv.formats.jsonfile import parse_object, read_object


def test_a_number_that_stands_for_no_limit_is_read():
    assert parse_object(b'{"a": 1000000000000000019884624838656, "b": -' + b"9" * 99 + b"}", "x")["a"] == int(1e30)


def test_an_object_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"a": {"b": [1, null, "é"]}}')
    assert read_object(tmp_path / "config.json", "the sizes") == {"a": {"b": [1, None, "é"]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON: "),
        (b"{", "not valid JSON: "),
        (b"{'a': 1}", "not valid JSON: "),
        (b"\xff\xfe\xff", "not valid JSON: "),
        (b"[" * 100_000, "not valid JSON: "),
        (b"[1" + b"0" * 10_000 + b"]", "not valid JSON: "),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
        (b'{"a": 1, "b": 2, "a": 3}', "not valid JSON: key given twice: a"),
        (b'{"a": 1' + b"0" * 100 + b"}", "not valid JSON: a number of 101 digits: 1000000000…"),
        (b'{"x": {"b": 2, "b": 2, "a": 1, "a": 1}}', "not valid JSON: key given twice: a, b"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(InputError) as caught:
        parse_object(text, "config.json")
    assert str(caught.value).startswith(f"config.json: {message}")


def test_a_file_that_is_not_there_is_named_with_what_it_is_needed_for(tmp_path):
    with pytest.raises(InputError) as caught:
        read_object(tmp_path / "config.json", "the sizes")
    assert str(caught.value) == f"{tmp_path}/config.json: no such file; it is needed for the sizes"
    with pytest.raises(InputError, match=f"{tmp_path}: cannot be read: Is a directory"):
        read_object(tmp_path, "the sizes")
