"""Megatron checkpoints: `mp_rank_*` directories cut by tensor, pipeline, virtual pipeline and expert parallelism."""
