"""What the system says of mounts is read as it means it: quoted names, optional fields, what hides what."""

from __future__ import annotations

from pathlib import Path

from distconv.runtime.mounts import Mount, mount_of, mounts, parsed

TEXT = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 0:50 /export\040one /mnt/with\040blank rw master:2 propagate_from:1 - nfs4 server:/a\040-\040b rw,vers=4.2
31 22 0:51 / /mnt/none rw - tmpfs none rw
32 22 0:52 / /mnt/over rw - overlay overlay rw,lowerdir=/l,upperdir=/mnt/u\040p,workdir=/w
33 22 0:53 /sub /mnt rw - xfs /dev/vdb rw
34 22 0:54 / /mnt/none rw - fuse.sshfs host: rw
"""


def test_a_mount_has_the_fields_of_its_line():
    root, first, *_ = parsed(TEXT)
    options = (("rw", ""), ("discard", ""))
    assert root == Mount(point=Path("/"), device="254:0", root=Path("/"), kind="ext4", options=options)
    assert (first.point, first.root, first.device) == (Path("/mnt/with blank"), Path("/export one"), "0:50")
    assert (first.kind, dict(first.options)["vers"]) == ("nfs4", "4.2")


def test_options_of_the_file_system_have_names_and_paths():
    (found,) = [mount for mount in parsed(TEXT) if mount.kind == "overlay"]
    assert dict(found.options)["upperdir"] == "/mnt/u p"


def test_a_path_is_in_the_deepest_mount_on_its_way_of_several_the_last():
    found = parsed(TEXT)

    def kind(path: str) -> str:
        mount = mount_of(Path(path), found)
        assert mount is not None
        return mount.kind

    assert kind("/home/x") == "ext4"
    assert kind("/mnt") == kind("/mnt/nonesuch") == "xfs"
    assert kind("/mnt/with blank/x/y") == "nfs4"
    assert kind("/mnt/none/x") == "fuse.sshfs"


def test_a_path_may_be_in_no_mount_that_is_known():
    assert mount_of(Path("/x"), []) is None
    assert mount_of(Path("/x"), [each for each in parsed(TEXT) if each.point != Path("/")]) is None


def test_this_system_says_where_this_file_is():
    found = mount_of(Path(__file__).resolve(), mounts())
    assert found is not None
    assert found.kind
