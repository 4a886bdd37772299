"""How dims flow through one run of a model: what every operator says about the dims of its tensors.

Knows tensors and torch's operators; must not know of configs, families or what grows.
"""
