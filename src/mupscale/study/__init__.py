"""Studies on top of the core: train, compare with training from scratch, and show what growing saved.

Knows the public face of the core (`mupscale.plan`, `mupscale.grow`, …), `transformers.Trainer` and
matplotlib; nothing in the core knows of it. Needs the extra `mupscale[study]`.
"""
