"""distconv: convert model checkpoints between layouts, as a parallel distributed job.

From Python:

    >>> from distconv import Layout, convert, plan, verify
    >>> report = plan("/ckpt/Qwen2-VL-7B", "/ckpt/mm", layout=Layout(tp=2, pp=4))

From a shell: `distconv --help`, or `python -m distconv --help`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from distconv.version import VERSION

if TYPE_CHECKING:
    from distconv.api import clean, convert, diff, inspect, plan, skeleton, verify
    from distconv.errors import DistconvError, InputError, JobError, UnfinishedError
    from distconv.formats.registry import Options
    from distconv.input_output import InputOutput
    from distconv.layout.request import Layout, SourceLayout

__version__ = VERSION
__all__ = [
    "DistconvError",
    "InputError",
    "InputOutput",
    "JobError",
    "Layout",
    "Options",
    "SourceLayout",
    "UnfinishedError",
    "clean",
    "convert",
    "diff",
    "inspect",
    "plan",
    "skeleton",
    "verify",
]
# Imported when they are asked for: the command line can then say that a package is missing which they need.
_MODULES = {
    **dict.fromkeys(("clean", "convert", "diff", "inspect", "plan", "skeleton", "verify"), "distconv.api"),
    **dict.fromkeys(("DistconvError", "InputError", "JobError", "UnfinishedError"), "distconv.errors"),
    "Options": "distconv.formats.registry",
    **dict.fromkeys(("Layout", "SourceLayout"), "distconv.layout.request"),
    "InputOutput": "distconv.input_output",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
