"""The whole story in a few minutes: train small, grow, prove, train on, compare, report.

Knows the other study modules; has no methods of its own, only sizes that fit the time.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mupscale.study.data.corpus import DataConfig
from mupscale.study.data.tokens import load_tokens
from mupscale.study.report import write_report
from mupscale.study.runs.history import write_json
from mupscale.study.runs.models import fresh_model, preset
from mupscale.study.runs.progress import make_progress
from mupscale.study.runs.training import train
from mupscale.study.spec.recipe import TrainConfig
from mupscale.study.warmstart import RESULTS_FILE, WarmstartConfig, warmstart


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes and lengths; the defaults take about four minutes on a CPU core.

    Attributes:
        model: a preset of `mupscale.study.runs.models`.
        data: the text.
        narrow: training of the narrow model. Its learning rate is about the best for it.
        wide_steps: steps of the grown model.
        compare: growth and the runs from scratch.
    """

    model: str = "llama-tiny"
    data: DataConfig = field(default_factory=DataConfig)
    narrow: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=500, batch_size=12, lr=4e-3, eval_every=35, eval_blocks=96)
    )
    wide_steps: int = 140
    compare: WarmstartConfig = field(default_factory=lambda: WarmstartConfig(scratch_lengths=(1.0, 3.75)))


def demo(out: Path, config: DemoConfig | None = None, *, threads: int | None = None) -> dict[str, Any]:
    """Run the demonstration; all it makes lies under `out`; a second call goes on where it stopped.

    Args:
        out: folder for the checkpoints, `results.json`, the pictures and `report.html`.
        config: sizes and lengths.
        threads: CPU threads for torch; None takes half of torch's choice. With small matrices and anything
            else running, more of them mostly wait for each other.

    Returns:
        The contents of `results.json`.

    Raises:
        GrowthError: `out` holds something else.
    """
    config = config or DemoConfig()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or max(1, threads_before // 2))
    try:
        return _demo(out, config)
    finally:
        torch.set_num_threads(threads_before)


def _demo(out: Path, config: DemoConfig) -> dict[str, Any]:
    began = time.perf_counter()
    console = Console(stderr=True)
    console.print("[bold]1.[/] reading text, training a tokenizer")
    tokens = load_tokens(config.data, cache=out / "tokens")
    console.print(f"   {tokens.about}")
    narrow = out / "narrow"
    model = fresh_model(preset(config.model, vocab_size=len(tokens.tokenizer)), config.narrow.seed)
    console.print(
        f"[bold]2.[/] training the narrow model ({sum(p.numel() for p in model.parameters()):,} parameters)"
    )
    with make_progress() as progress:
        train(
            model,
            tokens,
            narrow,
            config.narrow,
            start={"config": config.model},
            name="narrow",
            progress=progress,
        )
    console.print(
        "[bold]3.[/] growing it with its optimizer, training it on, and training from scratch beside it"
    )
    training = replace(
        config.narrow,
        steps=config.wide_steps,
        skip_blocks=config.narrow.skip_blocks + config.narrow.steps * config.narrow.batch_size,
    )
    with make_progress() as progress:
        results = warmstart(narrow, out, tokens, training, config.compare, progress=progress)
    results["demo"] = {
        "config": asdict(config),
        "seconds_of_last_call": round(time.perf_counter() - began, 1),
    }
    results["demo"]["threads"] = torch.get_num_threads()
    write_json(out / RESULTS_FILE, results)
    report = write_report(results, out)
    console.print("[bold]4.[/] was anything lost?")
    console.print(results["verification"]["text"], markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]5.[/] wrote {report}", soft_wrap=True)
    return results
