"""What goes wrong with checkpoints before distconv sees them, and what must follow.

A damage changes drafts and says what it is owed: `REFUSED`, because no reader could know better; `RIGHT`, because it
changes nothing that counts, or nothing that anyone could see, so that the result is exactly what the draft now holds;
`EITHER` where both are honest. A refusal names one of `mentions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

import torch

from tests.differential.drafts import Draft, Stored, as_it_is, bits, numbered
from tests.differential.models import Model

REFUSED, RIGHT, EITHER = "refused", "right", "either"
# Numbers that no draft has given yet.
ELSEWHERE = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a damage may change: the draft of the source, and that of the reference, which a DCP needs beside it.

    `has_config`: the source has its own configuration, as a Hugging Face directory.
    """

    random: Random
    model: Model
    source: Draft
    reference: Draft
    has_config: bool

    @property
    def configured(self) -> Draft:
        """The draft whose configuration counts for the source."""
        return self.source if self.has_config else self.reference

    def name(self, *, matrix: bool = False, trained: bool = False) -> str:
        """A tensor's name."""
        names = [
            name
            for name, tensor in self.source.tensors.items()
            if (tensor.ndim >= 2 or not matrix) and not (trained and name in self.model.left_out)
        ]
        return self.random.choice(names)

    def shape_counts(self, name: str) -> str:
        """What a wrong shape of a tensor is owed."""
        open_ended = self.model.loose.search(name) or name in self.model.left_out
        return EITHER if open_ended else REFUSED


@dataclass(frozen=True, kw_only=True)
class Harm:
    """What was done, and what is owed; of `turned`, packed experts, results may have either of two layouts."""

    owed: str
    what: str
    mentions: tuple[str, ...] = ()
    turned: frozenset[str] = frozenset()


def short(name: str) -> str:
    """The end of a name, alike in all spellings."""
    return ".".join(name.split(".")[-3:])


def _named(owed: str, what: str, *names: str) -> Harm:
    return Harm(owed=owed, what=f"{what}: {', '.join(names)}", mentions=tuple(map(short, names)))


def dropped(scene: Scene) -> Harm:
    name = scene.name()
    scene.source.remove(name, from_index=scene.random.random() < 0.7)
    is_copy = name == scene.model.head and scene.model.tied
    listed = scene.source.weight_map is not None and name in scene.source.weight_map
    if is_copy or scene.model.optional.search(name) or name in scene.model.left_out:
        return _named(EITHER, "dropped", name)
    return _named(REFUSED, "dropped, but in the index" if listed else "dropped", name)


def a_layer_dropped(scene: Scene) -> Harm | None:
    groups = _by_layer(scene.source.tensors)
    layers = [each for each, names in groups.items() if not any(map(scene.model.optional.search, names))]
    if not layers:
        return None
    layer = scene.random.choice(layers)
    for name in groups[layer]:
        scene.source.remove(name)
    return Harm(owed=REFUSED, what=f"without {layer}", mentions=(_stem(layer),))


def a_layer_too_many(scene: Scene) -> Harm | None:
    groups = _by_layer(scene.source.tensors)
    layers = [each for each, names in groups.items() if not any(map(scene.model.optional.search, names))]
    if not layers:
        return None
    stack = scene.random.choice(layers).rpartition(".")[0]
    number = max(int(each.rpartition(".")[2]) for each in groups if each.rpartition(".")[0] == stack)
    for name in groups[f"{stack}.{number}"]:
        tensor = scene.source.find(name).tensor
        other = name.replace(f"{stack}.{number}.", f"{stack}.{number + 1}.", 1)
        scene.source.add(other, numbered(tensor.shape, tensor.dtype, ELSEWHERE), scene.source.shards[0])
    return Harm(owed=REFUSED, what=f"with {stack}.{number + 1}", mentions=(_stem(f"{stack}.{number + 1}"),))


