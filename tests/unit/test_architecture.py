"""The import graph: rooms in one order, no circles in a room, nothing heavy where nothing heavy is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import distconv

PACKAGE = Path(distconv.__file__).parent

# A room imports only from rooms of earlier lines; those of one line do not know each other.
ROOMS = [
    {"errors", "version", "words"},
    {"kinds", "observer", "page"},
    {"path_kinds"},
    {"fields"},
    {"tensors"},
    {"runtime"},
    {"models"},
    {"layout"},
    {"input_output"},
    {"options"},
    {"formats"},
    {"commit"},
    {"training"},
    {"transfer", "planning"},
    {"diffing", "directories", "done", "foreseen", "proving", "writing"},
    {"actions"},
    {"job"},
    {"campaign"},
    {"api"},
    {"cli", "distconv"},
    {"__main__"},
]
# As the rooms: what all formats have in common, the formats, the list of them.
FORMATS = [{"base"}, {"torch_zip"}, {"huggingface"}, {"megatron"}, {"dcp"}, {"torch_dist"}, {"registry"}]
# Everything outside of the standard library, by module or folder. What is not here needs nothing.
THIRD_PARTY = {
    "cli.command_line": {"hydra", "omegaconf"},
    "cli.rejections": {"hydra", "omegaconf", "yaml"},
    "formats.dcp.reader": {"torch"},
    "formats.huggingface.reader": {"safetensors"},
    "formats.megatron.reader": {"torch"},
    "formats.torch_dist.reader": {"torch"},
    "formats.torch_dist.sizes": {"yaml"},
    "formats.torch_tensors": {"torch"},
    "models.definition_file": {"yaml"},
    "runtime.mpi_processes": {"mpi4py"},
    "runtime.store_processes": {"torch"},
    "tensors.casts": {"numpy"},
    "tensors.differences": {"numpy"},
    "tensors.quantised": {"numpy"},
    "tensors.values": {"numpy", "torch"},
    "transfer.moves": {"numpy"},
    "transfer.read_back": {"numpy"},
    "transfer.sinks": {"numpy"},
}
# What is not imported by whoever plans, on a machine with nothing but Python and small packages.
HEAVY = {"torch", "safetensors", "mpi4py", "hydra", "omegaconf"}


def name_of(path: Path) -> str:
    """The name of a module below the package; a package's own is that of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "distconv"


MODULES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imported(node: ast.AST) -> Iterator[str]:
    """The full names of the modules that are imported anywhere below a node, in functions too."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, "imports are absolute"
            assert each.module is not None
            # A name may be that of a module.
            yield each.module
            yield from (f"{each.module}.{alias.name}" for alias in each.names)


def own(tree: ast.Module) -> set[str]:
    """The modules of distconv among them, below the package."""
    names = {name.removeprefix("distconv.") for name in imported(tree) if name.startswith("distconv")}
    return names & MODULES.keys()


def levels(order: list[set[str]]) -> dict[str, int]:
    return {name: number for number, names in enumerate(order) for name in names}


def test_every_module_is_in_a_room():
    assert {name.partition(".")[0] for name in MODULES} == set.union(*ROOMS)


def test_rooms_import_only_from_rooms_before_them():
    level = levels(ROOMS)
    upwards = {
        f"{module} imports {name}"
        for module, tree in MODULES.items()
        for name in own(tree)
        if (here := module.partition(".")[0]) != (there := name.partition(".")[0]) and level[there] >= level[here]
    }
    assert upwards == set()


def test_formats_import_only_from_those_before_them():
    level = levels(FORMATS)

    def place(module: str) -> int:
        """Modules beside the folders are what all formats have in common."""
        return level.get(module.split(".")[1], level["base"])

    inside = {name: tree for name, tree in MODULES.items() if name.startswith("formats.")}
    upwards = {
        f"{module} imports {name}"
        for module, tree in inside.items()
        for name in own(tree) & inside.keys()
        if place(name) > place(module)
    }
    assert upwards == set()


def test_there_is_no_circle_of_imports():
    TopologicalSorter({module: own(tree) - {module} for module, tree in MODULES.items()}).prepare()


def test_a_module_uses_only_the_packages_that_it_is_known_to_need():
    inner = sys.stdlib_module_names | {"distconv"}
    for module, tree in MODULES.items():
        known = {name for place, names in THIRD_PARTY.items() if f"{module}.".startswith(f"{place}.") for name in names}
        used = {name.split(".")[0] for name in imported(tree)} - inner
        assert used <= known, module


def test_what_only_some_launchers_need_is_imported_only_there():
    at_the_top = [node for node in MODULES["runtime.processes"].body if isinstance(node, (ast.Import, ast.ImportFrom))]
    packages = {name.split(".")[0] for node in at_the_top for name in imported(node)}
    assert packages.isdisjoint(HEAVY)


def _prints(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            return True
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "__stdout__"):
            return True
    return False


def test_only_one_module_prints():
    assert [module for module, tree in MODULES.items() if _prints(tree)] == ["cli.show"]


def test_only_the_registry_and_the_formats_themselves_name_a_format():
    named = {"formats.dcp", "formats.huggingface", "formats.megatron"}
    outside = {
        f"{module} imports {name}"
        for module, tree in MODULES.items()
        if not module.startswith("formats.")
        for name in own(tree)
        if any(name.startswith(f"{each}.") for each in named)
    }
    # A reference is a Hugging Face directory, whatever the formats of source and result.
    assert {each for each in outside if " imports formats.huggingface." not in each} == set()


def run(code: str, directory: Path) -> str:
    """Run code in a fresh interpreter; its output."""
    environment = {
        **os.environ,
        "HOME": str(directory),
        "PYTHONPATH": str(PACKAGE.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-W", "error", "-c", code]
    finished = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


def full(module: str) -> str:
    return module if module == "distconv" else f"distconv.{module}"


def test_planning_needs_no_torch_no_mpi_and_no_hydra(tmp_path):
    needed = {place for place, names in THIRD_PARTY.items() if names & HEAVY and place != "runtime.processes"}
    modules = [
        full(module)
        for module in MODULES
        if module != "__main__" and not any(f"{module}.".startswith(f"{place}.") for place in needed)
    ]
    output = run(f"import sys, {', '.join(modules)}; print(*{HEAVY!r} & set(sys.modules))", tmp_path)
    assert output.split() == []


def test_the_command_line_needs_nothing_of_them_before_it_is_read(tmp_path):
    output = run(f"import sys, distconv.cli.main; print(*{HEAVY!r} & set(sys.modules))", tmp_path)
    assert output.split() == []


def test_importing_does_nothing_else(tmp_path):
    """No file, no output, no thread, no signal handler, no change of the environment."""
    modules = [full(module) for module in MODULES]
    code = f"""
import os, signal, sys, threading
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)]
    return dict(os.environ), handlers, threading.enumerate(), os.getcwd()
before = state()
import {", ".join(modules)}
assert state() == before
"""
    assert run(code, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
