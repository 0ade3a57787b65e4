"""Which dialect the names of a checkpoint are in, where several explain as many of them, and whose prefix is whose."""

from __future__ import annotations

import pytest

from distconv.errors import InputError
from distconv.formats.dcp.naming import check_exchange, is_under_one_prefix, naming_of
from distconv.formats.model import Model
from distconv.models.dialect import Holding
from distconv.models.language_model import embeddings
from distconv.models.library import Library
from distconv.models.spellings import Spellings

DIALECTS = Library.of_package().dialects()
# What a definition knows of an omni model that training may hold whole or in part.
KNOWN = {"thinker.model.embed_tokens.weight", "thinker.model.norm.weight", "thinker.visual.patch.weight"}
IN_MEMORY = ["thinker.model.language_model.embed_tokens.weight", "thinker.model.language_model.norm.weight",
             "thinker.model.visual.patch.weight"]  # fmt: skip


def model() -> Model:
    config = {"model_type": "qwen2_5_omni"}
    spellings = Spellings.parse(DIALECTS, config, "config.json")
    return Model(definition=None, reference=None, config=config, config_path="config.json", spellings=spellings)


@pytest.mark.parametrize("beside", [[], ["talker.codec_head.weight"]])
def test_a_whole_model_is_not_taken_for_the_part_that_is_trained_alone(beside):
    """With `thinker.` for a prefix, the names of the part are the same; the rest would be left out."""
    name, holding = naming_of([*IN_MEMORY, *beside], KNOWN, None, None, model())
    assert name == "transformers5"
    assert holding.held("thinker.visual.patch.weight") == "thinker.model.visual.patch.weight"


def test_the_part_that_is_trained_alone_is_known_by_its_names():
    found = [name.removeprefix("thinker.") for name in IN_MEMORY]
    assert naming_of(found, KNOWN, None, None, model())[0] == "transformers5_thinker"


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ([], True),
        (["optimizer.state.language.model.norm.weight.exp_avg"], True),
        (["vision.patch.weight"], False),
        (["language_of.norm.weight"], False),
    ],
)
def test_an_embedding_tells_the_prefix_of_what_is_all_below_it(beside, expected):
    found = ["language.model.embed_tokens.weight", "language.model.norm.weight", *beside]
    assert is_under_one_prefix(found, embeddings(), None) is expected


def test_a_prefix_that_is_given_is_not_judged_by_an_embedding():
    assert not is_under_one_prefix(["model.embed_tokens.weight"], embeddings(), "")


def test_names_that_would_not_be_found_again_are_refused():
    holding = Holding(names=(("a.", "c."), ("b.", "c.")))
    wanted = {"x.c.w": "a.w", "y.c.w": "a.w", "z.b.w": "b.w"}
    with pytest.raises(InputError) as caught:
        check_exchange(wanted, {"x.c.w": "c.w", "y.c.w": "c.w", "z.b.w": "b.w"}, holding, "mine")
    assert caught.value.problems == [
        "z.b.w: the dialect mine has no such name; give another source_dialect",
        "a.w: two tensors of the source would have this name; give another source_dialect",
    ]
