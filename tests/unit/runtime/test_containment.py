"""A path lies in a directory whatever both are called: by links, and by mounts where this user may mount."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distconv.runtime import containment
from distconv.runtime.containment import is_inside, is_mount_point
from distconv.runtime.mounts import Mount


@pytest.fixture
def place(tmp_path):
    (tmp_path / "data" / "hf" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "hf-2").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["hf", "hf/sub", "hf/sub/none/yet", "hf/none", "hf-2/../hf/x"])
def test_in_a_directory(place, name):
    assert is_inside(place / name, place / "hf")


@pytest.mark.parametrize("name", [".", "hf-2", "none", "hf/../hf-2"])
def test_not_in_a_directory(place, name):
    assert not is_inside(place / name, place / "hf")


def test_a_directory_that_is_not_there_holds_what_is_below_its_name(place):
    assert is_inside(place / "none" / "x", place / "none")
    assert not is_inside(place / "none", place / "none" / "x")


def test_links_lead_into_a_directory_and_out_of_it(place):
    (place / "link").symlink_to("hf")
    (place / "deep").symlink_to("hf/sub")
    (place / "hf" / "out").symlink_to("../hf-2")
    (place / "dangling").symlink_to("hf/none")
    for name in ("link", "link/x", "deep/x", "dangling"):
        assert is_inside(place / name, place / "hf"), name
    assert is_inside(place / "hf" / "sub", place / "link")
    assert not is_inside(place / "hf" / "out" / "x", place / "hf")


def test_links_in_a_circle_lead_nowhere(place):
    (place / "one").symlink_to("other")
    (place / "other").symlink_to("one")
    assert not is_inside(place / "one", place / "hf")


def mounted(place: Path, code: str, *sources: str) -> str:
    """What a program prints that sees a directory at another place, too; each source hides the one before."""
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from distconv.runtime.containment import is_inside, is_mount_point\n"
        f"os.chdir({str(place)!r})\nprint({code})"
    )
    (place / "other place").mkdir()
    mounts = "".join(f"mount --bind '{place / source}' '{place}/other place' && " for source in sources)
    done = subprocess.run(
        [
            "/usr/bin/env",
            "unshare",
            "--mount",
            "--map-root-user",
            "sh",
            "-c",
            f'{mounts}exec "$@"',
            "sh",
            sys.executable,
            "-c",
            script,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    if done.returncode and "Traceback" not in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("source", "path", "directory", "inside"),
    [
        ("hf", "other place", "hf", True),
        ("hf", "other place/sub/none", "hf", True),
        ("hf", "hf/sub", "other place", True),
        (".", "other place/hf/none", "hf", True),
        # No directory on the way to it is the one that is asked for.
        ("hf/sub", "other place/none", "hf", True),
        ("hf/sub", "other place", "hf", True),
        ("hf/sub", "hf", "other place", False),
        ("hf-2", "other place/none", "hf", False),
        (".", "other place/none", "hf", False),
    ],
)
def test_what_is_mounted_at_two_places_is_the_same(place, source, path, directory, inside):
    code = f"is_inside(Path({path!r}), Path({directory!r}))"
    assert mounted(place, code, source) == str(inside)


def test_what_is_mounted_last_hides_what_was_there(place):
    code = "is_inside(Path('other place/none'), Path('hf')), is_inside(Path('other place/none'), Path('hf-2'))"
    assert mounted(place, code, "hf-2", "hf/sub") == "True False"
    (place / "other place").rmdir()
    assert mounted(place, code, "hf/sub", "hf-2") == "False True"


def test_network_file_systems_do_not_say_which_directory_they_show(place, monkeypatch):
    """Exports of one server can have the same device and the root for all that is known: only the inode tells."""
    for name in ("one", "two"):
        (place / name / "ckpt" / "sub").mkdir(parents=True)
    mounted = [Mount(point=place / name, device="0:50", root=Path("/")) for name in ("one", "two")]
    monkeypatch.setattr(containment, "mounts", lambda: mounted)
    assert not is_inside(place / "two" / "ckpt" / "sub", place / "one" / "ckpt")


def test_a_directory_of_the_same_file_system_can_be_a_mount_point(place):
    code = "is_mount_point(Path('other place')), is_mount_point(Path('hf'))"
    assert mounted(place, code, "hf") == "True False"


def test_the_root_is_a_mount_point_and_a_new_directory_is_none(place):
    assert is_mount_point(Path("/"))
    assert not is_mount_point(place)
