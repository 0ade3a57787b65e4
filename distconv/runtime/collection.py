"""Python's collector of cyclic garbage, which looks at all objects again and again while many are made that stay.

Owns its pause. What is not in a cycle is freed all the same, so that planning needs no more memory for it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """A pause of the collector; where it is off already, it stays off."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
