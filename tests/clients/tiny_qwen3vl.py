"""Write tiny random Qwen3-VL checkpoints, and what transformers computes from them.

    python tiny_qwen3vl.py DIRECTORY

makes `DIRECTORY/untied`, `DIRECTORY/tied` (does the head share the embedding's weight?) and `DIRECTORY/moe` (packed
experts), each with

    hf/           the checkpoint in float32, as `save_pretrained` writes it
    inputs.pt     the arguments of the model: token ids, and the patches of an image among them
    expected.pt   the logits

A program of its own, so that tests need neither its imports nor its threads. Knows nothing of converted checkpoints.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

TEXT = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rope_scaling": {"rope_type": "default", "mrope_section": [3, 3, 2]},
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
VISION = {
    "depth": 4,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 44,
    "out_hidden_size": 48,
    "num_position_embeddings": 25,
    "patch_size": 4,
    "deepstack_visual_indexes": [1, 3],
}
# within the vocabulary, which their defaults are not
IMAGE, START, END = 124, 122, 123
SPECIAL_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 125,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "untied": (Qwen3VLForConditionalGeneration, Qwen3VLConfig, TEXT),
    "tied": (Qwen3VLForConditionalGeneration, Qwen3VLConfig, {**TEXT, "tie_word_embeddings": True}),
    "moe": (Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig, {**TEXT, **EXPERTS}),
}


def main(directory: Path) -> None:
    for name, (model_class, config_class, text) in MODELS.items():
        original = model_class(config_class(text_config=dict(text), vision_config=dict(VISION), **SPECIAL_TOKENS))
        randomise(original)
        original.save_pretrained(directory / name / "hf")
        inputs = random_inputs()
        torch.save(inputs, directory / name / "inputs.pt")
        # from the files: what follows must be true of the checkpoint, not of the model that it was saved from
        model = AutoModelForImageTextToText.from_pretrained(directory / name / "hf").eval()
        with torch.inference_mode():
            torch.save(model(**inputs).logits, directory / name / "expected.pt")


def randomise(model: PreTrainedModel) -> None:
    """Make every parameter matter: the usual initialisation has zero biases and norms that are all one."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=random)
            if parameter.ndim > 1:
                values /= parameter[0].numel() ** 0.5
            else:
                values = 0.3 * values + (0.0 if name.endswith("bias") else 1.0)
            parameter.copy_(values)


def random_inputs() -> dict[str, torch.Tensor]:
    """Every ordinary token once, and an image of 4 x 4 patches, which become four tokens."""
    random = torch.Generator().manual_seed(1)
    words = torch.randperm(START, generator=random)[:48]
    tokens = torch.cat([words[:20], torch.tensor([START, *[IMAGE] * 4, END]), words[20:]])
    return {
        "input_ids": tokens[None],
        "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=random),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
