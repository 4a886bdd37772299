"""Which start for the wide model? Growth operators against each other and against μP from scratch.

For each width every start trains on the same blocks in the same order, for the same number of steps and so of
tokens and FLOPs, under two schedules: a constant learning rate, and the same with a linear cooldown at the
end, which leaves the constant run where it begins. (A smaller constant rate alone looks better at the end; a
cooldown takes that advantage away.) The learning rate of every start is tuned over the same small grid, with
the first seed; the other seeds run at the best rate only.

Knows training and growth; nothing of tables and pictures.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, PreTrainedModel

import mupscale
from mupscale.errors import GrowthError
from mupscale.operators.catalogue import OPERATORS
from mupscale.operators.zero_pad import DEFAULT_SHRINK
from mupscale.planner import from_first
from mupscale.study.data import Tokens
from mupscale.study.description import Narrow, checksum, describe_narrow, load_model
from mupscale.study.history import History
from mupscale.study.recipe import TrainConfig, build_optimizer
from mupscale.study.training import drop_weights, train
from mupscale.study.trials import run_trials
from mupscale.theory.manifest import MANIFEST

SCRATCH = "scratch"
STARTS = (
    SCRATCH,
    "duplicate",
    "duplicate,noise=gaussian:0.3",
    "zero_pad",
    "zero_pad,shrink=1",
    "hyperclone",
    "net2net",
)
SCHEDULES = ("constant", "cooldown")


@dataclass(frozen=True, kw_only=True)
class Start:
    """One way to begin: an operator with its options, or ``scratch``, a fresh initialization under μP.

    Attributes:
        operator: of `mupscale.operators.catalogue.OPERATORS`, or ``scratch``.
        noise: as `mupscale.grow` takes it.
        shrink: λ of zero_pad.
        carried: go on with the narrow model's optimizer state. By default `duplicate` does, and the others
            start afresh, as their papers do.
    """

    operator: str
    noise: str = "default"
    shrink: float = DEFAULT_SHRINK
    carried: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``OPERATOR[,noise=KIND:X][,shrink=X][,optimizer=fresh|carried]``.

        Raises:
            GrowthError: an unknown operator, option or value.

        >>> Start.parse("duplicate,noise=gaussian:0.3").noise
        'gaussian:0.3'
        """
        operator, *options = text.split(",")
        if operator != SCRATCH and operator not in OPERATORS:
            raise GrowthError(f"start {text!r}: expected {SCRATCH} or one of {', '.join(OPERATORS)}")
        given = dict(option.partition("=")[::2] for option in options)
        if unknown := given.keys() - {"noise", "shrink", "optimizer"}:
            raise GrowthError(
                f"start {text!r}: unknown option {min(unknown)!r}; there are noise, shrink, optimizer"
            )
        optimizer = given.get("optimizer", "carried" if operator == "duplicate" else "fresh")
        if optimizer not in ("carried", "fresh") or (operator == SCRATCH and options):
            raise GrowthError(f"start {text!r}: optimizer is carried or fresh, and {SCRATCH} has no options")
        try:
            shrink = float(given.get("shrink", DEFAULT_SHRINK))
        except ValueError:
            raise GrowthError(f"start {text!r}: shrink is {given['shrink']!r}, expected a number") from None
        noise = given.get("noise", "default")
        if operator in OPERATORS:
            noise = str(OPERATORS[operator].noise(noise) or "none")
            if OPERATORS[operator].deepens:
                raise GrowthError(f"start {text!r}: widths are compared here, and it makes a model deeper")
        if "shrink" in given and operator != "zero_pad":
            raise GrowthError(f"start {text!r}: shrink is for zero_pad")
        return cls(
            operator=operator,
            noise=noise,
            shrink=shrink,
            carried=optimizer == "carried",
        )

    def __str__(self) -> str:
        if self.operator == SCRATCH:
            return "from scratch, μP"
        words = [f"{self.operator} λ={self.shrink:g}" if self.operator == "zero_pad" else self.operator]
        if self.noise == "none" and OPERATORS[self.operator].default_noise != "none":
            words.append("no noise")
        elif self.noise not in ("none", "fresh:1"):
            words.append(f"{self.noise} dB" if self.noise.startswith("paired") else self.noise)
        return ", ".join([*words, "optimizer carried" if self.carried else "optimizer fresh"])


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One start, at one rate (times the narrow model's), with one seed."""

    width: int
    start: Start
    lr_factor: float
    seed: int

    @property
    def folder(self) -> Path:
        """Where its runs lie, under the folder of the comparison."""
        s = self.start
        name = "-".join(
            [s.operator, s.noise.replace(":", ""), f"{s.shrink:g}", "carried" if s.carried else "fresh"]
        )
        return Path(f"width{self.width}") / name / f"lr{self.lr_factor:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared.

    Attributes:
        widths: growth of d_model, d_ff and the heads.
        starts: in the notation of `Start.parse`.
        lr_factors: learning rates to tune over, times the narrow model's.
        seeds: repetitions. Each has its own noise, fresh weights and part of the text.
        cooldown_fraction: share of the steps, at the end, of the cooldown.
    """

    widths: tuple[int, ...] = (2, 4)
    starts: tuple[str, ...] = STARTS
    lr_factors: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25)
    seeds: int = 3
    cooldown_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 2:
            raise GrowthError(f"widths {self.widths}: expected whole factors of at least 2")
        if not self.lr_factors or min(self.lr_factors) <= 0:
            raise GrowthError(f"lr_factors {self.lr_factors}: expected numbers above 0")
        if self.seeds < 1:
            raise GrowthError(f"seeds is {self.seeds}, expected at least 1")
        if not 0 < self.cooldown_fraction < 1:
            raise GrowthError(
                f"cooldown_fraction is {self.cooldown_fraction}, expected a fraction between 0 and 1"
            )
        parsed = [str(Start.parse(start)) for start in self.starts]
        for name, values in (("starts", parsed), ("widths", self.widths), ("lr_factors", self.lr_factors)):
            if len(set(values)) != len(values):
                raise GrowthError(f"{name}: {', '.join(map(str, values))}: the same one twice")


def compare(
    source: Path,
    out: Path,
    tokens: Tokens,
    training: TrainConfig,
    config: CompareConfig,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train every start at every width; return all runs as plain data, for `comparison_table` and JSON.

    Finished runs under ``out`` are not repeated, and one that was cut off is resumed.

    Args:
        source: narrow checkpoint directory; `train` leaves one with its history, which says what it cost.
        out: folder for the runs (their curves; weights are not kept).
        tokens: the text, encoded with the narrow model's tokenizer.
        training: settings with the *narrow* model's learning rate, as `training_like` gives them.
        config: what to compare.
        jobs: runs side by side.
        progress: a display to share, from `make_progress`.

    Raises:
        GrowthError: as `mupscale.plan`, `mupscale.grow` and `train`.
    """
    narrow = Narrow.load(source)
    starts = [Start.parse(text) for text in config.starts]
    if any(start.carried for start in starts) and not (source / "optimizer.pt").is_file():
        raise GrowthError(
            f"{source}: no optimizer.pt to carry; add optimizer=fresh to the starts that carry it"
        )
    run = partial(run_trial, source, checksum(source), tokens, out, training, config.cooldown_fraction)
    more = {"jobs": jobs, "progress": progress, "describe": _describe}
    sides = [(width, start) for width in sorted(config.widths, reverse=True) for start in starts]
    tuning = [
        Trial(width=width, start=start, lr_factor=factor, seed=0)
        for width, start in sides
        for factor in config.lr_factors
    ]
    found = run_trials(run, tuning, title="tuning", **more)  # type: ignore[arg-type]
    best = {
        side: min(
            (t for t in tuning if (t.width, t.start) == side), key=lambda t: _loss(found[t]["cooldown"])
        )
        for side in sides
    }
    for trial in best.values():
        if not math.isfinite(_loss(found[trial]["cooldown"])):
            raise GrowthError(
                f"{trial.start}, width ×{trial.width}: diverged at every rate; give lower ones (--lrs)"
            )
    seeds = [replace(best[side], seed=seed) for side in sides for seed in range(1, config.seeds)]
    found |= run_trials(run, seeds, title="other seeds", **more)  # type: ignore[arg-type]
    return {
        "mupscale": mupscale.__version__,
        "narrow": describe_narrow(narrow),
        "data": tokens.about,
        "settings": {"compare": asdict(config), "training": asdict(training)},
        "runs": [
            _row(trial, schedule, history, chosen=trial.lr_factor == best[trial.width, trial.start].lr_factor)
            for trial, histories in found.items()
            for schedule, history in histories.items()
        ],
    }


def run_trial(
    source: Path,
    weights: str,
    tokens: Tokens,
    out: Path,
    training: TrainConfig,
    cooldown_fraction: float,
    trial: Trial,
) -> dict[str, History]:
    """Both schedules of one trial.

    Args:
        weights: checksum of the narrow model's; another model makes another run.
    """
    narrow = load_model(source)
    growth = mupscale.plan(narrow.config, width=trial.width)
    plan = from_first(
        source, growth
    )  # rates are said as the first model's, if this one has itself been grown
    constant = replace(
        training,
        lr=training.lr * trial.lr_factor,
        cooldown_fraction=0.0,
        # Other seeds see other text, which the narrow model has not seen either.
        skip_blocks=training.skip_blocks + trial.seed * training.steps * training.batch_size,
    )
    cooldown = replace(constant, cooldown_fraction=cooldown_fraction)
    folder, begun = out / trial.folder, {**asdict(trial), "source": weights}
    model, optimizer = begin(source, narrow, growth, trial, constant)
    trunk = train(
        model,
        tokens,
        folder / "constant",
        constant,
        plan=plan,
        optimizer=optimizer,
        start=begun,
        keep_at=[cooldown.cooldown_start],
    )
    branch = train(
        AutoModelForCausalLM.from_config(plan.config),
        tokens,
        folder / "cooldown",
        cooldown,
        plan=plan,
        start=begun,
        branch_from=folder / "constant" / "checkpoints" / f"checkpoint-{cooldown.cooldown_start}",
    )
    for schedule in SCHEDULES:
        drop_weights(folder / schedule)
    return {"constant": trunk, "cooldown": branch}


def begin(
    source: Path, narrow: PreTrainedModel, growth: mupscale.Plan, trial: Trial, config: TrainConfig
) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """The wide model as a trial starts it, and its optimizer."""
    start, plan = trial.start, from_first(source, growth)
    if start.operator == SCRATCH:
        model = AutoModelForCausalLM.from_config(plan.config)
        mupscale.init_(model, plan, seed=trial.seed)
    else:
        model = mupscale.grow(
            narrow,
            growth,
            operator=start.operator,
            noise=start.noise,
            shrink=start.shrink,
            seed=trial.seed,
            from_first=plan,
        )
    optimizer = build_optimizer(model, config, plan)
    if start.carried:
        # The narrow model may itself have been grown, with more groups than a plain one.
        before = mupscale.Plan.load(source) if (source / MANIFEST).is_file() else None
        saved = build_optimizer(narrow, config, before)
        saved.load_state_dict(torch.load(source / "optimizer.pt", map_location="cpu", weights_only=True))
        carried = mupscale.carry_optimizer(saved, narrow, model, growth, operator=start.operator)
        optimizer.state.update(carried.state)
    return model, optimizer


def _loss(history: History) -> float:
    """The final loss, infinite where the run diverged."""
    return history.final_loss if math.isfinite(history.final_loss) else math.inf


def _describe(trial: Trial, histories: dict[str, History]) -> str:
    loss = histories["cooldown"].final_loss
    return f"width ×{trial.width}, {trial.start}, lr ×{trial.lr_factor:g}, seed {trial.seed}: {loss:.3f}"


def _row(trial: Trial, schedule: str, history: History, *, chosen: bool) -> dict[str, Any]:
    """One run as plain data. The cooldown's first points are the constant run's."""
    return {
        "width": trial.width,
        "start": str(trial.start),
        "lr_factor": trial.lr_factor,
        "seed": trial.seed,
        "schedule": schedule,
        "chosen": chosen,
        "steps": history.steps,
        "flops": history.flops,
        "tokens": history.steps * history.tokens_per_step,
        "initial_loss": history.held_out[0].loss,
        "final_loss": history.final_loss,
        "curve": [row for row in history.rows() if row["held_out_loss"] is not None],
    }
