"""`mupscale train`.

Knows what the command takes and prints; what is heavy is imported when it runs.
"""

from __future__ import annotations

import json as json_module
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from mupscale.cli.studying import HeldOut, Text, need_extras, run_study
from mupscale.cli.tables import check_tables, text_source, training_table
from mupscale.cli.terminal import Json, on_terminal, say, tell, unset
from mupscale.errors import GrowthError
from mupscale.study.spec.recipe import TrainConfig


def train(
    out: Annotated[Positional[Path], arg(metavar="OUT", help="checkpoint directory to write")],
    /,
    *,
    config: Annotated[
        str | None,
        unset(help="preset (llama-tiny, the default, llama-small, llama-medium), config.json or its folder"),
    ] = None,
    start: Annotated[
        Path | None, unset(name="from", help="checkpoint to start from, such as a grown one")
    ] = None,
    data: Text = "stdlib",
    vocab_size: Annotated[
        int, arg(help="entries of the tokenizer that is trained when there is none yet")
    ] = 1024,
    held_out: HeldOut = 0.05,
    steps: Annotated[int, arg(help="optimizer steps")] = 500,
    stages: Annotated[
        tuple[str, ...],
        unset(
            help="instead of --steps: WIDTH:STEPS or WIDTHxLAYERS:STEPS of each stage, factors over the one "
            "before, the first 1; or one TOML file"
        ),
    ] = (),
    lr: Annotated[
        float, arg(help="learning rate; of the narrow model where the start is a grown one")
    ] = 4e-3,
    batch_size: Annotated[int, arg(help="sequences in a step")] = 16,
    block_size: Annotated[int, arg(help="tokens in a sequence")] = 128,
    weight_decay: Annotated[float, arg(help="AdamW's, on all but norms and biases")] = 0.1,
    warmup_steps: Annotated[
        int | None, unset(help="steps of linear warmup; default: 20, or as many as the cooldown leaves")
    ] = None,
    cooldown_fraction: Annotated[float, arg(help="share of the steps, at the end, of linear cooldown")] = 0.2,
    max_grad_norm: Annotated[
        float, arg(help="clip gradients at this norm, width-invariantly; 0 for never")
    ] = 1.0,
    eval_every: Annotated[int, arg(help="steps between evaluations on the held-out text")] = 50,
    eval_blocks: Annotated[int, arg(help="held-out blocks to evaluate on")] = 128,
    skip_blocks: Annotated[
        int | None, unset(help="blocks of text to skip; default: what the start has seen")
    ] = None,
    bf16: Annotated[bool, arg(help="compute in bfloat16, weights in float32")] = False,
    seed: Annotated[int, arg(help="of the fresh weights and the data order")] = 0,
    fresh_optimizer: Annotated[bool, arg(help="do not go on with the optimizer of the start")] = False,
    resume: Annotated[bool, arg(help="refuse to begin anew: OUT must hold this run")] = False,
    overwrite: Annotated[bool, arg(help="replace another run in OUT")] = False,
    json: Json = False,
) -> int:
    """Train a causal language model on text, with transformers.Trainer.

    A run that was cut off goes on when the same command is given again; a finished one is not repeated.
    Started from a grown checkpoint it takes its parameter groups from the plan there, and goes on with the
    carried optimizer. With --stages it grows on the way, each stage with fresh text: OUT/stage1, stage2, …;
    by even copies and with its optimizer, if the TOML file does not name another operator.

    Example: mupscale train narrow --config llama-tiny --data texts/ --steps 500 --lr 4e-3
    Example: mupscale train line --config llama-tiny --stages 1:300 2:200 2:100
    Example: mupscale train deeper --config llama-tiny --stages 1:300 1x2:200 2x1:100
    """
    need_extras()
    from mupscale.study.runs.models import PRESETS, read_config, read_tokenizer
    from mupscale.study.runs.training import RUN_FILE, seen_blocks

    if resume and not (out / ("stage1" if stages else "") / RUN_FILE).is_file():
        raise GrowthError(f"{out}: holds no run to resume; leave --resume out to begin one")
    if start is not None and start.resolve() == out.resolve():
        raise GrowthError(f"{out}: cannot be both the start and the output; choose another directory")
    if start is not None and config is not None:
        raise GrowthError(f"--from {start}, --config {config}: the start has a config of its own; give one")
    config = config or "llama-tiny"
    if start is not None and (start / "config.json").is_file() and read_tokenizer(start) is None:
        raise GrowthError(
            f"{start}: no tokenizer.json; the text must be encoded with the model's own tokenizer"
        )
    if start is None and config not in PRESETS:
        vocab_size = read_config(Path(config)).vocab_size  # a wrong name fails before the text is read
    settings = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        block_size=block_size,
        lr=lr,
        weight_decay=weight_decay,
        warmup_steps=_warmup(steps, cooldown_fraction) if warmup_steps is None else warmup_steps,
        cooldown_fraction=cooldown_fraction,
        max_grad_norm=max_grad_norm,
        eval_every=eval_every,
        eval_blocks=eval_blocks,
        seed=seed,
        bf16=bf16,
        skip_blocks=skip_blocks if skip_blocks is not None else (seen_blocks(start) if start else 0),
    )
    asked = _Asked(
        out=out,
        config=config,
        start=start,
        carries=start is not None and not fresh_optimizer and (start / "optimizer.pt").is_file(),
        data={"source": text_source(data), "vocab_size": vocab_size, "held_out": held_out},
        settings=settings,
        overwrite=overwrite,
        json=json,
    )
    if not stages:
        return _train(asked)
    if start is not None and settings.skip_blocks != seen_blocks(start):
        raise GrowthError("--skip-blocks: stages go on in the text where the start stopped; leave it out")
    return _train_stages(asked, stages)


