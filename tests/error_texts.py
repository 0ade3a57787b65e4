"""The texts of all errors that a user may see, read from the code: `make messages` prints them for a reader.

Never runs the package. A text is what an error is raised with, or a phrase that may become a part of one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Markup, and scripts of shells.
_NOT_FOR_READERS = ("distconv/page/", "distconv/cli/completion.py")
# Fewer words are names, keys and formats.
_WORDS = 5


@dataclass(frozen=True, kw_only=True)
class ErrorText:
    """A text with its placeholders in braces; `error`: the class that is raised with it, if that is beside it."""

    file: str
    line: int
    error: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.error or '-'}: {self.text!r}"


def error_texts() -> list[ErrorText]:
    """The texts of the package, by file and line."""
    found = []
    for path in sorted((ROOT / "distconv").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if file.startswith(_NOT_FOR_READERS):
            continue
        found += [ErrorText(file=file, line=n, error=e, text=t) for n, e, t in texts_of(path.read_text())]
    return found


def texts_of(source: str) -> list[tuple[int, str | None, str]]:
    """Line, class of error and text, of a module's source; docstrings are none."""
    return list(_texts(ast.parse(source), None))


def _texts(node: ast.AST, error: str | None) -> Iterator[tuple[int, str | None, str]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        error = name if name.endswith("Error") else error
    text = _text(node) if isinstance(node, ast.expr) else None
    if text is not None:
        if error or len(text.split()) >= _WORDS:
            yield node.lineno, error, text
        return
    for child in ast.iter_child_nodes(node):
        yield from _texts(child, error)


def _text(node: ast.expr) -> str | None:
    """A text, or one made of texts, with what is filled in between braces; `None` for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in node.values
            if isinstance(part, (ast.Constant, ast.FormattedValue))
        )
    return None


if __name__ == "__main__":
    print(*error_texts(), sep="\n")
