"""distconv: convert model checkpoints between layouts, as a parallel distributed job.

From Python:

    >>> from distconv import Layout, convert, plan, verify
    >>> report = plan("/ckpt/Qwen2-VL-7B", "/ckpt/mm", layout=Layout(tp=2, pp=4))

From a shell: `python -m distconv --help`.
"""

from distconv.api import clean, convert, diff, inspect, plan, verify
from distconv.errors import DistconvError, InputError, JobError, UnfinishedError
from distconv.formats.registry import Options
from distconv.layout.request import Layout, SourceLayout
from distconv.options import InputOutput
from distconv.version import VERSION

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
    "verify",
]
