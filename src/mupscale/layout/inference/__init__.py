"""From runs of a tiny model to axes: what follows which field of a config, which constants are folded.

Knows configs and what flows through a model; must not know of the real model's weights.
"""
