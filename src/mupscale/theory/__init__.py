"""The theory, in code: how every tensor and hyperparameter scales, and the plan of a whole model.

Knows layouts, and of optimizers their rules; must not know how tensors are filled or optimizers built.
"""