def _by_layer(names: Mapping[str, object]) -> dict[str, list[str]]:
    """The names of tensors by their layer, such as `model.layers.3`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        if place is not None and parts[place - 1] in ("layers", "blocks"):
            groups.setdefault(".".join(parts[: place + 1]), []).append(name)
    return groups


def _stem(layer: str) -> str:
    return ".".join(layer.split(".")[-2:])


def doubled_in_shards(scene: Scene) -> Harm | None:
    """The index names one of them; readers that load whole shards may end with the other."""
    draft = scene.source
    if not scene.has_config or draft.weight_map is None or len(draft.shards) < 2:
        return None
    each = draft.find(scene.name(trained=True))
    shard = scene.random.choice([other for other in draft.shards if other != each.shard])
    alike = scene.random.random() < 0.5
    copy = each.tensor.clone() if alike else numbered(each.tensor.shape, each.tensor.dtype, ELSEWHERE)
    draft.add(each.name, copy, shard)
    harm = _named(EITHER if alike else REFUSED, "in two shards", each.name)
    return Harm(owed=harm.owed, what=harm.what, mentions=(*harm.mentions, shard))


def doubled_in_spellings(scene: Scene) -> Harm | None:
    name = scene.name(trained=True)
    other = scene.model.in_memory(name)
    if other == name:
        return None
    tensor = scene.source.find(name).tensor
    alike = scene.random.random() < 0.5
    copy = tensor.clone() if alike else numbered(tensor.shape, tensor.dtype, ELSEWHERE)
    if not scene.has_config:
        # A DCP has the names of memory already, so the other spelling is the published one.
        scene.source.stored.append(Stored(scene.source.shards[0], as_it_is(name), copy))
    else:
        scene.source.add(other, copy, scene.source.shards[-1])
    return _named(REFUSED, "in two spellings", name, other)


def reshaped(scene: Scene) -> Harm:
    """Other dims, of as many elements or fewer; the elements keep their order."""
    each = scene.source.find(scene.name())
    before = each.tensor
    kinds = [before[:-1], before.reshape(-1), before[None], before[:0]]
    if before.ndim >= 2:
        kinds += [before[..., :-1], before.flatten(0, 1), before.reshape(before.shape[1], before.shape[0], -1)]
    each.tensor = scene.random.choice(kinds).contiguous()
    if each.tensor.shape == before.shape:
        return _named(RIGHT, "of the same shape", each.name)
    return _named(scene.shape_counts(each.name), f"of shape {list(each.tensor.shape)}", each.name)


def transposed(scene: Scene) -> Harm:
    """A square matrix cannot be told from its transposition."""
    each = scene.source.find(scene.name(matrix=True))
    before = each.tensor.shape
    each.tensor = each.tensor.transpose(-1, -2).contiguous()
    if each.tensor.shape == before:
        return _named(RIGHT, "transposed and square", each.name)
    return _named(scene.shape_counts(each.name), "transposed", each.name)


def of_another_type(scene: Scene) -> Harm:
    each = scene.source.find(scene.name())
    others = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8, torch.int64]
    dtype = scene.random.choice([other for other in others if other != each.tensor.dtype])
    first = int(bits(each.tensor).flatten()[0])
    each.tensor = numbered(each.tensor.shape, dtype, max(1, first))
    return _named(EITHER, f"of {dtype}", each.name)


def of_another_model(scene: Scene) -> Harm:
    """Of the same size it cannot be told; of another it can."""
    each = scene.source.find(scene.name(trained=True))
    shape = list(each.tensor.shape)
    if scene.random.random() < 0.3:
        each.tensor = numbered(shape, each.tensor.dtype, ELSEWHERE)
        is_copy = scene.model.tied and scene.model.head in scene.source.tensors
        tied = is_copy and each.name in (scene.model.head, scene.model.embedding)
        return _named(EITHER if tied else RIGHT, "of another model of this size", each.name)
    dim = scene.random.randrange(len(shape))
    shape[dim] = shape[dim] + 2 if scene.random.random() < 0.5 else shape[dim] * 2
    each.tensor = numbered(shape, each.tensor.dtype, ELSEWHERE)
    return _named(scene.shape_counts(each.name), f"of a model with {shape}", each.name)


def unknown(scene: Scene) -> Harm:
    """A tensor that no model of this family has."""
    like = scene.name(trained=True)
    ends = ["_scale_inv", ".SCB", ".absmax", "_extra", ".lora_A.default.weight", ".weight_g"]
    name = scene.random.choice([like + scene.random.choice(ends), f"score.{like}", "value_head.weight"])
    tensor = scene.source.find(like).tensor
    scene.source.add(name, numbered(tensor.shape, tensor.dtype, ELSEWHERE), scene.source.shards[0])
    return _named(REFUSED, "nobody's", name)


def swapped_layers(scene: Scene) -> Harm | None:
    """Two layers of one shape with each other's weights: nobody can see it, and nothing may move."""
    groups = _by_layer(scene.source.tensors)
    for one in groups:
        other = one.rpartition(".")[0] + "." + str(int(one.rpartition(".")[2]) + 1)
        pairs = [(name, name.replace(one + ".", other + ".", 1)) for name in groups[one]]
        if other in groups and all(second in groups[other] for _, second in pairs):
            for first, second in pairs:
                this, that = scene.source.find(first), scene.source.find(second)
                if this.tensor.shape == that.tensor.shape and this.tensor.dtype == that.tensor.dtype:
                    this.tensor, that.tensor = that.tensor, this.tensor
            return Harm(owed=RIGHT, what=f"{one} and {other} swapped")
    return None


def head_beside_a_tie(scene: Scene) -> Harm | None:
    """A tied model with a head that is not its embedding; it may be kept where the result has a place for it."""
    model = scene.model
    if not model.tied or model.head in model.left_out:
        return None
    embedding = scene.source.find(model.embedding)
    head = numbered(embedding.tensor.shape, embedding.tensor.dtype, ELSEWHERE)
    if model.head in scene.source.tensors:
        scene.source.remove(model.head)
    scene.source.add(model.head, head, scene.source.shards[0])
    return _named(EITHER, "a head that is not the embedding", model.head, "output_layer.weight")


def experts_as_in_memory(scene: Scene) -> Harm | None:
    """Packed experts as transformers 5 holds them, output dim before input dim, under the published names.

    Shapes tell, since gate and up together and down cannot both be square.
    """
    packed = [each for each in scene.source.stored if each.name.endswith(("gate_up_proj", "experts.down_proj"))]
    packed = [each for each in packed if each.tensor.ndim == 3]
    if not packed:
        return None
    for each in packed:
        each.tensor = each.tensor.transpose(1, 2).contiguous()
    return Harm(owed=RIGHT, what="packed experts transposed", turned=frozenset(each.name for each in packed))


TENSOR_DAMAGES: Mapping[str, Callable[[Scene], Harm | None]] = {
    each.__name__: each
    for each in (
        dropped,
        a_layer_dropped,
        a_layer_too_many,
        doubled_in_shards,
        doubled_in_spellings,
        reshaped,
        transposed,
        of_another_type,
        of_another_model,
        unknown,
        swapped_layers,
        head_beside_a_tie,
        experts_as_in_memory,
    )
}
