"""Train a causal language model with `transformers.Trainer`, growth's parameter groups and an exact data order.

Knows the Trainer and the optimizer side of the core; nothing of how models are grown or compared.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

import mupscale
from mupscale.errors import GrowthError
from mupscale.study.data import Tokens, held_out_blocks, training_blocks
from mupscale.study.flops import training_flops
from mupscale.study.history import HISTORY_FILE, History, write_json
from mupscale.study.progress import ShowProgress, quiet

RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that fixes a run besides the model and the text.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences in a step.
        block_size: tokens in a sequence.
        lr: learning rate between warmup and cooldown. With a plan it is the narrow model's: the groups scale it.
        weight_decay: AdamW's, on all but norms and biases; the narrow model's, likewise.
        betas, eps: AdamW's.
        warmup_steps: steps in which the learning rate rises linearly from zero.
        cooldown_fraction: share of all steps, at the end, in which it falls linearly to zero.
        max_grad_norm: largest gradient norm, 0 for no clipping; with a plan the width-invariant norm.
        seed: of the data order and of dropout.
        skip_blocks: blocks of the seed's data stream to leave out, because an earlier run has seen them.
        eval_every: steps between evaluations on the held-out text; step 0 and the last are always evaluated.
        eval_blocks: held-out blocks to evaluate on, None for all.
        log_every: steps that one training loss is the mean of.
        save_every: steps between checkpoints to resume from; None saves ten times.
    """

    steps: int = 500
    batch_size: int = 16
    block_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    warmup_steps: int = 20
    cooldown_fraction: float = 0.2
    max_grad_norm: float = 1.0
    seed: int = 0
    skip_blocks: int = 0
    eval_every: int = 50
    eval_blocks: int | None = 128
    log_every: int = 10
    save_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise GrowthError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.block_size < 2:
            raise GrowthError(f"block_size is {self.block_size}, expected at least 2: a token and the next one")
        if not self.lr > 0:
            raise GrowthError(f"lr is {self.lr}, expected more than 0")
        if not 0 <= self.cooldown_fraction <= 1:
            raise GrowthError(f"cooldown_fraction is {self.cooldown_fraction}, expected 0 to 1")
        if self.warmup_steps + self.cooldown_steps > self.steps:
            raise GrowthError(
                f"warmup_steps {self.warmup_steps} and a cooldown of {self.cooldown_steps} do not fit into "
                f"{self.steps} steps; give more steps or a shorter warmup"
            )

    @property
    def cooldown_steps(self) -> int:
        """Steps of the cooldown."""
        return round(self.cooldown_fraction * self.steps)

    @property
    def cooldown_start(self) -> int:
        """The step at which the learning rate begins to fall: up to here a run does not depend on its length."""
        return self.steps - self.cooldown_steps


def build_optimizer(
    model: nn.Module, config: TrainConfig, plan: mupscale.Plan | None = None
) -> torch.optim.AdamW:
    """AdamW with the Trainer's split into decayed and undecayed parameters, scaled by the plan if there is one.

    Example:
        >>> optimizer = build_optimizer(torch.nn.Linear(2, 2), TrainConfig(weight_decay=0.3))
        >>> [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        [(0.3, 1), (0.0, 1)]
    """
    decay = set(Trainer.get_decay_parameter_names(None, model))
    hyper: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if plan is not None:
        groups = mupscale.param_groups(
            model, plan, torch.optim.AdamW, weight_decay=config.weight_decay, decay=decay, **hyper
        )
    else:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in named if name in decay], "weight_decay": config.weight_decay},
            {"params": [p for name, p in named if name not in decay], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW([g for g in groups if g["params"]], **hyper)


def carried_optimizer(
    model: nn.Module, config: TrainConfig, plan: mupscale.Plan | None, checkpoint: Path
) -> torch.optim.AdamW:
    """The optimizer that a checkpoint holds, made ready for a fresh phase at `config.lr`.

    Raises:
        GrowthError: the checkpoint holds no optimizer, or one that does not fit the model.
    """
    path = checkpoint / "optimizer.pt"
    if not path.is_file():
        raise GrowthError(f"{path}: not there; grow the checkpoint with its optimizer, or start with a fresh one")
    optimizer = build_optimizer(model, config, plan)
    try:
        optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (ValueError, KeyError, RuntimeError) as error:
        raise GrowthError(f"{path}: does not fit the model ({error}); start with a fresh optimizer") from None
    mupscale.set_lr(optimizer, config.lr)
    return optimizer


class _Clip(TrainerCallback):  # type: ignore[misc]
    """Clip by the width-invariant norm where there is a plan, by the plain one where there is none."""

    def __init__(self, plan: mupscale.Plan | None, max_norm: float) -> None:
        self.plan = plan
        self.max_norm = max_norm

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        if self.plan is not None:
            mupscale.clip_grad_norm_(model, self.plan, self.max_norm)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)


