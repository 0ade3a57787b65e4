"""Moving bytes: from a plan to steps, and from steps to files that are written, compared and committed.

Knows no format and no model.
"""
