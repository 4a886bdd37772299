"""Sweep the learning rate at several widths from scratch, under the standard parametrization and under μP.

    python examples/lr_transfer.py --out lr-transfer                                  (d_model 32 to 256, CPU)
    python examples/lr_transfer.py --d-model 128 --widths 1 2 4 8 16 --jobs 1         (128 to 2048, GPU)

The model is a two-layer Llama, the text Python's own library source unless `--data` names another. Prints a
table of losses for each parametrization and how far the best rate moves; writes every trial as CSV, and a
picture. A sweep that was cut off goes on when it is called again. Exit status 1 where the best rate under μP
moves by more than a factor of 2 or lies at the edge of the grid, or moves no less than under the standard
parametrization.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from mupscale.errors import GrowthError
from mupscale.study import lr_transfer as transfer
from mupscale.study.data.corpus import DataConfig
from mupscale.study.data.tokens import load_tokens
from mupscale.study.lr_transfer_plot import save_picture
from mupscale.study.runs.models import small_llama
from mupscale.study.runs.progress import make_progress
from mupscale.study.spec.recipe import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sweep the learning rate at several widths, under the standard parametrization and under μP."""

    out: Path = Path("lr-transfer")
    """folder for trials, CSV and picture"""
    d_model: int = 32
    """width of the narrowest model"""
    head_dim: int = 8
    """size of its attention heads, which all widths share"""
    widths: tuple[int, ...] = (1, 2, 4, 8)
    """width factors to train"""
    lrs: tuple[float, ...] = transfer.TransferConfig.lrs
    """learning rates to try at each width"""
    seeds: int = 3
    """repetitions with other weights and another order of the text"""
    steps: int = 200
    """optimizer steps of a trial"""
    batch_size: int = 16
    """sequences in a step"""
    block_size: int = 64
    """tokens in a sequence"""
    data: Path | None = None
    """text file or folder; without it, Python's standard library source"""
    vocab_size: int = 512
    """entries of the tokenizer"""
    jobs: int = 1 if torch.cuda.is_available() else (os.cpu_count() or 1)
    """trials side by side, each on one CPU thread"""
    json: bool = False
    """print one JSON object instead of the tables"""


def loss_table(losses: transfer.Losses, parametrization: str, d_model: int) -> Table:
    """Mean losses, a row each width; the best of a row in bold with a star."""
    best = {b.width: b.lr for b in transfer.optima(losses) if b.parametrization == parametrization}
    curves = {w: c for (p, w), c in transfer.mean_losses(losses).items() if p == parametrization}
    title = f"{transfer.PARAMETRIZATIONS[parametrization]}: held-out loss by learning rate"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("d_model")
    for lr in next(iter(curves.values())):
        table.add_column(f"{lr:g}", justify="right", min_width=8)
    for width, curve in curves.items():
        cells = [f"[bold]{x:.3f}*[/]" if lr == best[width] else f"{x:.3f} " for lr, x in curve.items()]
        table.add_row(str(d_model * width), *cells)
    return table


def main(options: Options) -> int:
    config = transfer.TransferConfig(
        widths=options.widths,
        lrs=options.lrs,
        seeds=options.seeds,
        training=TrainConfig(
            steps=options.steps,
            batch_size=options.batch_size,
            block_size=options.block_size,
            weight_decay=0.0,
            warmup_steps=options.steps // 20,
            eval_every=options.steps,
            save_every=options.steps,
        ),
    )
    data = DataConfig(path=options.data, max_bytes=4_000_000, vocab_size=options.vocab_size)
    tokens = load_tokens(data, cache=options.out / "tokens")
    with make_progress() as progress:
        losses = transfer.sweep(
            small_llama(
                options.d_model,
                layers=2,
                vocab_size=options.vocab_size,
                positions=options.block_size,
                head_dim=options.head_dim,
            ),
            tokens,
            options.out / "trials",
            config,
            jobs=options.jobs,
            progress=progress,
        )
    transfer.write_csv(losses, options.out / "losses.csv")
    save_picture(losses, options.d_model, options.out / "lr_transfer.png")
    found = transfer.optima(losses)
    shifts = {p: transfer.shift(found, p) for p in transfer.PARAMETRIZATIONS}
    at_edge = any(best.at_edge for best in found if best.parametrization == "mup")
    passed = shifts["mup"] <= 2 and shifts["mup"] < shifts["standard"] and not at_edge
    if options.json:
        result = {
            "passed": passed,
            "shift": shifts,
            "optima": [asdict(best) for best in found],
            "trials": [{**asdict(trial), "held_out_loss": loss} for trial, loss in losses.items()],
        }
        print(json.dumps(result, indent=1))
    else:
        console = Console()
        for parametrization in transfer.PARAMETRIZATIONS:
            console.print(loss_table(losses, parametrization, options.d_model))
        for parametrization in transfer.PARAMETRIZATIONS:
            console.print(transfer.verdict(found, parametrization), highlight=False, soft_wrap=True)
        console.print(f"Picture and numbers are in {options.out}.", highlight=False)
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options)))
    except GrowthError as error:
        sys.exit(f"lr_transfer: {error}")
