"""Checkpoint directories: weights and optimizer files, read and written by tensor, whole or not at all.

Knows files, tensors and what transformers does with them; must not know of proofs or operators: what a weight
grows into is told to it.
"""
