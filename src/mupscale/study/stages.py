"""Successive growth: train, grow, train on with fresh text, as often as wanted, with one history of it all.

    stages = read_stages(["1:300", "2:200", "2:100"])       # or a TOML file, with more to say about each

Learning rates of all stages are said as the first model's: groups are scaled from there.

Knows training and growth; every stage is a run of `mupscale.study.training` and is resumed as one.
"""

from __future__ import annotations

import csv
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.progress import Progress
from transformers import PreTrainedModel

import mupscale
from mupscale.checkpoint.reader import Checkpoint
from mupscale.errors import GrowthError
from mupscale.growth import grow_checkpoint
from mupscale.operators.catalogue import operator_named
from mupscale.operators.zero_pad import DEFAULT_SHRINK, Shrink
from mupscale.optim.carry import state_is_padded
from mupscale.study.data import Tokens
from mupscale.study.description import checksum, load_model
from mupscale.study.history import HISTORY_FILE, History, write_json
from mupscale.study.recipe import TrainConfig, carried_optimizer
from mupscale.study.training import finished, train
from mupscale.theory.manifest import MANIFEST

Row = dict[str, Any]
_TRAINING = {f.name for f in fields(TrainConfig)} - {"steps", "skip_blocks", "seed", "optimizer"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: how to grow into it, unless it is the first, and how to train.

    Attributes:
        steps: optimizer steps.
        width: growth of d_model, d_ff and the heads over the stage before; 1 in the first.
        to: a wide config.json to reach instead.
        operator, noise, shrink: as `mupscale.grow` takes them.
        optimizer: carry the state ("carried"), or not ("fresh"); None does what the operator does by itself.
        training: fields of `TrainConfig` that differ in this stage.
    """

    steps: int
    width: int = 1
    to: str | None = None
    operator: str = "duplicate"
    noise: str = "default"
    shrink: float = DEFAULT_SHRINK
    optimizer: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def grows(self) -> bool:
        """Whether it starts by growing."""
        return self.width > 1 or self.to is not None

    @property
    def carries(self) -> bool | None:
        """`optimizer` as `grow_checkpoint` takes it."""
        return None if self.optimizer is None else self.optimizer == "carried"


def read_stages(words: Sequence[str]) -> list[Stage]:
    """Stages from words ``WIDTH:STEPS``, or from one TOML file with a table ``[[stages]]`` for each.

    Without a word on it only the last stage ends in a cooldown.

    Raises:
        GrowthError: names the word, or the file and key.

    >>> [(stage.width, stage.steps) for stage in read_stages(["1:300", "2:200"])]
    [(1, 300), (2, 200)]
    """
    if len(words) == 1 and words[0].endswith(".toml"):
        stages = _from_toml(Path(words[0]))
    else:
        stages = []
        for word in words:
            width, _, steps = word.partition(":")
            if not (width.isdecimal() and steps.isdecimal()):
                raise GrowthError(f"stage {word!r}: expected WIDTH:STEPS, such as 2:200, or one TOML file")
            stages.append(Stage(width=int(width), steps=int(steps)))
    if not stages:
        raise GrowthError("no stages: expected WIDTH:STEPS words or a TOML file with [[stages]]")
    for number, stage in enumerate(stages, start=1):
        if stage.grows == (number == 1) or stage.width < 1:
            raise GrowthError(
                f"stage {number}: "
                + (
                    "the first has nothing to grow from; its width is 1"
                    if number == 1
                    else "expected a width above 1, or to"
                )
            )
    return [
        stage
        if stage is stages[-1]
        else replace(stage, training={"cooldown_fraction": 0.0, **stage.training})
        for stage in stages
    ]


def _from_toml(path: Path) -> list[Stage]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError) as error:
        raise GrowthError(f"{path}: no [[stages]] to read there ({error})") from None
    own = {f.name for f in fields(Stage)} - {"training"}
    stages = []
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise GrowthError(f"{path}: stages: expected a table [[stages]] for each")
    for number, table in enumerate(tables, start=1):
        if "to" in table and "width" in table:
            raise GrowthError(f"{path}: stage {number}: give either to or width")
        if not all(isinstance(table.get(key, ""), str) for key in ("to", "operator", "noise", "optimizer")):
            raise GrowthError(f"{path}: stage {number}: to, operator, noise and optimizer are words")
        if unknown := table.keys() - own - _TRAINING:
            raise GrowthError(
                f"{path}: stage {number}: unknown key {min(unknown)!r}; expected "
                f"{', '.join(sorted(own | _TRAINING))}"
            )
        if not isinstance(table.get("steps"), int) or not isinstance(table.get("width", 1), int):
            raise GrowthError(f"{path}: stage {number}: steps (and width) must be whole numbers")
        if table.get("optimizer") not in (None, "carried", "fresh"):
            raise GrowthError(
                f"{path}: stage {number}: optimizer is carried or fresh, not {table['optimizer']!r}"
            )
        training = {key: value for key, value in table.items() if key in _TRAINING}
        stages.append(Stage(**{k: v for k, v in table.items() if k in own}, training=training))
    return stages


def train_stages(
    first: Callable[[], tuple[PreTrainedModel, mupscale.Plan | None, torch.optim.Optimizer | None]],
    tokens: Tokens,
    out: Path,
    stages: Sequence[Stage],
    training: TrainConfig,
    *,
    start: Mapping[str, Any],
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Row]:
    """Run all stages under ``out``; called again, go on in the middle of the one that was cut off.

    Every stage sees the blocks of text that follow those of the stage before. ``stage1``, ``stage2``, …
    become checkpoint directories; ``history.json``, ``history.csv`` and ``stages.png`` go through them all.

    Args:
        first: makes the model of the first stage, its plan and its optimizer, None for fresh ones.
        training: settings of all stages, but for what a stage says.
        start: how the first model came to be, in plain data.

    Returns:
        The rows of the history: stage, parameters, step, tokens, flops (all counted through), training and
        held-out loss. The step at which a stage begins has a row of either side.

    Raises:
        GrowthError: as `train` and `grow_checkpoint`.
    """
    rows: list[Row] = []
    seen = training.skip_blocks
    for number, stage in enumerate(
        stages, start=1
    ):  # what is wrong with a later stage should be said at once
        _settings(training, stage, number, seen)
    for number, stage in enumerate(stages, start=1):
        folder, grown = out / f"stage{number}", out / f"grown{number}"
        config = _settings(training, stage, number, seen)
        origin: dict[str, Any] = {**start, "stage": number}
        model: PreTrainedModel
        if not stage.grows:
            model, plan, optimizer = first()
        else:
            before = out / f"stage{number - 1}"
            origin |= {"growth": asdict(stage), "source": checksum(before)}
            done = finished(folder, tokens, config, origin)
            if not done:
                _grow(before, grown, stage, training.seed)
            # Killed after its last step, a stage may not have its manifest yet.
            at = folder if (folder / MANIFEST).is_file() and done else grown
            model, plan = load_model(at), mupscale.Plan.load(at)
            carried = not done and (grown / "optimizer.pt").is_file()
            optimizer = carried_optimizer(model, config, plan, grown) if carried else None
        history = train(
            model,
            tokens,
            folder,
            config,
            plan=plan,
            optimizer=optimizer,
            start=origin,
            overwrite=overwrite,
            name=f"stage {number}",
            progress=progress,
        )
        if stage.grows and grown.is_dir():
            shutil.copy(grown / MANIFEST, folder / MANIFEST)
            shutil.rmtree(grown)
        elif plan is not None and not stage.grows:
            plan.save(folder)  # the first stage's model has itself been grown: the line begins before it
        rows += _rows(number, sum(p.numel() for p in model.parameters()), history, rows[-1] if rows else None)
        seen += config.steps * config.batch_size
        _write(out, rows, {"stages": [asdict(s) for s in stages], "training": asdict(training), **start})
    return rows


def _settings(training: TrainConfig, stage: Stage, number: int, seen: int) -> TrainConfig:
    try:
        operator = operator_named(stage.operator)
        operator.noise(stage.noise)
        Shrink.parse(stage.shrink)
        if stage.carries:
            state_is_padded(stage.operator)
        return replace(training, steps=stage.steps, skip_blocks=seen, **stage.training)
    except (GrowthError, TypeError, AttributeError) as error:
        raise GrowthError(f"stage {number}: {error}") from None


def _grow(before: Path, grown: Path, stage: Stage, seed: int) -> None:
    plan = None
    if stage.to is not None:
        plan = mupscale.plan(Checkpoint(before).config, to=Checkpoint.read_config(Path(stage.to)))
    grow_checkpoint(
        before,
        grown,
        plan,
        width=stage.width if plan is None else None,
        operator=stage.operator,
        noise=stage.noise,
        shrink=stage.shrink,
        seed=seed,
        optimizer=stage.carries,
        overwrite=True,
    )


def _rows(number: int, parameters: int, history: History, last: Row | None) -> list[Row]:
    """A stage's curve, its steps, tokens and FLOPs counted on from the row before."""
    base = {key: last[key] if last else 0 for key in ("step", "tokens", "flops")}
    return [
        {
            "stage": number,
            "parameters": parameters,
            **{key: row[key] + base[key] for key in base},  # type: ignore[operator]
            "train_loss": row["train_loss"],
            "held_out_loss": row["held_out_loss"],
        }
        for row in history.rows()
    ]


def _write(out: Path, rows: list[Row], settings: dict[str, Any]) -> None:
    write_json(out / HISTORY_FILE, {"settings": settings, "curve": rows})
    with (out / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure = Figure(figsize=(7, 4.3), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for number in dict.fromkeys(row["stage"] for row in rows):
        mine = [row for row in rows if row["stage"] == number and row["held_out_loss"] is not None]
        axes.plot(
            [row["flops"] for row in mine],
            [row["held_out_loss"] for row in mine],
            label=f"stage {number}: {mine[0]['parameters']:,} parameters, {mine[-1]['held_out_loss']:.3f}",
        )
    axes.set_xlabel("training compute, all stages (FLOPs)")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9)
    FigureCanvasAgg(figure).print_png(str(out / "stages.png"))
