"""Write two tiny random Qwen2-VL checkpoints, and what transformers computes from them.

    python tiny_qwen2vl.py DIRECTORY

makes `DIRECTORY/untied` and `DIRECTORY/tied` (does the head share the embedding's weight?), each with

    hf/           the checkpoint in float32, as `save_pretrained` writes it; the untied one in several shards
    hf_memory/    the same with the parameter names that transformers has in memory, as trainers save a state dict
    model.json    its sizes, in the words in which a training program is configured
    inputs.pt     token ids and image patches
    expected.pt   the logits of the tokens and the features of the patches

A program of its own, so that tests need neither its imports nor its threads. Knows nothing of converted checkpoints.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}
VISION = {"depth": 4, "embed_dim": 32, "num_heads": 4, "hidden_size": 64}
# within the vocabulary, which their defaults are not
SPECIAL_TOKENS = {
    "bos_token_id": 120,
    "eos_token_id": 121,
    "vision_start_token_id": 122,
    "vision_end_token_id": 123,
    "image_token_id": 124,
    "video_token_id": 125,
}
# an image, and a video of two frames: patches attend to those of their own frame only
GRID = [[1, 4, 4], [2, 4, 6]]


def main(directory: Path) -> None:
    for name, tied, shard_size in (("untied", False, "150KB"), ("tied", True, "1GB")):
        write(directory / name, tied=tied, shard_size=shard_size)


def write(directory: Path, *, tied: bool, shard_size: str) -> None:
    directory.mkdir(parents=True)
    original = random_model(tied=tied)
    original.save_pretrained(directory / "hf", max_shard_size=shard_size)
    save_state_dict(original, directory / "hf_memory")
    # from the files: what follows must be true of the checkpoint, not of the model that it was saved from
    model = Qwen2VLForConditionalGeneration.from_pretrained(directory / "hf", attn_implementation="eager").eval()
    (directory / "model.json").write_text(json.dumps(sizes(model.config), indent=2))
    inputs = random_inputs(model.config)
    torch.save(inputs, directory / "inputs.pt")
    with torch.inference_mode():
        expected = {
            "logits": model(input_ids=inputs["input_ids"]).logits,
            "image_features": model.visual(inputs["pixel_values"], inputs["grid_thw"]),
        }
    torch.save(expected, directory / "expected.pt")


def save_state_dict(model: Qwen2VLForConditionalGeneration, directory: Path) -> None:
    model.config.save_pretrained(directory)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def random_model(*, tied: bool) -> Qwen2VLForConditionalGeneration:
    """A model in which every parameter matters: the usual initialisation has zero biases and norms that are all one."""
    config = Qwen2VLConfig(  # type: ignore[no-untyped-call]
        text_config={**TEXT, "tie_word_embeddings": tied},
        vision_config=VISION,
        tie_word_embeddings=tied,
        **SPECIAL_TOKENS,
    )
    model = Qwen2VLForConditionalGeneration(config)  # type: ignore[no-untyped-call]
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=random)
            if parameter.ndim > 1:
                values /= parameter[0].numel() ** 0.5
            else:
                values = 0.3 * values + (0.0 if name.endswith("bias") else 1.0)
            parameter.copy_(values)
    return model


def random_inputs(config: Qwen2VLConfig) -> dict[str, torch.Tensor]:
    vision = config.vision_config
    patches = sum(frames * height * width for frames, height, width in GRID)
    patch_size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    random = torch.Generator().manual_seed(1)
    return {
        # every token once, so that every row of the embedding matters; without images, special tokens are like others
        "input_ids": torch.randperm(config.text_config.vocab_size, generator=random).view(4, -1),
        "pixel_values": torch.randn(patches, patch_size, generator=random),
        "grid_thw": torch.tensor(GRID),
    }


def sizes(config: Qwen2VLConfig) -> dict[str, dict[str, float]]:
    text, vision = config.text_config, config.vision_config
    return {
        "text_decoder": {
            "num_layers": text.num_hidden_layers,
            "hidden_size": text.hidden_size,
            "ffn_hidden_size": text.intermediate_size,
            "num_attention_heads": text.num_attention_heads,
            "num_query_groups": text.num_key_value_heads,
            "vocab_size": text.vocab_size,
            "rotary_base": text.rope_theta,
            "layernorm_epsilon": text.rms_norm_eps,
            "tied": text.tie_word_embeddings,
        },
        "image_encoder": {
            "num_layers": vision.depth,
            "hidden_size": vision.embed_dim,
            "ffn_hidden_size": int(vision.embed_dim * vision.mlp_ratio),
            "num_attention_heads": vision.num_heads,
            "in_channels": vision.in_channels,
            "temporal_patch_size": vision.temporal_patch_size,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
            "output_size": vision.hidden_size,
        },
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
