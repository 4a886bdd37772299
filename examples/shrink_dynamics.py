"""What does shrinking do to training? Activations, weights and gradients over time and width, for several λ.

    python examples/shrink_dynamics.py --out shrink-dynamics

Trains a narrow Llama, grows it by zero_pad with every λ to every width, trains on under μP, and records the
size of all activations, weights and gradients on the way. Writes a table of losses, a picture each of
activations over width, and of activations, weights and gradients over time, and all numbers as CSV.
(Mallik et al. 2024, arXiv 2411.07340, look at the same in their Figures 3, 7, 8 and 10.)
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import mupscale
from mupscale.errors import GrowthError
from mupscale.study.data.corpus import DataConfig
from mupscale.study.data.tokens import Tokens, load_tokens
from mupscale.study.description import load_model
from mupscale.study.runs.models import fresh_model, small_llama
from mupscale.study.runs.norms import Norm, RecordNorms, read_norms
from mupscale.study.runs.progress import make_progress
from mupscale.study.spec.recipe import TrainConfig
from mupscale.study.runs.training import drop_weights, train
from mupscale.study.trials import run_trials

# Module and parameter names without the layer number, as panels of the pictures.
ACTIVATIONS = ("model.embed_tokens", "self_attn", "mlp", "lm_head")
WEIGHTS = ("embed_tokens.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight", "lm_head.weight")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Record the training dynamics of zero-padded models for several λ and widths."""

    out: Path = Path("shrink-dynamics")
    """folder for runs, CSV and pictures"""
    d_model: int = 32
    """width of the narrow model"""
    widths: tuple[int, ...] = (2, 4, 8)
    """growth factors"""
    shrinks: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """λ to try; 0 is from scratch"""
    narrow_steps: int = 300
    """optimizer steps of the narrow model"""
    steps: int = 80
    """optimizer steps after growing"""
    lr: float = 8e-3
    """the narrow model's learning rate"""
    jobs: int = 1 if torch.cuda.is_available() else (os.cpu_count() or 1)
    """runs side by side, each on one CPU thread"""
    json: bool = False
    """print one JSON object instead of words"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One λ at one width."""

    width: int
    shrink: float

    @property
    def name(self) -> str:
        """Folder of the run."""
        return f"width{self.width}-shrink{self.shrink:g}"

    def norms_file(self, out: Path) -> Path:
        """Where its numbers are."""
        return out / f"{self.name}.csv"


def run(narrow: Path, tokens: Tokens, out: Path, config: TrainConfig, trial: Run) -> float:
    """Grow, train and record; return the final held-out loss."""
    folder = out / trial.name
    if not trial.norms_file(out).is_file():  # cut off, and what was recorded is lost with it: begin again
        shutil.rmtree(folder, ignore_errors=True)
    model = load_model(narrow)
    plan = mupscale.plan(model, width=trial.width)
    wide = mupscale.grow(model, plan, operator="zero_pad", shrink=trial.shrink)
    norms = RecordNorms(every=max(1, config.steps // 20))
    history = train(wide, tokens, folder, config, plan=plan, start=asdict(trial), callbacks=[norms])
    drop_weights(folder)
    if norms.norms:
        norms.save(trial.norms_file(out))
    return history.final_loss


def layer_mean(norms: list[Norm], kind: str, ending: str) -> dict[int, float]:
    """L1 size by step, averaged over the layers' tensors whose names end so."""
    found: dict[int, list[float]] = defaultdict(list)
    for norm in norms:
        if norm.kind == kind and norm.name.endswith(ending):
            found[norm.step].append(norm.l1)
    return {step: float(np.mean(values)) for step, values in sorted(found.items())}


def picture(
    path: Path, title: str, x: str, lines: dict[str, dict[float, dict[int, float]]], *, log_x: bool
) -> None:
    """A panel for each key, in it a line for each λ."""
    figure = Figure(figsize=(4 * len(lines), 3.8), dpi=130, layout="constrained", facecolor="white")
    for axes, (panel, by_shrink) in zip(figure.subplots(1, len(lines)), lines.items(), strict=True):
        for (shrink, points), colour in zip(
            by_shrink.items(),
            matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(by_shrink))),
            strict=True,
        ):
            axes.plot(
                list(points),
                list(points.values()),
                color=colour,
                marker="o",
                markersize=3,
                label=f"λ = {shrink:g}",
            )
        axes.set_yscale("log")
        if log_x:
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(points), [str(p) for p in points])
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel(x)
        axes.grid(True, which="both", color="#e6e6e6", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize=11)
    FigureCanvasAgg(figure).print_png(str(path))


