"""The notation of named axes: what each dim of a tensor is made of, and how tensors grow along it.

Knows tensors and names; must not know of models, layouts, optimizers or files.
"""
