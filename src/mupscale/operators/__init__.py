"""How what grows is filled: one function an operator, any tensor by name, a whole module in place.

Knows tensors, plans and modules; must not know of optimizers or files.
"""
