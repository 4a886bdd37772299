"""How long a run takes: a few of its steps, and an evaluation, measured here and now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch

from mupscale.study.runs.budget import Budget
from mupscale.study.runs.optimizers import build_optimizer
from mupscale.study.runs.workload import ANY_STEPS
from mupscale.study.spec.sweeps import Sweep

MEASURED_STEPS = 3
DEAREST = 1e12  # FLOPs of a step that is still measured; what costs more is taken to run at the same rate


def seconds_of_runs(
    budget: Budget, sweeps: Sequence[Sweep], *, measured: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Seconds of one run of each sweep, all steps and evaluations; by sweep.

    What growing, saving and starting cost is left out, and what stacking saves.

    Args:
        measured: called behind each of them.
    """
    found: dict[str, float] = {}
    rate = 0.0  # seconds for a FLOP
    for sweep in sorted(sweeps, key=budget.step_flops):
        flops = budget.step_flops(sweep)
        if flops <= DEAREST or not rate:
            rate = _seconds_of_a_step(budget, sweep) / flops
        steps, config = budget.trained_steps(sweep), budget.config(sweep, ANY_STEPS)
        # A forward pass is a third of a step.
        held_out = len(budget.workload.data.held_out(config))
        evaluations = (steps // config.eval_every + 2) * held_out / config.batch_size / 3
        found[sweep.name] = rate * flops * (steps + evaluations)
        measured()
    return found


def _seconds_of_a_step(budget: Budget, sweep: Sweep) -> float:
    """The median of a few; the first does not count."""
    config = budget.config(sweep, ANY_STEPS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = budget.workload.fresh(size := budget.size(sweep), 0).to(device).train()
    optimizer = build_optimizer(model, config, budget.workload.relative(size))
    items = budget.workload.data.held_out(replace(config, eval_blocks=config.batch_size))
    batch = {name: value.to(device) for name, value in items[:].items()}
    seconds = []
    for _ in range(1 + MEASURED_STEPS):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=config.bf16):
            model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])
