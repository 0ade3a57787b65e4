"""Moving bytes: from a plan to steps, and from steps to files that are written and compared.

Knows no format and no model.
"""
