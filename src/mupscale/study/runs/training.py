"""Train a model with `transformers.Trainer` in an exact data order.

Knows the Trainer and the clipping of the core; nothing of how models are grown or compared.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import mupscale
from mupscale.errors import GrowthError
from mupscale.integrations import ClipGradNorm
from mupscale.theory.manifest import MANIFEST
from mupscale.study.data.tokens import Data, collate
from mupscale.study.runs.history import HISTORY_FILE, History, Point, write_json
from mupscale.study.runs.progress import ShowProgress, quiet
from mupscale.study.spec.recipe import SCHEDULER, TrainConfig, build_optimizer

RUN_FILE = "run.json"


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

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for step, path in saved_checkpoints(self.folder).items():
            if step < state.global_step and step not in self.steps:
                shutil.rmtree(path)


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
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        assert metrics is not None
        point = Point(step=state.global_step, loss=float(metrics["eval_loss"]))
        self.curve.append(point)
        given_up = self.watch is not None and self.watch(point.step, point.loss)
        if not math.isfinite(point.loss) or (given_up and point.step < state.max_steps):
            raise RunEnded


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


def seen_blocks(checkpoint: Path) -> int:
    """How many blocks of its data stream the model in a checkpoint has seen; 0 where its files do not say."""
    history = History.load(checkpoint)
    if history is not None:
        config = history.settings["config"]
        return int(config["skip_blocks"] + config["steps"] * config["batch_size"])
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return int(state["global_step"] * state["train_batch_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


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
    known = dict(history.settings["config"]) if history else {}
    if "betas" in known:
        known["betas"] = tuple(known["betas"])
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
        >>> from mupscale.study.data.corpus import DataConfig
        >>> from mupscale.study.data.tokens import load_tokens
        >>> from mupscale.study.runs.models import fresh_model, preset
        >>> tokens = load_tokens(DataConfig(max_bytes=100_000, vocab_size=300))
        >>> model = fresh_model(preset("llama-tiny", vocab_size=300), 0)
        >>> config = TrainConfig(steps=4, batch_size=2, block_size=16, warmup_steps=1, eval_blocks=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history = train(model, tokens, Path(folder), config)
        >>> history.final_loss < history.held_out[0].loss
        True
    """
    data.check(model, config)
    settings = _settings(data, config, start)
    done = _prepare(out, settings, overwrite)
    if done is not None:
        return done

    folder = out / "checkpoints"
    resume = next(reversed(saved_checkpoints(folder).values()), branch_from)
    stream, held_out = data.training(config), data.held_out(config)
    trainer = Trainer(
        model=model,
        args=_arguments(config, folder, first=resume is None, held_out=len(held_out)),  # type: ignore[arg-type]
        train_dataset=stream,
        eval_dataset=held_out,
        data_collator=collate,
        processing_class=data.tokenizer,
        optimizers=(optimizer or build_optimizer(model, config, plan), None),
        callbacks=[_Keep(folder, keep_at), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    if optimizer is not None:  # the Trainer has moved the model to its device: let the state follow
        optimizer.load_state_dict(optimizer.state_dict())
    if config.max_grad_norm > 0:
        trainer.add_callback(ClipGradNorm(plan, config.max_grad_norm))
    if progress is not None:
        trainer.add_callback(ShowProgress(progress, name))
    began = time.perf_counter()
    with quiet():
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    train_curve, held_out_curve = History.from_log(trainer.state.log_history)
    history = History(
        settings=settings,
        flops_per_step=data.step_flops(model, config),
        tokens_per_step=config.batch_size * stream[0]["labels"].numel(),
        train=train_curve,
        held_out=held_out_curve,
        seconds=time.perf_counter() - began,
    )
    _finish(out, history, keep_at)
    return history


def finished(out: Path, data: Data, config: TrainConfig, start: dict[str, Any]) -> bool:
    """Whether `train` would find this very run in ``out``, all done."""
    try:
        known = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(known == _settings(data, config, start) and History.load(out))


def _settings(data: Data, config: TrainConfig, start: dict[str, Any] | None) -> dict[str, Any]:
    settings = {"config": asdict(config), "start": start or {}, "data": data.about}
    return dict(json.loads(json.dumps(settings)))  # as it will be read back


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
        try:
            known = json.loads(run_file.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
        if known == settings:
            return History.load(out)
        if not overwrite:
            raise GrowthError(
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
    shutil.copytree(saved.pop(history.steps), out, dirs_exist_ok=True)
    history.save(out)
    for step, path in saved.items():
        if step not in keep_at:
            shutil.rmtree(path)
    shutil.rmtree(out / "checkpoints" / f"checkpoint-{history.steps}", ignore_errors=True)
    if not any((out / "checkpoints").iterdir()):
        (out / "checkpoints").rmdir()
