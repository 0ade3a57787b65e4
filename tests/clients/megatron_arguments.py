"""Have Megatron-LM's `--load` take over, and then compare, the arguments of training that a checkpoint tells.

python megatron_arguments.py CHECKPOINT OUTPUT

Writes the arguments that it took to OUTPUT. Needs megatron-core 0.19, the first release that has `megatron.training`.
"""

from __future__ import annotations

import json
import sys
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import before_megatron  # noqa: F401 - has to come first

# which it takes from Python 3.12
if not hasattr(typing, "override"):
    setattr(typing, "override", lambda function: function)  # noqa: B010 - unknown to type checkers

from megatron.training import checkpointing, global_vars


class Arguments(SimpleNamespace):
    """Arguments of training, `None` unless given, which a checkpoint may then set."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def main(checkpoint: str, output: str) -> None:
    """Write the arguments of a checkpoint."""
    arguments = Arguments(load=checkpoint, use_dist_ckpt=True, exit_on_missing_checkpoint=True)
    _, saved = checkpointing.load_args_from_checkpoint(arguments)
    Path(output).write_text(json.dumps(vars(arguments)))
    arguments.add_position_embedding = True
    global_vars._GLOBAL_ARGS = arguments
    checkpointing.set_checkpoint_version(3.0)
    checkpointing.check_checkpoint_args(saved)


if __name__ == "__main__":
    main(*sys.argv[1:])
