"""Looking at the source: everything that planning needs to know, read once by rank 0.

Owns what kind of checkpoint a directory holds, and the choice of the model definition by what it says it is. Reads
headers, metadata and JSON only.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from distconv.errors import InputError, raise_if
from distconv.formats.dcp.index import DcpDirectory, locate, locate_chunks, open_dcp
from distconv.formats.dcp.known_names import known_parameters, known_tensors
from distconv.formats.dcp.metadata import METADATA
from distconv.formats.dcp.prefix import find_prefix, names_under
from distconv.formats.huggingface.directory import check_directory, read_directory
from distconv.formats.huggingface.reference import read_reference
from distconv.formats.iterations import RELEASE, VERSION_KEY, iteration_of
from distconv.formats.jsonfile import read_object
from distconv.formats.megatron.index import read_megatron, read_rank_file
from distconv.formats.provenance import RECORD_NAME, read_record
from distconv.formats.registry import Options
from distconv.layout.request import SourceLayout
from distconv.models.adapters import CONFIG_NAME
from distconv.models.definition import Definition, parse_definition
from distconv.models.library import Definitions, Head, head_of
from distconv.planning.facts import MODEL_CONFIG, Checkpoint, DcpSource, Facts, Reference, Source
from distconv.runtime.hand_out import HandOut, Task, here

Chosen = tuple[str, Mapping[str, Any]]
# What `inspect` hands out.
TASKS: tuple[Task, ...] = (read_rank_file, locate_chunks)
_KINDS = {
    "hf": "a Hugging Face directory",
    "megatron": "a Megatron checkpoint",
    "dcp": "a torch.distributed.checkpoint",
}


def inspect(config: Options, chosen: Chosen | None, definitions: Definitions, hand_out: HandOut = here) -> Facts:
    """The facts of a job; `chosen` is the name and content of the definition that the user named.

    The files of what training saved are many: to read them is handed out, as `TASKS`.

    Raises:
        InputError: a directory that is not a checkpoint, or no definition for it.
    """
    raise_if(list(_without_meaning(config)))
    check_directory(config.source, "source")
    kind = _kind(config.source)
    raise_if(list(_contradictions(config, kind)))
    if kind != "hf":
        return _trained(config, kind, chosen, definitions, hand_out)
    if chosen is not None and chosen[1].get("adapters") == "only":
        if config.text_source is not None:
            raise InputError(
                f"text_source={config.text_source}: +model={chosen[0]} converts adapters alone; leave it out"
            )
        return _facts(config, _adapter(config.source), None, chosen)
    source = _checkpoint(config.source, "source")
    text_source = None if config.text_source is None else _checkpoint(config.text_source, "text_source")
    needed = not (config.target_format == "dcp" and config.naming == "hf")
    chosen = chosen or _recognised(source.config, str(config.source), definitions, needed=needed)
    _check_model_type(chosen, source.config, str(config.source))
    return _facts(config, source, text_source, chosen)


def _without_meaning(config: Options) -> Iterator[str]:
    """Options that were given although they say nothing about a result of this format."""
    published = config.target_format == "hf" or config.naming == "hf"
    is_dcp = config.target_format == "dcp"
    given = [*(f"layout.{key}" for key in config.layout.given()), *config.given()]
    for keys, allowed, why in (
        (
            [key for key in given if key.startswith("layout.")],
            config.target_format == "megatron",
            f"target_format={config.target_format} holds whole tensors; leave it out",
        ),
        (["naming"], is_dcp, "goes with target_format=dcp"),
        (["packed_experts"], is_dcp and published, "goes with target_format=dcp and naming=hf"),
        (
            ["vocab_size"],
            not published,
            "the published names have the vocabulary of the published model; leave it out",
        ),
        (["merge_lora", "lora_alpha"], config.target_format == "hf", "goes with target_format=hf"),
        (
            ["tied_head"],
            config.target_format != "hf",
            "the result has a head where the reference has one; leave it out",
        ),
        (["fill_from_reference"], published, "goes with target_format=hf, or dcp and naming=hf"),
    ):
        if not allowed:
            yield from (f"{key}: {why}" for key in keys if key in given)


def _facts(config: Options, source: Source, text_source: Checkpoint | None, chosen: Chosen | None) -> Facts:
    name, content = chosen or (None, {})
    return Facts(
        source=source,
        text_source=text_source,
        reference=None,
        model=name,
        definition=content,
        iteration=config.iteration or RELEASE,
    )


def _kind(directory: Path) -> str:
    """The format of the checkpoint in a directory: hf, megatron or dcp."""
    iterations = [path for path in directory.glob("*") if iteration_of(path) is not None]
    for each in (directory, *iterations):
        if next(each.glob("mp_rank_*"), None) is not None:
            return "megatron"
        if (each / METADATA).exists() or any(next(each.glob(name), None) for name in ("*.distcp", "__*.metadata")):
            return "dcp"
    # A configuration may have been put beside a checkpoint of training, never one of training beside a published model.
    if any((directory / name).exists() for name in (MODEL_CONFIG, CONFIG_NAME)):
        return "hf"
    return "megatron" if iterations else "hf"


def _contradictions(config: Options, kind: str) -> Iterator[str]:
    """Keys that say nothing about a source of this kind."""
    trained = {"reference": config.reference is not None, "fill_from_reference": config.fill_from_reference}
    published = {
        "text_source": config.text_source is not None,
        "projector": config.projector != "auto",
        "lora_only": config.lora_only,
    }
    for keys, allowed, which in (
        (trained, kind != "hf", "a Megatron or DCP source"),
        ({"source_layout": config.source_layout != SourceLayout()}, kind == "megatron", "a Megatron source"),
        ({"name_prefix": config.name_prefix is not None}, "dcp" in (kind, config.target_format), "a DCP"),
        (published, kind == "hf", "a Hugging Face source"),
    ):
        if not allowed:
            found = f"source={config.source} is {_KINDS[kind]}"
            yield from (f"{key}: goes with {which}; {found}" for key in keys if keys[key])
    if kind == "hf" and config.target_format == "hf":
        yield f"target_format=hf: source={config.source} is a Hugging Face directory already"
    if config.text_source is not None and config.text_source.resolve() == config.source.resolve():
        yield f"text_source={config.text_source}: is the same directory as source; leave it out"


def _trained(config: Options, kind: str, chosen: Chosen | None, definitions: Definitions, hand_out: HandOut) -> Facts:
    """The facts of a checkpoint that training reads and writes, and of the directory that it came from."""
    if kind == "megatron":
        index = read_megatron(config.source, config.iteration, hand_out)
        directory, iteration = Path(index.directory), index.iteration
    else:
        opened = open_dcp(config.source, config.iteration)
        directory = opened.directory
        iteration = iteration_of(directory.resolve()) or RELEASE
    record = read_record(directory)
    reference = _reference(config, record.reference, directory)
    remembered = chosen is None and record.model is not None and record.model in definitions.heads()
    if remembered:
        assert record.model is not None
        chosen = record.model, definitions.compose(record.model)
    if chosen is None:
        chosen = _recognised(reference.config, reference.directory, definitions, needed=True)
    assert chosen is not None
    if not reference.is_adapter:
        where = str(directory / RECORD_NAME) if remembered else None
        _check_model_type(chosen, reference.config, reference.directory, where)
    source: Source
    if kind == "megatron":
        source = index
    else:
        definition = parse_definition(*chosen, sized=not reference.is_adapter)
        given = config.name_prefix if config.target_format != "dcp" else None
        source = _dcp_source(opened, definition, reference, given, hand_out)
    return Facts(
        source=source,
        text_source=None,
        reference=reference,
        model=chosen[0],
        definition=chosen[1],
        iteration=iteration,
    )


def _dcp_source(
    opened: DcpDirectory, definition: Definition, reference: Reference, given: str | None, hand_out: HandOut
) -> DcpSource:
    """What a DCP holds of the model, under names with the prefix that is `given`, or else recognised."""
    tensors = known_tensors(definition, reference)
    parameters = known_parameters(definition, reference)
    found = opened.metadata.tensors
    prefix = find_prefix(found, tensors | parameters, given)
    names = names_under(found, prefix)
    wanted = {full: bare for bare, full in names.items()}
    located = locate(opened, wanted.__contains__, hand_out)
    naming = "hf" if len(tensors & names.keys()) >= len(parameters & names.keys()) else "megatron"
    others = sorted({*opened.metadata.others, *(found.keys() - wanted.keys())} - {VERSION_KEY})
    return DcpSource(index=located.renamed(wanted), naming=naming, prefix=prefix, others=_summarised(others))


def _summarised(names: Collection[str]) -> tuple[str, ...]:
    """Entries that are not carried over, by what they begin with."""
    counts: dict[str, int] = {}
    for name in names:
        first = name.partition(".")[0]
        counts[first] = counts.get(first, 0) + 1
    return tuple(f"{first} ({count} entries)" if count > 1 else first for first, count in sorted(counts.items()))


def _reference(config: Options, recorded: str | None, directory: Path) -> Reference:
    if config.reference is not None:
        return read_reference(config.reference, "reference")
    if recorded is None:
        raise InputError(
            f"reference is missing: give reference=DIR, the Hugging Face directory of the model that {directory} was "
            "trained from; its config.json says the sizes"
        )
    try:
        return read_reference(Path(recorded), "reference")
    except InputError as error:
        raise InputError(
            [
                f"{directory / RECORD_NAME}: the reference that it names cannot be used; give one with reference=DIR",
                *error.problems,
            ]
        ) from None


def _adapter(directory: Path) -> Checkpoint:
    config = read_object(directory / CONFIG_NAME, "the rank and the target modules of the adapter")
    return Checkpoint(index=read_directory(directory, adapter=True), config=config)


def _checkpoint(directory: Path, key: str) -> Checkpoint:
    check_directory(directory, key)
    if not (directory / MODEL_CONFIG).exists() and (directory / CONFIG_NAME).exists():
        raise InputError(
            f"{key}={directory}: holds an adapter ({CONFIG_NAME}); name the model that it is for: +model=NAME_lora"
        )
    config = read_object(directory / MODEL_CONFIG, f"the sizes of the model in {key}")
    return Checkpoint(index=read_directory(directory), config=config)


def _check_model_type(
    chosen: Chosen | None, config: Mapping[str, Any], directory: str, record: str | None = None
) -> None:
    """Whether config.json is of a model that the definition is for; `record`: the file that named the definition."""
    name, content = chosen or ("", {})
    expected = head_of(content).get("model_types") or []
    found = config.get("model_type")
    if expected and found not in expected:
        if record is not None:
            raise InputError(
                f"{directory}/{MODEL_CONFIG}: says model_type {found!r}, but {record} says that the source is {name}, "
                f"which is {', '.join(expected)}; give the reference of that model"
            )
        raise InputError(
            f"{directory}/{MODEL_CONFIG}: says model_type {found!r}, but +model={name} is for {', '.join(expected)}; "
            f"leave +model out to have it chosen, or, if this is such a model, add model.model_types=[{found}]"
        )


def _recognised(config: Mapping[str, Any], directory: str, definitions: Definitions, *, needed: bool) -> Chosen | None:
    where = f"{directory}/{MODEL_CONFIG}"
    heads: Mapping[str, Head] = definitions.heads()
    known: dict[str, str] = {}
    for name, head in heads.items():
        if head.get("variant_of") is None:
            known.update(dict.fromkeys(head.get("model_types") or (), name))
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in known:
        return known[model_type], definitions.compose(known[model_type])
    if not needed:
        return None
    if model_type is None:
        raise InputError(f"{where}: has no model_type; name the model with +model=NAME: {', '.join(heads)}")
    near = difflib.get_close_matches(str(model_type), known, 1)
    hint = f"; the nearest is {near[0]!r} (+model={known[near[0]]})" if near else ""
    raise InputError(
        f"{where}: model_type {model_type!r} is of no model definition{hint}; known: {', '.join(sorted(known))}"
    )
