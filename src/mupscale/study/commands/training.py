"""`mupscale train` and `mupscale demo`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mupscale.errors import GrowthError
from mupscale.study.commands.shared import need_extras, say, tell, tokenizer_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def train(
    out: Annotated[Positional[Path], arg(metavar="OUT", help="checkpoint directory to write")],
    /,
    *,
    config: Annotated[
        str, arg(help="preset (llama-tiny, llama-small, llama-medium), config.json or its folder")
    ] = ("llama-tiny"),
    start: Annotated[
        Path | None, arg(name="from", help="checkpoint to start from, such as a grown one")
    ] = None,
    data: Annotated[
        Path | None, arg(help="text file or folder; without it, Python's standard library source")
    ] = None,
    vocab_size: Annotated[
        int, arg(help="entries of the tokenizer that is trained when there is none yet")
    ] = 1024,
    held_out: Annotated[float, arg(help="share of the text kept for evaluation")] = 0.05,
    steps: Annotated[int, arg(help="optimizer steps")] = 500,
    stages: Annotated[
        tuple[str, ...],
        arg(help="instead of --steps: WIDTH:STEPS of each stage, the first of width 1; or one TOML file"),
    ] = (),
    lr: Annotated[
        float, arg(help="learning rate; of the narrow model where the start is a grown one")
    ] = 4e-3,
    batch_size: Annotated[int, arg(help="sequences in a step")] = 16,
    block_size: Annotated[int, arg(help="tokens in a sequence")] = 128,
    weight_decay: Annotated[float, arg(help="AdamW's, on all but norms and biases")] = 0.1,
    warmup_steps: Annotated[int, arg(help="steps of linear warmup")] = 20,
    cooldown_fraction: Annotated[float, arg(help="share of the steps, at the end, of linear cooldown")] = 0.2,
    max_grad_norm: Annotated[
        float, arg(help="clip gradients at this norm, width-invariantly; 0 for never")
    ] = 1.0,
    eval_every: Annotated[int, arg(help="steps between evaluations on the held-out text")] = 50,
    eval_blocks: Annotated[int, arg(help="held-out blocks to evaluate on")] = 128,
    skip_blocks: Annotated[
        int | None, arg(help="blocks of text to skip; default: what the start has seen")
    ] = None,
    bf16: Annotated[bool, arg(help="compute in bfloat16, weights in float32")] = False,
    seed: Annotated[int, arg(help="of the fresh weights and the data order")] = 0,
    fresh_optimizer: Annotated[bool, arg(help="do not go on with the optimizer of the start")] = False,
    resume: Annotated[bool, arg(help="refuse to begin anew: OUT must hold this run")] = False,
    overwrite: Annotated[bool, arg(help="replace another run in OUT")] = False,
    json: Annotated[bool, arg(help="print one JSON object")] = False,
) -> int:
    """Train a causal language model on text, with transformers.Trainer.

    A run that was cut off goes on when the same command is given again; a finished one is not repeated.
    Started from a grown checkpoint it takes its parameter groups from the plan there, and goes on with the
    carried optimizer. With --stages it grows on the way, each stage with fresh text: OUT/stage1, stage2, …

    Example: mupscale train narrow --config llama-tiny --data texts/ --steps 500 --lr 4e-3
    Example: mupscale train line --config llama-tiny --stages 1:300 2:200 2:100
    """
    need_extras()
    import mupscale
    from mupscale.study.corpus import DataConfig
    from mupscale.study.data import load_tokens
    from mupscale.study.description import load_model
    from mupscale.study.models import PRESETS, fresh_model, preset, read_config
    from mupscale.study.progress import make_progress
    from mupscale.study.recipe import TrainConfig, carried_optimizer
    from mupscale.study.stages import read_stages, train_stages
    from mupscale.study.training import RUN_FILE, seen_blocks
    from mupscale.study.training import train as run
    from mupscale.theory.manifest import MANIFEST

    planned = read_stages(stages) if stages else []
    if resume and not (out / ("stage1" if planned else "") / RUN_FILE).is_file():
        raise GrowthError(f"{out}: holds no run to resume; leave --resume out to begin one")
    if start is not None and start.resolve() == out.resolve():
        raise GrowthError(f"{out}: cannot be both the start and the output; choose another directory")
    if start is None and config not in PRESETS:
        model_config = read_config(Path(config))  # before the text is read: a wrong name should fail at once
        vocab_size = model_config.vocab_size
    settings = TrainConfig(
        steps=planned[0].steps if planned else steps,
        batch_size=batch_size,
        block_size=block_size,
        lr=lr,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        cooldown_fraction=cooldown_fraction,
        max_grad_norm=max_grad_norm,
        eval_every=eval_every,
        eval_blocks=eval_blocks,
        seed=seed,
        bf16=bf16,
        skip_blocks=skip_blocks if skip_blocks is not None else (seen_blocks(start) if start else 0),
    )
    tokenizer = (
        tokenizer_of(start) if start else (tokenizer_of(Path(config)) if config not in PRESETS else None)
    )
    tokens = load_tokens(
        DataConfig(path=data, vocab_size=vocab_size, held_out=held_out),
        tokenizer=tokenizer,
        cache=out / "tokens",
    )
    say(f"text: {tokens.about}")

    def begin() -> tuple[PreTrainedModel, mupscale.Plan | None, torch.optim.Optimizer | None]:
        if start is None:
            positions = max(256, block_size)
            made = (
                preset(config, vocab_size=len(tokens.tokenizer), positions=positions)
                if config in PRESETS
                else model_config
            )
            return fresh_model(made, seed), None, None
        model = load_model(start)
        plan = mupscale.Plan.load(start) if (start / MANIFEST).is_file() else None
        carried = not fresh_optimizer and (start / "optimizer.pt").is_file()
        return model, plan, carried_optimizer(model, settings, plan, start) if carried else None

    if planned:
        origin = {"config": config} if start is None else {"from": str(start)}
        with make_progress() as progress:
            rows = train_stages(
                begin, tokens, out, planned, settings, start=origin, overwrite=overwrite, progress=progress
            )
        last = out / f"stage{len(planned)}"
        result = {"out": str(last), **rows[-1]}
        tell(
            json,
            result,
            f"{last}: held-out loss {rows[-1]['held_out_loss']:.4f}; all stages in {out}/stages.png",
        )
        return 0
    model, plan, optimizer = begin()
    with make_progress() as progress:
        history = run(
            model,
            tokens,
            out,
            settings,
            plan=plan,
            optimizer=optimizer,
            start={"config": config}
            if start is None
            else {"from": str(start), "optimizer_carried": optimizer is not None},
            overwrite=overwrite,
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
    tell(json, result, f"{out}: held-out loss {history.final_loss:.4f} after {history.steps} steps")
    return 0


def demo(
    *,
    out: Annotated[Path, arg(help="folder for everything that it makes")] = Path("demo"),
    threads: Annotated[int | None, arg(help="CPU threads; default: half of torch's choice")] = None,
    json: Annotated[bool, arg(help="print results.json, without the curves")] = False,
) -> int:
    """Train a small language model, grow it to twice the width, and show what that saved. About four minutes.

    Needs no network: the text is the source of Python's standard library. Stopped, it goes on when given
    again.

    Example: mupscale demo --out demo
    """
    need_extras()
    from mupscale.study.demo import demo as run
    from mupscale.study.report import REPORT_FILE

    results = run(out, threads=threads)
    _conclude(results, out, out / REPORT_FILE, json)
    return 0


def _conclude(results: dict[str, Any], out: Path, report: Path, as_json: bool) -> None:
    from mupscale.study.report import summary

    brief = {**results, "out": str(out), "report": str(report)}
    brief["runs"] = [
        {k: v for k, v in run.items() if k not in ("curve", "settings")} for run in results["runs"]
    ]
    brief["narrow"] = {k: v for k, v in results["narrow"].items() if k not in ("curve", "settings")}
    tell(as_json, brief, "\n\n".join([*summary(results), f"Everything is in {report}."]))
