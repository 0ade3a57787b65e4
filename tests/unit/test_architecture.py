"""The import graph of distconv: one direction, and nothing heavy where nothing heavy is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import distconv

PACKAGE = Path(distconv.__file__).parent

# From the bottom to the top: a module imports only from layers above its own line in this list.
LAYERS: list[set[str]] = [
    {
        "dtypes",
        "errors",
        "inert_pickle",
        "interruption",
        "measurement",
        "partition",
        "virtual",
    },
    {
        "catalogue",
        "composition",
        "files",
        "interleaving",
        "iterations",
        "jsonfile",
        "layout",
        "name_prefix",
        "operators",
        "parts",
        "processes",
        "rejections",
        "safetensors_file",
        "sizes",
        "source",
        "steps",
        "tensor_parallel",
        "torch_archive",
    },
    {
        "agreement",
        "commit",
        "config_reader",
        "dcp_metadata",
        "given_layout",
        "low_rank",
        "lowering",
        "megatron_directory",
        "pt_file",
        "record",
        "rules",
        "safetensors_index",
        "sinks",
        "torch_blobs",
        "torch_index",
    },
    {
        "adapters",
        "megatron_index",
        "source_directory",
        "targets",
        "transfer",
    },
    {
        "dcp_index",
        "definition",
        "rank_grid",
        "replicas",
    },
    {
        "facts",
        "holdings",
        "matching",
    },
    {
        "binding",
        "known_names",
        "reference",
    },
    {
        "balance",
        "outputs",
        "shards",
        "tying",
        "vocabulary",
    },
    {
        "assignment",
        "blueprint",
        "config",
        "dcp_plan",
        "following",
        "formats",
        "huggingface_plan",
        "lora",
        "megatron_plan",
        "piece_sizes",
        "published",
        "reversal",
        "work",
    },
    {
        "dcp_blobs",
        "detection",
        "huggingface_files",
        "inspection",
        "megatron_files",
        "selection",
        "verification",
        "writing",
    },
    {
        "dcp_planner",
        "megatron_binding",
    },
    {
        "dcp_files",
        "sources",
    },
    {
        "planning",
        "results",
    },
    {
        "report",
    },
    {
        "command_line",
        "job",
    },
    {
        "cli",
    },
    {
        "__main__",
    },
]
# Everything outside of the standard library. Modules that are not here need nothing.
THIRD_PARTY = {
    "catalogue": {"yaml"},
    "command_line": {"hydra", "omegaconf"},
    "dcp_blobs": {"torch"},
    "dcp_planner": {"torch"},
    "processes": {"mpi4py", "torch"},
    "rejections": {"hydra", "omegaconf", "yaml"},
    "low_rank": {"numpy"},
    "pt_file": {"torch"},
    "report": {"tqdm"},
    "sinks": {"numpy"},
    "transfer": {"numpy"},
}
# Modules that are imported by whoever plans, on a machine with nothing but Python and small packages.
HEAVY = {"torch", "mpi4py", "hydra", "omegaconf"}
NEED_HEAVY = {"command_line", "rejections", "cli", "__main__", "dcp_blobs", "dcp_planner", "pt_file"}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def imported(node: ast.AST) -> Iterator[str]:
    """The full names of the modules that are imported anywhere below a node, in functions too."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, "imports are absolute"
            assert each.module is not None
            if each.module == "distconv":
                yield from (f"distconv.{alias.name}" for alias in each.names)
            else:
                yield each.module


def test_every_module_has_one_place_in_the_layers():
    assert sorted(module for layer in LAYERS for module in layer) == MODULES


def test_a_module_imports_only_from_lower_layers():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    upwards = {
        f"{module} imports {name}"
        for module in MODULES
        for name in (full.split(".")[1] for full in imported(tree(module)) if full.startswith("distconv."))
        if level[name] >= level[module]
    }
    assert upwards == set()


def test_a_module_uses_only_the_packages_that_it_is_known_to_need():
    inner = sys.stdlib_module_names | {"distconv"}
    used = {module: {name.split(".")[0] for name in imported(tree(module))} - inner for module in MODULES}
    assert {module: packages for module, packages in used.items() if packages} == THIRD_PARTY


def test_what_only_some_launchers_need_is_imported_only_there():
    at_the_top = [node for node in tree("processes").body if isinstance(node, (ast.Import, ast.ImportFrom))]
    packages = {name.split(".")[0] for node in at_the_top for name in imported(node)}
    assert packages.isdisjoint(HEAVY)


def _prints(module: str) -> bool:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            return True
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "__stdout__"):
            return True
    return False


def test_only_the_report_prints():
    assert [module for module in MODULES if _prints(module)] == ["report"]


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


def test_planning_needs_no_torch_no_mpi_and_no_hydra(tmp_path):
    modules = [f"distconv.{module}" for module in MODULES if module not in NEED_HEAVY]
    output = run(f"import sys, {', '.join(modules)}; print(*{HEAVY!r} & set(sys.modules))", tmp_path)
    assert output.split() == []


def test_the_command_line_needs_no_torch_and_no_mpi(tmp_path):
    output = run("import sys, distconv.cli.main; print(*{'torch', 'mpi4py'} & set(sys.modules))", tmp_path)
    assert output.split() == []


def test_importing_does_nothing_else(tmp_path):
    """No file, no output, no thread, no signal handler, no change of the environment."""
    modules = [f"distconv.{module}" for module in MODULES if module != "pt_file"]
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
