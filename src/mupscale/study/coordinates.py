"""The coordinate check: does the size of any activation depend on the width?

Under μP the entries of every hidden activation, and the change that a step makes to them, keep their size as
the model gets wider (Yang et al. 2021, arXiv 2203.03466, Appendix D.1). Widths are trained for a few steps
from fresh weights, and the mean absolute value of each module's output is followed over width.

Knows models, the core, and how a picture is drawn.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import matplotlib
import numpy as np
import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, PreTrainedConfig

import mupscale
from mupscale.errors import GrowthError
from mupscale.study.page.plots import Line, Plot, draw
from mupscale.study.runs.norms import watch_activations
from mupscale.theory.registry import optimizer_names
from mupscale.theory.tables import collapse

PARAMETRIZATIONS = {
    "standard": "standard parametrization: the model's own initialization, one learning rate",
    "mup": "μP relative to the narrow model: `init_` and `param_groups`",
    "grown": "grown from the fresh narrow model: `grow` and `param_groups`",
}
# Slopes of log activation over log width that count as none.
TOLERANCE = 0.15


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What is trained.

    Attributes:
        widths: width factors over the given config, the first of them 1.
        optimizer: by lower-case name, as `mupscale hparams` takes it.
        lr: learning rate of the narrow model.
        steps: optimizer steps, all on one batch of random tokens. Logits from scratch need a few: μP starts
            them small, and what is learned has to outgrow that.
        seeds: how many times, with other weights and tokens.
        batch_size, block_size: sequences in the batch, tokens in a sequence.
        parametrizations: of `PARAMETRIZATIONS`.
    """

    widths: tuple[int, ...] = (1, 2, 4, 8)
    optimizer: str = "adamw"
    lr: float = 2e-3
    steps: int = 4
    seeds: int = 3
    batch_size: int = 8
    block_size: int = 32
    parametrizations: tuple[str, ...] = tuple(PARAMETRIZATIONS)

    def __post_init__(self) -> None:
        if len(set(self.widths)) < 2 or min(self.widths) < 1:
            raise GrowthError(f"widths {self.widths}: expected at least two different factors of 1 or more")
        if unknown := set(self.parametrizations) - set(PARAMETRIZATIONS):
            raise GrowthError(
                f"parametrization {min(unknown)!r}: expected some of {', '.join(PARAMETRIZATIONS)}"
            )
        if self.optimizer not in optimizer_names():
            raise GrowthError(
                f"optimizer {self.optimizer!r}: expected one of {', '.join(sorted(optimizer_names()))}"
            )
        if min(self.steps, self.seeds, self.batch_size) < 1 or self.block_size < 2 or not self.lr > 0:
            raise GrowthError("steps, seeds, batch size, block size and lr must be positive")


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """Mean absolute output of one kind of module (layers together) in one forward pass."""

    parametrization: str
    width: int
    seed: int
    step: int
    module: str
    mean_abs: float


@dataclass(frozen=True, kw_only=True)
class Slope:
    """How one kind of module's output goes with width after the last step: |output| ∝ width^slope.

    Attributes:
        interval: two standard errors of the slope.
        verdict: "grows" or "vanishes" where the slope is beyond ±`TOLERANCE` and beyond chance, its interval,
            or else "keeps its size".
    """

    parametrization: str
    module: str
    slope: float
    interval: float

    @property
    def verdict(self) -> str:
        if math.isnan(self.slope):  # it overflowed
            return "grows"
        if abs(self.slope) <= max(TOLERANCE, self.interval):
            return "keeps its size"
        return "grows" if self.slope > 0 else "vanishes"


def coordinate_check(
    config: PreTrainedConfig, check: CheckConfig | None = None, *, progress: Progress | None = None
) -> list[Coordinate]:
    """Train every width under every parametrization and record every module's output.

    Raises:
        GrowthError: the family is not supported.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2,
        ...                      num_hidden_layers=1, vocab_size=32)
        >>> check = CheckConfig(widths=(1, 2), steps=1, seeds=1, parametrizations=("mup",))
        >>> sorted({c.step for c in coordinate_check(config, check)})
        [0, 1]
    """
    check = check or CheckConfig()
    runs = [(p, w, s) for p in check.parametrizations for w in check.widths for s in range(check.seeds)]
    task = progress.add_task("coordinate check", total=len(runs), note="") if progress is not None else None
    found: list[Coordinate] = []
    for parametrization, width, seed in runs:
        for step, sizes in enumerate(_run(config, check, parametrization, width, seed)):
            found += [
                Coordinate(
                    parametrization=parametrization, width=width, seed=seed, step=step, module=m, mean_abs=x
                )
                for m, x in sizes.items()
            ]
        if progress is not None and task is not None:
            progress.update(task, advance=1, note=f"{parametrization}, width × {width}")
    return found


