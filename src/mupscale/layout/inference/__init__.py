"""Axes read out of the model itself: run it once, and see what becomes of every dim on the way."""
