"""Model definitions: the rules of one family, and what they say of a model of given sizes.

Owns the records that `definition_parser` makes of a file under `conf/model/`. It never looks at a checkpoint and never
runs an operator.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.models.adapters import canonical_factor, without_sizes
from distconv.models.predicting import PREDICTING, numbered, published_numbers
from distconv.models.rules import TEXT, Rule
from distconv.models.sizes import Sizes, SizeSpec

PROJECTOR = "projector"
# The dialect of training that has the names of the targets of rules.
OWN_NAMES = "mindspeed_mm"


@dataclass(frozen=True, kw_only=True)
class Tied:
    """The head that equals the embedding when a flag holds; both by their target names.

    `flag` is where config.json has it; `flag_of_transformers_5`, where release 5 of transformers looks for it.
    """

    flag: SizeSpec
    flag_of_transformers_5: SizeSpec
    embedding: str
    head: str


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """Source tensors left out on purpose: a name pattern with `*`, and the reason.

    With `layers` (the names of two sizes: first layer, number of layers) the pattern has a `{layer}` in that range.
    """

    names: str
    reason: str
    layers: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A published tensor that is a copy of another one, both by name, and why; training has none of its own."""

    name: str
    of: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Published tensors that a cast to a type of the user's must not round: a name pattern with `*`, and the reason."""

    names: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Restriction:
    """A limit of the training side on the pipeline stages of a modality's layers, and its reason.

    `one_stage`: all layers are on one stage. `first_stage`: the name of a list or of a size; as many layers as the list
    has entries, or as the size says, are on the first stage.
    """

    modality: str
    reason: str
    one_stage: bool = False
    first_stage: str | None = None


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A model definition, complete and consistent in itself.

    Targets of rules are the names that MindSpeed-MM has for parameters. `dialect` names the usual ones of the model.
    `predicting`: the name of the size that is the number of layers that predict further tokens, `None` without them.
    """

    name: str
    model_types: tuple[str, ...]
    variant_of: str | None
    part_of: str | None
    renamed_prefixes: tuple[tuple[str, str], ...]
    sizes: Mapping[str, SizeSpec]
    lists: Mapping[str, SizeSpec]
    modalities: Mapping[str, str]
    experts: str | None
    adapters: str | None
    tied: Tied | None
    rules: tuple[Rule, ...]
    ignored: tuple[Ignored, ...]
    kept: tuple[Kept, ...]
    restrictions: tuple[Restriction, ...]
    dialect: str = OWN_NAMES
    copied: tuple[Copied, ...] = ()
    predicting: str | None = None

    def is_tied(self, sizes: Sizes) -> bool:
        """Whether the head of a model of these sizes equals its embedding.

        Raises:
            InputError: its config.json does not say it, or not with true or false.
        """
        if self.tied is None:
            return False
        return sizes.flag(self.tied.flag_of_transformers_5 if sizes.is_of_transformers_5 else self.tied.flag)

    def without_base(self) -> Definition:
        """The definition for adapters without the `config.json` of their base model: no size of a source is checked."""
        if self.adapters != "only":
            return self
        restrictions = tuple(each for each in self.restrictions if each.first_stage is None)
        return replace(self, rules=tuple(map(without_sizes, self.rules)), restrictions=restrictions)

    def of_model(self, sizes: Sizes) -> Definition:
        """The definition for a model of these sizes: with the rules of each of its layers that predict further tokens.

        The first of them may be there whatever config.json says, since programs leave the field out. Where it says no
        number of layers, names stay as they are, and are no tensor's.
        """
        if self.predicting is None:
            return self
        try:
            layers, count = sizes.count(self.modalities[TEXT]), max(1, sizes.count(self.predicting))
        except InputError:
            return self
        rules = (each for rule in self.rules for each in numbered(rule, layers, count))
        copied = (
            replace(each, name=name) for each in self.copied for name in published_numbers(each.name, layers, count)
        )
        return replace(self, rules=tuple(rules), copied=tuple(copied))

    def without_predicting(self) -> Definition:
        """The definition without layers that predict further tokens."""
        return replace(self, rules=tuple(rule for rule in self.rules if rule.section != PREDICTING), predicting=None)

    def expert_count(self, sizes: Sizes) -> int | None:
        """The number of experts of a model of these sizes, `None` for a dense model; raises as `Sizes.count` does."""
        return None if self.experts is None else sizes.count(self.experts)

    def count(self, name: str, sizes: Sizes) -> int:
        """The number of entries of a list, or the value of a size, of this name; raises as `Sizes.count` does."""
        spec = self.lists.get(name)
        return sizes.count(name) if spec is None else len(sizes.numbers(spec))

    def tied_sources(self, names: Container[str]) -> tuple[str, str]:
        """The source names of head and embedding, of the alternative that `names` are of; only if there is `tied`.

        `names` are those of a model's tensors, in the spelling of the rules.
        """
        assert self.tied is not None
        heads, embeddings = (
            {rule.choice and rule.choice[1]: rule.sources[0].name for rule in self.rules if rule.target == target}
            for target in (self.tied.head, self.tied.embedding)
        )
        pairs = [(head, embeddings[each]) for each, head in heads.items() if each in embeddings]
        if not pairs:
            # Only one of the two has alternatives.
            pairs = [(head, embedding) for head in heads.values() for embedding in embeddings.values()]
        return max(pairs, key=lambda pair: sum(name in names for name in pair))

    def rule_for(self, target: str) -> Rule:
        """The rule of a target name."""
        return next(rule for rule in self.rules if rule.target == target)

    def spelled(self, name: str) -> str:
        """The name of a source tensor in the spelling of the rules."""
        for old, new in self.renamed_prefixes:
            if name.startswith(old):
                name = new + name[len(old) :]
        return name if self.adapters is None else canonical_factor(name)
