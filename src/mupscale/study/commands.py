"""The study side of the command line: one typed function per command, each returning its exit status.

Knows what the commands take and print. Heavy imports wait until a command runs, so that `mupscale --help` is
quick. With `json`, exactly one object goes to standard output; progress and words go to standard error.
"""

from __future__ import annotations

import json as json_module
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mupscale.errors import GrowthError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
    carried optimizer.

    Example: mupscale train narrow --config llama-tiny --data texts/ --steps 500 --lr 4e-3
    """
    _need_extras()
    import mupscale
    from mupscale.planning import MANIFEST
    from mupscale.study.corpus import DataConfig
    from mupscale.study.data import load_tokens
    from mupscale.study.description import load_model
    from mupscale.study.models import PRESETS, fresh_model, preset, read_config
    from mupscale.study.progress import make_progress
    from mupscale.study.recipe import TrainConfig, carried_optimizer
    from mupscale.study.training import RUN_FILE, seen_blocks
    from mupscale.study.training import train as run

    if resume and not (out / RUN_FILE).is_file():
        raise GrowthError(f"{out}: holds no run to resume; leave --resume out to begin one")
    if start is not None and start.resolve() == out.resolve():
        raise GrowthError(f"{out}: cannot be both the start and the output; choose another directory")
    if start is None and config not in PRESETS:
        model_config = read_config(Path(config))  # before the text is read: a wrong name should fail at once
        vocab_size = model_config.vocab_size
    settings = TrainConfig(
        steps=steps,
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
    tokenizer = _tokenizer(start) if start else (_tokenizer(Path(config)) if config not in PRESETS else None)
    tokens = load_tokens(
        DataConfig(path=data, vocab_size=vocab_size, held_out=held_out),
        tokenizer=tokenizer,
        cache=out / "tokens",
    )
    _say(f"text: {tokens.about}")
    plan = optimizer = None
    if start is not None:
        model = load_model(start)
        plan = mupscale.Plan.load(start) if (start / MANIFEST).is_file() else None
        if not fresh_optimizer and (start / "optimizer.pt").is_file():
            optimizer = carried_optimizer(model, settings, plan, start)
        origin = {"from": str(start), "optimizer_carried": optimizer is not None}
    else:
        if config in PRESETS:
            model_config = preset(config, vocab_size=len(tokens.tokenizer), positions=max(256, block_size))
        model = fresh_model(model_config, seed)
        origin = {"config": config}
    with make_progress() as progress:
        history = run(
            model,
            tokens,
            out,
            settings,
            plan=plan,
            optimizer=optimizer,
            start=origin,
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
    _tell(json, result, f"{out}: held-out loss {history.final_loss:.4f} after {history.steps} steps")
    return 0


def compare(
    source: Annotated[Positional[Path], arg(metavar="SRC", help="narrow checkpoint directory")],
    out: Annotated[
        Positional[Path], arg(metavar="OUT", help="folder for the runs, comparison.md, .json, .png and .csv")
    ],
    /,
    *,
    widths: Annotated[tuple[int, ...], arg(help="growth of d_model, d_ff and the heads")] = (2, 4),
    starts: Annotated[
        tuple[str, ...],
        arg(
            help="what to compare: scratch, or OPERATOR[,noise=KIND:X][,shrink=X][,optimizer=fresh|carried]; "
            "operators as in `mupscale grow`. Default: all of them but aki",
        ),
    ] = (),
    lrs: Annotated[tuple[float, ...], arg(help="rates to tune over, times the narrow one's")] = (
        1.0,
        0.5,
        0.25,
    ),
    seeds: Annotated[int, arg(help="repetitions, each with other noise, weights and text")] = 3,
    steps: Annotated[int, arg(help="steps of the wide model")] = 300,
    cooldown_fraction: Annotated[float, arg(help="share of the steps in the cooldown")] = 0.2,
    data: Annotated[
        Path | None, arg(help="text file or folder; without it, Python's standard library source")
    ] = None,
    held_out: Annotated[float, arg(help="share of the text kept for evaluation")] = 0.05,
    lr: Annotated[
        float | None, arg(help="the narrow model's learning rate; default: as it was trained")
    ] = None,
    batch_size: Annotated[
        int | None, arg(help="sequences in a step; default: as the narrow model was trained")
    ] = None,
    block_size: Annotated[int | None, arg(help="tokens in a sequence; default: likewise")] = None,
    weight_decay: Annotated[float | None, arg(help="AdamW's, of the narrow model; default: likewise")] = None,
    warmup_steps: Annotated[int | None, arg(help="steps of linear warmup; default: likewise")] = None,
    jobs: Annotated[int, arg(help="runs side by side, each on one CPU thread; 1 on a GPU")] = 1,
    json: Annotated[bool, arg(help="print comparison.json, without the curves")] = False,
) -> int:
    """Compare growth operators with each other and with μP from scratch: losses, FLOPs to reach, a picture.

    All runs of a width have the same steps, blocks and schedules; each side's learning rate is tuned over the
    same grid. Given again, the command goes on where it stopped.

    Example: mupscale compare narrow comparison --widths 2 4 --starts scratch duplicate zero_pad,shrink=0.4
    """
    _need_extras()
    from mupscale.study.comparison import STARTS, CompareConfig
    from mupscale.study.comparison import compare as run
    from mupscale.study.comparison_report import comparison_table, write_comparison
    from mupscale.study.corpus import DataConfig
    from mupscale.study.data import load_tokens
    from mupscale.study.description import load_model
    from mupscale.study.progress import make_progress
    from mupscale.study.training import training_like

    settings = CompareConfig(
        widths=widths,
        starts=starts or STARTS,
        lr_factors=lrs,
        seeds=seeds,
        cooldown_fraction=cooldown_fraction,
    )
    given = {
        "lr": lr,
        "batch_size": batch_size,
        "block_size": block_size,
        "weight_decay": weight_decay,
        "warmup_steps": warmup_steps,
    }
    load_model(source)  # a broken checkpoint should fail before the text is read
    training = training_like(source, steps=steps, **{k: v for k, v in given.items() if v is not None})
    tokens = load_tokens(
        DataConfig(path=data, held_out=held_out),
        tokenizer=_tokenizer(source, required=True),
        cache=out / "tokens",
    )
    _say(f"text: {tokens.about}")
    with make_progress() as progress:
        results = run(source, out, tokens, training, settings, jobs=jobs, progress=progress)
    text = write_comparison(results, out)
    brief = {**results, "table": comparison_table(results), "out": str(out)}
    brief["runs"] = [{k: v for k, v in run.items() if k != "curve"} for run in results["runs"]]
    brief["narrow"] = {k: v for k, v in results["narrow"].items() if k not in ("curve", "settings")}
    _tell(json, brief, f"{text}\nThe table, the numbers and a picture are in {out}.")
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
    _need_extras()
    from mupscale.study.demo import demo as run
    from mupscale.study.report import REPORT_FILE

    results = run(out, threads=threads)
    _conclude(results, out, out / REPORT_FILE, json)
    return 0


def coord_check(
    source: Annotated[
        Positional[Path], arg(metavar="CONFIG_OR_SRC", help="config.json or checkpoint of the narrow model")
    ],
    /,
    *,
    widths: Annotated[tuple[int, ...], arg(help="width factors to train")] = (1, 2, 4, 8),
    optimizer: Annotated[str, arg(help="as `mupscale hparams` takes it")] = "adamw",
    lr: Annotated[float, arg(help="learning rate of the narrow model")] = 2e-3,
    steps: Annotated[int, arg(help="steps to train each width")] = 4,
    seeds: Annotated[int, arg(help="repetitions with other weights and tokens")] = 3,
    parametrizations: Annotated[tuple[str, ...], arg(help="some of standard, mup, grown")] = (
        "standard",
        "mup",
        "grown",
    ),
    out: Annotated[Path, arg(help="folder for the CSV and the picture")] = Path("coord-check"),
    json: Annotated[bool, arg(help="print one JSON object")] = False,
) -> int:
    """Train a family of widths for a few steps and see whether any activation's size goes with the width.

    Exit status 1 where a module grows with width under μP or in the grown models (or under the standard
    parametrization, if that alone is asked for).

    Example: mupscale coord-check narrow --widths 1 2 4 8 --optimizer adamw --lr 2e-3
    """
    _need_extras()
    from dataclasses import asdict

    from mupscale.study.coordinate_plot import save_picture
    from mupscale.study.coordinates import (
        CheckConfig,
        coordinate_check,
        judged,
        slopes,
        verdicts,
        write_csv,
    )
    from mupscale.study.models import read_config
    from mupscale.study.progress import make_progress, quiet

    check = CheckConfig(
        widths=widths,
        optimizer=optimizer,
        lr=lr,
        steps=steps,
        seeds=seeds,
        parametrizations=parametrizations,
    )
    config = read_config(source)
    with make_progress() as progress, quiet():
        coordinates = coordinate_check(config, check, progress=progress)
    found = slopes(coordinates)
    write_csv(coordinates, out / "coordinates.csv")
    save_picture(coordinates, found, out / "coordinates.png")
    lines = verdicts(found, check)
    grows = [s for s in found if s.parametrization in judged(check) and s.verdict == "grows"]
    result = {
        "passed": not grows,
        "verdicts": lines,
        "slopes": [{**asdict(s), "verdict": s.verdict} for s in found],
        "csv": str(out / "coordinates.csv"),
        "picture": str(out / "coordinates.png"),
    }
    _tell(json, result, "\n".join([*lines, f"Picture and numbers are in {out}."]))
    return 1 if grows else 0


def advise(
    *,
    params: Annotated[str, arg(metavar="N", help="parameters of the narrow model, such as 5M")],
    to: Annotated[str, arg(metavar="N", help="parameters of the wide model")],
    tokens: Annotated[str, arg(metavar="D", help="tokens to train the wide model on, such as 1.4B")],
    narrow_tokens: Annotated[
        str | None, arg(metavar="D", help="what the narrow model saw; default: as many a parameter")
    ] = None,
    compare: Annotated[
        Path | None, arg(help="comparison.json that `mupscale compare` wrote, to go by your own runs")
    ] = None,
    json: Annotated[bool, arg(help="print one JSON object")] = False,
) -> int:
    """Say whether to grow, in how many stages and by how much, with reasons, sources and what is not known.

    Example: mupscale advise --params 5M --to 70M --tokens 1.4B
    """
    from mupscale.study.advice import advise as judge
    from mupscale.study.advice import parse_count

    advice = judge(
        parse_count(params, "--params"),
        parse_count(to, "--to"),
        parse_count(tokens, "--tokens"),
        narrow_tokens=None if narrow_tokens is None else parse_count(narrow_tokens, "--narrow-tokens"),
        comparison=compare,
    )
    _tell(json, advice.to_dict(), str(advice))
    return 0


# ---- shared ------------------------------------------------------------------------------------------------


def parse_axes(pairs: Sequence[str]) -> dict[str, int] | None:
    """Growth by axis from words such as `d_ff=3`; None for no words.

    Raises:
        GrowthError: a word is not NAME=WHOLE NUMBER.

    Example:
        >>> parse_axes(["d_ff=3", "kv_heads=1"])
        {'d_ff': 3, 'kv_heads': 1}
    """
    axes = {}
    for pair in pairs:
        name, _, factor = pair.partition("=")
        if not (name and factor.isdecimal()):
            raise GrowthError(f"--axes {pair}: expected NAME=FACTOR with a whole factor, such as d_ff=3")
        axes[name] = int(factor)
    return axes or None


def _need_extras() -> None:
    missing = [name for name in ("accelerate", "matplotlib") if find_spec(name) is None]
    if missing:
        raise GrowthError(
            f"{' and '.join(missing)} not installed; this command needs: pip install 'mupscale[study]'"
        )


def _tokenizer(folder: Path, *, required: bool = False) -> PreTrainedTokenizerFast | None:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        if required:
            raise GrowthError(
                f"{folder}: no tokenizer.json; the text must be encoded with the model's own tokenizer"
            )
        return None
    return AutoTokenizer.from_pretrained(folder)


def _conclude(results: dict[str, Any], out: Path, report: Path, as_json: bool) -> None:
    from mupscale.study.report import summary

    brief = {**results, "out": str(out), "report": str(report)}
    brief["runs"] = [
        {k: v for k, v in run.items() if k not in ("curve", "settings")} for run in results["runs"]
    ]
    brief["narrow"] = {k: v for k, v in results["narrow"].items() if k not in ("curve", "settings")}
    _tell(as_json, brief, "\n\n".join([*summary(results), f"Everything is in {report}."]))


def _tell(as_json: bool, result: dict[str, Any], words: str) -> None:
    print(json_module.dumps(result, default=str) if as_json else words)


def _say(words: str) -> None:
    print(words, file=sys.stderr)
