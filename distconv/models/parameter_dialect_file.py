"""The files of dialects of training: those under `conf/dialect/` that have `parameters`.

Owns their keys and the checks of their values; `parameter_dialect` has the records. Reads no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from distconv.errors import raise_if, unknown_keys
from distconv.models.joining import Join
from distconv.models.parameter_dialect import Exchange, ParameterDialect, ParameterDialects
from distconv.models.predicting import inside_of

_KEYS = ("words", "like", "parameters", "joined", "whole", "distributed", "extra_states")
_NUMBERS = ("{layer}", "{expert}", "{next}")


def is_of_parameters(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file of a dialect is one of training, not of published names."""
    return "parameters" in content


def parse_parameter_dialects(contents: Mapping[str, Mapping[str, Any]]) -> ParameterDialects:
    """The dialects of training, from the contents and paths of their files by name.

    Raises:
        InputError: every key that is unknown, and every value that is not as expected.
    """
    problems: list[str] = []
    parsed = {name: _parsed(name, each["content"], each["path"], problems) for name, each in contents.items()}
    likes = {name: each["content"].get("like") for name, each in contents.items()}
    for name, like in likes.items():
        seen, last = {name}, like
        while isinstance(last, str) and last in parsed and last not in seen:
            seen.add(last)
            last = likes[last]
        if last is not None:
            problems.append(
                f"{contents[name]['path']}: like: expected the name of another dialect with parameters, found {like!r}"
            )
    raise_if(problems)
    return ParameterDialects(dialects={name: _complete(name, parsed, likes) for name in parsed})


def _complete(name: str, parsed: Mapping[str, ParameterDialect], likes: Mapping[str, Any]) -> ParameterDialect:
    """A dialect with the exchanges of the one that it is like before its own."""
    if likes[name] is None:
        return parsed[name]
    first, then = _complete(likes[name], parsed, likes), parsed[name]
    return replace(
        then,
        exchanges=first.exchanges + then.exchanges,
        joined=first.joined + then.joined,
        whole=first.whole + then.whole,
        distributed=first.distributed + then.distributed,
        extra_states=first.extra_states + then.extra_states,
    )


def _parsed(name: str, content: Mapping[str, Any], where: str, problems: list[str]) -> ParameterDialect:
    problems += [f"{where}: {each}" for each in unknown_keys(content, _KEYS)]
    words = content.get("words", f"as in {name}")
    if not isinstance(words, str):
        problems.append(f"{where}: words: expected text, found {words!r}")

    def texts(key: str, expected: str) -> list[str]:
        found = content.get(key, [])
        if _are_text(found):
            return list(found)
        problems.append(f"{where}: {key}: expected {expected}, found {found!r}")
        return []

    # What is said of a layer holds for those that predict further tokens, too.
    joins = (each for join in _joins(content, where, problems) for each in (join, join.inside()))
    starts = (each for start in texts("whole", "beginnings of targets") for each in (start, inside_of(start)))
    return ParameterDialect(
        name=name,
        words=str(words),
        exchanges=tuple(_exchanges("parameters", content, where, problems)),
        joined=tuple(each for each in joins if each is not None),
        whole=tuple(each for each in starts if each is not None),
        distributed=tuple(_exchanges("distributed", content, where, problems)),
        extra_states=tuple(texts("extra_states", "patterns of the names of modules")),
    )


def _exchanges(key: str, content: Mapping[str, Any], where: str, problems: list[str]) -> Iterator[Exchange]:
    for pair in _entries(content, key):
        if not _are_text(pair) or len(pair) not in (2, 3):
            problems.append(f"{where}: {key}: expected [beginning, its name, beginning beside], found {pair!r}")
        elif any(pair[0].count(each) != pair[1].count(each) for each in _NUMBERS):
            problems.append(f"{where}: {key}: {pair}: expected the same placeholders in both names")
        else:
            exchange = Exchange(old=pair[0], new=pair[1], beside="".join(pair[2:]))
            yield from (each for each in (exchange, exchange.inside()) if each is not None)


def _joins(content: Mapping[str, Any], where: str, problems: list[str]) -> Iterator[Join]:
    for entry in _entries(content, "joined"):
        if not _are_text(entry) or len(entry) < 3:
            problems.append(
                f"{where}: joined: expected [target, target of a part, target of another, …], found {entry!r}"
            )
        elif any(len({part.count(each) for part in entry}) > 1 for each in _NUMBERS):
            problems.append(f"{where}: joined: {entry}: expected the same placeholders in all targets")
        else:
            yield Join(target=entry[0], parts=tuple(entry[1:]))


def _entries(content: Mapping[str, Any], key: str) -> list[Any]:
    found = content.get(key, [])
    return found if isinstance(found, list) else [found]


def _are_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
