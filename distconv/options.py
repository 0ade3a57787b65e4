"""The options of a job: name, kind, default and words, the one table of command line, files and API.

Owns the options that belong to no single format, and the checks of their values that need no source. Never names a
format: an option of one format is a field in that format's folder, and `formats.registry` has the record of all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distconv.fields import Group, Record, option, options_of
from distconv.input_output import InputOutput
from distconv.kinds import Choice, Integer, Iteration, Mode, Several, Text, Texts, Truth
from distconv.layout.request import Layout, SourceLayout
from distconv.models.rules import MODALITIES, TEXT
from distconv.path_kinds import Directories, FilePath

_DIRECTORY = FilePath("DIR")
# Larger than any vocabulary or number of threads; rejects typing errors.
_SIZE = Integer(2**24)
# Values of `dtype` that name no type, and of `dtype_overflow`.
KEEP, REFERENCE = "keep", "reference"
ERROR = "error"
# The required paths of the actions that do not need both.
_NEEDED: dict[str, tuple[str, ...]] = {
    "models": (),
    "inspect": ("source",),
    "skeleton": ("source",),
    "clean": ("target",),
    "verify": ("target",),
}
# The actions on several sources in one job.
_OF_SEVERAL = ("convert", "plan", "verify")
# Options of a comparison with a record; and how two checkpoints are read, `layout` and `dialect` being the target's.
_OF_PROOF = ("action", "target", "iteration")
_OF_SKELETON = ("action", "source", "target")
_OF_DIFF = (*_OF_PROOF, "source", "reference", "layout", "source_layout", "dialect", "source_dialect")
# Options of a few actions, and what is true of the others.
_OF_ACTION = {
    "processes": (("plan",), "; otherwise the launcher says how many processes run"),
    "processes_per_node": (("plan",), "; otherwise the launcher says how many are on a node"),
    "plan_html": (("plan", "convert"), ""),
    "tensors": (("inspect",), ""),
    "verify": (("convert",), "; an existing result is proved by action=verify"),
}


@dataclass(frozen=True, kw_only=True)
class CommonOptions(Record):
    """The options of a job in any format; the model definition is given beside them.

    `source` and `target` are `None` for actions without them; `formats.registry` narrows `target_format` to the
    formats.
    """

    action: str = option(
        Choice(
            {
                "convert": "",
                "plan": "print what would happen, write nothing",
                "verify": "prove a result against its source, or without one against its `distconv.json`",
                "inspect": "say what the directory `source` is, and what is missing or odd",
                "diff": "compare the checkpoints `source` and `target`, of any formats, by tensor",
                "clean": "remove what killed jobs left in or beside the directory `target`, never what a job uses",
                "models": "list the model definitions",
                "skeleton": "write a first definition of the model in `source`, which no definition knows, to the file "
                "`target`, or print it",
            },
            {"check": "verify", "info": "inspect", "show": "inspect", "list": "models", "dry_run": "plan"},
        ),
        "convert",
        "what to do",
        of_run=True,
    )
    source: Path = option(_DIRECTORY, None, "the directory of the checkpoint to convert")
    sources: str | Sequence[str] | None = option(
        Directories(),
        None,
        "instead of `source`: several checkpoints in one job, those that match a pattern, such as `runs/*/iter_*`, or "
        "that a file lists, a path a line: `@list.txt`. In `target`, `reference`, `report` and `plan_html`, `{name}` "
        "is then the name of the source's directory, and `{parent}` that of its parent",
        of_run=True,
    )
    target: Path = option(_DIRECTORY, None, "the directory that gets the result; with `action=skeleton` the file")
    target_format: str = option(Text("FORMAT"), "", "format of the result")
    reference: Path | None = option(
        _DIRECTORY,
        None,
        "of a source made for training: the published directory that the model came from, for its `config.json`, "
        "shards and side files",
        unset="what the source remembers",
    )
    fill_from_reference: bool = option(Truth(), False, "take tensors that the source does not have from the reference")
    layout: Layout = option(Group(Layout), Layout(), "How the result is cut by ranks")
    source_layout: SourceLayout = option(
        Group(SourceLayout),
        SourceLayout(),
        "How the source is cut by ranks; a contradiction to what is found in its files is an error",
    )
    select: Sequence[str] | None = option(
        Several("modalities", MODALITIES, "[vision]"),
        None,
        "modalities to convert, such as `[vision]`",
        unset="all of them",
    )
    text_source: Path | None = option(
        _DIRECTORY, None, "beside a published source: a separate directory for the language model"
    )
    projector: str = option(
        Choice(
            {
                "auto": "as it is, but not with `text_source`: it was made for another language model",
                "keep": "",
                "omit": "",
            }
        ),
        "auto",
        "projector from an encoder to the language model",
    )
    tied_head: str = option(
        Choice(
            {
                "auto": "as the training side needs it; under published names as source or reference has it",
                "write": "",
                "keep": "a stored one, also where it differs from the embedding",
                "omit": "",
            }
        ),
        "auto",
        "head of a tied model",
    )
    dtype: str = option(
        Choice(
            {
                KEEP: "as stored",
                REFERENCE: "each tensor that of its reference",
                "bfloat16": "",
                "float16": "",
                "float32": "",
            },
            {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
        ),
        KEEP,
        "element type of the tensors of the result; where a type is named, what the model definition or the reference "
        "keeps in float32 stays so",
    )
    keep_dtype: Sequence[str] | None = option(
        Texts("patterns of tensor names", "['*.A_log']"),
        None,
        "with `dtype`: patterns of the names, published or of the result, of tensors that stay as they are stored",
        unset="none",
    )
    dtype_overflow: str = option(
        Choice({ERROR: "", "allow": "they become infinite, and are counted"}),
        ERROR,
        "with `dtype`: numbers that are too large for float16",
    )
    vocab_size: int | None = option(
        _SIZE,
        None,
        "new number of rows of the embedding and the head; new rows are zeros",
        unset="as it is; under published names without what only pads the vocabulary of the reference",
    )
    vocab_multiple: int | None = option(
        _SIZE,
        None,
        "pad embedding and head with rows of zeros to a multiple of so many for each rank of `layout.tp`, as "
        "Megatron-LM's `--make-vocab-size-divisible-by` does",
        unset="not padded",
    )
    dialect: str | None = option(
        Text("NAME"),
        None,
        "how the program that loads the result names and packs what it holds. Of Megatron-side names: `mcore_local`, "
        "`mcore_te` and `mcore_grouped` (Megatron-core's specs, and its legacy grouped experts), `mindspeed_mm`, "
        "`mindspeed_mm_te`, `mindspeed_mm_grouped`, `mindspeed_llm`, `bridge` (Megatron-Bridge). Of a `dcp` with `hf` "
        "names: `published`, `transformers5` (as in its memory), `transformers5_thinker` (of an omni model the thinker "
        "alone), `mm_fsdp2` and `mm_wrapped` (MindSpeed-MM, native FSDP2 and its older wrapper). Or one of yours "
        "(`--config-dir`)",
        unset="of Megatron-side names the usual one of the model, of `hf` names `published`",
    )
    source_dialect: str | None = option(
        Text("NAME"),
        None,
        "of a source made for training: the `dialect` that its tensors are in",
        unset="recognised by names and shapes",
    )
    lora_only: bool = option(Truth(), False, "keep only the adapter tensors of a source that holds both")
    iteration: str | None = option(
        Iteration(),
        None,
        "iteration of the result, and of a source that has several: a number, or `release`",
        unset="the latest of the source, else `release`",
    )
    provenance: bool = option(
        Truth(),
        True,
        "leave `distconv.json` beside the result: source, model, layout, dialect, options, and of each file its size "
        "and checksum; not for what is published",
    )
    overwrite: bool = option(
        Truth(), False, "replace an existing result, at commit; until then it stays as it is", of_run=True
    )
    file_mode: str | None = option(
        Mode(needed=0o600, largest=0o777),
        None,
        "permissions of the files of a result, as `chmod` takes them; whoever may read an executable side file may "
        "execute it, too",
        unset="as the umask has them",
        of_run=True,
    )
    dir_mode: str | None = option(
        Mode(needed=0o700, largest=0o7777),
        None,
        "permissions of the directories that are made for a result, such as 2750",
        unset="as the umask has them",
        of_run=True,
    )
    io: InputOutput = option(Group(InputOutput), InputOutput(), "How a process reads and writes", of_run=True)
    report: Path | None = option(
        FilePath("FILE"),
        None,
        "write what was done, planned or found to this file as JSON; it replaces nothing but an older report",
        of_run=True,
    )
    plan_html: Path | None = option(
        FilePath("FILE"),
        None,
        "with `action=plan`, or a conversion: write the plan to this file as a page for a browser, which needs nothing "
        "else: what each rank gets, which process writes what, and what it reads; it replaces nothing but an older one",
        of_run=True,
    )
    tensors: bool = option(Truth(), False, "with `action=inspect`: list the tensors", of_run=True)
    processes: int | None = option(
        _SIZE, None, "with `action=plan`: plan for so many processes", unset="those that run", of_run=True
    )
    processes_per_node: int | None = option(
        _SIZE,
        None,
        "with `action=plan`: so many processes, one rank after the other, are on a node; the plan then says what nodes "
        "read from the file system",
        unset="as the launcher says of those that run",
        of_run=True,
    )
    verify: bool = option(
        Truth(),
        False,
        "check the result before it gets its name, through the readers that programs use: `torch.load`, safetensors, "
        "torch.distributed.checkpoint",
        of_run=True,
    )
    watch: bool = option(
        Truth(),
        False,
        "with `sources` that are iterations of a running training: convert each once the tracker beside it names it or "
        "a later one, until SIGTERM or Ctrl-C",
        of_run=True,
    )
    patience: int = option(
        Integer(_SIZE.largest, smallest=0),
        600,
        "seconds without any progress after which a process is given up, and the job ends; 0: never",
        of_run=True,
    )

    def contradictions(self, wrong: Collection[str]) -> Iterator[str]:
        """Missing options, and options that exclude each other, in words."""
        words = options_of(type(self))
        several = self.sources is not None or "sources" in wrong
        for key in _NEEDED.get(self.action, ("source", "target")):
            if key not in wrong and getattr(self, key) is None and not (key == "source" and several):
                yield f"{key} is missing: give {key}=DIR, {words[key].words} (--help lists all options)"
        if several and self.source is not None:
            yield "sources: says what is converted, and so does source; give one of the two"
        if several and self.action not in _OF_SEVERAL and "action" not in wrong:
            yield f"sources: goes with action={', '.join(_OF_SEVERAL)}"
        if self.watch and not (several and self.action == "convert"):
            yield "watch: goes with sources, and action=convert"
        taken, why = tuple(words), ""
        if self.action == "verify" and self.source is None and not several:
            taken, why = _OF_PROOF, "goes with source=DIR; a result alone is compared with its record"
        elif self.action == "diff":
            taken, why = _OF_DIFF, "shapes a result; action=diff compares what is there"
        elif self.action == "skeleton":
            taken, why = _OF_SKELETON, "shapes a result; action=skeleton writes a definition"
        yield from (f"{key}: {why}" for key in self.given() if key not in taken and not words[key].of_run)
        for key, (actions, otherwise) in _OF_ACTION.items():
            if getattr(self, key) and self.action not in actions and "action" not in wrong:
                yield f"{key}: goes with action={' and action='.join(actions)}{otherwise}"
        if self.vocab_size is not None and self.vocab_multiple is not None:
            yield "vocab_multiple: says how many rows there are, and so does vocab_size; give one of the two"
        given = {"keep_dtype": self.keep_dtype is not None, "dtype_overflow": self.dtype_overflow != ERROR}
        if self.dtype == KEEP and "dtype" not in wrong:
            yield from (f"{key}: goes with dtype, which says what is cast" for key, value in given.items() if value)
        if self.text_source is not None and self.select is not None and TEXT not in self.select:
            yield f"text_source={self.text_source}: select={list(self.select)} leaves out the text; give one of them"