def in_words(factors: dict[float, float]) -> str:
    """Factors by λ, as ×2.1 (λ = 0.4)."""
    return ", ".join(f"×{factor:.2g} (λ = {shrink:g})" for shrink, factor in factors.items())


def main(options: Options) -> int:
    narrow_config = small_llama(options.d_model, layers=2, vocab_size=512, positions=64, head_dim=8)
    tokens = load_tokens(DataConfig(max_bytes=4_000_000, vocab_size=512), cache=options.out / "tokens")
    base = TrainConfig(
        steps=options.narrow_steps,
        block_size=64,
        lr=options.lr,
        weight_decay=0.0,
        warmup_steps=min(10, options.steps // 8),
        cooldown_fraction=0.0,
        eval_every=options.narrow_steps,
        save_every=options.narrow_steps,
    )
    narrow = options.out / "narrow"
    trials = [
        Run(width=width, shrink=shrink)
        for width in sorted(options.widths, reverse=True)
        for shrink in options.shrinks
    ]
    config = replace(
        base,
        steps=options.steps,
        eval_every=options.steps,
        save_every=options.steps,
        skip_blocks=base.steps * base.batch_size,
    )
    with make_progress() as progress:
        train(fresh_model(narrow_config, 0), tokens, narrow, base, name="narrow", progress=progress)
        losses = run_trials(
            partial(run, narrow, tokens, options.out, config),
            trials,
            jobs=options.jobs,
            title="shrinks and widths",
            describe=lambda trial, loss: f"width ×{trial.width}, λ = {trial.shrink:g}: {loss:.3f}",
            progress=progress,
        )
    norms = {trial: read_norms(trial.norms_file(options.out)) for trial in trials}
    widest, widths = max(options.widths), sorted(options.widths)
    over_width = {
        module: {
            shrink: {
                width: [*layer_mean(norms[Run(width=width, shrink=shrink)], "activation", module).values()][
                    -1
                ]
                for width in widths
            }
            for shrink in options.shrinks
        }
        for module in ACTIVATIONS
    }
    picture(
        options.out / "activations_over_width.png",
        f"mean |activation| after {options.steps} steps",
        "width, times the narrow model",
        over_width,
        log_x=True,
    )
    for kind, names in (("activation", ACTIVATIONS), ("weight", WEIGHTS), ("gradient", WEIGHTS)):
        lines = {
            name: {
                shrink: layer_mean(norms[Run(width=widest, shrink=shrink)], kind, name)
                for shrink in options.shrinks
            }
            for name in names
        }
        title = f"mean |{kind}| at width × {widest}"
        picture(options.out / f"{kind}s_over_time.png", title, "step", lines, log_x=False)
    with (options.out / "losses.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["width", "shrink", "held_out_loss"])
        writer.writerows((t.width, t.shrink, loss) for t, loss in losses.items())
    change = {
        shrink: max(
            max(sizes.values()) / min(sizes.values())
            for sizes in (over_width[module][shrink] for module in ACTIVATIONS)
        )
        for shrink in options.shrinks
    }
    overshoot = {}
    for shrink in options.shrinks:
        sizes = [*layer_mean(norms[Run(width=widest, shrink=shrink)], "activation", "self_attn").values()]
        overshoot[shrink] = max(sizes) / sizes[-1]
    best = {
        width: min(options.shrinks, key=lambda shrink: losses[Run(width=width, shrink=shrink)])
        for width in widths
    }
    sentence = (
        f"Over widths × {widths[0]} to × {widest}, mean activations after {options.steps} steps change by at "
        f"most {in_words(change)}; on the way there, at width × {widest}, attention outputs overshoot the "
        f"size they end at by {in_words(overshoot)}. The lowest loss has "
        + ", ".join(f"λ = {shrink:g} at width × {width}" for width, shrink in best.items())
        + "."
    )
    if options.json:
        rows = [{**asdict(trial), "held_out_loss": loss} for trial, loss in losses.items()]
        print(
            json.dumps(
                {"sentence": sentence, "change": change, "overshoot": overshoot, "losses": rows}, indent=1
            )
        )
    else:
        print("held-out loss   " + "  ".join(f"λ = {shrink:<5g}" for shrink in options.shrinks))
        for width in widths:
            row = [losses[Run(width=width, shrink=shrink)] for shrink in options.shrinks]
            print(f"width × {width:<7}" + "  ".join(f"{loss:9.3f}" for loss in row))
        print(sentence)
        print(f"Pictures and numbers are in {options.out}.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options)))
    except GrowthError as error:
        sys.exit(f"shrink_dynamics: {error}")
