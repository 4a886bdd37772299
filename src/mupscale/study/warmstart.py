"""What one warm start saves: grown against from scratch at several lengths, for the demo's story.

Same text, same order, same schedule, same evaluation. To choose an operator, see `mupscale.study.comparison`.

Knows training and growth; nothing of pictures or pages.

From scratch every length has its own cooldown. Up to its cooldown a run does not depend on its length, so all
lengths at one learning rate share a trunk, the longest run, and leave it where their cooldown begins. The
result is the one of separate runs, and is counted as theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, PreTrainedModel

import mupscale
from mupscale.errors import GrowthError
from mupscale.growth import grow_checkpoint
from mupscale.study.data import Tokens, held_out_blocks
from mupscale.study.description import (
    Narrow,
    checksum,
    describe_data,
    describe_narrow,
    describe_run,
    describe_wide,
    load_model,
)
from mupscale.study.flops import training_flops
from mupscale.study.history import write_json
from mupscale.study.recipe import TrainConfig, carried_optimizer
from mupscale.study.savings import savings
from mupscale.study.training import train
from mupscale.theory.tables import scaling_rows

RESULTS_FILE = "results.json"


@dataclass(frozen=True, kw_only=True)
class WarmstartConfig:
    """What is compared, and how.

    Attributes:
        width: growth of d_model, d_ff and the heads; None with `axes` alone.
        axes: growth by named axis; overrides `width`.
        noise: added on growing; None for pure copies.
        carry_optimizer: go on with the narrow model's optimizer state where the checkpoint holds one.
        grown_lr: the grown model's learning rate, as a multiple of the narrow one's.
        scratch_lrs: learning rates from scratch, likewise; of each length the better run counts.
        scratch_lengths: lengths from scratch, as multiples of the grown model's steps.
        match_compute: also train from scratch for exactly the compute of narrow training and grown training
            together, where that is known and within the longest length.
        seed: of the noise and of the initialization from scratch.
    """

    width: int | None = 2
    axes: Mapping[str, int] | None = None
    noise: str | None = "balanced:1"
    carry_optimizer: bool = True
    grown_lr: float = 0.5
    scratch_lrs: tuple[float, ...] = (1.0, 0.5)
    scratch_lengths: tuple[float, ...] = (1.0, 2.0)
    match_compute: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("scratch_lrs", "scratch_lengths"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise GrowthError(f"{name} is {getattr(self, name)}, expected one or more numbers above 0")


def warmstart(
    source: Path,
    out: Path,
    tokens: Tokens,
    training: TrainConfig,
    config: WarmstartConfig | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Grow a checkpoint, train it on, train the same wide model from scratch, and say what growing saved.

    Runs that are already finished under `out` with the same settings are not repeated, and one that was cut
    off is resumed.

    Args:
        source: narrow checkpoint directory; `train` leaves one with its history, which says what it cost.
        out: folder for the runs and `results.json`.
        tokens: the text, encoded with the narrow model's tokenizer.
        training: settings of the grown model's training, with the *narrow* model's learning rate; the runs
            from scratch differ in learning rate and length alone.
        config: what to compare.

    Returns:
        The contents of `results.json`.

    Raises:
        GrowthError: as `mupscale.plan`, `mupscale.growth.grow_checkpoint` and `train`.

    Example, on what `mupscale train narrow` left:
        >>> from transformers import AutoTokenizer
        >>> from mupscale.study.corpus import DataConfig
        >>> from mupscale.study.data import load_tokens
        >>> narrow = Path("narrow")
        >>> tokenizer = AutoTokenizer.from_pretrained(narrow)  # doctest: +SKIP
        >>> tokens = load_tokens(DataConfig(), tokenizer=tokenizer)  # doctest: +SKIP
        >>> training = training_like(narrow, steps=300)  # doctest: +SKIP
        >>> results = warmstart(narrow, Path("out"), tokens, training)  # doctest: +SKIP
    """
    config = config or WarmstartConfig()
    narrow = Narrow.load(source)
    plan = mupscale.plan(narrow.model.config, width=config.width, axes=config.axes)
    grown_path = out / "grown"
    carry = config.carry_optimizer and (source / "optimizer.pt").is_file()
    grow_checkpoint(
        source, grown_path, plan, noise=config.noise, seed=config.seed, optimizer=carry, overwrite=True
    )
    verification = _verify(narrow.model, grown_path, plan, tokens, training)

    lengths = _lengths(narrow, plan, training, config)
    origin = {
        "source": checksum(source),
        "growth": {a: str(g) for a, g in plan.growth.items()},
        "seed": config.seed,
    }
    runs = [
        _train_grown(
            grown_path, out / "runs" / "grown", plan, tokens, training, config, carry, origin, progress
        )
    ]
    for factor in config.scratch_lrs:
        runs += _train_scratch(
            out / "runs", plan, tokens, training, config, factor, lengths, origin, progress
        )
    _mark_best(runs)

    results = {
        "mupscale": mupscale.__version__,
        "narrow": describe_narrow(narrow),
        "wide": describe_wide(plan, runs[0]),
        "grown_checkpoint": str(grown_path),
        "plan": scaling_rows(plan.params),
        "verification": verification,
        "settings": {"compare": asdict(config), "training": asdict(training), "optimizer_carried": carry},
        "data": describe_data(narrow, tokens, training, max(lengths)),
        "runs": runs,
        "savings": savings(runs, narrow.history.flops if narrow.history else None),
    }
    write_json(out / RESULTS_FILE, results)
    return results


