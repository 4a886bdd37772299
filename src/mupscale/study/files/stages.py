"""Successive growth, as `mupscale train --stages` takes it, told as a study: each stage grows the one before.

    stages = read_stages(["1:300", "2:200", "1x2:100"])     # or a TOML file, with more to say about each

Knows words and TOML; what a stage's values mean is for `mupscale.study.files.sweeps` to check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mupscale.errors import GrowthError
from mupscale.study.files.toml import is_whole, read_toml

_RENAMED = {"width": "growth", "optimizer": "optimizer_state"}
_WORDS = ("to", "operator", "noise", "optimizer")


def read_stages(words: Sequence[str]) -> list[dict[str, Any]]:
    """Stages from words ``WIDTH:STEPS`` or ``WIDTHxLAYERS:STEPS``, or from one TOML file with a table
    ``[[stages]]`` for each. Width and layers are factors, over the stage before.

    Raises:
        GrowthError: names the word, or the file and key.

    >>> read_stages(["1:300", "2:200", "1x2:100"])
    [{'steps': 300}, {'steps': 200, 'growth': 2}, {'steps': 100, 'layers': 2}]
    """
    if len(words) == 1 and words[0].endswith(".toml"):
        tables = _tables(Path(words[0]))
    else:
        tables = []
        for word in words:
            said = re.fullmatch(r"(\d+)(?:x(\d+))?:(\d+)", word, re.ASCII)
            if said is None:
                raise GrowthError(
                    f"stage {word!r}: expected WIDTH:STEPS, such as 2:200, or WIDTHxLAYERS:STEPS, such as "
                    "1x2:200, or one TOML file"
                )
            width, layers, steps = (int(number or 1) for number in said.groups())
            tables.append({"steps": steps, "width": width, "layers": layers})
    for number, table in enumerate(tables, start=1):
        for factor in ("width", "layers"):
            if table.get(factor) == 1:
                del table[factor]
        if (not {"width", "layers", "to"} & table.keys()) != (number == 1):
            raise GrowthError(
                f"stage {number}: "
                + (
                    "the first has nothing to grow from; give it a width (and layers) of 1"
                    if number == 1
                    else "expected a width or layers above 1, or to"
                )
            )
    return [{_RENAMED.get(key, key): value for key, value in table.items()} for table in tables]


def _tables(path: Path) -> list[dict[str, Any]]:
    tables = read_toml(path).get("stages")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise GrowthError(f"{path}: no [[stages]] in it; give a table [[stages]] for each stage")
    for number, table in enumerate(tables, start=1):
        if not all(
            is_whole(table.get(key, least)) for key, least in (("steps", None), ("width", 1), ("layers", 1))
        ):
            raise GrowthError(f"{path}: stage {number}: steps (and width, layers) must be whole numbers")
        if not all(isinstance(table.get(key, ""), str) for key in _WORDS):
            raise GrowthError(f"{path}: stage {number}: expected words for to, operator, noise and optimizer")
        if "to" in table:
            table["to"] = str(Path(table["to"]).absolute())
    return tables


def line(
    stages: Sequence[Mapping[str, Any]], first: Mapping[str, Any], lr: float, layers: int
) -> dict[str, Any]:
    """The sweeps and the question of a study that goes through all stages.

    Args:
        first: how the first stage begins.
        lr: of all stages that do not say; as the first model's.
        layers: of the first stage's model.

    Raises:
        GrowthError: a factor of layers behind a stage with a config, which has a depth of its own.
    """
    sweeps: dict[str, dict[str, Any]] = {}
    configured = False
    for number, stage in enumerate(stages, start=1):
        configured |= "to" in stage
        if "layers" in stage:
            if configured:
                raise GrowthError(
                    f"stage {number}: layers are a factor over the stage before, and a stage with to has a "
                    "depth of its own; give a config.json (to) here, too"
                )
            layers *= stage["layers"]
            stage = {**stage, "layers": layers}
        begin = first if number == 1 else {"from": f"stage{number - 1}"}
        # Only the last ends in a cooldown, if nothing is said.
        constant = {} if number == len(stages) else {"cooldown_fraction": 0.0}
        sweeps[f"stage{number}"] = {**begin, "lr": lr, "keep": True, **constant, **stage}
    return {"sweep": sweeps, "question": [{"ask": "line", "of": [*sweeps]}]}
