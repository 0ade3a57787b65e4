"""The language model of any model: found in configurations and names of all families."""

from __future__ import annotations

import pytest

from distconv.models.language_model import (
    contradictions,
    embeddings,
    head_and_embedding,
    is_tied,
    text_part,
    tie_paths,
)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"a": 1}, {"a": 1}),
        ({"text_config": {"a": 1}}, {"a": 1}),
        ({"llm_config": {"a": 1}, "a": 2}, {"a": 1}),
        ({"thinker_config": {"text_config": {"a": 1}}, "text_config": {"a": 2}}, {"a": 1}),
        ({"text_config": "none", "a": 2}, {"text_config": "none", "a": 2}),
    ],
)
def test_the_part_of_a_configuration(config, found):
    assert text_part(config) == found


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("model.embed_tokens.weight", "lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "lm_head.weight"),
        ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
        ("thinker.model.embed_tokens.weight", "thinker.lm_head.weight"),
    ],
)
def test_the_head_is_beside_the_module_of_the_embedding(embedding, head):
    assert head_and_embedding({"visual.w", embedding}) == (head, embedding)
    assert embedding in embeddings()
    assert head_and_embedding({"visual.w", head}) is None


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({}, None),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
        ({"thinker_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": "yes"}, None),
    ],
)
def test_what_a_configuration_says_of_the_tie(config, tied):
    assert is_tied(config) is tied
    assert bool(tie_paths(config)) == (tied is not None)


def test_layers_that_predict_further_tokens_are_no_contradiction():
    shapes = {"model.embed_tokens.weight": (8, 4), **{f"model.layers.{layer}.w": (1,) for layer in range(3)}}
    config = {"num_hidden_layers": 2, "vocab_size": 8, "hidden_size": 4}
    assert contradictions(shapes, config, "config.json") == [
        "model.layers.2: has tensors, but config.json says num_hidden_layers 2"
    ]
    assert contradictions(shapes, {**config, "num_nextn_predict_layers": 1}, "config.json") == []
    # Nothing is known of what has no embedding, and what says nothing contradicts nothing.
    assert contradictions({"a": (1,)}, config, "config.json") == []
    assert contradictions(shapes, {}, "config.json") == []
