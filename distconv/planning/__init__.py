"""From a request to a plan: looking at the source, choosing the model definition, dividing the files over processes.

Writes nothing.
"""
