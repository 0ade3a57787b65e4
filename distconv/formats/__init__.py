"""Checkpoint formats, one folder per format: recognition, reading, planning, writing and checking.

`base` has the interfaces that a format implements, `registry` the list of formats; no other module names a format.
"""
