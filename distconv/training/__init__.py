"""The configuration of a training: the layout that its files say, and the lines that it needs for a layout.

Owns the names that launch scripts, arguments of Megatron and model files of MindSpeed-MM have for the parallel axes.
Knows nothing of a checkpoint's tensors, and never runs a script or follows a path in one.
"""
