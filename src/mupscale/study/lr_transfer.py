"""Learning-rate transfer: does the best learning rate of a narrow model stay the best in a wider one?

Widths are trained from scratch at every rate of a grid, under the standard parametrization and under μP
relative to the narrow model, several seeds each. Under μP the optimum stays (Yang et al. 2021, arXiv
2203.03466, Figure 1).

Knows training; nothing of pictures.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress
from transformers import PreTrainedConfig

import mupscale
from mupscale.errors import GrowthError
from mupscale.study.data.tokens import Tokens
from mupscale.study.runs.models import fresh_model
from mupscale.study.runs.training import drop_weights, train
from mupscale.study.spec.recipe import TrainConfig
from mupscale.study.trials import run_trials

PARAMETRIZATIONS = {
    "standard": "standard parametrization",
    "mup": "μP relative to the narrowest model",
}


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """What is swept.

    Attributes:
        widths: width factors over the narrow config.
        lrs: learning rates of the narrow model, ascending; the same grid for all widths.
        seeds: how many times, with other weights and another order of the text.
        training: all other settings; its lr and seed are replaced.
    """

    widths: tuple[int, ...] = (1, 2, 4, 8)
    lrs: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
    seeds: int = 3
    training: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if len(set(self.widths)) < 2 or min(self.widths) < 1:
            raise GrowthError(f"widths {self.widths}: expected at least two different factors of 1 or more")
        if len(self.lrs) < 2 or list(self.lrs) != sorted(set(self.lrs)) or not self.lrs[0] > 0:
            raise GrowthError(f"lrs {self.lrs}: expected at least two different positive rates, ascending")
        if self.seeds < 1:
            raise GrowthError(f"seeds is {self.seeds}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run from scratch; `width` is the factor over the narrow config."""

    parametrization: str
    width: int
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run."""
        return f"{self.parametrization}-width{self.width}-lr{self.lr:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best rate of one width.

    Attributes:
        lr: the rate of the grid with the lowest loss, seeds averaged.
        loss: that loss.
        at_edge: the lowest or highest rate of the grid won: the true optimum may lie outside.
    """

    parametrization: str
    width: int
    lr: float
    loss: float
    at_edge: bool


Losses = dict[Trial, float]


def sweep(
    narrow: PreTrainedConfig,
    tokens: Tokens,
    out: Path,
    config: TransferConfig,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Losses:
    """Final held-out loss of every trial; a diverged one counts as infinite.

    Finished trials are kept under `out` (their curves, not their weights) and not repeated.

    Args:
        narrow: config of the narrowest model.
        tokens: the encoded text.
        out: folder for the runs.
        config: the grid.
        jobs: trials side by side, each in its own process on one CPU thread; 1 stays in this process.
        progress: a display to share, from `make_progress`.

    Raises:
        GrowthError: the family is not supported, or `out` holds runs with other settings.
    """
    trials = [
        Trial(parametrization=p, width=w, lr=lr, seed=seed)
        # The widest first: what takes longest should not be left for the end.
        for w in sorted(config.widths, reverse=True)
        for p in PARAMETRIZATIONS
        for lr in config.lrs
        for seed in range(config.seeds)
    ]
    return run_trials(
        partial(run_trial, narrow, tokens, out, config.training),
        trials,
        jobs=jobs,
        title="learning-rate sweep",
        describe=lambda trial, loss: f"{trial.name}: {loss:.3f}",
        progress=progress,
    )


def run_trial(
    narrow: PreTrainedConfig, tokens: Tokens, out: Path, training: TrainConfig, trial: Trial
) -> float:
    """Train one model from scratch; return its final held-out loss, infinite where it diverged.

    Raises:
        GrowthError: as `sweep`.
    """
    plan = mupscale.plan(narrow, width=trial.width)
    model = fresh_model(plan.config, trial.seed)
    if trial.parametrization == "mup":
        mupscale.init_(model, plan, seed=trial.seed)
    folder = out / trial.name
    history = train(
        model,
        tokens,
        folder,
        replace(training, lr=trial.lr, seed=trial.seed),
        plan=plan if trial.parametrization == "mup" else None,
        start={**asdict(trial), "narrow": narrow.to_dict()},
    )
    drop_weights(folder)
    return history.final_loss if math.isfinite(history.final_loss) else math.inf


def mean_losses(losses: Losses) -> dict[tuple[str, int], dict[float, float]]:
    """Loss by rate, seeds averaged, for each (parametrization, width), in ascending order."""
    by_seed: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial, loss in sorted(losses.items(), key=lambda pair: (pair[0].width, pair[0].lr)):
        by_seed[trial.parametrization, trial.width][trial.lr].append(loss)
    return {key: {lr: float(np.mean(v)) for lr, v in curve.items()} for key, curve in by_seed.items()}


def optima(losses: Losses) -> list[Optimum]:
    """The best rate of every parametrization and width, widths ascending.

    Example:
        >>> trials = {Trial(parametrization="mup", width=1, lr=lr, seed=0): loss
        ...           for lr, loss in [(1e-3, 2.0), (2e-3, 1.5), (4e-3, 1.9)]}
        >>> [(best.lr, best.at_edge) for best in optima(trials)]
        [(0.002, False)]
    """
    found = []
    for (parametrization, width), curve in mean_losses(losses).items():
        lr = min(curve, key=curve.__getitem__)
        found.append(
            Optimum(
                parametrization=parametrization,
                width=width,
                lr=lr,
                loss=curve[lr],
                at_edge=lr in (min(curve), max(curve)),
            )
        )
    return found


def shift(found: Iterable[Optimum], parametrization: str) -> float:
    """Factor between the best rates of the narrowest and the widest model, at least 1."""
    rates = [best.lr for best in found if best.parametrization == parametrization]
    return max(rates[0], rates[-1]) / min(rates[0], rates[-1])


def verdict(found: Sequence[Optimum], parametrization: str) -> str:
    """One line: from where to where the best rate moves."""
    mine = [best for best in found if best.parametrization == parametrization]
    edge = ", at the edge of the grid" if any(b.at_edge for b in (mine[0], mine[-1])) else ""
    return (
        f"{PARAMETRIZATIONS[parametrization]}: the best learning rate goes from {mine[0].lr:g} to "
        f"{mine[-1].lr:g} at {mine[-1].width / mine[0].width:g} times the width, a factor of "
        f"{shift(mine, parametrization):.3g}{edge}"
    )


def write_csv(losses: Losses, path: Path) -> None:
    """Every trial, a row each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*Trial.__dataclass_fields__, "held_out_loss"])
        for trial, loss in losses.items():
            writer.writerow([*asdict(trial).values(), loss])
