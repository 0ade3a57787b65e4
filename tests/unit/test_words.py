"""Numbers of bytes in words."""

from __future__ import annotations

import pytest

from distconv.words import binary


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 30, "1.0 GiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(nbytes, text):
    assert binary(nbytes) == text
