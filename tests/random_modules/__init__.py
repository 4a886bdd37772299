"""Random modules, written as people write them: what a `Recipe` says, in plain torch and at any width.

Nothing here knows of mupscale.
"""

from random_modules.net import inputs_of, make
from random_modules.recipe import Recipe, recipes

__all__ = ["Recipe", "inputs_of", "make", "recipes"]
