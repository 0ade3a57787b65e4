"""Flags are told from options; those of Hydra are all that it has."""

from __future__ import annotations

import argparse

import pytest
from hydra._internal.utils import get_args_parser

from distconv.cli.flags import ALWAYS, NEVER, OF_HYDRA, PERHAPS, Loudness, Words, sorted_words
from distconv.errors import InputError


def test_the_flags_of_hydra_are_those_that_it_has_but_for_help_and_version():
    found = {}
    for each in get_args_parser()._actions:
        follows = PERHAPS if each.nargs == argparse.OPTIONAL else ALWAYS if each.nargs is None else NEVER
        found.update(dict.fromkeys(each.option_strings, follows))
    assert {"--help", "-h", "--version"} <= found.keys()
    assert {name: follows for name, follows in found.items() if name not in ("--help", "-h", "--version")} == OF_HYDRA


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("source=a --help", Words(help=True, others=("source=a",))),
        ("-h", Words(help=True)),
        ("help", Words(help=True)),
        ("--version", Words(version=True)),
        ("source=a -q", Words(loudness=Loudness.QUIET, others=("source=a",))),
        ("--verbose source=a", Words(loudness=Loudness.VERBOSE, others=("source=a",))),
        ("--completion fish", Words(completes="fish")),
        ("--completion=zsh", Words(completes="zsh")),
        ("--completion", Words(completes="")),
        ("source=a --cfg job --resolve", Words(of_hydra=("--cfg", "job", "--resolve"), others=("source=a",))),
        ("--cfg=job source=a", Words(of_hydra=("--cfg=job",), others=("source=a",))),
        ("-m -cd dir a=b", Words(of_hydra=("-m", "-cd", "dir"), configured=True, others=("a=b",))),
        ("--info defaults a=b", Words(of_hydra=("--info", "defaults"), others=("a=b",))),
        ("--info a=b", Words(of_hydra=("--info",), others=("a=b",))),
        ("--config-dir -q", Words(of_hydra=("--config-dir", "-q"), configured=True)),
        ("--tp 2 +x=1 ~y", Words(others=("--tp", "2", "+x=1", "~y"))),
    ],
)
def test_words_are_sorted_by_what_they_are(line, words):
    assert sorted_words(line.split()) == words


def test_nobody_is_quiet_and_verbose():
    with pytest.raises(InputError, match="one of the two"):
        sorted_words(["-q", "--verbose"])
