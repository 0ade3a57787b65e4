"""The `adapter_config.json` of a directory: the scaling of its adapters, and what training has to know of it.

Owns the way from the names of tensors in a directory to a scaling by the definition's names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from distconv.formats.jsonfile import read_object
from distconv.models.adapter_config import AdapterConfig
from distconv.models.adapters import CONFIG_NAME, PEFT_PREFIX, factor_of, module_of
from distconv.models.definition import Definition
from distconv.models.scaling import Scaling
from distconv.tensors.stored import SourceFile, SourceIndex


def read_scaling(
    directory: Path, names: Iterable[str], definition: Definition, seen: list[SourceFile] | None = None
) -> Scaling | None:
    """The scaling of the adapters in a directory, given the names of its tensors; `None` without a configuration.

    The identity of the file is added to `seen`.

    Raises:
        InputError: every setting of the configuration that cannot be converted.
    """
    path = directory / CONFIG_NAME
    if not path.exists():
        return None
    config = AdapterConfig.parse(read_object(path, "how the adapters are scaled", seen), str(path))
    return config.scaling({module: own for module, own, _ in _factors(names, definition.spelled)})


def scaling_notes(scaling: Scaling, spelled: Callable[[str], str], index: SourceIndex) -> tuple[str, ...]:
    """What must be known of the adapters in an index where they are trained on, in sentences."""
    notes = []
    if scaling.initialisation is not None:
        notes.append(
            f"adapters: init_lora_weights is {scaling.initialisation!r}, which changed the weights of the base: they "
            "fit only the base that was saved with them, and cannot be merged into another"
        )
    shapes = {module: index.tensors[name].shape for module, _, name in _factors(index.tensors, spelled)}
    ranks = {module: shape[0] for module, shape in shapes.items() if len(shape) == 2 and shape[0]}
    if scaling.alpha is None or not ranks or (not scaling.rslora and not scaling.alphas):
        return tuple(notes)
    needed = scaling.plain_alphas(ranks)
    meant = f"adapters: {scaling.where} has use_rslora or alpha_pattern: training that divides lora_alpha by the rank"
    if len(needed) == 1:
        notes.append(f"{meant} needs lora_alpha={needed[0]:g}")
    else:
        values = f"lora_alpha from {needed[0]:g} to {needed[-1]:g}, by module"
        notes.append(f"{meant} needs {values}: with a single one it computes something else")
    return tuple(notes)


def _factors(names: Iterable[str], spelled: Callable[[str], str]) -> Iterator[tuple[str, str, str]]:
    """Of each first factor: its module as the definition and as PEFT names it, and its own name."""
    for name in names:
        found = factor_of(spelled(name))
        if found is not None and found[1] == "A":
            yield found[0], module_of(name).removeprefix(PEFT_PREFIX), name
