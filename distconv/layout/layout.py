"""The parallel layout: sizes of the axes, layers of the stages, and the stages that hold a parameter.

Owns the meaning of `layout.*`: tensor, pipeline, virtual pipeline and expert parallel sizes, stage lists with zeros
anywhere, encoder lists that repeat, encoder tensor parallel sizes, and placement. Cuts nothing and knows no files.

Stages are numbered over the flattened stage list, by `stage_number`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import lcm
from typing import Any

from distconv.errors import named, raise_if
from distconv.models.rules import TEXT, Rule

StageRows = tuple[tuple[int, ...], ...]
PLACEMENTS = ("sequential", "u_shape")


def stage_number(virtual_stage: int, pp_rank: int, pp: int) -> int:
    """The number of a stage: all `pp` pipeline ranks of virtual stage 0 first, then those of the next one."""
    return virtual_stage * pp + pp_rank


def stage_coordinates(stage: int, pp: int) -> tuple[int, int]:
    """The virtual stage and the pipeline rank of a stage: the inverse of `stage_number`."""
    return divmod(stage, pp)


def stage_rows(layers: Sequence[int], pp: int) -> StageRows:
    """Numbers of layers by stage as a stage list: one row per virtual stage, one entry per pipeline rank."""
    return tuple(tuple(layers[start : start + pp]) for start in range(0, len(layers), pp))


def occupied_stages(rows: StageRows) -> list[int]:
    """The numbers of the stages that a stage list gives layers, without repetitions of the list."""
    return [stage for stage, layers in enumerate(layers for row in rows for layers in row) if layers]


def coordinates(tensor_ranks: int, ep: int, expert_tp: int) -> frozenset[tuple[int, int]]:
    """The (tensor, expert) parallel ranks of processes that are numbered along both.

    Where experts are cut into fewer pieces, expert parallel ranks run along with tensor parallel ones, so that some
    pairs are not there.
    """
    processes = range(lcm(tensor_ranks, expert_tp * ep))
    return frozenset((number % tensor_ranks, number // expert_tp % ep) for number in processes)


# More ranks than any axis of a cluster has.
_LARGEST_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class CompleteLayout:
    """A complete, validated layout. `stages[modality][v][p]` is a number of layers.

    `expert_tp`: the tensor parallel size of experts, where it is another than that of the text.
    """

    tp: int
    pp: int
    vpp: int
    ep: int
    stages: Mapping[str, StageRows]
    modality_tp: Mapping[str, int]
    placement: str
    expert_tp: int | None = None

    def pieces(self, rule: Rule) -> int:
        """The number of shards of the parameters of a rule; experts may have one of their own."""
        is_expert = self.expert_tp is not None and "expert" in rule.placeholders
        return self.expert_tp or 1 if is_expert else self.tensor_parallel_size(rule.modality)

    @property
    def coordinates(self) -> frozenset[tuple[int, int]]:
        """The (tensor, expert) parallel ranks that there are, on every pipeline rank."""
        return coordinates(self.tensor_ranks, self.ep, self.expert_tp or self.tensor_ranks)

    @property
    def tensor_ranks(self) -> int:
        """Number of tensor parallel rank directories: the largest of all the tensor parallel sizes."""
        return max(self.tp, *self.modality_tp.values()) if self.modality_tp else self.tp

    @property
    def stage_count(self) -> int:
        """Number of stages over all virtual stages."""
        return self.pp * self.vpp

    def to_json(self) -> dict[str, Any]:
        """Plain data for the report."""
        return {
            **vars(self),
            "modality_tp": dict(self.modality_tp),
            "stages": {modality: [list(row) for row in rows] for modality, rows in self.stages.items()},
        }

    def tensor_parallel_size(self, modality: str) -> int:
        """The number of shards of the tensors of a modality; rank `r` holds shard `r mod size`."""
        return self.modality_tp.get(modality, self.tp)

    def placement_of(self, modality: str) -> Placement:
        """The stages of the parameters of a modality."""
        flat = [layers for row in self.stages[modality] for layers in row]
        u_shape = self.placement == "u_shape"
        period = self.stage_count if u_shape else len(flat)
        starts = [0, *accumulate(flat)]
        of_layer: dict[int, list[tuple[int, int]]] = {}
        for stage in range(self.stage_count):
            if stage % period < len(flat):
                start, count = starts[stage % period], flat[stage % period]
                for local in range(count):
                    of_layer.setdefault(start + local, []).append((stage, local))
        occupied = occupied_stages(self.stages[modality])
        first = tuple(stage for stage in range(self.stage_count) if stage % period == occupied[0])
        last = tuple(stage for stage in range(self.stage_count) if stage % period == occupied[-1])
        if u_shape and modality == TEXT:
            # Layer-wise disaggregated training keeps both ends of the language model on pipeline rank 0.
            virtual_stage, _ = stage_coordinates(occupied[0], self.pp)
            first = (stage_number(virtual_stage, 0, self.pp),)
            last = (stage_number(self.vpp - 1, 0, self.pp),)
        return Placement(of_layer=of_layer, first=first, last=last, every=tuple(range(self.stage_count)))

    def keeps_separate_head(self) -> bool:
        """Whether the training side has a head parameter of its own although the model's embedding is tied.

        It has one where first and last text layer are on different stages (source: megatron-core 0.12.1, GPTModel).
        """
        text = self.placement_of(TEXT)
        return self.pp > 1 if self.placement == "u_shape" else text.first != text.last


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The stages of one modality.

    `of_layer`: by global layer number, (stage, layer number local to the stage); `first`, `last` and `every`: the
    stages of parameters before the layers, after the layers, and of those on all stages of the modality.
    """

    of_layer: Mapping[int, Sequence[tuple[int, int]]]
    first: tuple[int, ...]
    last: tuple[int, ...]
    every: tuple[int, ...]

    def stages(self, where: str, layer: int | None) -> Sequence[tuple[int, int | None]]:
        """Pairs of a stage that holds a parameter and the layer number local to the stage, `None` without a layer.

        `where` is the `stage` of the parameter's rule: first, last, ends (first and last), every, or layer.
        """
        if layer is not None:
            return self.of_layer[layer]
        ends = tuple(dict.fromkeys(self.first + self.last))
        stages = {"first": self.first, "last": self.last, "ends": ends, "every": self.every}[where]
        return [(stage, None) for stage in stages]


