"""One round: a random model, saved by a random program, perhaps damaged, on a random route; and its judgement.

A round is a function of its seed. What it finds is raised as `FoundError`, with what is needed to see it again.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.differential import adapters, oracle
from tests.differential.damages import REFUSED, TENSOR_DAMAGES, Harm, Scene
from tests.differential.drafts import INDEX, Tensors, in_shards, numbered_tensors
from tests.differential.families import FAMILIES
from tests.differential.files import FILE_DAMAGES
from tests.differential.flags import FLAG_DAMAGES
from tests.differential.generations import GENERATIONS, saved_by
from tests.differential.models import HF, MEGATRON, PUBLISHED_DCP
from tests.differential.quantised import quantise
from tests.differential.routes import Hop, drawn_route
from tests.differential.trained import TRAINED_DAMAGES, padded_vocabulary
from tests.differential.travel import Travel

DTYPES = ("bfloat16", "float32", "float16")
# Where the reference's own elements begin, so that one of them in a result is seen.
OF_REFERENCE = 1_000_000
# One round in so many is about adapters.
ADAPTERS_EVERY = 8
# And of so many of the others the source has fewer bits, if it can.
QUANTISED = 0.25
KINDS = {"tensor": TENSOR_DAMAGES, "flag": FLAG_DAMAGES, "file": FILE_DAMAGES}


class FoundError(Exception):
    """An outcome that is neither right nor an honest refusal."""


@dataclass
class Record:
    """What happened in a round, in words."""

    seed: int
    story: list[str] = field(default_factory=list)
    damage: str = "none"
    outcome: str = ""


def run_round(seed: int, room: Path) -> Record:
    """Run a round in an empty directory.

    Raises:
        FoundError: distconv is wrong, or the judgement is.
    """
    record = Record(seed)
    random = Random(seed)  # noqa: S311 - reproducible, and no secret
    try:
        if seed % ADAPTERS_EVERY:
            _run(random, room, record)
        else:
            record.damage, record.outcome = adapters.run(random, room, record.story)
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed goes with it
        cause = str(error) if isinstance(error, oracle.WrongError) else traceback.format_exc()
        raise FoundError(f"seed {seed}\n" + "\n".join(record.story) + f"\n{cause}") from None
    return record


def _run(random: Random, room: Path, record: Record) -> None:
    model = FAMILIES[random.choice(sorted(FAMILIES))](random)
    generation, dtype = random.choice(GENERATIONS), random.choice(DTYPES)
    start = HF if random.random() < 0.75 or model.variant is not None else PUBLISHED_DCP
    config = saved_by(generation, model, dtype, random)
    record.story.append(f"{model.variant or model.family}, saved by {generation} in {dtype} as {start}")
    shapes = {name: shape for name, shape in model.shapes.items() if name != model.head or not model.tied}
    dtypes = _dtypes(random, shapes, getattr(torch, dtype))
    source = in_shards(numbered_tensors(shapes, dtypes, 1), config, random)
    reference = in_shards(numbered_tensors(shapes, dtypes, OF_REFERENCE), config, random)
    if model.tied and model.head not in model.left_out and random.random() < 0.3:
        for draft in (source, reference):
            draft.add(model.head, draft.tensors[model.embedding].clone(), draft.shards[0])
    route = drawn_route(random, model, start)
    scene = Scene(random=random, model=model, source=source, reference=reference, has_config=start == HF)
    # Of its own numbers, so that other rounds are as they were without.
    bits = Random(f"bits {record.seed}")  # noqa: S311 - as above
    plain = _quantised(bits, scene) if bits.random() < QUANTISED else None
    harm = _damage(random, scene) if plain is None else None
    if harm is not None:
        record.damage, harm = harm
        record.story.append(f"{record.damage}: {harm.what} ({harm.owed})")
        if start == HF:
            reference.config = source.config
    late = harm is None and random.random() < 0.85
    travel = Travel.begin(random, room, model, start, source, reference)
    travel.turned = frozenset() if harm is None else harm.turned
    if plain is not None:
        record.damage, travel.expected = "quantised", plain
        route[0] = Hop(route[0].format, {**route[0].options, "dtype": "bfloat16"})
    for number, hop in enumerate(route):
        if late and travel.format == MEGATRON:
            harm, late = _damage_trained(random, travel.directory, record), False
            travel.padded = record.damage == padded_vocabulary.__name__
        if error := travel.go(hop, room / f"hop{number}", record.story):
            if travel.unnamed:
                harm = Harm(owed=REFUSED, what="no names", mentions=(INDEX, *(harm.mentions if harm else ())))
            oracle.check_refusal(error, room / f"hop{number}", harm)
            record.outcome = "refused"
            return
        if harm is not None and harm.owed == REFUSED:
            raise oracle.WrongError("accepted")
    record.outcome = "right"


def _quantised(random: Random, scene: Scene) -> Tensors | None:
    """The tensors of a source that has fewer bits now, and at times of its reference; nothing where it has not.

    Not where types differ, since what is asked for would be made of all; nor where parts are filled in from it.
    """
    alike = {each.dtype for each in scene.source.tensors.values()} == {torch.bfloat16}
    if not scene.has_config or not alike or scene.model.left_out:
        return None
    if random.random() < 0.5:
        quantise(random, scene.reference)
    return quantise(random, scene.source)


def _dtypes(random: Random, shapes: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """All alike, or norms and routers in float32, as some models keep them."""
    wide = random.random() < 0.25
    return {name: torch.float32 if wide and ("norm" in name or "mlp.gate." in name) else dtype for name in shapes}


def _damage(random: Random, scene: Scene) -> tuple[str, Harm] | None:
    if random.random() < 0.35:
        return None
    table = KINDS[random.choice(["tensor", "tensor", "flag", "file"])]
    names = sorted(table)
    random.shuffle(names)
    return next((name, harm) for name in names if (harm := table[name](scene)) is not None)


def _damage_trained(random: Random, directory: Path, record: Record) -> Harm | None:
    names = sorted(TRAINED_DAMAGES)
    random.shuffle(names)
    for name in names:
        if harm := TRAINED_DAMAGES[name](random, directory):
            record.damage = name
            record.story.append(f"{name}: {harm.what} ({harm.owed})")
            return harm
    return None