def _run(
    config: PreTrainedConfig, check: CheckConfig, parametrization: str, width: int, seed: int
) -> Iterator[dict[str, float]]:
    """The sizes before the first step and after each."""
    plan = mupscale.plan(config, width=width)
    torch.manual_seed(seed)
    optimizer_class = optimizer_names()[check.optimizer]
    if parametrization == "grown":
        model = mupscale.grow(AutoModelForCausalLM.from_config(config), plan, seed=seed)
    else:
        model = AutoModelForCausalLM.from_config(plan.config)
    if parametrization == "mup":
        mupscale.init_(model, plan, seed=seed)
    if parametrization == "standard":
        optimizer = optimizer_class(model.parameters(), lr=check.lr)  # type: ignore[call-arg]
    else:
        optimizer = optimizer_class(mupscale.param_groups(model, plan, optimizer_class, lr=check.lr))  # type: ignore[call-arg]
    model.train()
    # Frequencies as in text, by Zipf's law: something to learn within a few steps.
    frequency = 1 / torch.arange(1, config.vocab_size + 1)
    ids = torch.multinomial(
        frequency.expand(check.batch_size, -1),
        check.block_size,
        replacement=True,
        generator=torch.Generator().manual_seed(seed),
    )
    folds = {} if parametrization == "standard" else _folds(plan)
    for step in range(check.steps + 1):
        with watch_activations(model) as activations:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        sizes: dict[str, list[float]] = defaultdict(list)  # layers together
        for name, calls in activations.items():
            sizes[collapse(f"{name}.").rstrip(".")] += [l1 for l1, _ in calls]
        yield {module: float(np.mean(values)) / folds.get(module, 1.0) for module, values in sizes.items()}
        if step < check.steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _folds(plan: mupscale.Plan) -> dict[str, float]:
    """What is folded into a module's output on purpose, which is no deviation: tied readouts' last norm."""
    return {
        collapse(name).removesuffix(".weight"): plan.params[name].fold
        for name in plan.layout.folds
        if name.endswith(".weight") and plan.params[name].fold != 1
    }


def slopes(coordinates: Iterable[Coordinate]) -> list[Slope]:
    """Fit log₂ of the outputs over log₂ of the width, after the last step, all seeds together."""
    coordinates = list(coordinates)
    last = max(c.step for c in coordinates)
    points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for c in coordinates:
        if c.step == last:
            size = math.log2(c.mean_abs) if 0 < c.mean_abs < math.inf else math.nan
            points[c.parametrization, c.module].append((math.log2(c.width), size))
    found = []
    for (parametrization, module), pairs in points.items():
        x, y = np.array(pairs).T
        deviation = x - x.mean()
        slope = float(deviation @ y / (deviation @ deviation))
        residual = y - y.mean() - slope * deviation
        error = math.sqrt(residual @ residual / max(1, len(x) - 2) / (deviation @ deviation))
        found.append(Slope(parametrization=parametrization, module=module, slope=slope, interval=2 * error))
    return found


def judged(check: CheckConfig) -> tuple[str, ...]:
    """The parametrizations that ought to pass: all but the standard one, which is there to compare with."""
    return tuple(p for p in check.parametrizations if p != "standard") or check.parametrizations


def verdicts(found: Sequence[Slope], check: CheckConfig) -> list[str]:
    """One line a parametrization: which modules grow or vanish with width."""
    lines = []
    for parametrization in check.parametrizations:
        mine = [s for s in found if s.parametrization == parametrization]
        off = sorted((s for s in mine if s.verdict != "keeps its size"), key=lambda s: -abs(s.slope))
        if off:
            words = ", ".join(f"{s.module} {s.verdict} ({s.slope:+.2f} ± {s.interval:.2f})" for s in off)
            lines.append(
                f"{parametrization}: {len(off)} of {len(mine)} kinds of modules go with width: {words}"
            )
        else:
            worst = max(mine, key=lambda s: abs(s.slope))
            lines.append(
                f"{parametrization}: all {len(mine)} kinds of modules keep their size at every width "
                f"(largest slope {worst.slope:+.2f} ± {worst.interval:.2f}, {worst.module})"
            )
    return lines


def picture(coordinates: Sequence[Coordinate], found: Sequence[Slope]) -> Plot:
    """Mean absolute outputs after the last step over width, a panel each parametrization; seeds are averaged.

    Lines that grow or vanish with width are drawn thick; the legend says the slope. Its rows are all numbers.
    """
    last, modules = max(c.step for c in coordinates), list(dict.fromkeys(c.module for c in coordinates))
    colours = dict(zip(modules, matplotlib.colormaps["tab20"](np.linspace(0, 1, len(modules))), strict=True))
    sizes: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for c in coordinates:
        if c.step == last:
            sizes[c.parametrization, c.module][c.width].append(c.mean_abs)
    panels: dict[str, list[Line]] = defaultdict(list)
    for slope in found:
        by_width = sizes[slope.parametrization, slope.module]
        line = Line(
            name=f"{slope.module} ({slope.slope:+.2f})",
            curve=[[width, float(np.mean(values))] for width, values in sorted(by_width.items())],
            colour=colours[slope.module],
            marker="o",
            width=1.2 if slope.verdict == "keeps its size" else 2.6,
        )
        panels[PARAMETRIZATIONS[slope.parametrization].split(":")[0]].append(line)
    plot = draw(
        "coordinates",
        panels,
        columns=("width", "mean_abs"),
        x="width, times the narrow model",
        y=f"mean absolute output after {last} steps",
        caption="Level lines: the size of what a module computes does not depend on the width.",
        values=True,
        log_y=True,
        same_scale=True,
        legend_title="module (slope)",
        panel_size=(5.2, 6.8),
    )
    return replace(plot, rows=[asdict(c) for c in coordinates])
