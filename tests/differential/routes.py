"""Random routes from format to format, and random layouts that a small model can have.

A layout is drawn so that it divides and the training side can run it: what it asks is in the documents of each family.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

from tests.differential.models import DCP, FORMATS, HF, MEGATRON, TORCH_DIST, Model


@dataclass(frozen=True)
class Hop:
    """A conversion: the format that it makes, and its options but for source, target and reference."""

    format: str
    options: dict[str, Any] = field(default_factory=dict)


def drawn_route(random: Random, model: Model, start: str) -> list[Hop]:
    """One to four conversions; most end at a Hugging Face directory."""
    last, hops = start, []
    count = random.choice([1, 2, 2, 2, 3])
    for number in range(count):
        # Rank files are where most can go wrong.
        choices = [each for each in (*FORMATS, MEGATRON) if each != HF or last != HF]
        at_the_end = number == count - 1 and HF in choices and random.random() < 0.8
        last = HF if at_the_end else random.choice(choices)
        hops.append(Hop(last, _options(random, model, last)))
    if last != HF and random.random() < 0.7:
        hops.append(Hop(HF, _options(random, model, HF)))
    return hops


def _options(random: Random, model: Model, form: str) -> dict[str, Any]:
    if form == HF:
        return {"target_format": "hf"}
    if form == MEGATRON:
        return {"layout": drawn_layout(random, model)}
    if form == TORCH_DIST:
        return {"target_format": form} | random.choice([{}, {"dialect": "mindspeed_mm_te"}])
    if form == DCP:
        return {"target_format": form}
    prefix = random.choice([None, None, "model.", "base.inner."])
    return {"target_format": "dcp", "naming": "hf"} | ({} if prefix is None else {"name_prefix": prefix})


def drawn_layout(random: Random, model: Model) -> dict[str, Any]:
    """Options of `layout`: by sizes alone, or with lists of stages."""
    layout: dict[str, Any] = {"tp": random.choice(model.tp)}
    if random.random() < 0.7:
        layout["ep"] = random.choice(model.ep)
    if model.encoder_tp and random.random() < 0.3:
        layout["modality_tp"] = {"vision": random.choice(model.tp)}
    layers = model.layers["text"]
    if random.random() < 0.4:
        # An encoder may have a stage of its own.
        most = layers - model.first + (len(model.layers) > 1)
        layout["pp"] = random.randint(1, max(1, min(3, most)))
        return layout
    pp, vpp = random.choice([(1, 1), (2, 1), (3, 1), (2, 2)])
    stages = _text_stages(random, layers, pp * vpp, model.first)
    layout["stages"] = {"text": _rows(stages, pp)}
    first = next(number for number, count in enumerate(stages) if count)
    for modality in model.layers.keys() - {"text"}:
        one = modality == "audio" or model.one_vision_stage
        places = [first if modality == "audio" else 0] if one else list(range(first + 1))
        layout["stages"][modality] = _rows(_spread(random, model.layers[modality], pp * vpp, places), pp)
    return layout


def _text_stages(random: Random, layers: int, stages: int, first: int) -> list[int]:
    """Layers per stage; the first stage with any has at least `first`, and is the first of all where that counts."""
    start = 0 if first else random.randrange(stages)
    cuts = sorted(random.choices(range(max(first, 1), layers + 1), k=stages - start - 1))
    bounds = [0, *cuts, layers]
    return [0] * start + [after - before for before, after in pairwise(bounds)]


def _spread(random: Random, layers: int, stages: int, places: list[int]) -> list[int]:
    counts = [0] * stages
    for place in sorted(random.choice(places) for _ in range(layers)):
        counts[place] += 1
    return counts


def _rows(stages: list[int], pp: int) -> list[list[int]]:
    return [stages[start : start + pp] for start in range(0, len(stages), pp)]
