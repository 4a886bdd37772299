"""Depth: which layer of a deeper model comes from which, and what a config says of its layers.

A stack of L layers is so many blocks of ``period`` layers each; growing repeats every block in place. With a
period of 1 that is every layer by itself (1 1 2 2 …); where kinds of layers alternate, it is a whole turn of
them (a b a b …, once more each); with a period of L it is the whole stack again (1 2 1 2 …).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

from mupscale.errors import GrowthError
from mupscale.layout.base import DEPTH
from mupscale.layout.inference.fields import Path
from mupscale.layout.tiny_sizes import FIRST_LAYERS, LAST_LAYERS, LAYER_NUMBERS, LAYER_PERIODS, is_positive
from mupscale.models.skeletons import PreTrainedConfig

ORDERS = ("repeat", "cycle")


def source_of(layer: int, depth: int, deeper: int, period: int) -> int:
    """The layer of a stack of ``depth`` that a layer of a deeper one comes from.

    >>> [source_of(i, 2, 4, 1) for i in range(4)], [source_of(i, 2, 4, 2) for i in range(4)]
    ([0, 0, 1, 1], [0, 1, 0, 1])
    """
    block, place = divmod(layer, period)
    return block * (depth // period) // (deeper // period) * period + place


def period_of(config: PreTrainedConfig, order: str = "repeat") -> int:
    """How many layers are repeated together: one, or a whole turn where kinds of layers alternate.

    Raises:
        GrowthError: the order is unknown, or the stack is no whole number of turns.
    """
    if order not in ORDERS:
        raise GrowthError(f"order {order!r}: expected {' or '.join(ORDERS)}")
    depth = depth_of(config)
    if order == "cycle":
        return depth
    lists = list(zip(*_layer_lists(config).values(), strict=True))
    if lists:
        turns = (p for p in range(1, depth) if depth % p == 0 and lists == lists[:p] * (depth // p))
        return next(turns, 1)
    turn = math.lcm(*(v for v in _matching(config, LAYER_PERIODS).values() if is_positive(v)))
    if depth % turn:
        raise GrowthError(
            f"{DEPTH}: kinds of layers alternate every {turn}, and {depth} layers are no multiple of that, "
            "so that none can be repeated in place; grow widths alone"
        )
    return turn


def depth_of(config: PreTrainedConfig) -> int:
    """The number of layers; 1 where the config does not say."""
    return int(getattr(config.get_text_config(), "num_hidden_layers", 1) or 1)


def deeper_fields(config: PreTrainedConfig, factor: Fraction, period: int) -> dict[Path, Any]:
    """What a config says of its layers, as the config of the deeper model says it.

    Raises:
        GrowthError: the depth would be no whole number of turns.
    """
    if factor == 1:
        return {}
    if (depth := getattr(config, "num_hidden_layers", None)) is None:
        raise GrowthError(
            f"{DEPTH}: a config of {config.model_type} has no num_hidden_layers of its own to grow by; "
            "grow widths alone"
        )
    deeper = depth * factor
    if deeper.denominator != 1 or int(deeper) % period:
        whole = f"a multiple of {period} layers, repeated together" if period > 1 else "a whole number"
        raise GrowthError(f"{DEPTH}: {depth} × {factor} is not {whole}; choose another factor")
    sources = [source_of(i, depth, int(deeper), period) for i in range(int(deeper))]
    own = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    found: dict[Path, Any] = {(own,): int(deeper)}
    found |= {(k,): [v[i] for i in sources] for k, v in _layer_lists(config).items()}
    if period == 1:  # what is counted from an end grows; under turns there can be none
        counts = {k: v for k, v in _counts(config).items() if is_positive(v)}
        found |= {(k,): int(v * factor) if v <= depth else max(v, int(deeper)) for k, v in counts.items()}
    numbers = _matching(config, LAYER_NUMBERS)
    found |= {(k,): [i for i, s in enumerate(sources) if s in v] for k, v in numbers.items() if v}
    return found


def period_between(
    narrow: PreTrainedConfig, wide: PreTrainedConfig, factor: Fraction, order: str | None
) -> int:
    """The period by which one config is a deeper one's; of no order in particular, the first that fits.

    Raises:
        GrowthError: the deeper one says something else of some layer.
    """
    given, differing = wide.to_dict(), []
    for period in (period_of(narrow, each) for each in (ORDERS if order is None else (order,))):
        if depth_of(wide) % period:
            continue
        made = deeper_fields(narrow, factor, period)
        other = next((k for (k,), v in made.items() if _plain(given.get(k)) != v), None)
        if other is None:
            return period
        differing.append(f": its field {other!r} says {given.get(other)!r}; set it to {made[other,]!r}")
    raise GrowthError(
        f"{DEPTH}: the {depth_of(wide)} layers of the deeper config are not those of the narrow one in "
        f"order {order or ' or '.join(ORDERS)}{differing[0] if differing else '; give it a multiple of them'}"
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def layer_fields(config: PreTrainedConfig) -> dict[Path, Any]:
    """The fields that `deeper_fields` changes, as they are."""
    own = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if getattr(config, "num_hidden_layers", None) is None:
        return {}
    found: dict[Path, Any] = {(own,): config.num_hidden_layers}
    said = _layer_lists(config) | _counts(config) | _matching(config, LAYER_NUMBERS)
    return found | {(k,): v for k, v in said.items()}


def _counts(config: PreTrainedConfig) -> dict[str, Any]:
    """How many of the first or last layers are of some kind; but for what a list of kinds says already."""
    found = _matching(config, f"{FIRST_LAYERS}|{LAST_LAYERS}")
    said = {"max_window_layers"} if "layer_types" in _layer_lists(config) else set()
    return {k: v for k, v in found.items() if k not in said}


def _layer_lists(config: PreTrainedConfig) -> dict[str, Any]:
    """What is said layer by layer: kinds, flags and sizes, in a list as long as there are layers."""
    depth = getattr(config, "num_hidden_layers", None)
    numbers = _matching(config, LAYER_NUMBERS)
    return {
        k: v
        for k, v in config.to_dict().items()
        if isinstance(v, list | tuple) and len(v) == depth and k not in {*numbers, "architectures"}
        # Few layers may be as many as some other list is long: a range of time steps, sections of a rotation.
        if all(isinstance(each, str | bool) for each in v) or re.search("layer|heads|intermediate", k)
    }


def _matching(config: PreTrainedConfig, pattern: str) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if re.fullmatch(pattern, k)}


def renumbered(name: str, shift: int) -> tuple[str, int | None]:
    """A tensor's name some layers up, and the number of that layer; None for one that is in no layer.

    >>> renumbered("model.layers.3.mlp.up_proj.weight", 1)
    ('model.layers.4.mlp.up_proj.weight', 4)
    """
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    if number is None:
        return name, None
    layer = int(number[0]) + shift
    return f"{name[: number.start()]}{layer}{name[number.end() :]}", layer
