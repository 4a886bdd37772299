"""What a study is, as plain values that check themselves: settings of training, sweeps, what they try.

Knows numbers, words, and the optimizers and operators of the core. Must not know of TOML, of data, of models
that are made, or of Optuna: everything else in `mupscale.study` stands on it.
"""
