"""What is mounted where, as the system says it of this process.

Owns the reading of `/proc/self/mountinfo`. Decides nothing about a file system.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SEPARATOR = " - "


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A mount point, and the directory of which file system it shows.

    `kind`: the type of the file system, such as `ext4`; `options`: those of the file system itself, by name.
    """

    point: Path
    device: str
    root: Path
    kind: str = ""
    options: tuple[tuple[str, str], ...] = ()


def mounts() -> Sequence[Mount]:
    """All mounts in the order in which they were made; none where the system does not say."""
    try:
        return parsed(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))
    except OSError:
        return ()


def parsed(text: str) -> list[Mount]:
    """The mounts in a text of the form of `/proc/self/mountinfo`."""
    found = []
    for line in text.splitlines():
        # A blank in a path is an octal number.
        of_mount, _, of_file_system = line.partition(_SEPARATOR)
        _, _, device, root, point, *_ = of_mount.split()
        kind, _, options = (*of_file_system.split(), "", "", "")[:3]
        pairs = (each.partition("=")[::2] for each in options.split(","))
        found.append(
            Mount(
                point=Path(_unquoted(point)),
                device=device,
                root=Path(_unquoted(root)),
                kind=kind,
                options=tuple((name, _unquoted(value)) for name, value in pairs),
            )
        )
    return found


def mount_of(path: Path, among: Sequence[Mount]) -> Mount | None:
    """The mount that a path without symbolic links is in; `None` where none of them is on the way to it."""
    on_the_way = [mount for mount in among if mount.point in (path, *path.parents)]
    # Of several at one point, the last hides the others.
    return max(reversed(on_the_way), key=lambda each: len(each.point.parts), default=None)


def _unquoted(text: str) -> str:
    """A text in which blanks and backslashes are octal numbers."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text)
