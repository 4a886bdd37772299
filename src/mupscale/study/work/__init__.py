"""Working a study off: which trials there are, who takes which, what they gave, and results from all of them.

Knows studies, runs and Optuna's storages. Must not know of questions and the page, which see only the plain
data that `results.collect` makes, or of the command line.
"""
