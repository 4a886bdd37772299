"""Growing modules in memory: the plan, the operators and the optimizer rules, put together.

Checkpoints on disk grow through the same `grow_tensor`, one tensor at a time (`mupscale.checkpoint`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from mupscale.errors import GrowthError
from mupscale.initialization import Law, fresh_laws
from mupscale.operators import Noise, add_noise_, duplicate_scaled
from mupscale.planning import Plan

DEFAULT_NOISE = "balanced:1"


class Grower:
    """Grows any tensor of a model by name, as a plan, an operator, a noise and a seed say.

    The result for one name depends on nothing else: tensors can be grown in any order, process or place.
    """

    def __init__(
        self, plan: Plan, *, operator: str = "duplicate", noise: str | Noise | None = DEFAULT_NOISE, seed: int = 0
    ) -> None:
        if operator != "duplicate":
            raise GrowthError(f"operator {operator!r} is unknown; expected duplicate")
        for axis, factor in plan.growth.items():
            if factor.denominator != 1:
                raise GrowthError(
                    f"axis {axis!r} grows by {factor}: the operator duplicate copies whole numbers of times; "
                    "choose a whole factor"
                )
        self.plan = plan
        self.noise = Noise.parse(noise)
        self.seed = seed
        # Asked by gaussian noise only, and then once.
        self._fresh: Callable[[], Mapping[str, Law]] = cache(lambda: fresh_laws(plan))

    def __call__(self, name: str, narrow: Tensor) -> Tensor:
        """The grown tensor, in the narrow one's dtype; computed in float32 or better.

        Raises:
            GrowthError: the name or shape is not the plan's.
        """
        plan = self.plan
        name = plan.layout.ties.get(name, name)
        scaling = plan[name]
        expected = scaling.axes.shape(plan.layout.sizes)
        if tuple(narrow.shape) != expected:
            raise GrowthError(f"{name}: expected shape {expected} for axes '{scaling.axes}', found {tuple(narrow.shape)}")
        wide = duplicate_scaled(narrow, scaling, plan.layout.sizes, plan.growth)
        if self.noise is not None and name in plan.layout.params:
            add_noise_(
                wide,
                narrow,
                scaling,
                scaling.axes.expand_copies(plan.layout.sizes, plan.growth),
                self.noise,
                seed=self.seed,
                name=name,
                fresh_std=lambda: self._fresh()[name].std,
            )
        return wide.to(narrow.dtype)


def grow(
    model: nn.Module,
    plan: Plan,
    *,
    operator: str = "duplicate",
    noise: str | Noise | None = DEFAULT_NOISE,
    seed: int = 0,
) -> nn.Module:
    """Grow a model in memory; the narrow one is left as it is.

    Args:
        model: the narrow model that ``plan`` was made from (or one of the same names and shapes).
        operator: ``"duplicate"``: θ↑ = s · dup(θ).
        noise: ``"balanced:1"`` keeps the function and makes the copies differ, so that the new width gets
            used; ``"gaussian:σ"`` and ``"relative:σ"`` change it; None makes pure copies (see
            `mupscale.operators.noise`).
        seed: of the noise.

    Returns:
        The wide model, with the narrow one's dtype, device and training mode.

    Raises:
        GrowthError: the model does not fit the plan, a growth factor is not whole, or the noise is unknown.

    >>> from torch import nn
    >>> import mupscale
    >>> make = lambda width: nn.Sequential(nn.Linear(8, 16 * width), nn.ReLU(), nn.Linear(16 * width, 4))
    >>> narrow, x = make(1).double(), torch.randn(2, 8, dtype=torch.float64)
    >>> wide = grow(narrow, mupscale.plan(make, width=3))
    >>> bool((narrow(x) - wide(x)).abs().max() < 1e-12)
    True
    """
    grower = Grower(plan, operator=operator, noise=noise, seed=seed)
    tensors = _tensors(model)
    if differing := tensors.keys() ^ {*plan.layout.params, *plan.layout.buffers}:
        name = min(differing)
        raise GrowthError(
            f"{name}: {'not in the plan' if name in tensors else 'not in the model'}; make the plan from this model"
        )
    with torch.no_grad():
        wide = _fill(model, plan, {name: grower(name, tensor) for name, tensor in tensors.items()})
    for name, param in wide.named_parameters():
        param.requires_grad_(tensors[name].requires_grad)
    return wide.train(model.training)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, tied ones once."""
    params = dict(model.named_parameters())
    persistent = model.state_dict(keep_vars=True).keys()
    return {**params, **{n: b for n, b in model.named_buffers() if n in persistent}}


def _fill(model: nn.Module, plan: Plan, state: dict[str, Tensor]) -> nn.Module:
    """A wide module that holds ``state``."""
    if isinstance(model, PreTrainedModel):
        # Takes the tensors as they are, ties them, and computes the buffers that are not stored.
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            wide = type(model).from_pretrained(
                None, config=copy.deepcopy(plan.config), state_dict=state, dtype=model.dtype
            )
        finally:
            if bars:
                transformers_logging.enable_progress_bar()
        return wide.to(model.device)  # type: ignore[no-any-return]
    if plan.build_wide is None:
        raise GrowthError("this plan was loaded from a file; make it here with mupscale.plan(...) to build the module")
    wide = plan.build_wide()
    wide.load_state_dict({**state, **{alias: state[name] for alias, name in plan.layout.ties.items()}}, assign=True)
    return wide
