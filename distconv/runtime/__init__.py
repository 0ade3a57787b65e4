"""The processes of a job: launchers, collective calls, agreement on outcomes, tasks handed out, memory and time used.

Knows nothing of checkpoints.
"""
