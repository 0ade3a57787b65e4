"""Texts that users write: model definitions, dialects, and the words of a command line.

Owns how they are read for fuzzing, as jobs read them, and valid ones of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from distconv.cli.rejections import in_own_words
from distconv.cli.values import with_expanded_paths, with_group_as_value, with_literal_path, without_wrapping
from distconv.formats.registry import Options
from distconv.models.definition_parser import parse_definition
from distconv.models.dialect import parse_dialect
from distconv.models.library import Library
from distconv.models.parameter_dialect_file import is_of_parameters, parse_parameter_dialects


@dataclass(frozen=True, kw_only=True)
class Text:
    """How a text is read as data, and data are written."""

    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


JSON = Text(read=json.loads, write=lambda data: json.dumps(data).encode())
YAML = Text(read=yaml.safe_load, write=lambda data: yaml.safe_dump(data, allow_unicode=True).encode(errors="replace"))


def read_definition(directory: Path) -> object:
    library = Library([directory])
    library.heads()
    library.check("mine")
    return parse_definition("mine", library.content("mine"))


def write_parent(directory: Path) -> None:
    (directory / "model").mkdir()
    (directory / "model" / "base.yaml").write_text("model_types: [base]\nsizes: {hidden: [hidden_size]}\n")


def definitions() -> list[bytes]:
    small = (
        "defaults: [base, _self_]\nmodel_types: [mine]\nsizes:\n  layers: [num_layers, 2]\nmodalities:\n"
        "  text: {layers: layers}\nrules:\n  text:\n    layers:\n      - target: decoder.layers.{layer}.a.weight\n"
        '        sources:\n          - ["layers.{layer}.a", any, hidden]\n        tp: [rows, layers]\n'
    )
    library = Library.of_package()
    whole = (library.content(name) for name in ("internvl", "qwen2vl", "deepseek_v3", "gpt_oss"))
    return [small.encode(), *(YAML.write(dict(each)) for each in whole)]


def read_dialect(directory: Path) -> object:
    found = Library([directory]).dialects()
    parameters = {name: each for name, each in found.items() if is_of_parameters(each["content"])}
    for name in found.keys() - parameters.keys():
        parse_dialect(name, found[name]["content"], found[name]["path"])
    return parse_parameter_dialects(parameters)


def dialects() -> list[bytes]:
    folder = files("distconv.conf") / "dialect"
    contents = [each.read_bytes() for each in sorted(folder.iterdir(), key=str) if each.name.endswith(".yaml")]
    return [each for each in contents if "like" not in yaml.safe_load(each)]


def read_words(directory: Path) -> object:
    """The words of a command line, a line each, as they are read without the files that Hydra composes."""
    text = (directory / "words").read_bytes().decode(errors="replace")
    words = [with_group_as_value(with_literal_path(word)) for word in text.splitlines()]
    content: dict[str, Any] = {}
    with in_own_words(words):
        for each in OverridesParser.create().parse_overrides(words):
            *groups, last = (each.key_or_group or "").split(".")
            place = content
            for group in groups:
                inner = place.get(group)
                place[group] = place = inner if isinstance(inner, dict) else {}
            place[last] = each.value()
    return Options.from_content(with_expanded_paths(without_wrapping(content)))


WORDS = (
    "source=/ckpt/a b=c,d\ntarget=$HOME/x\nlayout.tp=2\nlayout.stages.text=[1,10,10,7]\nio.threads=4",
    "source=a\ntarget=b\ntarget_format=hf\nshard_size=5GB\nmerge_lora=true\nlora_alpha=16",
    "source=a\ntarget=b\ndtype=bfloat16\nkeep_dtype=['a.*',\"b\"]\ndialect=mcore_te\nfile_mode=0640\npatience=60",
    "source='x\"y'\ntarget=\"a\\\\\"\ntarget_format=dcp\nname_prefix='model.'\nselect=[text]\nvocab_multiple=128",
)
