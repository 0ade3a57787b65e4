"""Megatron-core's distributed checkpoints, `torch_dist`."""
