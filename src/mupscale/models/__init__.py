"""Build and run a model: what it holds, what it is called with, in float64, with the same chance, sharded.

Knows modules, tensors and transformers' configs, and imports transformers only where something is of it. Must
not know of axes, growth, layouts or files.
"""
