"""A first definition of a model that no definition knows, from the names and shapes of its tensors and its configuration.

Owns what is guessed, by precedents in known definitions and by sizes that are recognised, and what is left to a person:
`TODO` in the place of a value. Sees names and shapes, never tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distconv.models.definition import OWN_NAMES, PROJECTOR, Definition
from distconv.models.definition_reader import TODO
from distconv.models.grouping import Group, Shape, beyond, grouped, main_stacks, modality_of
from distconv.models.language_model import head_and_embedding, text_path, tie_paths
from distconv.models.names import matching
from distconv.models.precedents import Names, Precedent, Precedents
from distconv.models.predicting import PREDICTING
from distconv.models.recognition import Recognition, Written
from distconv.models.rules import MODALITIES, TEXT
from distconv.tensors.operators import OPERATORS, RENAME

# Where the layers of a modality are if no precedent tells.
_TARGETS = {
    "text": "text_decoder.decoder.layers.",
    "vision": "image_encoder.encoder.blocks.layers.",
    "audio": "audio_encoder.encoder.blocks.layers.",
}
_EMBEDDING = "text_decoder.embedding.word_embeddings.weight"
_HEAD = "text_decoder.output_layer.weight"
_SECTIONS = {"first": "embedding", "layer": "layers"}
_ORDER = ("embedding", "layers", PREDICTING, "head", PROJECTOR)
# Vectors that every rank has.
_NORM = re.compile(r"norm|(^|[._])ln(_|\d|\.|$)")
_JOINS = re.compile(r"projector|merger|aligner|connector|mlp1|resampler")
_FURTHER = "num_nextn_predict_layers"
_DIALECT_OF_TEXT = "mcore_local"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A rule, with `TODO` where a person must decide; `remarks` are sentences for that person.

    `present`: the layers that have it, empty outside of layers.
    """

    target: str
    sources: tuple[tuple[str, tuple[str | int, ...]], ...]
    operator: tuple[str | int, ...] = (RENAME,)
    tp: tuple[str | int, ...] = ()
    stage: str = ""
    layers: str = ""
    present: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Alternatives by name, of which each layer has exactly one."""

    alternatives: Mapping[str, Sequence[Entry]]


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A definition to be, by its keys; `follows`: the definitions that gave precedents."""

    model_type: str
    dialect: str
    sizes: Mapping[str, Written]
    lists: Mapping[str, str]
    modalities: Mapping[str, str]
    experts: str | None
    predicting: str | None
    tied: Mapping[str, Any] | None
    rules: Mapping[str, Mapping[str, Sequence[Entry | Choice]]]
    ignored: Sequence[tuple[str, str]]
    copied: Sequence[tuple[str, str, str]]
    follows: Sequence[str]


def skeleton_of(shapes: Mapping[str, Shape], config: Mapping[str, Any], known: Sequence[Definition]) -> Skeleton:
    """The skeleton of a model, from its tensors by name, its configuration and the definitions of other models."""
    return _Draft(shapes, config, known).skeleton()


@dataclass
class _Parts:
    """Rules by modality and section, as they are found."""

    entries: dict[str, dict[str, list[Entry]]] = field(default_factory=dict)

    def add(self, modality: str, section: str, entry: Entry) -> None:
        self.entries.setdefault(modality, {}).setdefault(section, []).append(entry)


