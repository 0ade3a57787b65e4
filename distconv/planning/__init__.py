"""From options to a plan: reading the source, choosing the model definition, dividing the files over processes.

Writes no checkpoint.
"""
