"""Hypothesis for all unit tests: the machine's speed is no property of the code, so there is no deadline."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("distconv", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("distconv")
