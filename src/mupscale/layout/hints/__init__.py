"""Declared layouts, one small file a family; each defines ``FAMILY``."""
