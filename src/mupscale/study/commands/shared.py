"""What the commands of the study side have in common: extras, options, output."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mupscale.errors import GrowthError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def parse_axes(pairs: Sequence[str]) -> dict[str, int] | None:
    """Growth by axis from words such as `d_ff=3`; None for no words.

    Raises:
        GrowthError: a word is not NAME=WHOLE NUMBER.

    Example:
        >>> parse_axes(["d_ff=3", "kv_heads=1"])
        {'d_ff': 3, 'kv_heads': 1}
    """
    axes = {}
    for pair in pairs:
        name, _, factor = pair.partition("=")
        if not (name and factor.isdecimal()):
            raise GrowthError(f"--axes {pair}: expected NAME=FACTOR with a whole factor, such as d_ff=3")
        axes[name] = int(factor)
    return axes or None


def need_extras(*more: str) -> None:
    missing = [name for name in ("accelerate", "matplotlib", *more) if find_spec(name) is None]
    if missing:
        raise GrowthError(
            f"{' and '.join(missing)} not installed; this command needs: pip install 'mupscale[study]'"
        )


def tokenizer_of(folder: Path, *, required: bool = False) -> PreTrainedTokenizerFast | None:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        if required:
            raise GrowthError(
                f"{folder}: no tokenizer.json; the text must be encoded with the model's own tokenizer"
            )
        return None
    return AutoTokenizer.from_pretrained(folder)


def tell(as_json: bool, result: dict[str, Any], words: str) -> None:
    print(json_module.dumps(result, default=str) if as_json else words)


def say(words: str) -> None:
    print(words, file=sys.stderr)
