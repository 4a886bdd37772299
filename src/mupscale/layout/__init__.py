"""Where the axes come from: a `Layout` names the axes of every tensor, read out of the model itself.

Knows models, configs and the notation; must not know of scales, optimizers, operators or checkpoints.
"""
