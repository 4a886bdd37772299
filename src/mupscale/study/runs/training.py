"""Train a model with `transformers.Trainer` in an exact data order.

Knows the Trainer and the clipping of the core; nothing of how models are grown or compared.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

import mupscale
from mupscale.errors import GrowthError
from mupscale.integrations import ClipGradNorm
from mupscale.study.data.stream import Data, collate
from mupscale.study.runs.history import HISTORY_FILE, History, Point, curve_of
from mupscale.study.runs.optimizers import build_optimizer
from mupscale.study.runs.progress import ShowProgress, quiet
from mupscale.study.spec.recipe import SCHEDULER, TrainConfig
from mupscale.study.writing import write_json
from mupscale.theory.manifest import MANIFEST

RUN_FILE = "run.json"


class _Keep(TrainerCallback):  # type: ignore[misc]
    """Save at chosen steps, and drop every older checkpoint that was not chosen."""

    def __init__(self, folder: Path, steps: Collection[int]) -> None:
        self.folder, self.steps = folder, steps

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        for step, path in saved_checkpoints(self.folder).items():
            if step < state.global_step and step not in self.steps:
                shutil.rmtree(path)


class AnotherRun(GrowthError):
    """A folder holds a run with other settings."""


class RunEnded(Exception):
    """A run stopped before its last step: diverged, or given up."""


class Listen(TrainerCallback):  # type: ignore[misc]
    """Keep the held-out curve; end the run where it diverges, or where the watcher says so.

    Args:
        watch: told the step and the loss of every evaluation; True gives the run up.
    """

    def __init__(self, watch: Callable[[int, float], bool] | None = None) -> None:
        self.watch = watch
        self.curve: list[Point] = []

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: Mapping[str, float], **kwargs: Any
    ) -> None:
        point = Point(step=state.global_step, loss=float(metrics["eval_loss"]))
        self.curve.append(point)
        given_up = self.watch is not None and self.watch(point.step, point.loss)
        if not math.isfinite(point.loss) or (given_up and point.step < state.max_steps):
            raise RunEnded


def saved_checkpoints(folder: Path) -> dict[int, Path]:
    """The whole checkpoints under a run's folder, by step; one that was cut off while saving is left out."""
    paths = folder.glob("checkpoint-*")
    # The Trainer writes this file last.
    found = {_read(path / "trainer_state.json").get("global_step"): path for path in paths}
    return dict(sorted((step, path) for step, path in found.items() if step is not None))


def seen_blocks(checkpoint: Path) -> int:
    """How many blocks of its data stream the model in a checkpoint has seen; 0 where its files do not say."""
    history = History.load(checkpoint)
    if history is not None:
        config = history.settings["config"]
        return int(config["skip_blocks"] + config["steps"] * config["batch_size"])
    state = _read(checkpoint / "trainer_state.json")
    return int((state.get("global_step") or 0) * (state.get("train_batch_size") or 0))


def training_like(source: Path, *, steps: int, **changes: Any) -> TrainConfig:
    """The settings that a narrow model was trained with, for `steps` more on the text that follows.

    Args:
        source: narrow checkpoint directory.
        steps: length of the grown model's training.
        changes: settings to replace, such as `lr`, the narrow model's learning rate.

    Raises:
        GrowthError: the checkpoint has no history and `lr` is not given.
    """
    history = History.load(source)
    if history is None and "lr" not in changes:
        raise GrowthError(f"{source}: no history.json that says its learning rate; give it (--lr)")
    known = history.settings["config"] if history else {}
    return TrainConfig(**{**known, "skip_blocks": seen_blocks(source), **changes, "steps": steps})


