"""How programs write the `config.json` of a model, by the release of transformers that wrote it. Data of theirs.

The hub's files are flat and name `torch_dtype`. transformers 4.57 writes the text's fields into `text_config` and ties
by the field there; where it differs from the class's default it stands there alone, and false may stand at the top. 5
ties by the field at the top and may write the text class's own default, true, beside it. Both write `dtype`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from random import Random
from typing import Any

from tests.differential.models import Model
from tests.published_towers import Text

GENERATIONS = ("hub", "4.57", "5")
TIE = "tie_word_embeddings"
_OF_TEXT = tuple(Text(1, 1, 1, 1, 1, 1).fields())


def saved_by(generation: str, model: Model, dtype: str, random: Random) -> dict[str, Any]:
    """The configuration of a model as a release writes it."""
    config: dict[str, Any] = copy.deepcopy(dict(model.config))
    if generation == "hub" or not model.nested:
        config["torch_dtype"] = dtype
        config["transformers_version"] = random.choice(["4.41.2", "4.45.0"])
        return config
    above = _above(config, model)
    text = above.setdefault("text_config", {})
    text |= {key: above.pop(key) for key in _OF_TEXT if key in above}
    above.pop(TIE, None)
    text.pop(TIE, None)
    text["dtype"] = config["dtype"] = dtype
    if generation == "4.57":
        config["transformers_version"] = random.choice(["4.57.0", "4.57.6"])
        if model.tied:
            text[TIE] = True
        if random.random() < 0.5:
            above[TIE] = False
            text[TIE] = model.tied
        return config
    config["transformers_version"] = random.choice(["5.0.0", "5.3.0.dev0"])
    above[TIE] = model.tied
    if random.random() < 0.5:
        text[TIE] = True
    return config


def is_tied(config: Mapping[str, Any], model: Model) -> bool:
    """Whether the program that wrote a configuration would tie the head to the embedding."""
    above = _above(config, model)
    text = above if model.text not in ("text_config", "thinker_config.text_config") else above.get("text_config", {})
    if not model.nested:
        text = config.get(model.text, {}) if model.text else config
    major = int(str(config.get("transformers_version", "4")).split(".")[0])
    order = (above, text) if major >= 5 and model.nested else (text, above)
    return bool(next((each[TIE] for each in order if TIE in each), False))


def text_of(config: Mapping[str, Any], model: Model) -> Any:
    """The part of a configuration that has the fields of the language model."""
    above = _above(config, model)
    if not model.nested:
        return config[model.text] if model.text else config
    return above["text_config"] if "hidden_size" in above.get("text_config", {}) else above


def _above(config: Mapping[str, Any], model: Model) -> Any:
    """What holds the configuration of the text: the whole, or that of the thinker."""
    return config["thinker_config"] if model.text.startswith("thinker_config.") else config
