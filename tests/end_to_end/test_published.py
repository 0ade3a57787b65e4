"""Every published size plans: from headers alone, under every documented layout, to files of just the right size.

The tensors and the `config.json` are those of `tests/published.py` and `tests/published_language_models.py`; nothing
is written or read. How many bytes each file must hold is worked out here from where training has each tensor, without
distconv.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, product
from math import prod
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from distconv.formats.huggingface.source import Checkpoint, HuggingFaceFacts
from distconv.formats.megatron.plan import MegatronPlan
from distconv.formats.registry import Options
from distconv.models.library import Library
from distconv.planning.assign import assign
from distconv.planning.choice import recognised
from distconv.planning.facts import Facts
from distconv.planning.plan import plan_job
from distconv.runtime.lanes import lanes
from distconv.tensors.stored import SourceFile, SourceIndex, StoredTensor
from distconv.transfer.planned_reads import planned_reads
from tests.published import PUBLISHED, Config, Layout, Published
from tests.published_language_models import LANGUAGE_MODELS
from tests.published_towers import EVERY, FIRST, LAST, WHOLE, Cut, Tensor, Units

BYTES = 2
ALL = (*PUBLISHED, *LANGUAGE_MODELS)
CASES = {
    f"{published.name}-{number}": (published, config, layout)
    for published in ALL
    for number, (config, layout) in enumerate(product(published.configs, published.layouts))
}
Coordinate = tuple[int, int, int]
PlanOf = Callable[[Published, Config, Layout], tuple[str, MegatronPlan]]


@pytest.fixture(scope="module")
def planned() -> PlanOf:
    """Plan a published size under a layout; gives the name of the definition that was chosen for it, too."""
    known = Library.of_package()
    with initialize_config_module("distconv.conf", version_base="1.3"):
        defaults = plain(compose("config"))
    indices: dict[str, SourceIndex] = {}

    def plan(published: Published, config: Config, layout: Layout) -> tuple[str, MegatronPlan]:
        if published.name not in indices:
            indices[published.name] = index_of(published.tensors())
        checkpoint = Checkpoint(index=indices[published.name], config=config)
        source = HuggingFaceFacts(model=checkpoint, text=None)
        chosen = recognised(config, "published", known, needed=True)
        assert chosen is not None
        name, definition = chosen
        facts = Facts(
            kind="hf",
            source=source,
            reference=None,
            model=name,
            definition=definition,
            iteration="release",
            dialects=known.dialects(),
        )
        found = plan_job(Options.from_content(as_configured(defaults, layout)), facts)
        assert found.notes == ()
        assert found.source.replicas == ()
        assert isinstance(found.plan, MegatronPlan)
        return name, found.plan

    return plan


@pytest.mark.parametrize("case", CASES)
def test_a_published_size_plans_under_a_documented_layout(case: str, planned: PlanOf) -> None:
    published, config, layout = CASES[case]

    definition, plan = planned(published, config, layout)

    assert definition == published.definition
    wanted, left_out = selected(published.tensors(), layout)
    assert {each.tensor.name for each in plan.binding.unconverted} == left_out
    found = {(file.tp_rank, file.pp_rank, file.ep_rank): file.nbytes for file in plan.files}
    assert found == expected_bytes(wanted, layout, published)


@pytest.mark.parametrize("published", [each for each in ALL if each.parameters], ids=lambda each: each.name)
def test_the_towers_have_as_many_parameters_as_the_hub_says(published: Published) -> None:
    stored = [tensor for tensor in published.tensors() if tensor.stored and not tensor.left_out]
    assert sum(tensor.elements for tensor in stored) == published.parameters


@pytest.mark.parametrize(
    ("name", "processes", "per_node", "balance"),
    [
        # A file each, of which some have one layer more than others.
        ("Qwen3-VL-235B-A22B", 256, 8, 1.19),
        ("Qwen2.5-VL-32B", 16, 4, 1.6),
        ("Qwen2.5-72B", 32, 8, 1.04),
        ("Qwen2.5-72B", 4, 1, 1.04),
    ],
)
def test_nodes_read_a_checkpoint_hardly_more_than_once(
    name: str, processes: int, per_node: int, balance: float, planned: PlanOf
) -> None:
    """Processes cut matrices by columns, and are many for each layer that all expert parallel ranks have."""
    (published,) = (each for each in ALL if each.name == name)
    _, plan = planned(published, published.configs[0], published.layouts[-1])
    shares = assign(plan.files, processes)
    written = [sum(file.nbytes for file in share) for share in shares]
    assert max(written) * processes <= balance * sum(written)
    reads = planned_reads(plan, shares, lanes(None, None, 2), per_node)
    (file,) = {source.file for each in plan.binding.parameters for source in each.sources}
    assert reads.distinct == pytest.approx(file.size, rel=0.001)
    assert sum(reads.fetched) <= 1.3 * file.size


def index_of(tensors: Iterable[Tensor]) -> SourceIndex:
    """The index of a file that holds the tensors one after the other."""
    stored: dict[str, StoredTensor] = {}
    sizes = [(tensor.name, tensor.shape) for tensor in tensors if tensor.stored]
    ends = list(accumulate(prod(shape) * BYTES for _, shape in sizes))
    file = SourceFile("model.safetensors", ends[-1])
    for (name, shape), offset in zip(sizes, [0, *ends], strict=False):
        assert name not in stored
        stored[name] = StoredTensor(name, "bfloat16", shape, file, offset)
    return SourceIndex(directory="published", tensors=stored)


def plain(composed: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(composed)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def as_configured(defaults: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    content = copy.deepcopy(dict(defaults))
    content |= {"source": "hf", "target": "mm", "select": None if layout.select is None else list(layout.select)}
    content["layout"] |= {"tp": layout.tp, "ep": layout.ep, "placement": layout.placement}
    content["layout"]["stages"] = {"text": layout.text, "vision": layout.vision or None, "audio": layout.audio}
    content["layout"]["modality_tp"] = {
        "vision": layout.encoder_tp,
        "audio": layout.encoder_tp if layout.audio else None,
    }
    return content


def selected(tensors: Iterable[Tensor], layout: Layout) -> tuple[list[Tensor], set[str]]:
    """What a layout converts, and the names of what it does not."""
    wanted, left_out = [], set()
    for tensor in tensors:
        if tensor.left_out or (layout.select is not None and tensor.modality not in layout.select):
            left_out.add(tensor.name)
        else:
            wanted.append(tensor)
    return wanted, left_out


def expected_bytes(tensors: Iterable[Tensor], layout: Layout, published: Published) -> dict[Coordinate, int]:
    """What each file must hold: the shares of its coordinate in all tensors that are on one of its stages."""
    rows = {"text": layout.text, "vision": layout.vision, "audio": layout.audio}
    stages = {modality: Stages(layout, each) for modality, each in rows.items() if each}
    elements: Counter[tuple[str, int, Cut, int | None]] = Counter()
    for tensor in tensors:
        owner = None
        if tensor.expert is not None:
            assert published.experts is not None
            owner = tensor.expert // (published.experts // layout.ep)
        count = tensor.elements // (layout.ep if tensor.packed else 1)
        for pp_rank in stages[tensor.modality].of(tensor.place):
            elements[tensor.modality, pp_rank, tensor.cut, owner] += count
        is_copied = published.tied or published.predicts
        if is_copied and tensor.place == FIRST and tensor.modality == "text":
            for pp_rank in stages["text"].of_copied_head():
                elements["text", pp_rank, tensor.cut, owner] += count
    pp = len(layout.text[0])
    found = dict.fromkeys(product(range(layout.tp), range(pp), range(layout.ep)), 0)
    for (modality, pp_rank, cut, owner), count in elements.items():
        size = layout.tp if modality == "text" else layout.encoder_tp or layout.tp
        for tp_rank, ep_rank in product(range(layout.tp), range(layout.ep) if owner is None else (owner,)):
            found[tp_rank, pp_rank, ep_rank] += BYTES * share(count, cut, size, tp_rank % size)
    return found


def share(count: int, cut: Cut, size: int, rank: int) -> int:
    """How many of the elements a tensor parallel rank holds."""
    if cut == WHOLE:
        return count
    units = cut.count if isinstance(cut, Units) else size
    assert count % units == 0
    return count // units * (units // size + (rank < units % size))


class Stages:
    """The pipeline ranks of a modality's places, by its stage list."""

    def __init__(self, layout: Layout, rows: list[list[int]]) -> None:
        self._pp, self._vpp = len(layout.text[0]), len(layout.text)
        self._flat = [count for row in rows for count in row]
        assert len(self._flat) == self._pp * self._vpp
        self._u_shape = layout.placement == "u_shape" and rows is layout.text
        self._ends = list(accumulate(self._flat))

    def of(self, place: str | int) -> Iterator[int]:
        """One pipeline rank for each stage that holds what is at the place."""
        if place == EVERY:
            yield from (stage % self._pp for stage in range(self._pp * self._vpp))
        elif self._u_shape and place in (FIRST, LAST):
            yield 0
        elif place == FIRST:
            yield self._rank_of_layer(0)
        elif place == LAST:
            yield self._rank_of_layer(self._ends[-1] - 1)
        else:
            yield self._rank_of_layer(int(place))

    def _rank_of_layer(self, layer: int) -> int:
        return next(stage for stage, end in enumerate(self._ends) if layer < end) % self._pp

    def of_copied_head(self) -> Iterator[int]:
        """The last stage, if it is another than the first, so that a tied model has a copy of the embedding there."""
        if sum(count > 0 for count in self._flat) > 1:
            yield from self.of(LAST)
