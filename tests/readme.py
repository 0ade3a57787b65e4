"""What README.md shows: its blocks, and the commands among them."""

from __future__ import annotations

from tests import documents

README = documents.text_of("README.md")


def blocks(language: str) -> list[str]:
    return documents.blocks(README, language)


def commands() -> list[str]:
    return documents.commands(README)
