"""Two models side by side, at rest and in lockstep: every growth is proved on tiny ones before it is used.

Knows plans, operators and optimizers; must not know of checkpoints or commands.
"""