class _Draft:
    """The parts of a skeleton, found one after the other."""

    def __init__(self, shapes: Mapping[str, Shape], config: Mapping[str, Any], known: Sequence[Definition]) -> None:
        self._shapes, self._config, self._known = shapes, config, known
        groups = grouped(shapes)
        self._main = main_stacks(groups)
        plain = Recognition(config)
        counts = {modality: len(_all(groups, stack)) for modality, stack in self._main.items()}
        self._further = _further(groups, self._main.get(TEXT, ""), config)
        if self._further:
            counts[TEXT] -= self._further
        self._items = {}
        for stack in dict.fromkeys(each.stack for each in groups if each.stack):
            modality = modality_of(stack)
            if stack not in self._main.values():
                listed = plain.layer_list(modality, len(_all(groups, stack)))
                if listed is not None:
                    self._items[stack] = listed
        ordinary = range(counts.get(TEXT, 0))
        self._left_out, self._groups = self._divided(groups)
        self._names = Names(
            groups=self._groups,
            main=self._main,
            further=frozenset(
                each.name for each in groups if each.stack == self._main.get(TEXT) and each.layers.isdisjoint(ordinary)
            ),
            items=frozenset(self._items),
        )
        self._counts = counts
        self._dialect = OWN_NAMES if set(self._main) - {TEXT} else _DIALECT_OF_TEXT
        # Who names parameters otherwise makes others of the same tensors.
        self._precedents = Precedents([each for each in known if each.dialect == self._dialect], self._names)
        self._sizes = Recognition(config, self._precedents.sizes())
        self._follows: dict[str, None] = {}
        self._done: set[str] = set()
        self._parts = _Parts()
        self._copied: list[tuple[str, str, str]] = []

    def skeleton(self) -> Skeleton:
        modalities = {each: self._sizes.layers(each, self._counts[each]) for each in MODALITIES if each in self._main}
        experts = max((each.experts for each in self._groups), default=0)
        predicting = None
        if self._further:
            predicting = "mtp_layers"
        for modality in modalities or (TEXT,):
            for precedent, others in self._precedents.chosen(modality):
                if not self._done & {each.name for each in precedent.groups}:
                    self._follow(modality, precedent, others)
        self._biases()
        self._copies()
        for group in self._groups:
            if group.name not in self._done:
                self._undecided(group)
        tied = self._tied()
        has_experts = any("{expert}" in entry.target for entry in self._entries())
        named = self._experts(experts) if has_experts else None
        return Skeleton(
            model_type=str(self._config.get("model_type", TODO)),
            dialect=self._dialect,
            sizes={**self._sizes.written, **self._size_of_further()},
            lists={name: path for name, path in self._items.values()},
            modalities=modalities,
            experts=named,
            predicting=predicting,
            tied=tied,
            rules={
                modality: {each: self._alternatives(modality, each) for each in sorted(sections, key=_ORDER.index)}
                for modality, sections in self._parts.entries.items()
            },
            ignored=self._left_out,
            copied=self._copied,
            follows=tuple(self._follows),
        )

    def _divided(self, groups: Iterable[Group]) -> tuple[list[tuple[str, str]], list[Group]]:
        """Patterns of what is left out, with reasons, and the groups that are not."""
        roots = {
            beyond(each.stack, list(self._main.values())): None
            for each in groups
            if each.stack and each.stack not in self._main.values() and each.stack not in self._items
        }
        ignored = [(f"{root}.*", f"{TODO}: why this is not converted, or rules for it") for root in roots]
        # Patterns that hold whatever module a tensor is in.
        patterns = {each.names: each.reason for known in self._known for each in known.ignored if each.names[:2] == "*."}
        kept = []
        for group in groups:
            if any(f"{group.name}.".startswith(f"{root}.") for root in roots):
                continue
            names = next((names for names in patterns if matching(names).fullmatch(group.name)), None)
            if names is None:
                kept.append(group)
            elif (names, patterns[names]) not in ignored:
                ignored.append((names, patterns[names]))
        return ignored, kept

    def _follow(self, modality: str, precedent: Precedent, others: Sequence[Precedent]) -> None:
        """Add the rule of a precedent; where others decide otherwise, what they do is told, and nothing decided."""
        rule = precedent.rule
        is_inexact = False
        sources = []
        unsure_dims: list[str] = []
        for group, source in zip(precedent.groups, rule.sources, strict=True):
            dims, unsure = self._dims(group, modality, source.dims)
            is_inexact |= dims != source.dims
            sources.append((self._name(group), dims))
            unsure_dims += unsure
        moves = rule.operator != RENAME and not OPERATORS[rule.operator].is_sequence
        if rule.packs_experts and is_inexact:
            # Another form of packed experts, which only the shapes tell.
            return
        operator = (rule.operator, *map(self._size, rule.operator_sizes))
        tp = () if not rule.tensor_parallel else (rule.tensor_parallel, *([] if rule.unit is None else [self._size(rule.unit)]))
        if len(sources[0][1]) == 1 and tp == ("replicated",):
            tp = ()
        remarks = unsure_dims
        target = self._moved(modality, rule.target)
        if others:
            all_of_them = (precedent, *others)
            remarks += [f"{each.definition}: {_decision(each)}" for each in all_of_them]
            if len({each.spelling for each in all_of_them}) > 1:
                target = f"{TODO} {target}"
            if len({each.rule.operator for each in all_of_them}) > 1:
                operator = (TODO,)
            if len({each.decision[3:] for each in all_of_them}) > 1:
                tp = (TODO,)
        elif moves and len(sources) == 1:
            remarks.append(f"the order of the rows is that of {precedent.definition}: names do not tell it")
        self._follows.setdefault(precedent.definition)
        self._done |= {group.name for group in precedent.groups}
        stage = "" if rule.stage == "layer" else rule.stage
        listed = self._items.get(precedent.groups[0].stack)
        section = rule.section if rule.section in (PROJECTOR, PREDICTING) else _SECTIONS.get(rule.stage, "head")
        self._parts.add(
            modality,
            section,
            Entry(
                target=target,
                sources=tuple(sources),
                operator=operator,
                tp=tp,
                stage=stage,
                layers=listed[0] if listed else "",
                present=frozenset() if listed or section == PREDICTING else precedent.groups[0].layers,
                remarks=tuple(dict.fromkeys(remarks)),
            ),
        )

    def _biases(self) -> None:
        """Add biases that precedents do not have, where all weights of a rule have one: they are made as these are."""
        groups = {self._name(each): each for each in self._groups if each.name not in self._done}
        for modality, sections in self._parts.entries.items():
            for section, entries in sections.items():
                for entry in list(entries):
                    names = [name.removesuffix("weight") + "bias" for name, _ in entry.sources if name.endswith("weight")]
                    found = [groups[name] for name in names if name in groups]
                    vectors = all(len(each.shape) == 1 and each.layers == entry.present for each in found)
                    if len(found) < len(entry.sources) or not vectors or not entry.target.endswith("weight"):
                        continue
                    sources = tuple((name, dims[:1]) for name, (_, dims) in zip(names, entry.sources, strict=True))
                    target = entry.target.removesuffix("weight") + "bias"
                    self._parts.add(modality, section, replace(entry, target=target, sources=sources))
                    self._done |= {each.name for each in found}

    def _undecided(self, group: Group) -> None:
        """Add a rule without a precedent: what it is, a person decides."""
        self._done.add(group.name)
        modality = modality_of(group.name) if not group.stack else modality_of(group.stack)
        joins = _JOINS.search(group.name) is not None and not group.stack
        if joins and modality not in self._main:
            modality = next((each for each in self._main if each != TEXT), TEXT)
        modality = modality if modality in self._main else TEXT
        dims, remarks = self._dims(group, modality)
        name = self._name(group)
        is_further = group.name in self._names.further
        if is_further:
            target, section = f"text_decoder.mtp.layers.{{next}}.{group.rest}", PREDICTING
        elif group.stack and group.stack not in self._items:
            rest = group.rest
            if "{expert}" not in rest and "expert" in rest and _is_of_experts(dims):
                # All experts in one tensor.
                rest = rest.replace("experts.", "experts.local_experts.{expert}.")
            target, section = self._moved(modality, f"{_TARGETS[modality]}{{layer}}.{rest}"), "layers"
        else:
            target, section = group.name, PROJECTOR if joins else "head"
        in_layers = bool(group.stack) and not is_further
        listed = self._items.get(group.stack)
        self._parts.add(
            modality,
            section,
            Entry(
                target=f"{TODO} {target}",
                sources=((name, dims),),
                tp=() if len(dims) == 1 and _NORM.search(group.name) else (TODO,),
                stage="" if in_layers else "last" if is_further else TODO,
                layers=listed[0] if listed else "",
                present=frozenset() if listed or is_further else group.layers,
                remarks=tuple(remarks),
            ),
        )

    def _name(self, group: Group) -> str:
        """The name of a group as a source."""
        if group.stack in self._items:
            return group.name.replace("{layer}", "{item}")
        return group.name.replace("{layer}", "{next}") if group.name in self._names.further else group.name

    def _dims(
        self, group: Group, modality: str, expected: Sequence[str | int] = ()
    ) -> tuple[tuple[str | int, ...], list[str]]:
        """The dims of a group as sizes, and a remark on each that may be another one."""
        sizes, remarks = [], []
        for place, length in enumerate(group.shape):
            own = expected[place] if place < len(expected) else None
            found = self._sizes.dim(length, group.name, modality, None if own == "any" else own)
            sizes.append(found.size)
            if found.others:
                remarks.append(f"{length}: {found.size}, or {' or '.join(found.others)}")
            elif length is None:
                remarks.append(f"dim {place} is not the same in all layers")
        return tuple(sizes), remarks

    def _size(self, size: str | int) -> str | int:
        """A size that a rule names, as far as it is known here."""
        return size if isinstance(size, int) else self._sizes.use(size) if self._sizes.value(size) else TODO

    def _experts(self, count: int) -> str:
        packed = next((each.sources[0][1][0] for each in self._entries() if "{expert}" in each.target), None)
        return self._sizes.experts(count) if count or not isinstance(packed, str) else packed

    def _size_of_further(self) -> dict[str, Written]:
        path = self._sizes.field_in(_FURTHER, TEXT)
        return {"mtp_layers": [path or _FURTHER, 0]} if self._further else {}

    def _moved(self, modality: str, target: str) -> str:
        """The target of a precedent, in the module where the first one has the layers of the modality."""
        if "{layer}" not in target:
            return target
        for entry in self._parts.entries.get(modality, {}).get("layers", ()):
            if "{layer}" in entry.target and TODO not in entry.target:
                return entry.target.partition("{layer}")[0] + target[target.index("{layer}") :]
        return target

    def _copies(self) -> None:
        """Leave what is a copy in known definitions to the original."""
        names = {each.rest: each for each in self._groups if each.name in self._names.further}
        found = head_and_embedding(self._shapes)
        for each in (each for known in self._known for each in known.copied):
            group = names.get(each.name.partition(".{next}.")[2])
            if group is None or group.name in self._done or found is None:
                continue
            original = found[0] if "head" in each.of else found[1]
            self._copied.append((self._name(group), original, each.reason))
            self._done.add(group.name)

    def _tied(self) -> Mapping[str, Any] | None:
        """The tie of head and embedding, with the rule of a head that a tied model does not store."""
        paths = tie_paths(self._config)
        part = text_path(self._config)
        found = head_and_embedding(self._shapes)
        embedding = next((each for each in self._entries() if each.target == _EMBEDDING), None)
        if embedding is None:
            return None
        missing = found is not None and found[0] not in self._shapes
        if missing and found is not None:
            head = replace(embedding, target=_HEAD, sources=((found[0], embedding.sources[0][1]),), stage="last")
            self._parts.add(TEXT, "head", head)
        if not any(each.target == _HEAD for each in self._entries()):
            return None
        flags = sorted(paths, key=lambda path: path.rpartition(".")[0] != part) or ["tie_word_embeddings"]
        return {"flag": [*flags, missing], "embedding": _EMBEDDING, "head": _HEAD}

    def _entries(self) -> Iterator[Entry]:
        yield from (each for sections in self._parts.entries.values() for found in sections.values() for each in found)

    def _alternatives(self, modality: str, section: str) -> list[Entry | Choice]:
        """The rules of a section: those of all layers, and alternatives of those that only some layers have."""
        entries = merged(self._parts.entries[modality][section])
        everywhere = frozenset(range(self._counts.get(modality, 0)))
        partial: dict[frozenset[int], list[Entry]] = {}
        kept: list[Entry | Choice] = []
        for entry in entries:
            present = entry.present & everywhere
            if not entry.present or present == everywhere:
                kept.append(entry)
            else:
                partial.setdefault(present, []).append(entry)
        if not partial:
            return kept
        names = {present: _kind(found, present) for present, found in partial.items()}
        apart = sum(map(len, partial)) == len(frozenset().union(*partial)) and len(set(names.values())) == len(names)
        if apart:
            alternatives: dict[str, Sequence[Entry]] = {names[present]: found for present, found in partial.items()}
            if frozenset().union(*partial) != everywhere or len(partial) == 1:
                alternatives["none"] = []
            return [*kept, Choice(alternatives=alternatives)]
        return [*kept, *(Choice(alternatives={names[each]: found, "none": []}) for each, found in partial.items())]


