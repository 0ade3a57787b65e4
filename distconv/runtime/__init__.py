"""The processes of a job: how they find each other, agree on outcomes and hand out tasks, and what they use.

Knows nothing of checkpoints.
"""
