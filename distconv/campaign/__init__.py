"""Many checkpoints in one job: their list, the names of their results, and the jobs one after the other.

Owns what is common to several sources. Knows nothing of what a job does.
"""