def merged(entries: Sequence[Entry]) -> list[Entry]:
    """The rules, those of a weight and its bias as one with `{weight,bias}`."""
    found: list[Entry] = []
    for entry in sorted(entries, key=lambda each: each.target.endswith("bias")):
        place = next((place for place, each in enumerate(found) if _is_bias_of(entry, each)), None)
        if place is None:
            found.append(entry)
            continue
        weight = found[place]
        both = tuple((_both(name), dims) for name, dims in weight.sources)
        remarks = tuple(dict.fromkeys((*weight.remarks, *entry.remarks)))
        found[place] = replace(weight, target=_both(weight.target), sources=both, remarks=remarks)
    return found


def _both(name: str) -> str:
    return name.removesuffix("weight") + "{weight,bias}"


def _is_bias_of(bias: Entry, weight: Entry) -> bool:
    """Whether a rule is what `{weight,bias}` makes of that of a weight."""
    if not weight.target.endswith("weight") or bias.target != weight.target.removesuffix("weight") + "bias":
        return False
    names = [name.removesuffix("weight") + "bias" for name, _ in weight.sources if name.endswith("weight")]
    alike = names == [name for name, _ in bias.sources] and [dims[:1] for _, dims in weight.sources] == [
        dims for _, dims in bias.sources
    ]
    cut = bias.tp == weight.tp or (weight.tp in ((TODO,), ("replicated",)) and not bias.tp) or weight.tp[:1] == ("cols",)
    where = (weight.stage, weight.layers, weight.present) == (bias.stage, bias.layers, bias.present)
    return alike and cut and where and bias.operator == weight.operator