def train(
    model: nn.Module,
    data: Data,
    out: Path,
    config: TrainConfig,
    *,
    plan: mupscale.Plan | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    start: dict[str, Any] | None = None,
    branch_from: Path | None = None,
    keep_at: Collection[int] = (),
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    name: str = "training",
    progress: Progress | None = None,
) -> History:
    """Train, evaluate and leave a checkpoint in `out` to load, grow with its optimizer, or resume.

    A run that was cut off goes on from its last checkpoint when it is called again with the same settings;
    one that is finished is not repeated.

    Args:
        model: any module whose ``forward(**batch)`` returns a dict, or a transformers output, with ``loss``;
            changed in place.
        data: what it trains on, such as encoded text.
        out: checkpoint directory to write; `history.json` beside the weights holds the curves.
        config: the settings.
        plan: scales learning rates, weight decay and clipping of a grown (or μP-initialized) model.
        optimizer: an optimizer to go on with; None builds a fresh one.
        start: how the model came to be, in plain data; part of what must match to resume.
        branch_from: a checkpoint of a longer run to leave from, which must lie before this run's cooldown.
        keep_at: steps whose checkpoints stay in `out/checkpoints`.
        overwrite: throw away a run with other settings in `out` instead of refusing.
        callbacks: of the Trainer's, besides our own; they see only what is trained in this call.
        name: what to call the run while it shows progress.
        progress: a display to share, from `make_progress`.

    Raises:
        GrowthError: data that do not fit the model or are too few, or another run in `out`.

    Example:
        >>> import tempfile
        >>> from mupscale.study.data.tokens import load_tokens
        >>> from mupscale.study.runs.models import fresh_model, small_llama
        >>> tokens = load_tokens(max_bytes=100_000, vocab_size=300)
        >>> model = fresh_model(small_llama(64, 3, vocab_size=300), 0)
        >>> config = TrainConfig(steps=4, batch_size=2, block_size=16, warmup_steps=1, eval_blocks=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history = train(model, tokens, Path(folder), config)
        >>> history.final_loss < history.held_out[0].loss
        True
    """
    data.check(model, config)
    settings = {"config": asdict(config), "start": start or {}, "data": data.about}
    settings = json.loads(json.dumps(settings))  # as it will be read back
    done = _prepare(out, settings, overwrite)
    if done is not None:
        return done

    folder = out / "checkpoints"
    resume = next(reversed(saved_checkpoints(folder).values()), branch_from)
    stream, held_out = data.training(config), data.held_out(config)
    trainer = Trainer(
        model=model,
        args=_arguments(config, folder, first=resume is None, held_out=len(held_out)),
        train_dataset=stream,
        eval_dataset=held_out,
        data_collator=collate,
        processing_class=data.tokenizer,
        optimizers=(optimizer or build_optimizer(model, config, plan), None),
        callbacks=[
            _Keep(folder, keep_at),
            *callbacks,
            *([ClipGradNorm(plan, config.max_grad_norm)] if config.max_grad_norm > 0 else []),
            *([ShowProgress(progress, name)] if progress is not None else []),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    # The model's own mean over the batch: the Trainer's count of labels is one per block too many for some.
    trainer.model_accepts_loss_kwargs = False
    if optimizer is not None:  # the Trainer has moved the model to its device: let the state follow
        optimizer.load_state_dict(optimizer.state_dict())
    began = time.perf_counter()
    with quiet():
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    history = History(
        settings=settings,
        flops_per_step=data.step_flops(model, config),
        tokens_per_step=config.batch_size * stream[0]["labels"].numel(),
        train=curve_of(trainer.state.log_history, "loss"),
        held_out=curve_of(trainer.state.log_history, "eval_loss"),
        seconds=time.perf_counter() - began,
    )
    _finish(out, history, keep_at)
    return history


def _arguments(config: TrainConfig, folder: Path, *, first: bool, held_out: int) -> TrainingArguments:
    batches = math.ceil(held_out / config.batch_size)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        # The Trainer counts all batches alike, whatever their size: make them even.
        per_device_eval_batch_size=math.ceil(held_out / batches),
        # The order is the data set's own: it must depend on the seed alone.
        train_sampling_strategy="sequential",
        learning_rate=config.lr,
        lr_scheduler_type=SCHEDULER,
        warmup_steps=config.warmup_steps,
        lr_scheduler_kwargs=config.schedule,
        max_grad_norm=0.0,  # `ClipGradNorm` does it
        seed=config.seed,
        bf16=config.bf16,
        use_cpu=config.bf16 and not torch.cuda.is_available(),  # which else is refused
        eval_strategy="steps",
        eval_steps=config.eval_every,
        eval_on_start=first,
        prediction_loss_only=True,
        label_names=["labels"],
        remove_unused_columns=False,
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
    """Look at what is in `out`: this run, finished or not, another one, or nothing."""
    if out.exists() and not out.is_dir():
        raise GrowthError(f"{out}: is a file; give a directory for the checkpoint")
    run_file = out / RUN_FILE
    if run_file.is_file():
        known = _read(run_file)
        if known == settings:
            return History.load(out)
        if not overwrite:
            raise AnotherRun(
                f"{out}: holds a run with other settings ({_difference(known, settings)}); {_MEND}"
            )
    elif any((out / name).exists() for name in ("config.json", "model.safetensors")) and not overwrite:
        raise GrowthError(f"{out}: holds a checkpoint that this command did not write; {_MEND}")
    if overwrite:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        for stale in (HISTORY_FILE, MANIFEST, "optimizer.pt"):
            (out / stale).unlink(missing_ok=True)
    write_json(run_file, settings)
    return None


_MEND = "choose another directory, or replace it (--overwrite)"


def _difference(known: dict[str, Any], settings: dict[str, Any]) -> str:
    """The first setting that is not the same, for people."""
    for part in ("config", "start"):
        old, new = known.get(part, {}), settings[part]
        for key in [*new, *old]:
            if old.get(key) != new.get(key):
                return f"{key} was {old.get(key)}, now {new.get(key)}"
    return f"data was {known.get('data')}, now {settings['data']}"


def _finish(out: Path, history: History, keep_at: Collection[int]) -> None:
    """Put the last checkpoint's files into `out` itself; the history comes last: all is there."""
    saved = saved_checkpoints(out / "checkpoints")
    shutil.copytree(saved[history.steps], out, dirs_exist_ok=True)
    history.save(out)
    for step, path in saved.items():
        if step == history.steps or step not in keep_at:
            shutil.rmtree(path)
    with suppress(OSError):  # some are kept
        (out / "checkpoints").rmdir()


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file says: nothing where there is none, or half of one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
