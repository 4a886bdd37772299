"""The coordinate check: does the size of any activation depend on the width, or on the depth?

Under μP the entries of every hidden activation, and the change that a step makes to them, keep their size as
the model gets wider (Yang et al. 2021, arXiv 2203.03466, Appendix D.1), and under CompleteP as it gets deeper
(Dey et al. 2025, arXiv 2505.01618). Models are trained for a few steps from fresh weights, and the mean
absolute value of each module's output is followed over width or depth.

Knows models, the core, and how a picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby, product
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedConfig, TrainerState

import mupscale
from mupscale.errors import GrowthError
from mupscale.layout.base import DEPTH
from mupscale.layout.depth import depth_of
from mupscale.study.page.plots import Line, Plot, draw
from mupscale.study.runs.norms import RecordNorms
from mupscale.theory.registry import optimizer_names
from mupscale.theory.tables import collapse

PARAMETRIZATIONS = {
    "standard": "standard parametrization",  # the model's own initialization, one learning rate
    "mup": "μP relative to the narrow model",  # `init_` and `param_groups`
    "grown": "grown from the fresh narrow model",  # `grow` and `param_groups`
}
# Slopes of log activation over log width, or log depth, that count as none.
TOLERANCE = 0.15
BATCH_SIZE, BLOCK_SIZE = 8, 32
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Slope:
    """How one kind of module's output goes with width, or depth, after the last step: |output| ∝ width^slope.

    Attributes:
        interval: two standard errors of the slope.
        sizes: mean over the seeds, by width, or by depth.
        width: what was the same in all, where they are followed over depth.
    """

    parametrization: str
    module: str
    slope: float
    interval: float
    sizes: dict[int, float]
    width: int | None = None

    @property
    def verdict(self) -> str:
        """Beyond ±`TOLERANCE` and beyond chance, its interval, it "grows" or "vanishes"."""
        if abs(self.slope) <= max(TOLERANCE, self.interval):
            return "keeps its size"
        return "vanishes" if self.slope < 0 else "grows"  # so does what overflowed

    def __str__(self) -> str:
        return f"{self.module} {self.verdict} ({self.slope:+.2f} ± {self.interval:.2f})"


def coordinate_check(
    config: PreTrainedConfig,
    *,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] = (),
    optimizer: str = "adamw",
    lr: float = 2e-3,
    steps: int = 4,
    seeds: int = 3,
    parametrizations: Sequence[str] = tuple(PARAMETRIZATIONS),
    progress: Progress | None = None,
) -> list[Row]:
    """Train every width under every parametrization; a row for every module (layers together) and step.

    Args:
        config: of the narrow model.
        widths: factors over it, the first of them 1; by default 1, 2, 4, 8, or 1 where there are depths.
        depths: numbers of layers, its own or more; where there are several, sizes are followed over these, at
            every width.
        optimizer: by lower-case name, as `mupscale hparams` takes it.
        lr: learning rate of the narrow model.
        steps: optimizer steps, all on one batch of random tokens. Logits from scratch need a few: μP starts
            them small, and what is learned has to outgrow that.
        seeds: how many times, with other weights and tokens.
        parametrizations: of `PARAMETRIZATIONS`.
        progress: shows how far it is.

    Raises:
        GrowthError: the family is not supported, or a setting makes no sense.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2,
        ...                      num_hidden_layers=1, vocab_size=32)
        >>> rows = coordinate_check(config, widths=(1, 2), steps=1, seeds=1, parametrizations=["mup"])
        >>> {row["step"] for row in rows}
        {0, 1}
    """
    known, widths = optimizer_names(), widths or ((1,) if depths else (1, 2, 4, 8))
    if (len(set(widths)) < 2 and not depths) or min(widths) < 1:
        raise GrowthError(f"widths {widths}: expected at least two different factors of 1 or more")
    own = depth_of(config)
    if depths and (len(set(depths)) < 2 or min(depths) < own):
        raise GrowthError(
            f"depths {depths}: expected at least two, of {own} layers, the narrow model's, or more"
        )
    if unknown := set(parametrizations) - set(PARAMETRIZATIONS):
        expected = ", ".join(PARAMETRIZATIONS)
        raise GrowthError(f"parametrization {min(unknown)!r}: expected some of {expected}")
    if optimizer not in known:
        raise GrowthError(f"optimizer {optimizer!r}: expected one of {', '.join(sorted(known))}")
    if min(steps, seeds) < 1 or not lr > 0:
        raise GrowthError("steps, seeds and lr must be positive")
    shapes = list(product(widths, depths or (own,)))
    plans = {(w, d): mupscale.plan(config, width=w, axes={DEPTH: Fraction(d, own)}) for w, d in shapes}
    runs = list(product(parametrizations, shapes, range(seeds)))
    task = progress.add_task("coordinate check", total=len(runs), note="") if progress else None
    rows = []
    for parametrization, (width, depth), seed in runs:
        place = {"parametrization": parametrization, "width": width, "depth": depth, "seed": seed}
        found = _run(config, plans[width, depth], parametrization, seed, known[optimizer], lr, steps)
        rows += [place | row for row in found]
        if progress and task is not None:
            deep = f", {depth} layers" if depths else ""
            progress.update(task, advance=1, note=f"{parametrization}, width × {width}{deep}")
    return rows


def _run(
    config: PreTrainedConfig,
    plan: mupscale.Plan,
    begin: str,
    seed: int,
    make: type[Optimizer],
    lr: float,
    steps: int,
) -> Iterator[Row]:
    """The size of every module's output before the first step and after each."""
    standard = begin == "standard"
    torch.manual_seed(seed)
    if begin == "grown":
        model = mupscale.grow(AutoModelForCausalLM.from_config(config), plan, operator="duplicate", seed=seed)
    else:
        model = AutoModelForCausalLM.from_config(plan.config)
    if begin == "mup":
        mupscale.init_(model, plan, seed=seed)
    groups = model.parameters() if standard else mupscale.param_groups(model, plan, make, lr=lr)
    optimizer = make(groups, lr=lr)  # type: ignore[call-arg]
    # Frequencies as in text, by Zipf's law: something to learn within a few steps.
    frequency = (1 / torch.arange(1, config.vocab_size + 1)).expand(BATCH_SIZE, -1)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.multinomial(frequency, BLOCK_SIZE, replacement=True, generator=generator)
    norms, state = RecordNorms(every=1), TrainerState()
    model.train()
    for state.global_step in range(steps + 1):
        norms.on_step_begin(None, state, None, model=model)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        norms.on_pre_optimizer_step(None, state, None, model=model)
        optimizer.step()
    folds = {} if standard else _folded(plan)
    for step, kind, module, mean_abs, _ in norms.rows():
        if kind == "activation":
            yield {"step": step, "module": module, "mean_abs": mean_abs / folds.get(module, 1.0)}


