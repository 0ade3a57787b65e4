"""Imported before megatron-core: stands in for triton, which 0.17 and newer import whatever they run on.

To import it is enough, unlike other modules, since nothing but imports can precede those of megatron-core.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from unittest.mock import MagicMock


def stand_in_for_triton() -> None:
    # torch looks for a triton as well, here, and must find none
    import torch._inductor.compile_fx  # noqa: F401, PLC0415

    triton = MagicMock(__version__="0")
    sys.modules |= {"triton": triton, "triton.language": triton.language}


if importlib.metadata.version("megatron-core") >= "0.17" and not importlib.util.find_spec("triton"):
    stand_in_for_triton()
