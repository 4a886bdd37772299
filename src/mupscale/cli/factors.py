"""Numbers out of words: growth factors, whole ones and fractions; counts with a K, M, B or T."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from mupscale.errors import GrowthError


def parse_axes(pairs: Sequence[str]) -> dict[str, Fraction] | None:
    """Growth by axis from words such as `d_ff=3`; None for no words.

    Raises:
        GrowthError: a word is not NAME=FACTOR, or a name comes twice.

    Example:
        >>> {axis: str(factor) for axis, factor in parse_axes(["d_ff=3/2", "kv_heads=1"]).items()}
        {'d_ff': '3/2', 'kv_heads': '1'}
    """
    axes = {}
    for pair in pairs:
        name, _, factor = pair.partition("=")
        if name in axes:
            raise GrowthError(f"--axes {pair}: {name} is given twice; give it once")
        axes[name] = parse_factor(f"--axes {pair}", factor if name else "", "NAME=FACTOR, such as d_ff=3")
    return axes or None


def parse_factor(option: str, text: str, expected: str) -> Fraction:
    """A factor, from a few digits: an exponent could stand for more of them than there is memory.

    Raises:
        GrowthError: it is none; names the option, and what was expected.

    >>> parse_factor("--width 1.5", "1.5", "a factor")
    Fraction(3, 2)
    """
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9}|/[1-9]\d{0,8})?", text, re.ASCII):
        raise GrowthError(f"{option}: expected {expected}; or a fraction, as 3/2 or 1.5")
    return Fraction(text)


def parse_count(option: str, text: str) -> float:
    """A number with K, M, B or T behind it.

    Raises:
        GrowthError: not such a number, or not above 0; names the option.

    >>> parse_count("--tokens", "1.4B")
    1400000000.0
    """
    units = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    word = text.strip().upper()
    try:
        value = float(word[:-1]) * units[word[-1]] if word[-1:] in units else float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise GrowthError(f"{option} {text!r}: expected a number above 0, such as 70M or 1.4B")
    return value
