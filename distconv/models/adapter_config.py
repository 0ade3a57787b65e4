"""The configuration of LoRA adapters as PEFT writes it: `adapter_config.json`.

Owns which settings are understood, which say nothing about the weights, and which are refused by name: what is not
known is never passed over. Owns PEFT's rules for patterns of modules, too. Reads no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distconv.errors import raise_if
from distconv.models.adapters import PEFT_PREFIX, factor_of, module_of
from distconv.models.scaling import Scaling, is_number

# Initialisations that leave the base weights as they are, and beginnings of those that do not.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_CHANGING_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNDERSTOOD = frozenset(
    {
        "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    }
)  # fmt: skip
# How training runs, where a model comes from, and details of an initialisation or a variant that others switch on.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
        "inference_mode", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version",
        "qalora_group_size", "revision", "runtime_config", "task_type",
    }
)  # fmt: skip
_REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "adapters that act on some tokens only",
    "arrow_config": "adapters that are chosen token by token",
    "bias": "trained biases",
    "fan_in_fan_out": "weights that are stored as [in, out]",
    "kasa_config": "a diagonal between the factors",
    "layer_replication": "layers that the base model does not have",
    "lora_bias": "biases of the factors",
    "megatron_config": "adapters on layers of Megatron itself",
    "modules_to_save": "modules that were trained as a whole",
    "monteclora_config": "adapters with sampled weights",
    "target_parameters": "adapters on parameters of modules that are not linear",
    "trainable_token_indices": "trained rows of the embedding",
    "use_bdlora": "factors in blocks",
    "use_dora": "magnitudes (DoRA)",
    "use_qalora": "adapters on groups of inputs",
    "velora_config": "a variant of LoRA",
}
_ALL_LINEAR = "all-linear"
_VALUE_SHOWN = 60
_OTHERS = "; is it the adapter_config.json that was saved with these adapters?"

Patterns = Mapping["re.Pattern[str]", Any]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What an `adapter_config.json` says about weights; modules have their names without PEFT's prefix.

    `rank` and `alpha` are those of modules that no pattern is for, `None` where the file does not say. `targets`:
    names of modules, their ends after a dot, or a regular expression; `None` where that depends on the model.
    """

    where: str
    rank: int | None
    alpha: float | None
    rslora: bool
    rank_patterns: Patterns
    alpha_patterns: Patterns
    initialisation: str | None
    targets: tuple[str, ...] | re.Pattern[str] | None
    excluded: tuple[str, ...] | re.Pattern[str]
    layers: tuple[int, ...] | None
    layer_patterns: tuple[re.Pattern[str], ...]

    @staticmethod
    def parse(config: Mapping[str, Any], where: str) -> AdapterConfig:
        """The configuration in a file.

        Raises:
            InputError: every setting that is malformed, cannot be converted or is not known.
        """
        parser = _Parser(config, where)
        result = AdapterConfig(
            where=where,
            rank=parser.take("r", None, _is_rank, "a positive number"),
            alpha=parser.take("lora_alpha", None, is_number, "a number"),
            rslora=parser.take("use_rslora", False, lambda value: isinstance(value, bool), "true or false"),
            rank_patterns=parser.patterns("rank_pattern", _is_rank, "ranks"),
            alpha_patterns=parser.patterns("alpha_pattern", is_number, "numbers"),
            initialisation=parser.initialisation(),
            targets=parser.modules("target_modules"),
            excluded=parser.modules("exclude_modules") or (),
            layers=parser.layers(),
            layer_patterns=parser.layer_patterns(),
        )
        raise_if([*parser.refusals(), *parser.problems])
        return result

    def scaling(self, modules: Mapping[str, str]) -> Scaling:
        """The scaling of modules, given the name that each has in the adapter by that in the definition."""
        alphas = {name: _matching(self.alpha_patterns, own, self.alpha) for name, own in modules.items()}
        return Scaling(
            alpha=self.alpha,
            rslora=self.rslora,
            alphas={name: alpha for name, alpha in alphas.items() if alpha != self.alpha},
            initialisation=self.initialisation,
            where=self.where,
        )

    def contradictions(self, shapes: Mapping[str, tuple[int, ...]], left_out: Iterable[str]) -> list[str]:
        """What is wrong between the configuration and factors.

        Factors are given by name and shape, tensors that are left out on purpose by name.
        """
        problems = []
        modules = {}
        for name, shape in shapes.items():
            module, factor = module_of(name), factor_of(name)
            modules[module.removeprefix(PEFT_PREFIX)] = module
            expected = _matching(self.rank_patterns, module.removeprefix(PEFT_PREFIX), self.rank)
            found = shape[0] if factor is not None and factor[1] == "A" else shape[-1]
            if found != expected:
                problems.append(f"{name} has rank {found}, but {self.where} says {expected!r}{_OTHERS}")
        if isinstance(self.targets, tuple):
            present = {*modules, *(module_of(name).removeprefix(PEFT_PREFIX) for name in left_out)}
            problems += [
                f"{self.where}: target module {each} has no adapter in the checkpoint{_OTHERS}"
                for each in self.targets
                if not any(_ends_with(module, each) for module in present)
            ]
        strangers = [module for module in modules if not self._is_target(module)]
        meant = {module.rpartition(".")[2] for module in modules.keys() - set(strangers)}
        leaves = {module: module.rpartition(".")[2] for module in strangers}
        called = sorted({module if leaf in meant else leaf for module, leaf in leaves.items()})
        return problems + [
            f"{self.where}: {each} has adapters in the checkpoint, but is not among its target modules{_OTHERS}"
            for each in called
        ]

    def _is_target(self, module: str) -> bool:
        """Whether PEFT puts an adapter on a module, as `check_target_module_exists` there."""
        if isinstance(self.excluded, tuple):
            if any(_ends_with(module, each) for each in self.excluded):
                return False
        elif self.excluded.fullmatch(module):
            return False
        if self.targets is None:
            return True
        if not isinstance(self.targets, tuple):
            return self.targets.fullmatch(module) is not None
        if module in self.targets:
            return True
        if not any(_ends_with(module, each) for each in self.targets):
            return False
        if not self.layers:
            return True
        found = next((match for each in self.layer_patterns if (match := each.match(module))), None)
        return found is not None and int(found["layer"]) in self.layers


