"""What file systems answer that do not have a call of the operating system.

Owns the error numbers, for whoever can do without that call. Makes none.
"""

from __future__ import annotations

import errno

LACKING = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EPERM})
"""Of any call: network file systems and those in user space give one or another."""