def _lengths(
    narrow: Narrow, plan: mupscale.Plan, training: TrainConfig, config: WarmstartConfig
) -> list[int]:
    """Steps of the runs from scratch, shortest first."""
    lengths = {round(training.steps * length) for length in config.scratch_lengths}
    if config.match_compute and narrow.history:
        wide = training_flops(plan.config, batch_size=training.batch_size, block_size=training.block_size)
        matched = training.steps + round(narrow.history.flops / wide)
        if matched <= max(lengths):
            lengths.add(matched)
    return sorted(lengths)


def _verify(
    narrow: PreTrainedModel, grown: Path, plan: mupscale.Plan, tokens: Tokens, training: TrainConfig
) -> dict[str, Any]:
    """Equality of the narrow and the grown model, on held-out text."""
    blocks = held_out_blocks(tokens, training.block_size, 8)
    inputs = {
        "input_ids": torch.stack(
            [block["input_ids"] for block in blocks.__getitems__(list(range(len(blocks))))]
        )
    }
    report = mupscale.verify(narrow, load_model(grown), plan, inputs=inputs)
    return {**report.to_dict(), "text": str(report)}


def _train_grown(
    start: Path,
    out: Path,
    plan: mupscale.Plan,
    tokens: Tokens,
    training: TrainConfig,
    config: WarmstartConfig,
    carry: bool,
    origin: dict[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    settings = replace(training, lr=training.lr * config.grown_lr)
    model = load_model(start)
    optimizer = carried_optimizer(model, settings, plan, start) if carry else None
    history = train(
        model,
        tokens,
        out,
        settings,
        plan=plan,
        optimizer=optimizer,
        start={**origin, "kind": "grown", "noise": config.noise, "optimizer_carried": carry},
        overwrite=True,
        name="grown",
        progress=progress,
    )
    return describe_run(
        history, kind="grown", name="grown", label=f"grown, {history.steps} steps", lr_factor=config.grown_lr
    )


def _train_scratch(
    out: Path,
    plan: mupscale.Plan,
    tokens: Tokens,
    training: TrainConfig,
    config: WarmstartConfig,
    factor: float,
    lengths: list[int],
    origin: dict[str, Any],
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """All lengths at one learning rate: the longest first, the others from its checkpoints."""
    settings = {steps: replace(training, steps=steps, lr=training.lr * factor) for steps in lengths}
    branches = {steps: settings[steps].cooldown_start for steps in lengths}
    trunk = out / f"scratch-lr{factor:g}-{lengths[-1]}"
    described = []
    for steps in reversed(lengths):
        model = AutoModelForCausalLM.from_config(plan.config)
        mupscale.init_(model, plan, seed=config.seed)
        name = f"scratch-lr{factor:g}-{steps}"
        is_trunk = steps == lengths[-1]
        left_at = [branches[s] for s in lengths[:-1]] if is_trunk else []
        history = train(
            model,
            tokens,
            out / name,
            settings[steps],
            plan=plan,
            start={**origin, "kind": "scratch", "left_at": left_at},
            branch_from=None if is_trunk else trunk / "checkpoints" / f"checkpoint-{branches[steps]}",
            keep_at=left_at,
            overwrite=True,
            name=f"from scratch, {factor:g}× lr, {steps} steps",
            progress=progress,
        )
        run = describe_run(
            history,
            kind="scratch",
            name=name,
            label=f"from scratch, {steps} steps (lr × {factor:g})",
            lr_factor=factor,
        )
        described.append({**run, "length": lengths.index(steps)})
    return described[::-1]


def _mark_best(runs: list[dict[str, Any]]) -> None:
    """Mark, of the runs from scratch of each length, the one that ended lowest."""
    for run in runs:
        rivals = [r["final_loss"] for r in runs if r["kind"] == run["kind"] and r["steps"] == run["steps"]]
        run["best"] = run["final_loss"] == min(rivals)
