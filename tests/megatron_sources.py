"""Megatron directories as sources, for tests: definitions by name, and the elements of bound parameters."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from distconv.models.definition import Definition
from distconv.models.definition_parser import parse_definition
from distconv.models.library import Library
from distconv.models.parameters import Parameter
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import StoredTensor
from tests.unit.reference import evaluate


@functools.cache
def definition(name: str) -> Definition:
    """A model definition of `conf/model`: always the same object."""
    return parse_definition(name, Library.of_package().content(name)).without_base()


def element_type(dtype: str) -> np.dtype:
    """Elements are compared as bits."""
    return np.dtype(f"u{ITEM_SIZE[dtype]}")


def stored(tensor: StoredTensor) -> np.ndarray:
    """The elements of a tensor in its file."""
    data = Path(tensor.file.path).read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
    # The last row of a view may end before that of its storage does.
    data += bytes(tensor.nbytes - len(data))
    return np.frombuffer(data, element_type(tensor.dtype)).reshape(tensor.shape)


def elements(parameter: Parameter, sources: Iterable[np.ndarray]) -> np.ndarray:
    """The elements of a parameter that is made from these."""
    return evaluate(parameter.recipe.tensor, list(sources), element_type(parameter.recipe.tensor.dtype))


def as_array(dtype: str, shape: Iterable[int], data: bytes) -> np.ndarray:
    """Bytes as the elements of a tensor."""
    return np.frombuffer(data, element_type(dtype)).reshape(tuple(shape))


Arrays = Mapping[str, np.ndarray]
