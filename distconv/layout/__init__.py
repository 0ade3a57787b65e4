"""Parallel layouts: sizes of the axes, layers of the pipeline stages, and the cut of parameters into shards.

Knows no file format.
"""
