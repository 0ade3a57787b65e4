"""The schemes in which weights are published quantised, as `config.json` names them, and the names of their pieces.

Owns which schemes are known: fp8 in blocks, MXFP4, and the int4 of compressed-tensors. Reads nothing; `quantisation`
finds the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distconv.errors import InputError
from distconv.formats.config_dtypes import QUANTISATION_KEYS
from distconv.tensors.dtypes import FLOATING, SCALE_BYTES
from distconv.tensors.stored import StoredTensor

KNOWN = "fp8 in blocks, MXFP4, and the symmetric int4 of compressed-tensors"
# Of activations, where a scheme is static; nothing that is computed without quantisation needs them.
OF_ACTIVATIONS = (".input_scale", ".activation_scale")
# Of MXFP4, the elements of a group, and the bytes of their codes; of int4, the elements in a word of 32 bits.
_GROUP, _GROUP_BYTES = 32, 16
_PER_WORD = 8
_Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A way to quantise weights: what it is in words, its codes, and the names of the pieces of a tensor.

    The name of a tensor ends with `plain`; those of its pieces have `codes`, `scales` and, where it says its own shape,
    `shape` there. Codes of `stored` type are `bits` wide. Pieces of `refused` names are of a scheme that is not known.
    `unpacked` gives the shape of a tensor for those of its codes, and that which it says itself; nothing if these
    cannot be of one. `numbers`: the type that they are computed in, and rounded to; `None`: that of the scales.
    """

    words: str
    code: str
    bits: int
    stored: str
    block: tuple[int, int]
    codes: str
    scales: str
    unpacked: Callable[[_Shape, _Shape], _Shape | None]
    numbers: str | None
    of_scales: tuple[str, ...]
    plain: str = ""
    shape: str | None = None
    refused: tuple[str, ...] = ()
    turned: bool = False

    def base(self, tensor: StoredTensor) -> str | None:
        """The name of what a piece has the codes of; nothing for another tensor."""
        return self.whole(tensor.name, self.codes) if tensor.dtype == self.stored else None

    def whole(self, name: str, end: str) -> str | None:
        """The name of what a piece with this end of its name belongs to; nothing for another name."""
        return name[: len(name) - len(end)] + self.plain if name.endswith(end) else None

    def piece(self, base: str, end: str) -> str:
        """The name of a piece of a tensor."""
        return base.removesuffix(self.plain) + end

    def beside(self, base: str) -> Iterator[str]:
        """The names of what goes with the codes of a tensor, and is nothing without them."""
        yield self.piece(base, self.scales)
        if self.shape is not None:
            yield self.piece(base, self.shape)
        yield from (base.rpartition(".")[0] + each for each in OF_ACTIVATIONS)


def scheme_in(config: Mapping[str, Any], where: str) -> Scheme | None:
    """The scheme that a configuration, in the file `where`, or a part of it names; nothing if none is quantised.

    Raises:
        InputError: a scheme that is not known.
    """
    for key, value in config.items():
        if key in QUANTISATION_KEYS and isinstance(value, Mapping):
            parse = _PARSERS.get(str(value.get("quant_method")))
            scheme = None if parse is None else parse(value)
            if scheme is None:
                said = {each: value[each] for each in sorted(value) if each not in _LISTS}
                raise InputError(
                    f"{where}: {key} says {said!s:.400}: no way to dequantise this is known, only {KNOWN}; give the "
                    "model as it was before it was quantised"
                )
            return scheme
        if isinstance(value, Mapping) and (found := scheme_in(value, where)) is not None:
            return found
    return None


# Lists of modules that are not quantised: a tensor without scales shows it.
_LISTS = ("modules_to_not_convert", "ignored_layers", "ignore")


def _as_codes(codes: _Shape, _: _Shape) -> _Shape | None:
    return codes if len(codes) > 1 else None


def _of_groups(codes: _Shape, _: _Shape) -> _Shape | None:
    return (*codes[:-2], codes[-2] * _GROUP) if len(codes) > 2 and codes[-1] == _GROUP_BYTES else None


def _as_said(codes: _Shape, said: _Shape) -> _Shape | None:
    fits = len(codes) == len(said) == 2 and (said[0], -(-said[1] // _PER_WORD)) == codes
    return said if fits else None


def _fp8(said: Mapping[str, Any]) -> Scheme | None:
    block = said.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(each) is int and each > 0 for each in block):
        return None
    if said.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn") or said.get("expert_dtype", "fp8") != "fp8":
        return None
    rows, columns = block
    return Scheme(
        words=f"fp8 in blocks of {rows} x {columns}",
        code="float8_e4m3fn",
        bits=8,
        stored="float8_e4m3fn",
        block=(rows, columns),
        codes="",
        scales="_scale_inv",
        unpacked=_as_codes,
        numbers="float32",
        of_scales=(*FLOATING[1:], *SCALE_BYTES),
    )


def _mxfp4(_: Mapping[str, Any]) -> Scheme:
    return Scheme(
        words="MXFP4",
        code="mxfp4",
        bits=4,
        stored="uint8",
        block=(1, _GROUP),
        codes="_blocks",
        scales="_scales",
        unpacked=_of_groups,
        numbers="bfloat16",
        of_scales=SCALE_BYTES,
        turned=True,
    )


def _compressed(said: Mapping[str, Any]) -> Scheme | None:
    groups = said.get("config_groups")
    if said.get("format") != "pack-quantized" or not isinstance(groups, Mapping) or not groups:
        return None
    sizes = {_group_size(group.get("weights")) if isinstance(group, Mapping) else None for group in groups.values()}
    size = sizes.pop()
    if sizes or size is None:
        return None
    return Scheme(
        words=f"int4 in groups of {size}",
        code="int4",
        bits=4,
        stored="int32",
        block=(1, size),
        plain=".weight",
        codes=".weight_packed",
        scales=".weight_scale",
        unpacked=_as_said,
        numbers=None,
        of_scales=FLOATING[1:],
        shape=".weight_shape",
        refused=(".weight_zero_point", ".weight_g_idx"),
    )


def _group_size(weights: Any) -> int | None:
    """The size of the groups of weights that are quantised in the one way that is known."""
    known = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}
    if not isinstance(weights, Mapping) or any(weights.get(key, value) != value for key, value in known.items()):
        return None
    size = weights.get("group_size")
    return size if type(size) is int and size > 0 and not weights.get("actorder") else None


_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Scheme | None]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed,
}
