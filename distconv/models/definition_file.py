"""One YAML file of a model definition: its content, and the names of the definitions that it inherits.

Owns the YAML: scalars are typed as by Hydra, and documents whose aliases or nesting would expand beyond limits are
refused before values are built. Never reads another file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from distconv.errors import InputError

if TYPE_CHECKING:
    from importlib.abc import Traversable

# The place of a definition's own content in the list of its parents.
SELF = "_self_"
# Keys and values of a definition with all that it inherits, aliases written out; the largest of the package has 900.
LARGEST = 50_000
# Levels of nested values, and of inheritance.
DEEPEST = 50
_TOO_DEEP = f"more than {DEEPEST} levels"
_LONGEST_NUMBER = 100
_TAG = "tag:yaml.org,2002:"
_STRING, _NUMBERS = f"{_TAG}str", (f"{_TAG}int", f"{_TAG}float")
_TAGS = {f"{_TAG}{each}" for each in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
# The first line that is not empty begins a header, which ends before the first other one.
_PACKAGE = re.compile(r"(?:\s*#\s*@.*\n)*?\s*#\s*@\s*package\b")
_RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)
_FLOAT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
# Several times as fast, where PyYAML was built with it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Types scalars as Hydra does: a date is text, and 1e5 is a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - where PyYAML looks for them
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
        + [(f"{_TAG}float", _FLOAT)] * (first in "-+0123456789")
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True, kw_only=True)
class DefinitionFile:
    """The content of a file and its inheritance.

    `parents`: the names of the inherited definitions, and `_self_`, in the order of merging. `nodes`: number of keys
    and values. `placed`: the header or entry of `defaults` by which Hydra would place contents elsewhere, `None`
    without one. `interpolated`: the first value with an interpolation, `None` without one.
    """

    path: str
    content: Mapping[str, Any]
    parents: tuple[str, ...]
    nodes: int
    placed: str | None
    interpolated: str | None


def read_definition(file: Traversable) -> DefinitionFile:
    """Read the definition in a file.

    Raises:
        InputError: not UTF-8, not YAML, not a mapping, or `defaults` that are no list of definitions.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8: {error}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    graph = _Graph(str(file))
    content, nodes = _loaded(text, graph)
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a mapping, found {type(content).__name__}")
    parents, placed = _inherited(content.pop("defaults", []), str(file))
    return DefinitionFile(
        path=str(file),
        content=content,
        parents=parents,
        nodes=nodes,
        placed="its header '# @package'" if _PACKAGE.match(text) else placed,
        interpolated=graph.interpolated,
    )


def _loaded(text: str, graph: _Graph) -> tuple[Any, int]:
    """The content of a document, an empty mapping for an empty document, and the number of its nodes."""
    with _valid(graph.path):
        loader = _Loader(text)
        root = loader.get_single_node()
    if root is None:
        return {}, 1
    nodes, _ = graph.measure(root)
    with _valid(graph.path):
        return loader.construct_document(root), nodes


@contextlib.contextmanager
def _valid(path: str) -> Iterator[None]:
    """Turn errors of PyYAML, and of values it cannot build, into `InputError` with the path."""
    try:
        yield
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        problem = _explained(error)
        raise InputError(f"{path}: not valid YAML: {problem}; a name with {{ }} in it needs quotes") from None


def _explained(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, yaml.MarkedYAMLError):
        problem = ", ".join(filter(None, (error.context, error.problem)))
        return f"line {error.problem_mark.line + 1}: {problem}" if error.problem_mark is not None else problem
    return " ".join(str(error).split())


def _inherited(defaults: Any, path: str) -> tuple[tuple[str, ...], str | None]:
    """The parents in `defaults`, and its first entry that is more than a name of a definition, or `None`."""
    if not isinstance(defaults, list) or not all(isinstance(each, (str, dict)) for each in defaults):
        raise InputError(f"{path}: defaults: expected a list of names of model definitions, found {defaults!r:.80}")
    names = [each.removesuffix(".yaml") for each in defaults if _is_name(each)]
    if names.count(SELF) > 1:
        raise InputError(f"{path}: defaults: {SELF} stands there twice")
    if SELF not in names:
        names.append(SELF)
    placing = next((each for each in defaults if not _is_name(each)), None)
    return tuple(names), None if placing is None else f"defaults: {placing!r:.80}"


def _is_name(item: object) -> bool:
    """Whether an entry of `defaults` is the name of a definition and nothing more."""
    return isinstance(item, str) and not set(item) & set("/@$")


class _Graph:
    """The graph of YAML nodes of a document, checked before values are built from it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.interpolated: str | None = None
        self._measured: dict[Any, tuple[int, int]] = {}
        self._open: set[Any] = set()

    def measure(self, node: Any) -> tuple[int, int]:
        """The number of nodes in the tree below `node`, with aliases expanded, and its depth.

        Raises:
            InputError: too many nodes or levels, an alias inside its own anchor, a tag, or a key twice.
        """
        if node in self._open:
            raise self._refusal(node, "an alias stands inside of what it stands for")
        if len(self._open) >= DEEPEST:
            raise self._refusal(node, _TOO_DEEP)
        if node not in self._measured:
            self._open.add(node)
            below = [self.measure(child) for child in self._checked(node)]
            self._open.remove(node)
            nodes, levels = 1 + sum(each for each, _ in below), 1 + max((each for _, each in below), default=0)
            if nodes > LARGEST:
                raise self._refusal(node, f"more than {LARGEST:,} keys and values, aliases written out")
            if levels > DEEPEST:
                raise self._refusal(node, _TOO_DEEP)
            self._measured[node] = nodes, levels
        return self._measured[node]

    def _checked(self, node: Any) -> list[Any]:
        """The children of a node, after the checks on the node itself."""
        if node.tag not in _TAGS:
            raise self._refusal(node, f"a tag, {node.tag.replace(_TAG, '!!')}")
        if isinstance(node, yaml.MappingNode):
            self._check_keys([key for key, _ in node.value])
            return [each for pair in node.value for each in pair]
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise self._refusal(node, f"a number of {len(node.value):,} characters")
        if node.tag == _STRING and ("${" in node.value or node.value == "???"):
            self._note_interpolation(node)
        return []

    def _check_keys(self, keys: list[Any]) -> None:
        known = set()
        for key in keys:
            if not isinstance(key, yaml.ScalarNode):
                raise self._refusal(key, "a key that is not text; a name with { } in it needs quotes")
            if key.tag == _STRING:
                if key.value in known:
                    raise self._refusal(key, f"duplicate key {key.value}")
                known.add(key.value)

    def _note_interpolation(self, node: Any) -> None:
        value = f"{node.value[:60]!r}"
        if _RESOLVER.search(node.value):
            raise self._refusal(node, f"{value} asks for more than the value of an option, which ${{…}} stands for")
        self.interpolated = self.interpolated or f"line {node.start_mark.line + 1}: {value}"

    def _refusal(self, node: Any, problem: str) -> InputError:
        return InputError(f"{self.path}: line {node.start_mark.line + 1}: {problem}")
