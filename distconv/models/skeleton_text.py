"""The YAML of a skeleton, for a person who completes it.

Owns its wording. Decides nothing, and writes no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from distconv.models.definition_reader import TODO
from distconv.models.entries import Choice, Entry, Skeleton
from distconv.tensors.operators import RENAME

_PLAIN = re.compile(r"[A-Za-z_][\w.]*")
# Words that YAML does not take for text.
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_HEADER = (
    "A skeleton: what stands in it was recognised in names, shapes and config.json{follows}.",
    "Check the targets, and decide what is TODO: a target is the name that training has for the parameter, tp how",
    "tensor parallel ranks share it (replicated, rows, cols, glu, …), stage where it is (first, last, ends, every).",
    'README.md, "A model of your own", explains every key.',
)


def skeleton_text(skeleton: Skeleton) -> str:
    """The YAML of a skeleton."""
    follows = f", and taken from {', '.join(skeleton.follows)}" if skeleton.follows else ""
    lines = [f"# {line.format(follows=follows)}" for line in _HEADER]
    lines += [f"model_types: {_flow([skeleton.model_type])}", f"dialect: {skeleton.dialect}", "", "sizes:"]
    lines += [f"  {_flow(name)}: {_flow(written)}" for name, written in skeleton.sizes.items()]
    if skeleton.lists:
        lines += ["", "lists:", *(f"  {_flow(name)}: {_flow([path])}" for name, path in skeleton.lists.items())]
    lines += ["", "modalities:"]
    lines += [f"  {name}: {{layers: {layers}}}" for name, layers in skeleton.modalities.items()]
    for key, size in (("experts", skeleton.experts), ("predicting", skeleton.predicting)):
        lines += ["", f"{key}: {size}"] if size else []
    if skeleton.tied is not None:
        lines += ["", "tied:", *(f"  {key}: {_flow(value)}" for key, value in skeleton.tied.items())]
    lines += ["", "rules:"]
    for modality, sections in skeleton.rules.items():
        lines.append(f"  {modality}:")
        for section, found in sections.items():
            lines.append(f"    {section}:")
            lines += _indented(6, (line for each in found for line in _rule(each)))
    lines += _ends(skeleton)
    return "\n".join(lines) + "\n"


def _ends(skeleton: Skeleton) -> Iterator[str]:
    if skeleton.ignored:
        yield from ("", "ignore:")
    for names, reason in skeleton.ignored:
        yield f"  - {{names: {_quoted(names)}, reason: {_quoted(reason)}}}"
    if skeleton.copied:
        yield from ("", "copied:")
    for name, of, reason in skeleton.copied:
        yield f"  - {{name: {_quoted(name)}, of: {_quoted(of)}, reason: {_quoted(reason)}}}"


def _rule(rule: Entry | Choice) -> Iterator[str]:
    """The lines of a rule, or of alternatives."""
    if isinstance(rule, Choice):
        yield "- one_of:"
        for name, entries in rule.alternatives.items():
            yield f"    {name}:" if entries else f"    {name}: []"
            yield from _indented(6, (line for each in entries for line in _rule(each)))
        return
    yield from (f"# {remark}" for remark in rule.remarks)
    yield f"- target: {_flow(rule.target)}"
    sources = [_flow([name, *dims], first_is_name=True) for name, dims in rule.sources]
    if len(sources) == 1:
        yield f"  sources: [{sources[0]}]"
    else:
        yield "  sources:"
        yield from (f"    - {source}" for source in sources)
    if rule.operator != (RENAME,):
        yield f"  operator: {_call(rule.operator)}"
    if rule.tp:
        yield f"  tp: {_call(rule.tp)}"
    for key, value in (("stage", rule.stage), ("layers", rule.layers)):
        if value:
            yield f"  {key}: {value}"


def _call(words: Sequence[str | int]) -> str:
    return _flow(words[0] if len(words) == 1 else list(words))


def _flow(value: Any, *, first_is_name: bool = False) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else _quoted(value)
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        items = list(value)
        words = [_flow(each) for each in items]
        if first_is_name:
            words[0] = _quoted(items[0])
        return f"[{', '.join(words)}]"
    return str(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _indented(columns: int, lines: Iterable[str]) -> Iterator[str]:
    yield from (" " * columns + line for line in lines)


def undecided_lines(text: str) -> int:
    """How many lines of a skeleton have something that is left to a person."""
    return sum(TODO in line for line in text.splitlines() if not line.lstrip().startswith("#"))