class _Parser:
    """The settings of one file, and the problems that were found."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self._where = config, where
        self.problems: list[str] = []

    def refusals(self) -> Iterator[str]:
        """A problem for each setting that cannot be converted, or is not known."""
        kind = self._config.get("peft_type")
        if kind != "LORA":
            yield f"{self._where}: peft_type is {_shown(kind)}; only LORA adapters can be converted"
        for key, value in self._config.items():
            if not value or (key, value) == ("bias", "none"):
                continue
            if key in _REFUSED:
                yield (
                    f"{self._where}: {key} is {_shown(value)}: {_REFUSED[key]} cannot be converted; merge the adapter "
                    "with PEFT, and convert the model"
                )
            elif key not in _UNDERSTOOD | _WITHOUT_EFFECT:
                yield (
                    f"{self._where}: {key} is {_shown(value)}: not known to this version, and may change the meaning "
                    "of the weights; remove it if it does not"
                )

    def take(self, key: str, default: Any, fits: Any, expected: str) -> Any:
        """The value of a setting, the default where it is absent or null."""
        value = self._config.get(key)
        if value is None:
            return default
        if not fits(value):
            self._wrong(key, expected)
            return default
        return value

    def patterns(self, key: str, fits: Any, values: str) -> Patterns:
        """Values by the patterns of modules that they are for, as `get_pattern_key` of PEFT matches them."""
        given = self._config.get(key) or {}
        expected = f"regular expressions and {values}"
        if not isinstance(given, Mapping) or not all(map(fits, given.values())):
            self._wrong(key, expected)
            return {}
        try:
            return {re.compile(rf"(.*\.)?({pattern})$"): value for pattern, value in given.items()}
        except re.error:
            self._wrong(key, expected)
            return {}

    def initialisation(self) -> str | None:
        """The initialisation that changed the weights of the base, if one did."""
        value = self._config.get("init_lora_weights", True)
        if isinstance(value, str) and value.lower().startswith(_CHANGING_BASE):
            return value
        if (value.lower() if isinstance(value, str) else value) not in _INITIALISATIONS:
            self._wrong("init_lora_weights", "an initialisation that is known to this version")
        return None

    def modules(self, key: str) -> tuple[str, ...] | re.Pattern[str] | None:
        """Modules, by their names or by an expression; none for those that follow from the model."""
        value = self._config.get(key)
        if value is None or (isinstance(value, str) and value.lower() == _ALL_LINEAR):
            return None
        if isinstance(value, str):
            try:
                return re.compile(value)
            except re.error:
                self._wrong(key, "names of modules, or a regular expression")
                return None
        return self._texts(key, "names of modules, or a regular expression")

    def layers(self) -> tuple[int, ...] | None:
        """The layers that have adapters; none for all."""
        value = self._config.get("layers_to_transform")
        given = value if isinstance(value, list) or value is None else [value]
        if given is not None and not all(isinstance(each, int) and not isinstance(each, bool) for each in given):
            self._wrong("layers_to_transform", "numbers of layers")
            return None
        return None if given is None else tuple(given)

    def layer_patterns(self) -> tuple[re.Pattern[str], ...]:
        """Where the number of a layer stands in the name of a module."""
        value = self._config.get("layers_pattern")
        given = (value,) if isinstance(value, str) and value else self._texts("layers_pattern", "names of lists")
        try:
            found = [re.compile(rf"(?:^|.*?\.){each}\.(?P<layer>\d{{1,9}})\.") for each in given]
        except re.error:
            self._wrong("layers_pattern", "regular expressions")
            return ()
        return tuple(found) or (re.compile(r".*?\.[^.]*\.(?P<layer>\d{1,9})\."),)

    def _texts(self, key: str, expected: str) -> tuple[str, ...]:
        value = self._config.get(key) or []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self._wrong(key, expected)
            return ()
        return tuple(value)

    def _wrong(self, key: str, expected: str) -> None:
        self.problems.append(f"{self._where}: {key}: expected {expected}, found {_shown(self._config[key])}")


def _matching(patterns: Patterns, module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if pattern.match(module)), default)


def _ends_with(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}")


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _VALUE_SHOWN else f"{text[:_VALUE_SHOWN]} …"
