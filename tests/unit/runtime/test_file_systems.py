"""Which file systems keep apart what several processes write into one file, by what the system says of mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from distconv.runtime.file_systems import keeps_writers_apart
from distconv.runtime.mounts import parsed

LINE = "{number} 1 0:{number} / {point} rw - {kind} device rw{options}"


def among(**kinds: str):
    """Mounts below the root, which is of a kind that nobody knows: by name the kind, with options behind a comma."""
    given = {"": "unheard-of", **kinds}
    lines = []
    for number, (name, each) in enumerate(given.items()):
        kind, comma, options = each.partition(",")
        lines.append(LINE.format(number=number, point=f"/{name}", kind=kind, options=comma + options))
    return parsed("\n".join(lines))


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "lustre", "gpfs", "beegfs"])
def test_these_keep_them_apart(kind):
    assert keeps_writers_apart(Path("/nonesuch/target"), among(nonesuch=kind))


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "fuse", "fuse.sshfs", "fuseblk", "9p", "ceph", "ext", "autofs", ""]
)
def test_these_do_not_or_nobody_knows(kind):
    assert not keeps_writers_apart(Path("/nonesuch/target"), among(nonesuch=kind or "unheard-of"))
    assert not keeps_writers_apart(Path("/elsewhere"), among(nonesuch="ext4"))
    assert not keeps_writers_apart(Path("/elsewhere"), [])


@pytest.mark.parametrize(
    ("upper", "is_apart"), [("/local/up", True), ("/remote/up", False), ("/nowhere/up", False), ("/over/up", False)]
)
def test_an_overlay_is_what_it_writes_to(upper, is_apart):
    found = among(local="xfs", remote="nfs4", over=f"overlay,lowerdir=/remote/low,upperdir={upper},workdir=/local/work")
    assert keeps_writers_apart(Path("/over/target"), found) == is_apart


def test_an_overlay_that_is_only_read_is_not_written():
    assert not keeps_writers_apart(Path("/over/target"), among(over="overlay,lowerdir=/local/low", local="xfs"))


def test_links_lead_to_the_file_system_that_counts(tmp_path):
    (tmp_path / "link").symlink_to("/nonesuch")
    assert keeps_writers_apart(tmp_path / "link" / "target", among(nonesuch="ext4"))
    (tmp_path / "other").symlink_to("/elsewhere")
    assert not keeps_writers_apart(tmp_path / "other" / "target", among(nonesuch="ext4"))
