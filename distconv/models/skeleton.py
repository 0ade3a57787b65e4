"""A first definition of a model that no definition knows, from names, shapes and its configuration.

Owns what is guessed, by precedents in known definitions and by sizes that are recognised, and what is left to a person:
`TODO` in the place of a value. Sees names and shapes, never tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from distconv.models.anatomy import FURTHER, anatomy
from distconv.models.definition import OWN_NAMES, PROJECTOR, Definition
from distconv.models.definition_reader import TODO
from distconv.models.entries import Entry, Skeleton, alternatives
from distconv.models.grouping import Group, Shape, modality_of
from distconv.models.language_model import head_and_embedding, text_path, tie_paths
from distconv.models.precedents import Precedent, Precedents
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
_DIALECT_OF_TEXT = "mcore_local"
# Rules by modality and section.
Sections = dict[str, dict[str, list[Entry]]]


def skeleton_of(shapes: Mapping[str, Shape], config: Mapping[str, Any], known: Sequence[Definition]) -> Skeleton:
    """The skeleton of a model, from its tensors by name, its configuration and the definitions of other models."""
    return _Draft(shapes, config, known).skeleton()


class _Draft:
    """The parts of a skeleton, found one after the other."""

    def __init__(self, shapes: Mapping[str, Shape], config: Mapping[str, Any], known: Sequence[Definition]) -> None:
        self._shapes, self._config, self._known = shapes, config, known
        self._names = anatomy(shapes, config, (each for definition in known for each in definition.ignored))
        self._dialect = OWN_NAMES if set(self._names.main) - {TEXT} else _DIALECT_OF_TEXT
        # Who names parameters otherwise makes others of the same tensors.
        self._precedents = Precedents([each for each in known if each.dialect == self._dialect], self._names)
        self._sizes = Recognition(config, self._precedents.sizes())
        self._follows: dict[str, None] = {}
        self._done: set[str] = set()
        self._entries: Sections = {}
        self._copied: list[tuple[str, str, str]] = []

    def skeleton(self) -> Skeleton:
        counts = self._names.counts
        modalities = {each: self._sizes.layers(each, counts[each]) for each in MODALITIES if each in counts}
        experts = max((each.experts for each in self._names.groups), default=0)
        predicting = None
        if self._names.predicting:
            predicting = "mtp_layers"
        for modality in modalities or (TEXT,):
            for precedent, others in self._precedents.chosen(modality):
                if not self._done & {each.name for each in precedent.groups}:
                    self._follow(modality, precedent, others)
        self._biases()
        self._copies()
        for group in self._names.groups:
            if group.name not in self._done:
                self._undecided(group)
        tied = self._tied()
        has_experts = any("{expert}" in entry.target for entry in self._all_entries())
        named = self._experts(experts) if has_experts else None
        return Skeleton(
            model_type=str(self._config.get("model_type", TODO)),
            dialect=self._dialect,
            sizes={**self._sizes.written, **self._size_of_further()},
            lists=dict(self._names.items.values()),
            modalities=modalities or {TEXT: TODO},
            experts=named,
            predicting=predicting,
            tied=tied,
            rules={
                modality: {
                    each: alternatives(sections[each], counts.get(modality, 0))
                    for each in sorted(sections, key=_ORDER.index)
                }
                for modality, sections in self._entries.items()
            },
            ignored=self._names.left_out,
            copied=self._copied,
            follows=tuple(self._follows),
        )

    def _follow(self, modality: str, precedent: Precedent, others: Sequence[Precedent]) -> None:
        """Add the rule of a precedent; where others decide otherwise, what they do is told, and nothing decided."""
        rule = precedent.rule
        is_inexact = False
        sources = []
        unsure_dims: list[str] = []
        for group, source in zip(precedent.groups, rule.sources, strict=True):
            dims, unsure = self._dims(group, modality, source.dims)
            is_inexact |= dims != source.dims
            sources.append((self._names.name(group), dims))
            unsure_dims += unsure
        moves = rule.operator != RENAME and not OPERATORS[rule.operator].is_sequence
        if rule.packs_experts and is_inexact:
            # Another form of packed experts, which only the shapes tell.
            return
        operator = (rule.operator, *map(self._size, rule.operator_sizes))
        tp = (
            ()
            if not rule.tensor_parallel
            else (rule.tensor_parallel, *([] if rule.unit is None else [self._size(rule.unit)]))
        )
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
        listed = self._names.items.get(precedent.groups[0].stack)
        section = rule.section if rule.section in (PROJECTOR, PREDICTING) else _SECTIONS.get(rule.stage, "head")
        self._add(
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
        groups = {self._names.name(each): each for each in self._names.groups if each.name not in self._done}
        for modality, sections in self._entries.items():
            for section, entries in sections.items():
                for entry in list(entries):
                    names = [
                        name.removesuffix("weight") + "bias" for name, _ in entry.sources if name.endswith("weight")
                    ]
                    found = [groups[name] for name in names if name in groups]
                    vectors = all(len(each.shape) == 1 and each.layers == entry.present for each in found)
                    if len(found) < len(entry.sources) or not vectors or not entry.target.endswith("weight"):
                        continue
                    sources = tuple((name, dims[:1]) for name, (_, dims) in zip(names, entry.sources, strict=True))
                    target = entry.target.removesuffix("weight") + "bias"
                    self._add(modality, section, replace(entry, target=target, sources=sources))
                    self._done |= {each.name for each in found}

    def _undecided(self, group: Group) -> None:
        """Add a rule without a precedent: what it is, a person decides."""
        self._done.add(group.name)
        modality = modality_of(group.name) if not group.stack else modality_of(group.stack)
        joins = _JOINS.search(group.name) is not None and not group.stack
        if joins and modality not in self._names.main:
            modality = next((each for each in self._names.main if each != TEXT), TEXT)
        modality = modality if modality in self._names.main else TEXT
        dims, remarks = self._dims(group, modality)
        name = self._names.name(group)
        is_further = group.name in self._names.further
        if is_further:
            target, section = f"text_decoder.mtp.layers.{{next}}.{group.rest}", PREDICTING
        elif group.stack and group.stack not in self._names.items:
            rest = group.rest
            if "{expert}" not in rest and "expert" in rest and _is_of_experts(dims):
                # All experts in one tensor.
                rest = rest.replace("experts.", "experts.local_experts.{expert}.")
            target, section = self._moved(modality, f"{_TARGETS[modality]}{{layer}}.{rest}"), "layers"
        else:
            target, section = group.name, PROJECTOR if joins else "head"
        in_layers = bool(group.stack) and not is_further
        listed = self._names.items.get(group.stack)
        self._add(
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
        packed = next((each.sources[0][1][0] for each in self._all_entries() if "{expert}" in each.target), None)
        return self._sizes.experts(count) if count or not isinstance(packed, str) else packed

    def _size_of_further(self) -> dict[str, Written]:
        path = self._sizes.field_in(FURTHER, TEXT)
        return {"mtp_layers": [path or FURTHER, 0]} if self._names.predicting else {}

    def _moved(self, modality: str, target: str) -> str:
        """The target of a precedent, in the module where the first one has the layers of the modality."""
        if "{layer}" not in target:
            return target
        for entry in self._entries.get(modality, {}).get("layers", ()):
            if "{layer}" in entry.target and TODO not in entry.target:
                return entry.target.partition("{layer}")[0] + target[target.index("{layer}") :]
        return target

    def _copies(self) -> None:
        """Leave what is a copy in known definitions to the original."""
        names = {each.rest: each for each in self._names.groups if each.name in self._names.further}
        found = head_and_embedding(self._shapes)
        for each in (each for known in self._known for each in known.copied):
            group = names.get(each.name.partition(".{next}.")[2])
            if group is None or group.name in self._done or found is None:
                continue
            original = found[0] if "head" in each.of else found[1]
            self._copied.append((self._names.name(group), original, each.reason))
            self._done.add(group.name)

    def _tied(self) -> Mapping[str, Any] | None:
        """The tie of head and embedding, with the rule of a head that a tied model does not store."""
        paths = tie_paths(self._config)
        part = text_path(self._config)
        found = head_and_embedding(self._shapes)
        embedding = next((each for each in self._all_entries() if each.target == _EMBEDDING), None)
        if embedding is None:
            return None
        missing = found is not None and found[0] not in self._shapes
        if missing and found is not None:
            head = replace(embedding, target=_HEAD, sources=((found[0], embedding.sources[0][1]),), stage="last")
            self._add(TEXT, "head", head)
        if not any(each.target == _HEAD for each in self._all_entries()):
            return None
        flags = sorted(paths, key=lambda path: path.rpartition(".")[0] != part) or ["tie_word_embeddings"]
        return {"flag": [*flags, missing], "embedding": _EMBEDDING, "head": _HEAD}

    def _add(self, modality: str, section: str, entry: Entry) -> None:
        self._entries.setdefault(modality, {}).setdefault(section, []).append(entry)

    def _all_entries(self) -> Iterator[Entry]:
        yield from (each for sections in self._entries.values() for found in sections.values() for each in found)


def _is_of_experts(dims: Sequence[str | int]) -> bool:
    """Whether the first dim counts experts."""
    return len(dims) > 1 and isinstance(dims[0], str) and "expert" in dims[0]


def _decision(precedent: Precedent) -> str:
    rule = precedent.rule
    sizes = "".join(f", {each}" for each in rule.operator_sizes)
    operator = "" if rule.operator == RENAME else f"operator [{rule.operator}{sizes}], "
    cut = ", ".join(map(str, [rule.tensor_parallel, *([] if rule.unit is None else [rule.unit])]))
    return f"{rule.target}, {operator}tp [{cut}]"
