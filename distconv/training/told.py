"""What files of one training say of its layout, put together and under the user's own words.

Owns which of them counts: an explicit key always does, and what two files say differently is an error. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distconv.errors import raise_if
from distconv.fields import options_of
from distconv.layout.layout import shown_stages
from distconv.layout.request import Layout
from distconv.models.rules import TEXT

# The stage lists of a layout decide these sizes, and these sizes the lists.
_OF_STAGES = ("pp", "vpp")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the file `where` says of a layout: dotted key → value, as in `layout`.

    `encoder_tp`: tensor parallel sizes of encoders that count only if the modules of training are cut differently
    (`heterogeneous`), which is `None` where the file does not say; `unread`: dotted key → what says it in a way that
    is not understood, in words.
    """

    where: str
    values: Mapping[str, Any] = field(default_factory=dict)
    encoder_tp: Mapping[str, int] = field(default_factory=dict)
    heterogeneous: bool | None = None
    unread: Mapping[str, str] = field(default_factory=dict)


def completed(layout: Layout, files: Sequence[Told]) -> Layout:
    """The layout with what the files say where the user gave nothing.

    Raises:
        InputError: two files say different things, or one says something that cannot be read, of a key that the user
            did not give.
    """
    given = set(_given(layout))
    if given & {*_OF_STAGES, f"stages.{TEXT}"}:
        # Other stages than those of the files: what they say of any stages is of no use.
        given |= {*_OF_STAGES, f"stages.{TEXT}"}
        given |= {key for each in files for key in each.values if key.startswith("stages.")}
    told = [_with_encoders(each, files) for each in files]
    raise_if([*_unread(told, given), *_contradictions(told, given)])
    values = {key: value for each in told for key, value in each.values.items() if key not in given}
    changed: dict[str, Any] = {"stages": dict(layout.stages), "modality_tp": dict(layout.modality_tp)}
    for key, value in values.items():
        group, _, name = key.partition(".")
        if name:
            changed[group][name] = value
        else:
            changed[key] = value
    return replace(layout, from_=None, **changed)


def words_of(asked: Layout, made: Layout) -> Iterator[str]:
    """In a sentence, what of a completed layout the user did not ask for."""
    before = set(_given(asked))
    values = {key: getattr(made, key) for key in ("tp", "ep", "expert_tp", "pp", "vpp")}
    values |= {
        f"{group}.{name}": each for group in ("stages", "modality_tp") for name, each in getattr(made, group).items()
    }
    told = [f"{key}={_shown(value)}" for key, value in values.items() if value is not None and key not in before]
    files = ", ".join(map(str, asked.from_ or ()))
    yield f"layout.from: {', '.join(told) or 'nothing'} of {files}"


def _given(layout: Layout) -> Iterator[str]:
    """The dotted keys that the user gave."""
    for key in options_of(Layout):
        value = layout.value(key)
        if isinstance(value, Mapping):
            yield from (f"{key}.{name}" for name in value)
        elif value is not None and key != "from":
            yield key


def _with_encoders(told: Told, files: Iterable[Told]) -> Told:
    """What a file says, with the sizes of encoders where training cuts its modules differently."""
    if not told.encoder_tp:
        return told
    said = [each.heterogeneous for each in files if each.heterogeneous is not None]
    keys = {f"modality_tp.{modality}": size for modality, size in told.encoder_tp.items()}
    if True in said:
        return replace(told, values={**told.values, **keys})
    if said:
        return told
    sizes = {each.values["tp"] for each in files if "tp" in each.values} or {1}
    unread = {
        key: f"a tensor parallel size of {size}, which counts with --hetero-parallel only; give the script that starts "
        "the training, too"
        for key, size in keys.items()
        if {size} != sizes
    }
    return replace(told, unread={**told.unread, **unread})


def _unread(told: Iterable[Told], given: Collection[str]) -> Iterator[str]:
    for each in told:
        for key, what in each.unread.items():
            if key not in given:
                yield f"{each.where}: has {what}; or give layout.{key}"


def _contradictions(told: Iterable[Told], given: Collection[str]) -> Iterator[str]:
    first: dict[str, Told] = {}
    for each in told:
        for key, value in each.values.items():
            other = first.setdefault(key, each)
            if key not in given and other.values[key] != value:
                yield (
                    f"layout.from: {other.where} says {key}={_shown(other.values[key])}, and {each.where} says "
                    f"{key}={_shown(value)}; give files of one training, or layout.{key}"
                )


def _shown(value: Any) -> str:
    return shown_stages(value) if isinstance(value, tuple) else str(value)
