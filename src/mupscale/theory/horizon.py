"""Batch size and training length: what AdamW's values become where the wide model's are not the narrow one's.

With m_B and m_D the wide model's batch size and tokens over the narrow one's, all goes by one number,

    r    = m_B / m_D            steps of the narrow run over those of the wide one

    lr↑  = lr · √r
    wd↑  = wd · √r              decoupled and multiplied by lr, as in torch's AdamW; L2, in the loss, stays
    β↑   = β^r                  1 − β↑ = r · (1 − β), to first order
    eps↑ = eps / √r

Batch: where gradients are mostly noise, whose size goes as 1/√m_B, Adam follows a stochastic differential
equation in which a step of lr takes the time lr². Malladi et al. 2022 (arXiv 2205.10287) give lr, β and eps
under which all batch sizes follow the same one; Mlodozeniec et al. 2025 (Complete(d)P, arXiv 2512.22382) add
the weight decay: lr · wd stays what it is per token.

Length: Complete(d)P finds the best lr to go as 1/√m_D. It reads this as the same equation over the same time,
with only the signal-to-noise ratio changed, so that wd goes along: lr · wd stays what it is per share of the
run. For β and eps the same is taken here. More tokens in larger and no more steps then change nothing.

β^r and not 1 − r · (1 − β), which falls below 0: moments remember as many tokens at any batch size, as in
Marek et al. 2025 (arXiv 2507.07101) for β₂ and Busbridge et al. 2023 (arXiv 2307.13813) for means of weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mupscale.errors import GrowthError

# What a group of values holds besides them: r, by which they have been scaled.
STEPS_RATIO = "steps_ratio"


def steps_ratio(
    batch_size: tuple[float, float] | None = None, tokens: tuple[float, float] | None = None
) -> float | None:
    """r, from (narrow, wide) batch sizes and tokens: steps of the narrow run over those of the wide one.

    Returns:
        None where neither is given.

    Raises:
        GrowthError: not two numbers above 0.

    >>> steps_ratio(batch_size=(64, 256)), steps_ratio(tokens=(1e9, 4e9)), steps_ratio((64, 256), (1e9, 4e9))
    (4.0, 0.25, 1.0)
    """
    if batch_size is None and tokens is None:
        return None
    return _growth("batch_size", batch_size) / _growth("tokens", tokens)


def rescaled(values: Mapping[str, Any], ratio: float, *, decoupled: bool = True) -> dict[str, Any]:
    """AdamW's values for a run of 1/r times the steps; ``lr_scale`` and `STEPS_RATIO` accumulate.

    Args:
        decoupled: whether weight decay acts on the parameter and not through the gradient.

    >>> wide = rescaled({"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8, "betas": (0.9, 0.95)}, 4.0)
    >>> wide["lr"], wide["weight_decay"], wide["eps"], wide["lr_scale"]
    (0.02, 0.2, 5e-09, 2.0)
    >>> [round(beta, 3) for beta in wide["betas"]]
    [0.656, 0.815]
    """
    root = math.sqrt(ratio)
    factors = {"lr": root, "weight_decay": root if decoupled else 1.0, "eps": 1 / root}
    scaled = {key: value * factors[key] if key in factors else value for key, value in values.items()}
    if "betas" in values:
        scaled["betas"] = tuple(beta**ratio for beta in values["betas"])
    scaled["lr_scale"] = values.get("lr_scale", 1.0) * root
    scaled[STEPS_RATIO] = values.get(STEPS_RATIO, 1.0) * ratio
    return scaled


def in_words(ratio: float) -> str:
    """What becomes of the values, for people.

    >>> in_words(0.25)
    "4 × the narrow model's steps: lr and decoupled weight decay × 0.5, eps × 2, betas to the power of 0.25"
    """
    root = math.sqrt(ratio)
    return (
        f"{1 / ratio:.3g} × the narrow model's steps: lr and decoupled weight decay × {root:.3g}, "
        f"eps × {1 / root:.3g}, betas to the power of {ratio:.3g}"
    )


def _growth(name: str, sizes: tuple[float, float] | None) -> float:
    """The wide model's over the narrow one's."""
    if sizes is None:
        return 1.0
    try:
        narrow, wide = map(float, sizes)
    except (TypeError, ValueError):
        narrow = wide = math.nan
    if not (0 < narrow < math.inf and 0 < wide < math.inf):
        raise GrowthError(
            f"{name} {sizes!r}: expected two numbers above 0, the narrow model's and the wide one's"
        )
    return wide / narrow
