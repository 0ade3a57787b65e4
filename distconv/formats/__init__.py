"""Checkpoint formats, a folder each: how one is recognised, read, planned, written and checked.

`base` has the protocols that a format implements, `registry` the list of formats; nothing else names them.
"""
