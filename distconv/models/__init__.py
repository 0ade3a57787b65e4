"""Model definitions: rules, the sizes that config.json gives, and the binding of rules to stored tensors.

Knows no layout and no file format.
"""
