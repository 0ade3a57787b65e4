"""Sizes recognised in a configuration: which fields, or products and quotients of them, a dim is equal to.

Owns how likely a size is that of a dim, by names and by value. Sees a configuration and numbers, never a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from distconv.errors import InputError
from distconv.models.grouping import modality_of
from distconv.models.language_model import text_path
from distconv.models.sizes import DERIVATIONS, Sizes, SizeSpec

# The value of a size, as a definition writes it.
Written = list[Any]
# Words of fields, and the words of tensors whose dims are likely such a size, from the most telling on.
_LIKELY = (
    (r"vocab", r"embed_tokens|tok_embed|wte|lm_head|output\.weight|word_embed"),
    (r"expert.*(inter|ffn|mlp)|moe.*(inter|ffn|mlp)", r"expert"),
    (r"^(n|num)\w*_experts$|experts$", r"gate|router|experts"),
    (r"lora_rank|_rank$", r"_a_|_b_|lora|latent|down|up"),
    (r"inter(mediate)?|ffn|mlp|feed", r"mlp|ffn|fc\d|feed|gate|up_|down_|w\d"),
    (r"patch", r"patch|conv"),
    (r"channel|in_chans|mel_bins", r"patch|conv"),
    (r"position", r"pos"),
    (r"key_value_heads|kv_heads", r"[^a-z][kv]_|kv"),
    (r"head", r"attn|attention"),
)
# What most dims are, whatever the tensor.
_WIDTH = re.compile(r"^(hidden_size|d_model|n_embd|embed_dim|width|dim|hidden_dim)$")
_LAYERS = re.compile(r"layers?$|depth")
_EXPERTS = re.compile(r"expert")
_COUNT = re.compile(r"(n|num)_|.*_heads$")
# Sizes of parts of heads, which are next to each other in a tensor.
_OF_HEADS = re.compile(r"dim|rank")
# Factors that are not in a configuration, and the least one that is.
_FACTORS, _LEAST = (2, 3, 4), 2
# So many sizes that a dim might be instead are told, and so many fields are tried as factors of it.
_MOST_OTHERS, _MOST_FACTORS = 3, 64


@dataclass(frozen=True, kw_only=True)
class Field:
    """An integer in a configuration: its dotted path and its value."""

    path: str
    value: int

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """The size of a dim, by the name of a size or as a number; `others`: sizes that it might be instead."""

    size: str | int
    others: tuple[str, ...] = ()


class Recognition:
    """The sizes of a configuration by name, of which those that are used get into a definition.

    `known`: names and specs of sizes of other definitions, whose fields are sought where this configuration has them. A
    default that is a number is that of another model, and no size here.
    """

    def __init__(self, config: Mapping[str, Any], known: Iterable[tuple[str, SizeSpec]] = ()) -> None:
        self._config = config
        self._fields = list(_integers(config))
        self._text = text_path(config)
        specs: dict[str, list[SizeSpec]] = {}
        for name, spec in known:
            if spec not in specs.setdefault(name, []):
                specs[name].append(spec)
        self._written: dict[str, Written] = {}
        self._known: dict[str, int] = {}
        self._adopt(specs)
        self._used: dict[str, None] = {}

    def field_in(self, field: str, modality: str) -> str | None:
        """The path of a field of a name in the part of the configuration that is of a modality."""
        return next((each.path for each in self._of(modality) if each.name == field), None)

    def value(self, name: str) -> int | None:
        """The value of a size by its name; `None` if there is no such size here."""
        return self._known.get(name)

    def use(self, name: str) -> str:
        """Take a size, and those that it is derived from, into the definition."""
        if name not in self._used:
            for each in _parts(self._written[name])[1]:
                self.use(each)
            self._used[name] = None
        return name

    @property
    def written(self) -> dict[str, Written]:
        """The sizes that are used, as a definition writes them, those before which others are derived from."""
        return {name: self._written[name] for name in self._used}

    def layers(self, modality: str, count: int) -> str:
        """The size that is the number of layers of a modality."""
        return self._counting("layers" if modality == "text" else f"{modality}_layers", count, modality, _LAYERS)

    def experts(self, count: int) -> str:
        """The size that is the number of experts."""
        return self._counting("expert_count", count, "text", _EXPERTS)

    def _counting(self, name: str, count: int, modality: str, fields: re.Pattern[str]) -> str:
        if self._known.get(name) != count:
            found = [each.path for each in self._of(modality) if each.value == count and fields.search(each.name)]
            self._written[name] = found[:1] or ["product", count]
            self._known[name] = count
        return self.use(name)

    def layer_list(self, modality: str, count: int) -> tuple[str, str] | None:
        """The name and the path of a list of so many layer numbers, in the part of a modality."""
        for path, value in _leaves(self._config):
            numbers = isinstance(value, list) and len(value) == count and all(type(each) is int for each in value)
            if numbers and self._is_of(path, modality):
                return path.rpartition(".")[2], path
        return None

    def dim(self, value: int | None, tensor: str, modality: str, expected: str | int | None = None) -> Recognised:
        """The size of a dim of a tensor; `expected`: what another definition has there.

        A dim that differs among layers is of `any` size, and one that is equal to nothing a number.
        """
        if value is None:
            return Recognised(size="any")
        if isinstance(expected, int) or value < _LEAST:
            return Recognised(size=value)
        if expected is not None and self._known.get(expected) == value:
            return Recognised(size=self.use(expected))
        found = self._candidates(value, tensor, modality)
        if not found:
            return Recognised(size=value)
        best, *others = found
        return Recognised(size=self.use(best), others=tuple(others[:_MOST_OTHERS]))

    def _candidates(self, value: int, tensor: str, modality: str) -> list[str]:
        """The names of the sizes of a value, the likeliest first; derived ones only where no single one is."""
        fields = self._of(modality)
        single = [self._named(each, modality) for each in fields if each.value == value]
        known = [name for name, each in self._known.items() if each == value and self._fits(name, modality)]
        if not known and not single and modality != "text":
            # The width of the language model, which projectors lead to.
            single = [
                self._named(each, "text")
                for each in self._of("text")
                if each.value == value and _WIDTH.match(each.name)
            ]
        found = dict.fromkeys([*known, *single])
        if not found:
            found = dict.fromkeys(self._derived(value, tensor, modality))
        return sorted(_distinct(found, self._written), key=lambda name: -self._likeliness(name, tensor))

    def _derived(self, value: int, tensor: str, modality: str) -> Iterator[str]:
        """Products, sums and quotients of fields that go with the tensor."""
        fields = [each for each in self._of(modality) if each.value >= _LEAST and not _LAYERS.search(each.name)]
        likely = {each.path: self._likeliness(self._named(each, modality), tensor) for each in fields}
        fields = [each for each in fields if likely[each.path] >= 0][:_MOST_FACTORS]
        for each in fields:
            for factor in _FACTORS:
                if each.value * factor == value and likely[each.path] and not _COUNT.match(each.name):
                    yield self._made("product", factor, self._named(each, modality), value)
        for one, other in combinations(fields, 2):
            names = self._named(one, modality), self._named(other, modality)
            if not likely[one.path] and not likely[other.path]:
                continue
            if one.value * other.value == value:
                yield self._made("product", *names, value)
            if one.value + other.value == value and all(_OF_HEADS.search(each.name) for each in (one, other)):
                yield self._made("sum", *names, value)
            for top, bottom in ((0, 1), (1, 0)):
                if (one, other)[top].value == value * (one, other)[bottom].value:
                    yield self._made("quotient", names[top], names[bottom], value)

    def _made(self, derivation: str, one: str | int, other: str, value: int) -> str:
        joint = {"product": "times", "sum": "plus", "quotient": "by"}[derivation]
        name = f"{one}_{joint}_{other}" if isinstance(one, str) else f"{other}_times_{one}"
        self._written.setdefault(name, [derivation, one, other])
        self._known[name] = value
        return name

    def _named(self, field: Field, modality: str) -> str:
        """The name of the size that is a field."""
        for name, written in self._written.items():
            if written == [field.path] or (written[0] == field.path and self._known.get(name) == field.value):
                return name
        prefix = "" if modality == "text" or field.name.startswith(modality) else f"{modality}_"
        name = re.sub(r"\W", "_", prefix + field.name)
        while name in self._written:
            name += "_"
        self._written[name] = [field.path]
        self._known[name] = field.value
        return name

    def _likeliness(self, name: str, tensor: str) -> int:
        """How likely a size is one of a tensor, by both names."""
        written = self._written[name]
        path = next((item for item in written if isinstance(item, str)), "")
        words = f"{name} {path.rpartition('.')[2]}"
        for place, (of_field, of_tensor) in enumerate(_LIKELY):
            if any(re.search(of_field, word) for word in words.split()):
                return 2 * len(_LIKELY) - place if re.search(of_tensor, tensor) else -1
        return 1 if any(_WIDTH.match(word) for word in (*words.split(), name.rpartition("_")[2])) else 0

    def _of(self, modality: str) -> list[Field]:
        return [each for each in self._fields if self._is_of(each.path, modality)]

    def _is_of(self, path: str, modality: str) -> bool:
        """Whether a field is in the part of a modality; that of the text is all of it where it has no part."""
        part = path.rpartition(".")[0]
        if modality == "text":
            return part == self._text
        return bool(part) and modality_of(part) == modality

    def _fits(self, name: str, modality: str) -> bool:
        """Whether a known size is of a modality, by the fields that it is made of."""
        paths, names = _parts(self._written[name])
        own = all(self._is_of(path, modality) for path in paths)
        return own and all(self._fits(each, modality) for each in names)

    def _adopt(self, specs: Mapping[str, Sequence[SizeSpec]]) -> None:
        """Write known sizes with the fields that this configuration has for them: those of which it says the value.

        Round after round, since they are derived from each other.
        """
        pending = dict(specs)
        while pending:
            for name, candidates in pending.items():
                for spec in candidates:
                    if written := self._rewritten(spec):
                        self._written[name] = written
                        if (value := self._value(name)) is not None:
                            self._known[name] = value
                            break
                        del self._written[name]
            left = {name: each for name, each in pending.items() if name not in self._known}
            if len(left) == len(pending):
                return
            pending = left

    def _rewritten(self, spec: SizeSpec) -> Written:
        """A spec with the fields of this configuration; empty where it has none of them."""
        part = spec.path[0].rpartition(".")[0] if spec.path else ""
        modality = modality_of(part) if part else "text"
        fields = dict.fromkeys(path.rpartition(".")[2] for path in spec.path)
        paths = [path for field in fields if (path := self.field_in(field, modality)) is not None]
        derived = [] if spec.derivation is None else [spec.derivation, *spec.of]
        return [*paths, derived] if paths and derived else paths or derived

    def _value(self, name: str) -> int | None:
        """The value of a size; `None` if this configuration does not say it."""
        try:
            specs = {each: SizeSpec.parse(written) for each, written in self._written.items()}
            return Sizes(specs, self._config, "").get(name)
        except (InputError, KeyError, ValueError):
            return None


def _parts(written: Written) -> tuple[list[str], list[str]]:
    """The fields in a size as it is written, and the sizes that it is derived from."""
    *before, last = written
    derived = written if written[0] in DERIVATIONS else last if isinstance(last, list) else []
    paths = [] if derived is written else [each for each in (*before, last) if isinstance(each, str)]
    return paths, [each for each in derived[1:] if isinstance(each, str)]


def _distinct(names: Iterable[str], written: Mapping[str, Written]) -> list[str]:
    """The names without those that are written alike."""
    seen: dict[str, str] = {}
    for name in names:
        seen.setdefault(str(written[name]), name)
    return list(seen.values())


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _integers(config: Mapping[str, Any]) -> Iterator[Field]:
    for path, value in _leaves(config):
        if type(value) is int and value > 0 and not path.endswith("token_id"):
            yield Field(path=path, value=value)
