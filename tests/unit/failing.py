"""Calls of the operating system that fail while a test runs."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def failing_to_open(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the system fail to open files of a name."""
    real = os.open

    def opened(path: Any, *arguments: Any) -> int:
        if Path(path).name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", opened)
