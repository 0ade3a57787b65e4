"""What file systems answer that do not have a call of the operating system, and which of them keep writers apart.

Owns the error numbers, for whoever can do without that call, and the names of file systems. Makes no call on files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from distconv.runtime.mounts import Mount, mount_of

LACKING = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EPERM})
"""Of any call: network file systems and those in user space give one or another."""

# Those of one host, whose processes share its page cache, and those of clusters that lock ranges of bytes. Clients
# of NFS and SMB may write back a whole page, with bytes in it that another client has changed meanwhile.
_KEEPING_APART = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "lustre", "gpfs", "beegfs"})


def keeps_writers_apart(path: Path, among: Sequence[Mount]) -> bool:
    """Whether processes can write disjoint ranges of a file at a path, which need not be there, at the same time.

    `among`: what is mounted. A file system that is not known, or cannot be seen below an overlay, does not count.
    """
    mount = mount_of(Path(os.path.realpath(path)), among)
    if mount is not None and mount.kind == "overlay":
        upper = dict(mount.options).get("upperdir")
        # In a container that path leads to nothing but the overlay itself.
        mount = None if upper is None else mount_of(Path(upper), among)
    return mount is not None and mount.kind in _KEEPING_APART
