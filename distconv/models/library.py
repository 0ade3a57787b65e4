"""The library of model definitions and dialects: their files, and their contents with everything inherited.

A head is what chooses a definition: its `model_types`, the fields that exclude a model, the family that it is a
variant of, its use of adapters. Owns the search for files and the merging along `defaults`, which equals Hydra's. Never
parses a definition beyond its head, and refuses contents that only a composition by Hydra can tell.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distconv.errors import InputError, raise_if
from distconv.models.definition_file import DEEPEST, LARGEST, SELF, DefinitionFile, read_definition

if TYPE_CHECKING:
    from importlib.abc import Traversable

Head = Mapping[str, Any]


class Library:
    """The model definitions in the `model` folders of several roots, by name, and the dialects in `dialect` folders.

    The first root with a name of a definition has priority.

    Files are read on demand, and once. A definition that Hydra places by a header `# @package`, or by `defaults` that
    are more than names, has a name, an empty head and no content.
    """

    def __init__(self, roots: Sequence[Traversable]) -> None:
        self._roots = tuple(roots)
        self._read: dict[str, DefinitionFile] = {}

    @classmethod
    def of_package(cls, config_dir: Path | None = None) -> Library:
        """The definitions that come with distconv, and those in `config_dir/model`.

        Raises:
            InputError: no such directory.
        """
        roots: list[Traversable] = [_of_package()]
        if config_dir is not None:
            if not config_dir.is_dir():
                raise InputError(f"{config_dir}: no such directory; expected one with model definitions in model/")
            roots.append(config_dir.absolute())
        return cls(roots)

    def names(self) -> list[str]:
        """The names of all definitions, sorted."""
        return sorted(self._files)

    def heads(self) -> Mapping[str, Head]:
        """The heads of all definitions by name: `model_types`, `unless`, `variant_of`, `adapters`, as far as given.

        Raises:
            InputError: every definition that cannot be read.
        """
        return self._heads

    @cached_property
    def _heads(self) -> Mapping[str, Head]:
        heads: dict[str, Head] = {}
        problems: dict[str, None] = {}
        for name in self.names():
            try:
                lineage = self._lineage(name)
                heads[name] = {} if _placed(lineage) else head_of(_merged(lineage))
            except InputError as error:
                problems |= dict.fromkeys(error.problems)
        raise_if(list(problems))
        return heads

    def check(self, name: str) -> None:
        """Check a definition and its parents for what no composition, be it by Hydra, can accept.

        Raises:
            InputError: no such definition, or two with the name; a file that cannot be read; a parent that does not
                exist or inherits the definition itself; values that cannot be merged.
        """
        lineage = self._chosen(name)
        if not _placed(lineage):
            _merged(lineage)

    def content(self, name: str) -> Mapping[str, Any]:
        """The content of a definition merged over its parents': mappings are merged, other values replaced.

        Raises:
            InputError: as `check`; or the content has parts that only Hydra can compose.
        """
        lineage = self._chosen(name)
        for file in lineage:
            if reason := file.placed or file.interpolated:
                raise InputError(
                    f"{file.path}: {reason}: only Hydra composes this; name the definition on the command line, "
                    f"+model={name}"
                )
        return _merged(lineage)

    def own_file(self, name: str) -> str | None:
        """The path of a definition that did not come with distconv; `None` for one that did, or that has no file."""
        found = self._files.get(name, ())
        is_of_package = _of_package().joinpath("model").joinpath(f"{name}.yaml").is_file()
        return None if not found or is_of_package else str(found[0])

    def dialects(self) -> Mapping[str, Mapping[str, Any]]:
        """The files of all dialects by name, as mappings of their `path` and their `content`.

        Raises:
            InputError: every file that cannot be read, that inherits, or that has the name of another.
        """
        return self._dialects

    @cached_property
    def _dialects(self) -> Mapping[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        problems = []
        for name, (first, *others) in sorted(self._in_folder("dialect").items()):
            problems += [f"{other}: has the name of the dialect {first}; give it another one" for other in others]
            try:
                file = read_definition(first)
            except InputError as error:
                problems += error.problems
                continue
            if reason := file.placed or file.interpolated or (file.parents != (SELF,) and "defaults"):
                problems.append(f"{file.path}: {reason}: a dialect is a file by itself; spell it out")
            found[name] = {"path": file.path, "content": file.content}
        raise_if(problems)
        return found

    @cached_property
    def _files(self) -> Mapping[str, list[Traversable]]:
        """The files of definitions by name, in the order of roots."""
        return self._in_folder("model")

    def _in_folder(self, folder: str) -> dict[str, list[Traversable]]:
        """The YAML files in the folders of a name, by their own names, in the order of roots."""
        found: dict[str, list[Traversable]] = {}
        for group in (root.joinpath(folder) for root in self._roots):
            try:
                for file in group.iterdir() if group.is_dir() else ():
                    if file.name.endswith(".yaml") and file.is_file():
                        found.setdefault(file.name.removesuffix(".yaml"), []).append(file)
            except OSError as error:
                raise InputError(f"{group}: cannot be read: {error.strerror}") from None
        return found

    def _chosen(self, name: str) -> list[DefinitionFile]:
        """The lineage of a definition chosen by name; no other file may have the name."""
        if name not in self._files:
            raise InputError(f"+model={name}: no such model definition{_nearest(name, self._files)}")
        first, *others = self._files[name]
        if others:
            raise InputError(f"+model={name}: {others[0]} has the name of {first}; give it another one")
        return self._lineage(name)

    def _lineage(self, name: str) -> list[DefinitionFile]:
        """The files of a definition and its parents, in the order of merging."""
        lineage = []
        nodes = 0
        for file in self._inherited(name, ()):
            nodes += file.nodes
            if nodes > LARGEST:
                raise InputError(f"{self._files[name][0]}: more than {LARGEST:,} keys and values with what it inherits")
            lineage.append(file)
        return lineage

    def _inherited(self, name: str, heirs: tuple[str, ...]) -> Iterator[DefinitionFile]:
        file = self._file(name)
        heirs = (*heirs, name)
        raise_if(
            [
                f"{file.path}: defaults: no model definition {parent}{_nearest(parent, self._files)}"
                for parent in file.parents
                if parent != SELF and parent not in self._files
            ]
        )
        for parent in file.parents:
            if parent == SELF:
                yield file
            elif parent in heirs:
                chain = " from ".join((*heirs[heirs.index(parent) :], parent))
                raise InputError(f"{file.path}: defaults: a model definition inherits from itself: {chain}")
            elif len(heirs) == DEEPEST:
                raise InputError(f"{file.path}: defaults: more than {DEEPEST} definitions inherit from each other")
            else:
                yield from self._inherited(parent, heirs)

    def _file(self, name: str) -> DefinitionFile:
        if name not in self._read:
            self._read[name] = read_definition(self._files[name][0])
        return self._read[name]


def head_of(content: Mapping[str, Any]) -> Head:
    """The head in the content of a definition, without malformed values, which parsing the definition reports."""
    return {key: content[key] for key, fits in _HEAD.items() if key in content and fits(content[key])}


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _are_names(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, str) for each in value))


# The keys of a head, and the checks of their values.
_HEAD = {"model_types": _are_names, "unless": _are_names, "variant_of": _is_text, "adapters": _is_text}


def _placed(lineage: Iterable[DefinitionFile]) -> bool:
    """Whether Hydra would place contents of these files elsewhere than in the definition."""
    return any(file.placed is not None for file in lineage)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
    return f"; the nearest is {near[0]}" if near else ""


def _of_package() -> Traversable:
    return files("distconv.conf")


def _merged(lineage: Iterable[DefinitionFile]) -> dict[str, Any]:
    """The contents of files, merged in order.

    Raises:
        InputError: a list where a mapping is inherited, or the reverse.
    """
    merged: dict[str, Any] = {}
    for file in lineage:
        problems: list[str] = []
        merged = _merge(merged, file.content, f"{file.path}: ", problems)
        raise_if(problems)
    return merged


def _merge(old: Mapping[str, Any], new: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        inherited = merged.get(key)
        kinds = [kind for kind in (dict, list) for each in (inherited, value) if isinstance(each, kind)]
        if kinds == [dict, dict]:
            merged[key] = _merge(merged[key], value, f"{where}{key}.", problems)
        elif kinds == [dict, list]:
            expected, found = ("mapping", "list") if isinstance(value, list) else ("list", "mapping")
            problems.append(f"{where}{key}: expected a {expected}, as in what it inherits, found a {found}")
        else:
            merged[key] = value
    return merged
