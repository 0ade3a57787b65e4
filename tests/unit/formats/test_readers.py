"""Whatever a reader of others raises becomes one line; errors of this program stay what they are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from distconv.errors import InputError, ReaderError, StoppedError
from distconv.formats.readers import importing, reading_by

PATH = Path("mp_rank_00/model_optim_rng.pt")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("no\n  archive"), "does not read it: no archive"),
        (KeyError("weight_map"), "does not read it: 'weight_map'"),
        (AssertionError(), "does not read it: AssertionError"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x"), "cannot read it: No such file or directory"),
        (RuntimeError("x" * 1000), f"does not read it: {'x' * 300}"),
    ],
)
def test_one_line_of_a_reader(error, says):
    with pytest.raises(ReaderError) as caught, reading_by("torch.load", PATH):
        raise error
    assert str(caught.value) == f"{PATH}: torch.load {says}"
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("error", [StoppedError("stopped"), InputError("damaged"), MemoryError(), KeyboardInterrupt()])
def test_what_is_no_failure_of_the_reader(error):
    with pytest.raises(type(error)) as caught, reading_by("torch.load", PATH):
        raise error
    assert caught.value is error


def test_a_package_that_is_missing():
    with (
        pytest.raises(InputError, match=r"^verify=true: reads the result with safetensors, .* \(no module\); pip"),
        importing("safetensors"),
    ):
        raise ImportError("no module")
