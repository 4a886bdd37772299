"""The coordinate check: does the size of any activation depend on the width?

Under μP the entries of every hidden activation, and the change that a step makes to them, keep their size as
the model gets wider (Yang et al. 2021, arXiv 2203.03466, Appendix D.1). Widths are trained for a few steps
from fresh weights, and the mean absolute value of each module's output is followed over width.

Knows models, the core, and how a picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from mupscale.study.page.plots import Line, Plot, draw
from mupscale.study.runs.norms import RecordNorms
from mupscale.theory.registry import optimizer_names
from mupscale.theory.tables import collapse

PARAMETRIZATIONS = {
    "standard": "standard parametrization: the model's own initialization, one learning rate",
    "mup": "μP relative to the narrow model: `init_` and `param_groups`",
    "grown": "grown from the fresh narrow model: `grow` and `param_groups`",
}
# Slopes of log activation over log width that count as none.
TOLERANCE = 0.15
BATCH_SIZE, BLOCK_SIZE = 8, 32
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Slope:
    """How one kind of module's output goes with width after the last step: |output| ∝ width^slope.

    Attributes:
        interval: two standard errors of the slope.
        sizes: mean over the seeds, by width.
    """

    parametrization: str
    module: str
    slope: float
    interval: float
    sizes: dict[int, float]

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
    widths: Sequence[int] = (1, 2, 4, 8),
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
        widths: factors over it, the first of them 1.
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
    known = optimizer_names()
    if len(set(widths)) < 2 or min(widths) < 1:
        raise GrowthError(f"widths {widths}: expected at least two different factors of 1 or more")
    if unknown := set(parametrizations) - set(PARAMETRIZATIONS):
        expected = ", ".join(PARAMETRIZATIONS)
        raise GrowthError(f"parametrization {min(unknown)!r}: expected some of {expected}")
    if optimizer not in known:
        raise GrowthError(f"optimizer {optimizer!r}: expected one of {', '.join(sorted(known))}")
    if min(steps, seeds) < 1 or not lr > 0:
        raise GrowthError("steps, seeds and lr must be positive")
    plans = {width: mupscale.plan(config, width=width) for width in widths}
    runs = list(product(parametrizations, widths, range(seeds)))
    task = progress.add_task("coordinate check", total=len(runs), note="") if progress else None
    rows = []
    for parametrization, width, seed in runs:
        place = {"parametrization": parametrization, "width": width, "seed": seed}
        found = _run(config, plans[width], parametrization, seed, known[optimizer], lr, steps)
        rows += [place | row for row in found]
        if progress and task is not None:
            progress.update(task, advance=1, note=f"{parametrization}, width × {width}")
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
    # What is folded into an output on purpose, such as a tied readout's last norm, is no deviation.
    folds = {} if standard else {collapse(name): plan.params[name].fold for name in plan.layout.folds}
    for step, kind, module, mean_abs, _ in norms.rows():
        if kind == "activation":
            yield {"step": step, "module": module, "mean_abs": mean_abs / folds.get(f"{module}.weight", 1.0)}


def slopes(rows: Sequence[Row]) -> list[Slope]:
    """Fit log₂ of the outputs over log₂ of the width, after the last step, all seeds together."""
    last = max(row["step"] for row in rows)
    kinds: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows:
        if row["step"] == last:
            kind = kinds.setdefault((row["parametrization"], row["module"]), {})
            kind.setdefault(row["width"], []).append(row["mean_abs"])
    found = []
    for (parametrization, module), sizes in kinds.items():
        points = [
            (width, size if 0 < size < math.inf else math.nan) for width in sizes for size in sizes[width]
        ]
        x, y = np.log2(points).T
        deviation = x - x.mean()
        slope = float(deviation @ y / (deviation @ deviation))
        residual = y - y.mean() - slope * deviation
        error = math.sqrt(residual @ residual / max(1, len(x) - 2) / (deviation @ deviation))
        means = {width: fmean(some) for width, some in sizes.items()}
        found.append(
            Slope(
                parametrization=parametrization, module=module, slope=slope, interval=2 * error, sizes=means
            )
        )
    return found


def holds(found: Sequence[Slope]) -> bool:
    """Whether no module grows with width; the standard parametrization counts only when it is alone."""
    judged = [slope for slope in found if slope.parametrization != "standard"] or found
    return all(slope.verdict != "grows" for slope in judged)


def verdicts(found: Sequence[Slope]) -> list[str]:
    """One line a parametrization: which modules grow or vanish with width."""
    lines = []
    for parametrization, group in groupby(found, key=lambda slope: slope.parametrization):
        mine = sorted(group, key=lambda slope: -abs(slope.slope))
        said = f"all {len(mine)} kinds of modules keep their size at every width; largest slope: {mine[0]}"
        if off := [slope for slope in mine if slope.verdict != "keeps its size"]:
            said = f"{len(off)} of {len(mine)} kinds of modules go with width: {', '.join(map(str, off))}"
        lines.append(f"{parametrization}: {said}")
    return lines


def picture(rows: Sequence[Row], found: Sequence[Slope]) -> Plot:
    """Mean absolute outputs after the last step over width, a panel each parametrization; seeds are averaged.

    Lines that grow or vanish with width are drawn thick; the legend says the slope. Its rows are all numbers.
    """
    panels: dict[str, list[Line]] = {}
    for slope in found:
        line = Line(
            name=slope.module,
            curve=sorted(slope.sizes.items()),
            label=f"{slope.module} ({slope.slope:+.2f})",
            marker="o",
            width=1.2 if slope.verdict == "keeps its size" else 2.6,
        )
        panels.setdefault(PARAMETRIZATIONS[slope.parametrization].split(":")[0], []).append(line)
    plot = draw(
        "coordinates",
        panels,
        columns=("width", "mean_abs"),
        x="width, times the narrow model",
        y=f"mean absolute output after {max(row['step'] for row in rows)} steps",
        caption="Level lines: the size of what a module computes does not depend on the width.",
        colours="tab20",
        values=True,
        log_y=True,
        same_scale=True,
        legend_title="module (slope)",
        panel_size=(5.2, 6.8),
    )
    return replace(plot, rows=rows)
