"""Checkpoints of `torch.distributed.checkpoint` (DCP): tensors in chunks, and `.metadata`."""
