"""Checkpoint directories: weights and optimizer files, grown, written and compared a tensor at a time.

Knows files, tensors, what transformers does with them, and what grows one; must not know of proofs.
"""
