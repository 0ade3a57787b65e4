"""A first definition of a model that no definition knows, and the file that gets it.

Owns which sources have one, and where the file may be. Reads headers and JSON, never tensor data.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from distconv.errors import InputError
from distconv.formats.config_dtypes import says_quantised
from distconv.formats.model import MODEL_CONFIG
from distconv.formats.registry import Options
from distconv.models.definition import Definition
from distconv.models.definition_parser import parse_definition
from distconv.models.library import Library
from distconv.models.skeleton import skeleton_of
from distconv.models.skeleton_text import skeleton_text, undecided_lines
from distconv.planning.choice import Chosen, recognised
from distconv.planning.look import format_in
from distconv.runtime.containment import is_inside
from distconv.runtime.hand_out import HandOut, here

_ENDING = ".yaml"


def draft(options: Options, chosen: Chosen | None, library: Library, hand_out: HandOut = here) -> dict[str, Any]:
    """The first definition of the model in the directory `source`, as text in plain data; `undecided` counts its lines.

    Raises:
        InputError: no such directory, or one that is no published model; a model that a definition is for.
    """
    source = options.source
    if chosen is not None:
        raise InputError(f"+model={chosen[0]}: action=skeleton writes a definition, and takes none; leave it out")
    form = format_in(options, "source")
    opened = form.open(options, adapters=False, hand_out=hand_out)
    if opened.config is None:
        raise InputError(
            f"source={source}: is {form.title}, without the configuration of a model; action=skeleton is for the "
            "published model that it came from, a Hugging Face directory"
        )
    if says_quantised(opened.config):
        # Of what it stands for, in whatever type.
        opened = form.open(replace(options, dtype="bfloat16"), adapters=False, hand_out=hand_out)
    assert opened.config is not None
    found = recognised(opened.config, str(source), library, needed=False)
    if found is not None:
        raise InputError(
            f"{source}/{MODEL_CONFIG}: model_type {opened.config['model_type']!r} has a definition, {found[0]}: "
            f"convert it as it is; one of your own inherits it with defaults: [{found[0]}, _self_]"
        )
    shapes = {each.name: each.shape for each in opened.held()}
    skeleton = skeleton_of(shapes, opened.config, _families(library))
    text = skeleton_text(skeleton)
    return {
        "action": "skeleton",
        "source": str(source),
        "target": None if options.target is None else str(options.target),
        "model_type": skeleton.model_type,
        "follows": list(skeleton.follows),
        "undecided": undecided_lines(text),
        "definition": text,
    }


def check_definition_file(options: Options) -> None:
    """Check, before anything is read, that the file `target` can be written.

    Raises:
        InputError: it has no name of a definition, is there already, is in the source, or cannot be written.
    """
    file = options.target
    if file is None:
        return
    at = f"target={file}"
    if file.suffix != _ENDING:
        raise InputError(f"{at}: action=skeleton writes a file; give its name, such as my_models/model/NAME{_ENDING}")
    if is_inside(file, options.source):
        raise InputError(f"{at}: is inside source={options.source}; choose a place outside of it")
    if os.path.lexists(file) and not (options.overwrite and file.is_file()):
        raise InputError(f"{at}: is there already; choose another name, or overwrite=true to replace it")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"{at}: cannot be written there; give the name of a file in an existing directory")


def write_definition(options: Options, text: str) -> None:
    """Write a definition to the file `target`, if there is one: all of it, or nothing.

    Raises:
        InputError: the file cannot be written.
    """
    file = options.target
    if file is None:
        return
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(text)
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(f"target={file}: cannot be written: {error.strerror}") from None


def _families(library: Library) -> list[Definition]:
    """The definitions of families, without variants; what only Hydra can compose is no precedent."""
    definitions = []
    for name, head in library.heads().items():
        if head.get("variant_of") is not None:
            continue
        try:
            definitions.append(parse_definition(name, library.content(name)))
        except InputError:
            continue
    return definitions
