"""What runs learn from: text and classification data, cut into training and held-out parts, in a fixed order.

Knows files, tokenizers and data packages, the settings of a run, and what a step costs. Must not know how a
model is made, grown or trained, nor anything of studies beyond those settings.
"""