def check_layout(
    layout: CompleteLayout, layers: Mapping[str, int], experts: int | None, *, at_least: bool = False
) -> None:
    """Check a layout against the layers per modality of a model (`at_least`: a lower bound) and its number of experts.

    Raises:
        InputError: every contradiction, with the numbers of both sides.
    """
    problems = []
    for modality, rows in layout.stages.items():
        key = f"layout.stages.{modality}"
        shown = shown_stages(rows)
        total = sum(map(sum, rows))
        if modality in layers and (total < layers[modality] if at_least else total != layers[modality]):
            problems.append(
                f"{key}={shown}: adds up to {total} layers, but the model has "
                f"{'at least ' if at_least else ''}{layers[modality]} {modality} layers"
            )
        if len({len(row) for row in rows}) != 1:
            problems.append(
                f"{key}={shown}: every virtual stage needs the same number of entries, one per pipeline rank"
            )
        elif len(rows) != layout.vpp:
            problems.append(
                f"{key}={shown}: has {len(rows)} virtual stages, expected {layout.vpp}; write one list for each"
            )
        elif len(rows[0]) > layout.pp:
            problems.append(
                f"{key}={shown}: has {len(rows[0])} entries, more than the {layout.pp} pipeline ranks; layers of the "
                "entries beyond would be on no rank"
            )
        elif len(rows[0]) < layout.pp and (modality == TEXT or layout.vpp > 1):
            problems.append(
                f"{key}={shown}: has {len(rows[0])} entries, expected {layout.pp}, one per pipeline rank"
                + ("; a shorter list repeats only without virtual stages" if modality != TEXT else "")
            )
    for modality, size in {TEXT: layout.tp, **layout.modality_tp}.items():
        if layout.tensor_ranks % size:
            key = "layout.tp" if modality == TEXT else f"layout.modality_tp.{modality}"
            problems.append(
                f"{key}={size}: does not divide the largest tensor parallel size, {layout.tensor_ranks}; "
                "every size must divide it"
            )
    expert_tp = layout.expert_tp
    if expert_tp is not None and experts is None:
        problems.append(f"layout.expert_tp={expert_tp}: this model has no experts; leave it out")
    elif expert_tp is not None and (layout.tp % expert_tp or layout.tensor_ranks != layout.tp):
        problems.append(
            f"layout.expert_tp={expert_tp}: expected a divisor of layout.tp={layout.tp}, with no encoder that is cut "
            "into more pieces"
        )
    if layout.ep > 1 and experts is None:
        problems.append(f"layout.ep={layout.ep}: this model has no experts; leave layout.ep at 1")
    elif experts is not None and experts % layout.ep:
        problems.append(
            f"layout.ep={layout.ep}: does not divide the {experts} experts; sizes that do: {divisors(experts)}"
        )
    raise_if(problems)


def divisors(number: int) -> str:
    """The sizes that divide a number, in words; none beyond those that parallel axes have."""
    return named((size for size in range(1, min(number, _LARGEST_SIZE) + 1) if number % size == 0), 16)


def shown_stages(rows: StageRows) -> str:
    """A stage list in the syntax of the command line: one list, or one per virtual stage."""
    written = ["[" + ",".join(map(str, row)) + "]" for row in rows]
    return written[0] if len(written) == 1 else "[" + ",".join(written) + "]"
