"""The jobs that faults are put into: every format as source and as target, new and in place of another; looking, too.

Owns their command lines, and the files that they start from. Injects nothing.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.here import in_every_format, run_here

# Larger than a file of the small model, so that a copy is one call; and what a transposition needs.
ONE_THREAD = ("io.threads=1", "io.buffer_mib=1")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A command line; source, and what lies in the target before, are directories that `make_sources` makes.

    With another action than to convert, nothing is made.
    """

    source: str
    options: tuple[str, ...] = ()
    older: str | None = None
    action: str = "convert"

    def arguments(self, made: Path, target: Path) -> list[str]:
        """The options of the command line; one thread makes the calls in one order."""
        places = [] if self.action == "inspect" else [f"target={target}"]
        places += [] if self.source == "hf" else [f"reference={made / 'hf'}"]
        return [f"action={self.action}", f"source={made / self.source}", *places, *ONE_THREAD, *self.options]

    def plant(self, made: Path, target: Path) -> None:
        """Make the target as it is before."""
        if self.older is not None:
            shutil.copytree(made / self.older, target)


_TO = {each: f"target_format={each}" for each in ("hf", "dcp", "torch_dist")}
CONVERSIONS = {
    "hf to ranks": Conversion(source="hf", options=("layout.tp=2",)),
    "hf to dcp": Conversion(source="hf", options=(_TO["dcp"],)),
    "hf to torch_dist": Conversion(source="hf", options=(_TO["torch_dist"],)),
    "ranks to hf": Conversion(source="mm", options=(_TO["hf"],)),
    "ranks to ranks": Conversion(
        source="mm", options=("layout.tp=2", "file_mode=640", "dir_mode=750", "io.checksum=false")
    ),
    "dcp to hf": Conversion(source="dcp", options=(_TO["hf"], "shard_size=200KB")),
    "dcp to ranks": Conversion(source="dcp", options=("dtype=float32",)),
    "torch_dist to hf": Conversion(source="torch_dist", options=(_TO["hf"],)),
    "torch_dist to ranks": Conversion(source="torch_dist"),
    "ranks in place of others": Conversion(source="hf", options=("overwrite=true",), older="older ranks"),
    "hf in place of another": Conversion(source="mm", options=(_TO["hf"], "overwrite=true"), older="older hf"),
    "dcp in place of another": Conversion(source="hf", options=(_TO["dcp"], "overwrite=true"), older="older dcp"),
    "verification": Conversion(source="hf", action="verify", older="mm"),
    "verification of hf": Conversion(source="mm", action="verify", options=(_TO["hf"],), older="back"),
    "inspection": Conversion(source="torch_dist", action="inspect"),
}
# The other pairs of formats, which call nothing that those do not: for jobs that are killed.
OTHER_PAIRS = {
    "hf to hf": Conversion(source="hf", options=(_TO["hf"], "shard_size=200KB")),
    "ranks to dcp": Conversion(source="mm", options=(_TO["dcp"],)),
    "ranks to torch_dist": Conversion(source="mm", options=(_TO["torch_dist"],)),
    "dcp to dcp": Conversion(source="dcp", options=(_TO["dcp"], "naming=hf")),
    "dcp to torch_dist": Conversion(source="dcp", options=(_TO["torch_dist"],)),
    "torch_dist to dcp": Conversion(source="torch_dist", options=(_TO["dcp"],)),
    "torch_dist to torch_dist": Conversion(source="torch_dist", options=(_TO["torch_dist"], "dialect=mcore_te")),
}


def make_sources(directory: Path) -> Path:
    """The directory, with a small model in every format, and older results."""
    published = in_every_format(directory) / "hf"
    (published / "tokenizer.json").write_text('{"words": [' + ", ".join('"word"' for _ in range(3000)) + "]}")
    (published / "generate.py").write_text("#!/usr/bin/env python3\n")
    (published / "generate.py").chmod(0o755)
    # As in the cache of the hub.
    first = published / "model-00001-of-00005.safetensors"
    (directory / "blobs").mkdir()
    first.rename(directory / "blobs" / "0123")
    first.symlink_to("../blobs/0123")
    run_here(source=str(published), target=str(directory / "torch_dist"), target_format="torch_dist")
    back = {"source": str(directory / "mm"), "reference": str(published), "target_format": "hf"}
    run_here(target=str(directory / "back"), **back)
    run_here(source=str(published), target=str(directory / "older ranks"), vocab_multiple=64)
    # Training has gone on since.
    (directory / "older ranks" / "latest_checkpointed_iteration.txt").write_text("10")
    run_here(source=str(published), target=str(directory / "older dcp"), target_format="dcp", naming="hf")
    shutil.copytree(published, directory / "older hf")
    (directory / "older hf" / "notes.txt").write_text("of an older result")
    return directory
