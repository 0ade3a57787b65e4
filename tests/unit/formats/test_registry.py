"""The options of all formats are one record, and the formats are the choices of the moment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import distconv.fields
import distconv.layout.request
import distconv.options
from distconv.errors import InputError
from distconv.fields import options_of
from distconv.formats.dcp.options import DcpOptions
from distconv.formats.huggingface.options import HuggingFaceOptions
from distconv.formats.registry import FORMATS, FormatWords, Options
from distconv.options import CommonOptions

JOB = {"source": "/hf", "target": "/mm"}


def test_the_options_are_the_common_ones_and_those_of_every_format():
    common, dcp, hf = (set(options_of(each)) for each in (CommonOptions, DcpOptions, HuggingFaceOptions))
    assert set(options_of(Options)) == common | dcp | hf
    assert (dcp - common, hf - common) == ({"naming", "name_prefix", "packed_experts"}, {"merge_lora", "lora_alpha"})


def test_a_format_that_is_added_can_be_chosen(monkeypatch):
    with pytest.raises(InputError, match="target_format=npy: expected one of megatron, dcp, hf"):
        Options(**JOB, target_format="npy")
    monkeypatch.setitem(FORMATS, "npy", FormatWords(words=""))
    assert Options(**JOB, target_format="npy").target_format == "npy"
    with pytest.raises(InputError, match="target_format=x: expected one of megatron, dcp, hf, npy"):
        Options(**JOB, target_format="x")


@pytest.mark.parametrize("module", [distconv.fields, distconv.options, distconv.layout.request])
def test_the_common_options_name_no_format(module):
    text = Path(module.__file__).read_text().lower()
    assert re.findall(rf"\b({'|'.join(FORMATS)}|hugging ?face)\b", text) == []