def _is_of_experts(dims: Sequence[str | int]) -> bool:
    """Whether the first dim counts experts."""
    return len(dims) > 1 and isinstance(dims[0], str) and "expert" in dims[0]


def _all(groups: Iterable[Group], stack: str) -> frozenset[int]:
    return frozenset().union(*(each.layers for each in groups if each.stack == stack))


def _further(groups: Sequence[Group], stack: str, config: Mapping[str, Any]) -> int:
    """How many of the layers of a stack predict further tokens, as the configuration and the tensors say."""
    layers = _all(groups, stack)
    said = next((each for path, each in _numbers(config) if path.endswith(_FURTHER)), 0)
    own = {layer: {each.name for each in groups if each.stack == stack and layer in each.layers} for layer in layers}
    last = sorted(layers)[-said:] if said else []
    others = {name for layer, names in own.items() if layer not in last for name in names}
    return len(last) if last and all(own[layer] - others for layer in last) else 0


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif type(value) is int:
            yield str(key), value


def _kind(entries: Sequence[Entry], present: frozenset[int]) -> str:
    """A name for what only some layers have."""
    if any("expert" in name for each in entries for name, _ in each.sources):
        return "experts"
    if any("mlp" in each.target for each in entries):
        return "dense"
    return f"layers_from_{min(present, default=0)}"


def _decision(precedent: Precedent) -> str:
    rule = precedent.rule
    sizes = "".join(f", {each}" for each in rule.operator_sizes)
    operator = "" if rule.operator == RENAME else f"operator [{rule.operator}{sizes}], "
    cut = ", ".join(map(str, [rule.tensor_parallel, *([] if rule.unit is None else [rule.unit])]))
    return f"{rule.target}, {operator}tp [{cut}]"