def _folded(plan: mupscale.Plan) -> dict[str, float]:
    """What is folded into the output of a module on purpose, by kind of module, which is no deviation.

    That is into a tied readout's last norm, and into all of a branch that writes to the residual stream.
    """
    found = {}
    for name in plan.layout.folds:
        owner, fold = collapse(name).rpartition(".")[0], plan.params[name].fold
        found[owner] = fold
        while plan.params[name].repeats != 1 and (owner := owner.rpartition(".")[0]).partition("*")[2]:
            found.setdefault(owner, float(1 / plan.params[name].repeats))
    return found


def slopes(rows: Sequence[Row]) -> list[Slope]:
    """Fit log₂ of the outputs over log₂ of the width, after the last step, all seeds together.

    Where depths differ, over log₂ of the depth, for every width by itself.
    """
    last, over = max(row["step"] for row in rows), followed_over(rows)
    kinds: dict[tuple[str, int | None, str], dict[int, list[float]]] = {}
    for row in rows:
        if row["step"] == last:
            width = row["width"] if over == "depth" else None
            kind = kinds.setdefault((row["parametrization"], width, row["module"]), {})
            kind.setdefault(row[over], []).append(row["mean_abs"])
    found = []
    for (parametrization, width, module), sizes in kinds.items():
        points = [(x, size if 0 < size < math.inf else math.nan) for x in sizes for size in sizes[x]]
        x, y = np.log2(points).T
        deviation = x - x.mean()
        slope = float(deviation @ y / (deviation @ deviation))
        residual = y - y.mean() - slope * deviation
        error = math.sqrt(residual @ residual / max(1, len(x) - 2) / (deviation @ deviation))
        found.append(
            Slope(
                parametrization=parametrization,
                module=module,
                slope=slope,
                interval=2 * error,
                sizes={x: fmean(some) for x, some in sizes.items()},
                width=width,
            )
        )
    return found


def followed_over(rows: Sequence[Row]) -> str:
    """What the rows follow sizes over: ``"depth"`` where that differs, else ``"width"``."""
    return "depth" if len({row.get("depth") for row in rows}) > 1 else "width"


def holds(found: Sequence[Slope]) -> bool:
    """Whether no module grows with width or depth; the standard parametrization counts if it is alone."""
    judged = [slope for slope in found if slope.parametrization != "standard"] or found
    return all(slope.verdict != "grows" for slope in judged)


def verdicts(found: Sequence[Slope]) -> list[str]:
    """One line a parametrization, and a width, where there are depths: which modules grow or vanish."""
    lines = []
    for (parametrization, width), group in groupby(found, key=lambda s: (s.parametrization, s.width)):
        mine, over = sorted(group, key=lambda slope: -abs(slope.slope)), "depth" if width else "width"
        said = f"all {len(mine)} kinds of modules keep their size at every {over}; largest slope: {mine[0]}"
        if off := [slope for slope in mine if slope.verdict != "keeps its size"]:
            said = f"{len(off)} of {len(mine)} kinds of modules go with {over}: {', '.join(map(str, off))}"
        lines.append(f"{parametrization}{f', width × {width}' if width else ''}: {said}")
    return lines


def picture(rows: Sequence[Row], found: Sequence[Slope]) -> Plot:
    """Mean absolute outputs after the last step over width, a panel each parametrization; seeds are averaged.

    Or over depth, a panel each parametrization and width. Lines that grow or vanish are drawn thick; the
    legend says the slope. Its rows are all numbers.
    """
    over = followed_over(rows)
    panels: dict[str, list[Line]] = {}
    for slope in found:
        line = Line(
            name=slope.module,
            curve=sorted(slope.sizes.items()),
            label=f"{slope.module} ({slope.slope:+.2f})",
            marker="o",
            width=1.2 if slope.verdict == "keeps its size" else 2.6,
        )
        title = PARAMETRIZATIONS[slope.parametrization]
        panels.setdefault(title + (f", width × {slope.width}" if slope.width else ""), []).append(line)
    plot = draw(
        "coordinates",
        panels,
        columns=(over, "mean_abs"),
        x="width, times the narrow model" if over == "width" else "layers",
        y=f"mean absolute output after {max(row['step'] for row in rows)} steps",
        caption=f"Level lines: the size of what a module computes does not depend on the {over}.",
        colours="tab20",
        values=True,
        log_y=True,
        same_scale=True,
        legend_title="module (slope)",
        panel_size=(5.2, 6.8),
    )
    return replace(plot, rows=rows)