def _warmup(steps: int, cooldown_fraction: float) -> int:
    """20 steps, or what a run has before its cooldown."""
    usual = TrainConfig(warmup_steps=0, steps=steps, cooldown_fraction=cooldown_fraction)
    return min(TrainConfig.warmup_steps, steps - usual.cooldown_steps)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is to be trained: fresh from a preset or a config; or from a start, that carries its optimizer."""

    out: Path
    config: str
    start: Path | None
    carries: bool
    data: Mapping[str, Any]
    settings: TrainConfig
    overwrite: bool
    json: bool


def _train(asked: _Asked) -> int:
    import mupscale
    from mupscale.study.data.tokens import load_tokens
    from mupscale.study.runs.models import (
        PRESETS,
        fresh_model,
        load_checkpoint,
        read_config,
        read_tokenizer,
        small_llama,
    )
    from mupscale.study.runs.optimizers import carried_optimizer
    from mupscale.study.runs.progress import make_progress
    from mupscale.study.runs.training import train
    from mupscale.theory.manifest import MANIFEST

    out, config, start, settings = asked.out, asked.config, asked.start, asked.settings
    given = start or (Path(config) if config not in PRESETS else None)
    tokens = load_tokens(**asked.data, tokenizer=given and read_tokenizer(given), cache=out / "tokens")
    say(f"text: {tokens.about}")
    plan, optimizer = None, None
    if start is None:
        sizes = {"vocab_size": len(tokens.tokenizer), "positions": max(256, settings.block_size)}
        preset = small_llama(*PRESETS[config], **sizes) if config in PRESETS else None
        model = fresh_model(preset or read_config(Path(config)), settings.seed)
        origin: dict[str, Any] = {"config": config}
    else:
        model = load_checkpoint(start)
        plan = mupscale.Plan.load(start) if (start / MANIFEST).is_file() else None
        if asked.carries:
            optimizer = carried_optimizer(model, settings, plan, start)
        origin = {"from": str(start), "optimizer_carried": optimizer is not None}
    with on_terminal(make_progress()) as progress:
        history = train(
            model,
            tokens,
            out,
            settings,
            plan=plan,
            optimizer=optimizer,
            start=origin,
            overwrite=asked.overwrite,
            name=out.name,
            progress=progress,
        )
    if plan is not None and start is not None:
        shutil.copy(start / MANIFEST, out / MANIFEST)  # a further phase needs the same groups
    result = {
        "out": str(out),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": history.steps,
        "tokens": history.steps * history.tokens_per_step,
        "flops": history.flops,
        "first_held_out_loss": history.held_out[0].loss,
        "final_held_out_loss": history.final_loss,
    }
    if math.isfinite(history.final_loss):
        tell(asked.json, result, f"{out}: held-out loss {history.final_loss:.4f} after {history.steps} steps")
        return 0
    said = f"{out}: the loss is not finite after {history.steps} steps: training diverged; lower --lr"
    tell(asked.json, result, said)
    if asked.json:
        say(said)
    return 1


def _train_stages(asked: _Asked, words: tuple[str, ...]) -> int:
    """Write a study of all stages to OUT/study.toml, and run it."""
    from mupscale.layout.depth import depth_of
    from mupscale.study.files.stages import line, read_stages
    from mupscale.study.files.toml import read_back, read_toml, write_toml
    from mupscale.study.runs.models import PRESETS, read_config

    out, config, start, settings = asked.out, asked.config, asked.start, asked.settings
    first: dict[str, Any] = {"begin": "scratch", "parametrization": "standard"}
    if start is not None:
        state = "carried" if asked.carries else "fresh"
        first = {"begin": "continue", "from": "start", "optimizer_state": state}
    preset = PRESETS.get(config) if start is None else None
    depth = preset[1] if preset else depth_of(read_config(start or Path(config)))
    read = read_stages(words)
    stages, file = line(read, first, settings.lr, depth), out / "study.toml"
    if start is not None:
        model: dict[str, Any] = {"checkpoint": str(start.absolute())}
        stages["sweep"] = {"start": {"begin": "checkpoint"}, **stages["sweep"]}
    elif preset:
        model = {"family": "llama", "width": preset[0], "layers": preset[1]}
    else:
        model = {"config": str(Path(config).absolute())}
    tables = {
        "title": f"Training in {len(read)} stages",
        "seeds": [settings.seed],
        "growth_seed": 0,
        "skip_blocks": settings.skip_blocks,
        "model": model,
        "data": asked.data,
        "training": training_table(settings),
        **stages,
    }
    check_tables(tables, file)
    before = read_toml(file) if file.is_file() else None
    if (out / "trials.journal").is_file() and before != read_back(tables):
        if not asked.overwrite:
            raise GrowthError(
                f"{out}: holds a run with other stages or settings; choose another directory, or replace it "
                "(--overwrite)"
            )
        (out / "trials.journal").unlink()
        for stage in out.glob("stage[0-9]*/"):
            shutil.rmtree(stage)
    write_toml(tables, file)
    status = run_study(file, out, jobs=1, as_json=asked.json)
    last = json_module.loads((out / "results.json").read_text(encoding="utf-8"))["sweeps"][-1]
    if any(point["state"] == "diverged" for point in last["points"]):
        say(f"{out}: the loss of {last['name']} is not finite: training diverged; lower its learning rate")
        return 1
    return status