class _Keep(TrainerCallback):  # type: ignore[misc]
    """Save at chosen steps, and drop every older checkpoint that was not chosen."""

    def __init__(self, folder: Path, steps: Collection[int]) -> None:
        self.folder = folder
        self.steps = frozenset(steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step in self.steps:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for step, path in saved_checkpoints(self.folder).items():
            if step < state.global_step and step not in self.steps:
                shutil.rmtree(path)


def saved_checkpoints(folder: Path) -> dict[int, Path]:
    """The whole checkpoints under a run's folder, by step; one that was cut off while saving is left out."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        try:  # The Trainer writes this file last.
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found[int(state["global_step"])] = path
    return dict(sorted(found.items()))


def train(
    model: PreTrainedModel,
    tokens: Tokens,
    out: Path,
    config: TrainConfig,
    *,
    plan: mupscale.Plan | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    start: dict[str, Any] | None = None,
    branch_from: Path | None = None,
    keep_at: Collection[int] = (),
    overwrite: bool = False,
    name: str = "training",
    progress: Progress | None = None,
) -> History:
    """Train, evaluate and leave a checkpoint in `out` that can be loaded, grown with its optimizer, or resumed.

    A run that was cut off goes on from its last checkpoint when it is called again with the same settings; one
    that is finished is not repeated.

    Args:
        model: a causal language model from transformers; changed in place.
        tokens: the encoded text.
        out: checkpoint directory to write; `history.json` beside the weights holds the curves.
        config: the settings.
        plan: scales learning rates, weight decay and clipping of a grown (or μP-initialized) model.
        optimizer: an optimizer to go on with; None builds a fresh AdamW.
        start: how the model came to be, in plain data; part of what must match to resume.
        branch_from: a checkpoint of a longer run to leave from, which must lie before this run's cooldown.
        keep_at: steps whose checkpoints stay in `out/checkpoints`.
        overwrite: throw away a run with other settings in `out` instead of refusing.
        name: what to call the run while it shows progress.
        progress: a display to share, from `make_progress`.

    Raises:
        GrowthError: too little text, a block longer than the model's positions, or another run in `out`.
    """
    longest = getattr(model.config, "max_position_embeddings", config.block_size)
    if config.block_size > longest:
        raise GrowthError(f"block_size is {config.block_size}, but the model has only {longest} positions")
    if len(tokens.tokenizer) > model.config.vocab_size:
        raise GrowthError(
            f"the tokenizer has {len(tokens.tokenizer)} entries, but the model's vocab_size is "
            f"{model.config.vocab_size}; train with the model's own tokenizer"
        )
    settings = {"config": asdict(config), "start": start or {}, "data": tokens.about}
    settings = json.loads(json.dumps(settings))  # as it will be read back
    finished = _prepare(out, settings, overwrite)
    if finished is not None:
        return finished

    folder = out / "checkpoints"
    resume = next(reversed(saved_checkpoints(folder).values()), branch_from)
    trainer = Trainer(
        model=model,
        args=_arguments(config, folder, first=resume is None),
        train_dataset=training_blocks(
            tokens,
            config.block_size,
            start=config.skip_blocks,
            count=config.steps * config.batch_size,
            seed=config.seed,
        ),
        eval_dataset=held_out_blocks(tokens, config.block_size, config.eval_blocks),
        data_collator=default_data_collator,  # blocks are full: nothing to pad
        processing_class=tokens.tokenizer,
        optimizers=(optimizer or build_optimizer(model, config, plan), None),
        callbacks=[_Keep(folder, keep_at)],
    )
    trainer.remove_callback(PrinterCallback)
    if config.max_grad_norm > 0:
        trainer.add_callback(_Clip(plan, config.max_grad_norm))
    if progress is not None:
        trainer.add_callback(ShowProgress(progress, name))
    began = time.perf_counter()
    with quiet():
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    train_curve, held_out_curve = History.from_log(trainer.state.log_history)
    history = History(
        settings=settings,
        flops_per_step=training_flops(model.config, batch_size=config.batch_size, block_size=config.block_size),
        tokens_per_step=config.batch_size * config.block_size,
        train=train_curve,
        held_out=held_out_curve,
        seconds=time.perf_counter() - began,
    )
    _finish(out, history, keep_at)
    return history


def _arguments(config: TrainConfig, folder: Path, *, first: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        # The order is the data set's own: it must depend on the seed alone.
        train_sampling_strategy="sequential",
        learning_rate=config.lr,
        lr_scheduler_type="warmup_stable_decay",
        warmup_steps=config.warmup_steps,
        lr_scheduler_kwargs={
            "num_decay_steps": config.cooldown_steps,
            "warmup_type": "linear",
            "decay_type": "linear",
        },
        max_grad_norm=0.0,  # `_Clip` does it
        seed=config.seed,
        eval_strategy="steps",
        eval_steps=config.eval_every,
        eval_on_start=first,
        prediction_loss_only=True,
        logging_strategy="steps",
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.save_every or max(1, config.steps // 10),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )


def _prepare(out: Path, settings: dict[str, Any], overwrite: bool) -> History | None:
    """Look at what is in `out`: a finished run of these settings, an unfinished one, another one, or nothing."""
    if out.exists() and not out.is_dir():
        raise GrowthError(f"{out}: is a file; give a directory for the checkpoint")
    run_file = out / RUN_FILE
    if run_file.is_file():
        try:
            known = json.loads(run_file.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
        if known == settings:
            return History.load(out)
        if not overwrite:
            raise GrowthError(f"{out}: holds a run with other settings ({_difference(known, settings)}); {_MEND}")
    elif (out / "config.json").exists() and not overwrite:
        raise GrowthError(f"{out}: holds a checkpoint that this command did not write; {_MEND}")
    if overwrite:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        (out / HISTORY_FILE).unlink(missing_ok=True)
    write_json(run_file, settings)
    return None


_MEND = "choose another directory, or overwrite it"


def _difference(known: dict[str, Any], settings: dict[str, Any]) -> str:
    """The first setting that is not the same, for people."""
    for part in ("config", "start"):
        old, new = known.get(part, {}), settings[part]
        for key in [*new, *old]:
            if old.get(key) != new.get(key):
                return f"{key} was {old.get(key)}, now {new.get(key)}"
    return f"data was {known.get('data')}, now {settings['data']}"


def _finish(out: Path, history: History, keep_at: Collection[int]) -> None:
    """Put the last checkpoint's files into `out` itself; the history comes last and says that all is there."""
    saved = saved_checkpoints(out / "checkpoints")
    shutil.copytree(saved.pop(history.steps), out, dirs_exist_ok=True)
    history.save(out)
    for step, path in saved.items():
        if step not in keep_at:
            shutil.rmtree(path)
    shutil.rmtree(out / "checkpoints" / f"checkpoint-{history.steps}", ignore_errors=True)
    if not any((out / "checkpoints").iterdir()):
        (out / "checkpoints").rmdir()
