"""Damages of rank files, as training or a careless copy leaves them. What they are owed is as in `damages`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.differential.damages import EITHER, ELSEWHERE, REFUSED, RIGHT, Harm
from tests.differential.drafts import numbered, same

# What stands for a damage of rank files: it changes them in their directory.
Damage = Callable[[Random, Path], "Harm | None"]


def _ranks(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.pt"))


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def _modules(content: Mapping[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    yield from (each for key, each in content.items() if key.startswith("model"))


def _picked(random: Random, directory: Path) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor], str]:
    """A file, its content, a module of it, and the name of a parameter there."""
    held = {path: _load(path) for path in _ranks(directory)}
    path = random.choice([path for path, content in held.items() if any(_modules(content))])
    module = random.choice([each for each in _modules(held[path]) if each])
    return path, held[path], module, random.choice(list(module))


def _ends(name: str) -> tuple[str, ...]:
    """How a message may name a parameter, whose layer is local in its file: by the end of it."""
    return (".".join(name.split(".")[-2:]), "mp_rank")


def parameter_dropped(random: Random, directory: Path) -> Harm:
    path, content, module, name = _picked(random, directory)
    del module[name]
    torch.save(content, path)
    return Harm(owed=REFUSED, what=f"{path.parent.name} without {name}", mentions=_ends(name))


def parameter_unknown(random: Random, directory: Path) -> Harm:
    path, content, module, name = _picked(random, directory)
    module[f"{name}.nobodys"] = numbered((2, 3), torch.float32, ELSEWHERE)
    torch.save(content, path)
    return Harm(owed=REFUSED, what=f"{path.parent.name} with {name}.nobodys", mentions=("nobodys",))


def norm_narrower(random: Random, directory: Path) -> Harm | None:
    path, content, module, name = _picked(random, directory)
    # Some definitions take norms of q and k of any size.
    names = [each for each in module if "layernorm" in each and "q_layernorm" not in each and "k_layernorm" not in each]
    if not names:
        return None
    name = random.choice(names)
    module[name] = module[name][:-1].clone()
    torch.save(content, path)
    return Harm(owed=REFUSED, what=f"{path.parent.name}: {name} is narrower", mentions=_ends(name))


def rank_missing(random: Random, directory: Path) -> Harm | None:
    ranks = _ranks(directory)
    if len(ranks) < 2:
        return None
    path = random.choice([each for each in ranks if any(_modules(_load(each)))])
    path.unlink()
    if random.random() < 0.5:
        path.parent.rmdir()
    return Harm(
        owed=REFUSED,
        what=f"{path.parent.name} is missing",
        mentions=("mp_rank", "source_layout", "stage", "directories"),
    )


def replica_altered(random: Random, directory: Path) -> Harm | None:
    """A parameter that ranks hold alike is another on one of them."""
    ranks = _ranks(directory)
    one, other = random.sample(ranks, 2) if len(ranks) > 1 else (ranks[0], ranks[0])
    # The same stage on another rank of tensor parallelism.
    if one == other or one.parent.name.split("_")[3:] != other.parent.name.split("_")[3:]:
        return None
    content, beside = _load(one), _load(other)
    for module, twin in zip(_modules(content), _modules(beside), strict=True):
        names = [name for name, tensor in module.items() if name in twin and same(tensor, twin[name])]
        if names:
            name = random.choice(names)
            module[name] = numbered(module[name].shape, module[name].dtype, ELSEWHERE)
            torch.save(content, one)
            return Harm(owed=REFUSED, what=f"{one.parent.name}: {name} is not that of others", mentions=_ends(name))
    return None


def piece_of_another_type(random: Random, directory: Path) -> Harm | None:
    """One tensor parallel rank has a parameter in another element type."""
    path, content, module, name = _picked(random, directory)
    if not any("_rank_01" in rank.parent.name for rank in _ranks(directory)) or "experts" in name:
        return None
    dtype = torch.float32 if module[name].dtype != torch.float32 else torch.bfloat16
    module[name] = numbered(module[name].shape, dtype, ELSEWHERE)
    torch.save(content, path)
    return Harm(owed=REFUSED, what=f"{path.parent.name}: {name} is {dtype}", mentions=_ends(name))


def file_cut(random: Random, directory: Path) -> Harm:
    path = random.choice(_ranks(directory))
    content = path.read_bytes()
    path.write_bytes(content[: random.choice([0, 10, len(content) // 2, len(content) - 1])])
    return Harm(owed=REFUSED, what=f"{path.parent.name} is cut", mentions=("mp_rank",))


def tracker_wrong(random: Random, directory: Path) -> Harm:
    """It names an iteration that is not there."""
    (directory / "latest_checkpointed_iteration.txt").write_text(random.choice(["77", "", "releas"]))
    return Harm(owed=EITHER, what="the tracker names another iteration", mentions=("latest_checkpointed", "iter"))


def with_optimizer(random: Random, directory: Path) -> Harm:
    """What training keeps beside the model."""
    for path in _ranks(directory):
        content = _load(path)
        content |= {"iteration": 7, "args": {"tensor": "no namespace"}, "opt_param_scheduler": {"lr": 0.1}}
        content["optimizer"] = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1.0}]}
        torch.save(content, path)
    return Harm(owed=RIGHT, what=f"an optimizer ({random.random():.2f})")


def padded_vocabulary(random: Random, directory: Path) -> Harm | None:
    """Training rounds the vocabulary up; the rows beyond it are zeros."""
    ranks = _ranks(directory)
    if any("_rank_01" in path.parent.name for path in ranks):
        return None
    rows = random.choice([1, 6])
    for path in ranks:
        content = _load(path)
        for module in _modules(content):
            for name, tensor in module.items():
                if name.endswith(("word_embeddings.weight", "output_layer.weight")):
                    module[name] = torch.cat([tensor, torch.zeros_like(tensor[:1]).expand(rows, -1)])
        torch.save(content, path)
    return Harm(owed=RIGHT, what=f"{rows} rows of zeros beyond the vocabulary")


TRAINED_DAMAGES: Mapping[str, Damage] = {
    each.__name__: each
    for each in (
        parameter_dropped,
        parameter_unknown,
        norm_narrower,
        rank_missing,
        replica_altered,
        piece_of_another_type,
        file_cut,
        tracker_wrong,
        with_optimizer,
        padded_vocabulary,
    )
}
