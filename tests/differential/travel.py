"""A checkpoint on its way from format to format: each conversion by distconv, each product judged without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from distconv.api import convert, verify
from distconv.errors import InputError
from tests.differential import oracle
from tests.differential.drafts import INDEX, Draft, Tensors, same, save_dcp, save_hf
from tests.differential.generations import is_tied
from tests.differential.models import HF, MEGATRON, NOTHING, PUBLISHED_DCP, Model
from tests.differential.routes import Hop


@dataclass
class Travel:
    """Where a checkpoint is, in which format, and what it must hold.

    `references` are the directories that a way back may be given, by kind; `remembered` is the one that the provenance
    names; `contents` the tensors of directories that hold some. `unnamed`: the last conversion had nothing that tells
    the names of its result. `lost` are names that were left out with a word. `padded`: rows of zeros were put in.
    Packed experts that are `turned` may come in either layout.
    """

    random: Random
    model: Model
    directory: Path
    format: str
    config: dict[str, Any]
    expected: Tensors
    references: dict[str, Path]
    contents: dict[Path, Tensors]
    remembered: Path | None = None
    layout: dict[str, Any] | None = None
    prefix: str = ""
    unnamed: bool = False
    padded: bool = False
    turned: frozenset[str] = frozenset()
    lost: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, random: Random, room: Path, model: Model, start: str, source: Draft, reference: Draft) -> Travel:
        """Save the drafts."""
        whole = save_hf(reference, room / "reference")
        references = {"whole": whole}
        for kind, names in (("index", ("config.json", INDEX)), ("config", ("config.json",))):
            directory = room / f"reference_{kind}"
            directory.mkdir()
            for name in names:
                if (whole / name).exists():
                    shutil.copy(whole / name, directory)
            references[kind] = directory
        if start == HF:
            directory = save_hf(source, room / "source")
        else:
            directory = save_dcp(source, room / "source", "", model.in_memory)
        contents = {whole: reference.tensors, directory: source.tensors}
        return cls(random, model, directory, start, reference.config, source.tensors, references, contents)

    def go(self, hop: Hop, target: Path, story: list[str]) -> InputError | None:
        """Convert and judge; the error if the conversion was refused.

        Raises:
            WrongError: the product is not as it must be.
        """
        options = {"io": {"fsync": False, "threads": 1}, **hop.options}
        self._choose_reference(hop, options)
        if self.model.variant is not None:
            options["model"] = self.model.variant
        if self.layout is not None and self.random.random() < 0.3:
            options["source_layout"] = self.layout
        story.append(f"{self.format} → {hop.format}: { {key: options[key] for key in options if key != 'io'} }")
        try:
            report = self._converted(target, options)
        except InputError as error:
            return error
        if self.unnamed:
            raise oracle.WrongError("the names of the result were made up")
        self._lose(report["not_converted"])
        self._judge(hop, target, options, report["notes"])
        if self.random.random() < 0.1 and (wrong := verify(self.directory, target, **options)):
            raise oracle.WrongError(f"verify finds {wrong}")
        self.directory, self.format = target, hop.format
        self.prefix = options.get("name_prefix", "")
        self.layout = report["layout"] if hop.format == MEGATRON else None
        return None

    def _lose(self, left_out: Iterable[dict[str, Any]]) -> None:
        """Take note of what a report says is left out.

        Raises:
            WrongError: it had to be converted.
        """
        for each in left_out:
            name = self._published(self._unprefixed(each["name"]))
            is_head = name == self.model.head or name.endswith("output_layer.weight")
            if name in self.model.left_out:
                self.lost.add(name)
            elif not (is_head and self._copied()) and not self.model.padded.search(name):
                raise oracle.WrongError(f"{name} is left out")

    def _unprefixed(self, name: str) -> str:
        """A name without what is in front of it in a DCP."""
        for front in (f"model.{self.prefix}", self.prefix):
            bare = name.removeprefix(front)
            if bare != name and self._published(bare) in self.expected:
                return bare
        return name

    def _choose_reference(self, hop: Hop, options: dict[str, Any]) -> None:
        """Give a reference if none is remembered, or at times another one."""
        if self.format == HF:
            self.remembered = self.directory
            return
        published = hop.format in (HF, PUBLISHED_DCP)
        # An index alone names tensors that were left out, and has none to fill in from.
        kinds = ["whole", "config"] if self.lost and published else ["whole", "index", "config"]
        remembers = self.remembered is not None and (len(kinds) > 2 or self.remembered != self.references["index"])
        kind = self.random.choice([*kinds, "remembered"] if remembers else kinds)
        if kind != "remembered":
            self.remembered = options["reference"] = self.references[kind]
        if self.lost and published and self.remembered in self.contents:
            options["fill_from_reference"] = True
            held = self.contents[self.remembered]
            self.expected = {**self.expected, **{name: held[name] for name in self.lost if name in held}}
            self.lost -= held.keys()
        self.unnamed = published and not self._names() and self.format in self.model.unnamed

    def _names(self) -> bool:
        """Whether the reference names its tensors."""
        assert self.remembered is not None
        return (self.remembered / INDEX).exists() or any(self.remembered.glob("*.safetensors"))

    def _converted(self, target: Path, options: dict[str, Any]) -> dict[str, Any]:
        """Convert; a layout that cannot be seen in files is said when it is asked for."""
        try:
            return convert(self.directory, target, **options)
        except InputError as error:
            if self.layout is None or "source_layout" in options or "source_layout." not in str(error):
                raise
            options["source_layout"] = self.layout
        return convert(self.directory, target, **options)

    def _judge(self, hop: Hop, target: Path, options: dict[str, Any], notes: Sequence[str]) -> None:
        expected = {name: each for name, each in self.expected.items() if name not in self.lost}
        if hop.format == HF:
            found = self.contents[target] = oracle.read_hf(target)
            if not self._names():
                found = {self._published(name): each for name, each in found.items()}
            oracle.check_config(target, found, self.model, notes)
            oracle.check_named(found, *self._with_head(self._turned_as(found, expected)))
        elif hop.format == PUBLISHED_DCP:
            prefix = options.get("name_prefix", "")
            found = {
                self._published(name.removeprefix(prefix)): each
                for name, each in oracle.read_parameters(target).items()
            }
            # Of a model that nobody knows it is not known that experts are packed.
            known = self.model.variant is not None or self.config.get("model_type") == self.model.config["model_type"]
            expected = self._turned_as(found, expected, _matrices if prefix and known else dict)
            oracle.check_named(found, *self._with_head(expected))
        else:
            modules: Iterable[Tensors] = (
                oracle.read_megatron(target) if hop.format == MEGATRON else [oracle.read_parameters(target)]
            )
            oracle.check_elements(modules, expected, padded=self.padded or self.model.padded != NOTHING)

    def _turned_as(self, found: Tensors, expected: Tensors, shaped: Callable[[Tensors], Tensors] = dict) -> Tensors:
        """The expected tensors, shaped, with packed experts in the one of their layouts that they are found in."""
        other = shaped({name: expected[name].transpose(1, 2) for name in self.turned & expected.keys()})
        return shaped(expected) | {
            name: each for name, each in other.items() if name in found and same(found[name], each)
        }

    def _with_head(self, expected: Tensors) -> tuple[Tensors, set[str]]:
        """The tensors of a published result, and those that it may lack: a tied head is stored or not."""
        head, embedding = self.model.head, self.model.embedding
        if not self._copied() or embedding not in expected:
            return expected, set()
        return {**expected, head: expected[embedding]}, {head}

    def _copied(self) -> bool:
        """Whether the head is, for the configuration and in truth, a copy of the embedding."""
        if self.model.head in self.model.left_out or not is_tied(self.config, self.model):
            return False
        head, embedding = (self.expected.get(each) for each in (self.model.head, self.model.embedding))
        return head is None or (embedding is not None and same(head, embedding))

    def _published(self, name: str) -> str:
        """The published name of one in memory."""
        if name in self.expected:
            return name
        return next((each for each in self.model.shapes if self.model.in_memory(each) == name), name)


def _matrices(tensors: Tensors) -> Tensors:
    """Packed experts as wrapped models hold them: all rows in one matrix."""
    return {
        name: each.flatten(0, 1) if name.endswith(("experts.gate_up_proj", "experts.down_proj")) else each
        for name, each in tensors.items()
    }
