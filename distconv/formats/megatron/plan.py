"""The plan of a Megatron result: the rank files, and the shards in every file.

Owns the names of files and directories, the division of parameters over (tensor, pipeline, expert) coordinates, and the
bytes per stage. Every file has an outline (path, bytes); the entries of a file are derived on request, so that a
process spells out only its own share. Reads and writes nothing. Format: the `torch` checkpoint format of Megatron-LM,
`megatron/training/checkpointing.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distconv.errors import fault
from distconv.formats.megatron.directory import FILE_NAME, rank_directory
from distconv.formats.megatron.grouped_experts import grouped
from distconv.formats.records import Entry, OutputFile
from distconv.layout.layout import CompleteLayout, stage_coordinates, stage_number
from distconv.layout.shards import Shards, cut_recipes
from distconv.models.definition import OWN_NAMES
from distconv.models.parameters import Binding, Parameter, Recipe, Unconverted, target_name
from distconv.models.rules import Rule


class RankFile(OutputFile):
    """The file of one rank."""

    @property
    def ep_rank(self) -> int:
        """Its expert parallel rank."""
        return self.order[0]

    @property
    def tp_rank(self) -> int:
        """Its tensor parallel rank."""
        return self.order[1]

    @property
    def pp_rank(self) -> int:
        """Its pipeline rank."""
        return self.order[2]


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """The layers, parameters and bytes (as written) of one stage, over all tensor and expert parallel ranks.

    `layers` and `modality_bytes` are by modality.
    """

    stage: int
    layers: Mapping[str, int]
    parameters: int
    modality_bytes: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """The bytes of all modalities."""
        return sum(self.modality_bytes.values())


@dataclass(frozen=True, kw_only=True)
class MegatronPlan:
    """The rank files of a result as outlines; `entries` spells out the shards of one file.

    `shards`: the shards of every recipe. `placed`: by stage, parameters with layer numbers local to the stage.
    `dialect`: that of their names.
    """

    binding: Binding
    layout: CompleteLayout
    files: tuple[RankFile, ...]
    stages: tuple[StageSummary, ...]
    shards: Mapping[Recipe, Shards]
    placed: tuple[tuple[tuple[Parameter, int | None], ...], ...]
    dialect: str

    @property
    def unconverted(self) -> tuple[Unconverted, ...]:
        """The source tensors left out on purpose, with reasons."""
        return self.binding.unconverted

    @property
    def dictionaries(self) -> list[str]:
        """The keys of the dictionaries of tensors in each file, one per virtual stage."""
        return ["model"] if self.layout.vpp == 1 else [f"model{number}" for number in range(self.layout.vpp)]

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        """The shards of a file in stored order."""
        assert isinstance(file, RankFile)
        for virtual_stage, key in enumerate(self.dictionaries):
            stage = stage_number(virtual_stage, file.pp_rank, self.layout.pp)
            held: list[tuple[Entry, Rule]] = []
            for number, (parameter, layer) in enumerate(self.placed[stage]):
                owner, expert = expert_owner(parameter, self.binding.experts, self.layout.ep)
                if owner is None or owner == file.ep_rank:
                    name = target_name(parameter.recipe.rule, layer, expert)
                    pieces = self.shards[parameter.recipe]
                    piece = pieces[file.tp_rank % len(pieces)]
                    entry = Entry(parameter.sources, piece, name, key=key, group=(virtual_stage, number))
                    held.append((entry, parameter.recipe.rule))
            yield from grouped(held)

    def summary(self) -> dict[str, Any]:
        """The layout, the contents of its stages, and the (tensor, pipeline, expert) parallel rank of each file."""
        layout = self.layout
        return {
            "layout": layout.to_json(),
            "dialect": self.dialect,
            "stages": [
                {
                    "virtual_stage": virtual_stage,
                    "pipeline_rank": pp_rank,
                    "layers": each.layers,
                    "parameters": each.parameters,
                    "bytes": each.nbytes,
                    "modality_bytes": each.modality_bytes,
                }
                for each in self.stages
                for virtual_stage, pp_rank in [stage_coordinates(each.stage, layout.pp)]
            ],
            "ranks": [[file.tp_rank, file.pp_rank, file.ep_rank] for file in self.files],
        }


def make_plan(binding: Binding, layout: CompleteLayout, dialect: str = OWN_NAMES) -> MegatronPlan:
    """Plan a bound model, with the names that parameters have in a dialect, under a layout that was checked against it.

    Raises:
        InputError: sizes that the layout does not divide.
        JobError: a parameter on no stage, or two with one name; a defect, found before writing.
    """
    shards = cut_recipes((parameter.recipe for parameter in binding.parameters), layout)
    placements = {modality: layout.placement_of(modality) for modality in binding.layers}
    placed: list[list[tuple[Parameter, int | None]]] = [[] for _ in range(layout.stage_count)]
    elements = [0] * layout.stage_count
    stage_bytes: list[Counter[str]] = [Counter() for _ in elements]
    ranks, held = layout.tensor_ranks, layout.coordinates
    there = [[tp_rank for tp_rank in range(ranks) if (tp_rank, ep_rank) in held] for ep_rank in range(layout.ep)]
    nbytes = [[[0] * ranks for _ in range(layout.pp)] for _ in range(layout.ep)]
    piece_bytes = {recipe: [piece.nbytes for piece in pieces] for recipe, pieces in shards.items()}
    owners: dict[tuple[int, str], set[int | None]] = {}
    for parameter in binding.parameters:
        rule = parameter.recipe.rule
        holders = placements[rule.modality].stages(rule.stage, parameter.layer)
        if not holders:
            raise fault(f"{parameter.name}: would be on no stage")
        owner, expert = expert_owner(parameter, binding.experts, layout.ep)
        sizes = piece_bytes[parameter.recipe]
        for stage, layer in holders:
            name = target_name(rule, layer, expert)
            others = owners.setdefault((stage, name), set())
            if owner in others or None in others or (owner is None and others):
                raise fault(f"{name}: would be twice on stage {stage}")
            others.add(owner)
            placed[stage].append((parameter, layer))
            elements[stage] += parameter.recipe.tensor.elements
            _, pp_rank = stage_coordinates(stage, layout.pp)
            for ep_rank in range(layout.ep) if owner is None else (owner,):
                row = nbytes[ep_rank][pp_rank]
                for tp_rank in there[ep_rank]:
                    row[tp_rank] += sizes[tp_rank % len(sizes)]
                stage_bytes[stage][rule.modality] += sum(sizes[tp_rank % len(sizes)] for tp_rank in there[ep_rank])
    layers: list[Counter[str]] = [Counter() for _ in range(layout.stage_count)]
    for modality, placement in placements.items():
        for holders in placement.of_layer.values():
            for stage, _ in holders:
                layers[stage][modality] += 1
    files = tuple(
        RankFile(
            path=f"{_directory(layout, tp_rank, pp_rank, ep_rank)}/{FILE_NAME}",
            nbytes=nbytes[ep_rank][pp_rank][tp_rank],
            order=(ep_rank, tp_rank, pp_rank),
            batch=pp_rank,
        )
        for ep_rank in range(layout.ep)
        for tp_rank in there[ep_rank]
        for pp_rank in range(layout.pp)
    )
    return MegatronPlan(
        binding=binding,
        layout=layout,
        files=files,
        stages=tuple(
            StageSummary(stage=stage, layers=held, parameters=count, modality_bytes=by_modality)
            for stage, (held, count, by_modality) in enumerate(zip(layers, elements, stage_bytes, strict=True))
        ),
        shards=shards,
        placed=tuple(tuple(each) for each in placed),
        dialect=dialect,
    )


def expert_owner(parameter: Parameter, experts: int | None, ep: int) -> tuple[int | None, int | None]:
    """The expert parallel rank of a parameter (`None`: every rank), and the expert's number local to that rank."""
    if parameter.expert is None or experts is None:
        return None, None
    return divmod(parameter.expert, experts // ep)


def _directory(layout: CompleteLayout, tp_rank: int, pp_rank: int, ep_rank: int) -> str:
    others = (rank for rank, size in ((pp_rank, layout.pp), (ep_rank, layout.ep)) if size > 1)
    return rank_directory((tp_rank, *others))
