"""Arguments in a shell script, as far as plain assignments say them.

Owns what is plain: `TP=2` or `export TP=2`, once, and `--flag value` anywhere, also in the text of a variable, with
`$NAME`, `${NAME}` and `${NAME:-default}` in values. Never runs anything; what only a shell could tell is reported.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from distconv.training.arguments import flags, layout_of_arguments
from distconv.training.told import Told

_CONTINUED = re.compile(r"\\\r?\n")
_COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#.*$")
_ASSIGNED = re.compile(
    r"(?:^|(?<=[\s;]))(?P<name>[A-Za-z_]\w*)=(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*'|\$\{[^}]*\}|[^\s;\"'`()]*)",
    re.DOTALL | re.MULTILINE,
)
_FLAG = re.compile(
    r"(?:^|(?<=[\s\"'(=]))--(?P<name>[A-Za-z][\w-]*)(?:[=\s]+(?P<value>(?!--)[^\s\"')]+|\"[^\"\n]*\"|'[^'\n]*'))?"
)
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>[A-Za-z_]\w*)(?::?-(?P<default>[^{}]*))?\}|(?P<bare>[A-Za-z_]\w*))")
# What scripts without flags call the sizes, such as those that only set them for another one.
_CUSTOMARY = {
    "TP": "tensor_model_parallel_size",
    "PP": "pipeline_model_parallel_size",
    "VPP": "virtual_pipeline_model_parallel_size",
    "EP": "expert_model_parallel_size",
    "ETP": "expert_tensor_parallel_size",
}
# Flags that stand alone.
_SWITCHES = frozenset(
    {
        "account_for_embedding_in_pipeline_split",
        "account_for_loss_in_pipeline_split",
        "standalone_embedding_stage",
        "moe_tp_extend_ep",
        "hetero_parallel",
    }
)


def layout_of_script(where: str, text: str) -> Told | None:
    """The layout that a script says; `None` if nothing in it is an argument of a layout."""
    text = _COMMENT.sub("", _CONTINUED.sub(" ", text))
    variables: dict[str, set[str]] = defaultdict(set)
    for match in _ASSIGNED.finditer(text):
        variables[match["name"]].add(_unquoted(match["value"]))
    known = dict(flags())
    values: dict[str, set[str]] = defaultdict(set)
    for match in _FLAG.finditer(text):
        name = known.get(match["name"].replace("_", "-"))
        if name is not None:
            values[name].add("true" if name in _SWITCHES else _unquoted(match["value"] or ""))
    if not values:
        values |= {name: variables[short] for short, name in _CUSTOMARY.items() if short in variables}
    if not values:
        return None
    found, unread = {}, {}
    for name, texts in values.items():
        told = {each for text in texts for each in _resolved(text, variables)}
        if len(told) == 1 and None not in told:
            (found[name],) = told
        else:
            unread[name] = _unread(name, texts, told)
    return layout_of_arguments(where, found, unread)


def _unread(name: str, texts: Collection[str], told: Collection[str | None]) -> str:
    written = ", ".join(f"--{name.replace('_', '-')} {text}" for text in sorted(texts))
    if None in told:
        return f"{written}, which only a shell can tell"
    return f"{written}, which is {' or '.join(sorted(map(str, told)))}"


def _resolved(text: str, variables: Mapping[str, Collection[str]], depth: int = 8) -> set[str | None]:
    """What a text can stand for; `None` for what only a shell can tell."""
    match = _VARIABLE.search(text)
    if match is None or depth == 0:
        return {None if set(text) & set("$`") or not text else text}
    name = match["braced"] or match["bare"]
    assigned = variables.get(name) or ({match["default"]} if match["default"] else {"$"})
    return {
        each
        for value in assigned
        for each in _resolved(text[: match.start()] + value + text[match.end() :], variables, depth - 1)
    }


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
