"""The table of options as text: the help, `conf/config.yaml`, and the README's table of keys.

Owns their form, never their words, which are those of the options. `rewrite` updates the two files of a checkout.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

from distconv.errors import shown
from distconv.fields import ByName, Group, Option, Record, options_of
from distconv.formats.registry import Options
from distconv.kinds import Choice, Text

# Consecutive options with the same words, by key.
_Row = Mapping[str, Option[Any]]

_WIDTH = 120
# The column of the words in the help.
_COLUMN = 31
_MODEL = Option(
    kind=Text("NAME"),
    default=None,
    words="model definition, of those that `action=models` lists, or of a directory of yours (`--config-dir`)",
    unset="chosen by `config.json`, or as the source remembers",
)
_TABLE = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- end of options -->)", re.DOTALL)

_HELP = """\
distconv: convert a model checkpoint as a parallel job, on any number of processes, between Hugging Face,
Megatron and torch.distributed.checkpoint (DCP) directories.

  distconv source=HF target=MEGATRON layout.tp=2 layout.pp=4
  distconv source=MEGATRON target=HF target_format=hf reference=HF_IT_CAME_FROM
  distconv source=MEGATRON target=MEGATRON_RESPLIT layout.tp=8
  torchrun --nproc-per-node 8 -m distconv …
  mpirun -n 8 python -m mpi4py -m distconv …

Options, as KEY=VALUE, with their defaults:

{options}

Quote lists for the shell: 'layout.stages.text=[1,10,10,7]'. Paths are taken as they are, but for ~ and $VAR; with
--multirun all values are of Hydra's grammar: 'source=A,B'. A model of your own: --config-dir DIR +model=NAME.
Flags: --help, --version, -q (nothing but errors), -v (also how long each phase took), --config-dir DIR, --multirun,
--cfg job (print the configuration), --completion bash, zsh or fish (a script), --hydra-help (Hydra's own flags)"""

_CONFIG = """\
# The configuration of a job. Every key can be given on the command line: `layout.tp=2`.
# Made from the table of options by `make options`; a change goes there.

defaults:
  - _self_
  - override hydra/hydra_logging: none
  - override hydra/job_logging: none

{options}

{model}
# +model=NAME

hydra:
  output_subdir: null
  run: {{dir: .}}
  sweep: {{dir: ., subdir: .}}
  job: {{name: distconv}}
"""


def help_text() -> str:
    """The help, for terminals of 120 columns."""
    return _HELP.format(options="\n".join(map(_help_row, _all_rows())))


def config_text() -> str:
    """The content of `conf/config.yaml`."""
    lines = "\n".join(_yaml(Options)).replace("\n\n\n", "\n\n")
    return _CONFIG.format(options=lines, model="\n".join(_comment({"model": _MODEL})))


def readme_table() -> str:
    """The README's table of keys."""
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *map(_readme_row, _all_rows())]) + "\n"


def rewrite(checkout: Path) -> None:
    """Write the configuration file of a checkout, and the table in its README."""
    (checkout / "conf/config.yaml").write_text(config_text(), encoding="utf-8")
    readme = checkout / "README.md"
    readme.write_text(_TABLE.sub(lambda _: readme_table(), readme.read_text(encoding="utf-8")), encoding="utf-8")


def _all_rows() -> Iterator[_Row]:
    """The rows of all options by dotted key, and of the model definition."""
    yield {"+model": _MODEL}
    for row in _rows(Options):
        groups = _groups(row)
        for key, record in groups.items():
            yield from ({f"{key}.{name}": each for name, each in inner.items()} for inner in _rows(record))
        if not groups:
            yield row


def _rows(record: type[Record]) -> Iterator[_Row]:
    """The rows of the options of a record; consecutive options with the same words are one row."""
    for _, run in groupby(options_of(record).items(), lambda item: item[1].words):
        yield dict(run)


def _groups(row: _Row) -> dict[str, type[Record]]:
    return {key: each.kind.record for key, each in row.items() if isinstance(each.kind, Group)}


def _words(row: _Row, if_unset: str = "") -> str:
    """The words of a row, with its choices and, after `if_unset`, the meaning of an unset value."""
    first = next(iter(row.values()))
    text = first.words
    if isinstance(first.kind, Choice) and len(row) == 1:
        choices = (f"`{name}`" + (f" ({words})" if words else "") for name, words in first.kind.choices.items())
        text += f": {', '.join(choices)}"
    return f"{text}; {if_unset}: {first.unset}" if if_unset and first.unset else text


def _help_row(row: _Row) -> str:
    """A row of the help: keys in the left column, words in the right one, or below keys that are too wide."""
    left = [", ".join(row)]
    if len(row) == 1:
        ((key, each),) = row.items()
        if isinstance(each.kind, ByName):
            left = [f"{key}.{name}={each.kind.kind.example}" for name in each.kind.names]
        else:
            left = [f"{key}={each.kind.example if each.default is None else shown(each.default)}"]
    left = [line for assignment in left for line in textwrap.wrap(assignment, _WIDTH - 4)]
    right = textwrap.wrap(_words(row, "left out").replace("`", ""), _WIDTH - _COLUMN, break_on_hyphens=False)
    if max(map(len, left)) > _COLUMN - 4:
        right = [*[""] * len(left), *right]
    return "\n".join(f"  {a:{_COLUMN - 2}}{b}".rstrip() for a, b in zip_longest(left, right, fillvalue=""))


def _readme_row(row: _Row) -> str:
    first = next(iter(row.values()))
    keys = list(row)
    if len(row) == 1 and isinstance(first.kind, ByName):
        keys = [f"{keys[0]}.{first.kind.names[0]}", *(f".{name}" for name in first.kind.names[1:])]
    default = first.unset or (f"`{shown(first.default)}`" if first.default is not None else "")
    return f"| {', '.join(f'`{key}`' for key in keys)} | {default} | {_words(row)} |"


def _yaml(record: type[Record]) -> Iterator[str]:
    """The YAML lines of a record, with empty lines around groups."""
    for row in _rows(record):
        groups = _groups(row)
        yield from [""] if groups else []
        yield from _comment(row)
        for key, each in row.items():
            if key in groups:
                yield f"{key}:"
                yield from (f"  {line}" for line in _yaml(groups[key]))
            elif isinstance(each.kind, ByName):
                yield f"{key}: {{{', '.join(f'{name}: null' for name in each.kind.names)}}}"
            else:
                yield f"{key}: {shown(each.default)}"
        yield from [""] if groups else []


def _comment(row: _Row) -> list[str]:
    words = _words(row, "null").replace("`", "")
    text = f"{words[0].upper()}{words[1:]}."
    return textwrap.wrap(text, _WIDTH - 2, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
