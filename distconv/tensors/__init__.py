"""The algebra: tensors as tables of box copies, operators and cuts that rewrite tables, computations on values.

Knows no model, no layout and no file format.
"""
