"""Every file and every directory of a result is durable, as it is then, before the commit gives anything a name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.checkpoints import load_case, write_source


class Durability:
    """What has been synchronised, and what had changed since when the commit began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synchronised: dict[int, tuple[int, int]] = {}
        self.seen: set[str] = set()
        self.lacking: list[str] = []
        fsync, rename = os.fsync, os.rename

        def observed_fsync(descriptor: int) -> None:
            fsync(descriptor)
            found = os.fstat(descriptor)
            self.synchronised[found.st_ino] = found.st_size, found.st_mtime_ns

        def observed_rename(old: Path, new: Path) -> None:
            if Path(new).name == "commit.json":
                self._look(Path(new).parent / "new")
            rename(old, new)

        monkeypatch.setattr(os, "fsync", observed_fsync)
        monkeypatch.setattr(os, "rename", observed_rename)

    def _look(self, directory: Path) -> None:
        for path in (directory, *directory.rglob("*")):
            found = path.stat()
            name = str(path.relative_to(directory))
            self.seen.add(name)
            if self.synchronised.get(found.st_ino) != (found.st_size, found.st_mtime_ns):
                self.lacking.append(name)


MEGATRON = ["release/mp_rank_00/model_optim_rng.pt", "release/mp_rank_01/model_optim_rng.pt", "release/distconv.json"]
DCP = ["release/.metadata", "release/__0_0.distcp", "release/distconv.json"]
HF = ["config.json", "model.safetensors.index.json", "model-00001-of-00005.safetensors"]


@pytest.fixture
def source(tmp_path) -> Path:
    return write_source(tmp_path / "hf", load_case("qwen2vl__tp1_pp1"))


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["layout.tp=2"], MEGATRON),
        (["target_format=dcp"], DCP),
        (["target_format=hf", "reference={source}"], HF),
    ],
    ids=["megatron", "dcp", "hf"],
)
def test_a_result_is_durable_before_it_is_committed(tmp_path, monkeypatch, distconv, source, options, files):
    origin = source
    if "target_format=hf" in options:
        assert distconv("+model=qwen2vl", f"source={source}", f"target={tmp_path}/mm", "io.fsync=false").status == 0
        origin = tmp_path / "mm"
    durability = Durability(monkeypatch)
    paths = [f"source={origin}", f"target={tmp_path}/out", *(each.format(source=source) for each in options)]
    outcome = distconv("+model=qwen2vl", *paths)
    assert outcome.status == 0, outcome.err
    assert durability.lacking == []
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(files) <= found
    assert {name.removeprefix("release/") for name in found if name.count(".txt") == 0} <= durability.seen


def test_nothing_is_synchronised_that_need_not_be(tmp_path, monkeypatch, distconv, source):
    durability = Durability(monkeypatch)
    outcome = distconv("+model=qwen2vl", f"source={source}", f"target={tmp_path}/mm", "io.fsync=false")
    assert outcome.status == 0, outcome.err
    assert durability.synchronised == {}
    assert len(durability.lacking) == len(durability.seen) > 3
