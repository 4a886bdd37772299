"""What is known of the families of transformers: measured when first asked for, and remembered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from mupscale.errors import GrowthError
from mupscale.layout.base import DEPTH, Fold, Layout
from mupscale.layout.cache import remembered
from mupscale.layout.depth import depth_of
from mupscale.layout.inference.family import Family, part_of
from mupscale.layout.inference.fields import NOTES
from mupscale.layout.inference.folding import folds_of
from mupscale.layout.inference.instance import instance, randomize_
from mupscale.layout.inference.measuring import infer
from mupscale.layout.inference.residual import writers
from mupscale.layout.tiny_config import tiny
from mupscale.models.calls import Call
from mupscale.models.inputs import example_inputs
from mupscale.models.precision import Float64, float64
from mupscale.models.skeletons import PreTrainedConfig, is_stock, model_class, quiet


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a config: its axes, and the fields that they follow.

    Raises:
        GrowthError: no tiny model of it can be built and run.
    """
    stock = is_stock(config)
    code = "" if stock else f" {id(model_class(config))}"
    key = json.dumps(_key(tiny(config)), sort_keys=True, default=str) + code
    if key not in _families:
        data = remembered("family", key, lambda: infer(config).to_dict(), keep=stock)
        _families[key] = Family.from_dict(config, data)
    return _families[key]


_families: dict[str, Family] = {}  # of this process


def differing_fields(found: PreTrainedConfig, expected: PreTrainedConfig) -> dict[str, tuple[Any, Any]]:
    """The fields of two configs by which their models may compute other things, and both values of each."""
    own, other = _key(found), _key(expected)
    fields = [*other, *(key for key in own if key not in other)]
    changed = {k: (own.get(k), other.get(k)) for k in fields if own.get(k) != other.get(k)}
    return {k: v for k, v in changed.items() if not re.search(_ASIDE, k)}


# Names, special tokens, and what is given back beside the outputs.
_ASIDE = r"^(architectures|output_.*|return_dict|problem_type|.*_token_id)$"


def _key(config: PreTrainedConfig) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in NOTES | {"id2label", "label2id"}}


def folds_for(family: Family, layout: Layout, growth: Mapping[str, Fraction]) -> dict[str, tuple[Fold, ...]]:
    """The folds of a model's parameters under a growth, by name.

    Axes along which copies are not exact fold nothing: what is padded has no constants to make up for.

    Raises:
        GrowthError: no folds make up for a constant of the architecture that depends on width.
    """
    asked = {axis: g for axis, g in growth.items() if axis in family.laws}
    if not asked:
        return {}
    whole = all(g.denominator == 1 and g > 1 and axis not in layout.inexact for axis, g in asked.items())
    # Of a growth that is not made of whole copies, the plainest of those that are shows the same laws.
    stand_in = family.shown_by(asked) if whole else family.width(Fraction(2))
    factors = family.factors_for(stand_in)  # below 1 where another field grows: a ratio of two that stays
    key = [_key(family.small), sorted((".".join(p), str(f)) for p, f in factors.items())]
    data = remembered(
        "folds",
        key,
        lambda: {n: [f.axis, str(f.power), f.offset] for n, f in folds_of(family, factors, stand_in).items()},
        keep=is_stock(family.small),
    )
    tiny_folds = {n: Fold(axis, Fraction(power), offset) for n, (axis, power, offset) in data.items()}
    found: dict[str, tuple[Fold, ...]] = {}
    for name, fold in tiny_folds.items():
        for real in _same_place(name, family.axes, layout.params, tiny_folds):
            found[real] = (fold,)
    return found


def with_writers(family: Family, layout: Layout) -> Layout:
    """A layout with the folds, by the growth of layers, of what writes to the residual stream.

    Or with the reason why these cannot be told, as where there is no residual stream.
    """
    key = _key(family.small)
    found = remembered("writers", key, lambda: _writers(family), keep=is_stock(family.small))
    if (reason := found["refused"]) is not None:
        return layout.without_depth(reason)
    offsets: dict[str, float] = found["offsets"]
    kinds = {_in_layer(name): offsets.get(name) for name in family.axes}
    if odd := next((n for n in family.axes if offsets.get(n) != kinds[_in_layer(n)]), None):
        return layout.without_depth(f"{odd} adds to the residual stream in some layers alone")
    # Of experts that are stored one by one a real model may have more than the tiny one.
    parts = {part_of(name): offsets.get(name) for name in family.axes}
    folds = dict(layout.folds)
    for name in layout.params:
        offset = kinds.get(_in_layer(name), parts.get(part_of(name)))
        if offset is not None:
            folds[name] = (*folds.get(name, ()), Fold(DEPTH, Fraction(-1), offset))
    return replace(layout, folds=folds)


def _in_layer(name: str) -> str:
    """A name without the number of its layer."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name, count=1)


def _writers(family: Family) -> dict[str, Any]:
    model = instance(family.small)
    randomize_(model, family.axes)
    with float64(), quiet(), Float64():
        call = Call.of(example_inputs(model, seed=1))
        try:
            return {"offsets": writers(model, depth_of(family.small), family.axes, call), "refused": None}
        except GrowthError as error:
            return {"offsets": {}, "refused": str(error)}


def _same_place(name: str, small: Iterable[str], large: Iterable[str], folded: Iterable[str]) -> list[str]:
    """The large model's parameters in the place of a tiny one's: in every layer, or in the first or last.

    Raises:
        GrowthError: some layers in between are folded and others are not.
    """
    part = part_of(name)
    own, ours = ([n for n in names if part_of(n) == part] for names in (small, large))
    mine = [n for n in own if n in folded]
    if len(mine) == len(own):
        return ours
    if mine == own[-1:]:
        return ours[-1:]
    if mine == own[:1]:
        return ours[:1]
    raise GrowthError(
        f"{name}: needs different scales in different layers, and a tiny model does not show which; "
        "run the model itself, plan(model, to=wide_config, inputs=x)"
    )
