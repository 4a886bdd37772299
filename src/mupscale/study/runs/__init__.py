"""Runs: the models of a study, how each begins, and training it, alone or in a stack.

Knows models, growth, optimizers, the Trainer and data. Must not know of Optuna, of how trials are handed out,
or of questions and the page; and what is trained here, a caller that knows of no study can train, too.
"""
