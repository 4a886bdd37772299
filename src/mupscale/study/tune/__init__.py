"""Tune small, transfer large: learning rate and noise of growth, found on a small pair of widths.

Arrows point one way: procedure → runs, queue → workload, space → spec. `results`, `pictures` and `page` read
what the procedure left in the storage.
"""
