"""`mupscale compare`, `mupscale advise` and `mupscale coord-check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mupscale.study.commands.shared import need_extras, say, tell, tokenizer_of


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
    lrs: Annotated[tuple[float, ...], arg(help="rates to tune over, times the narrow model's")] = (
        2.0,
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
    need_extras()
    from mupscale.study.comparison import STARTS, CompareConfig
    from mupscale.study.comparison import compare as run
    from mupscale.study.comparison_report import comparison_table, write_comparison
    from mupscale.study.data.corpus import DataConfig
    from mupscale.study.data.tokens import load_tokens
    from mupscale.study.description import load_model
    from mupscale.study.runs.progress import make_progress
    from mupscale.study.runs.training import training_like

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
        tokenizer=tokenizer_of(source, required=True),
        cache=out / "tokens",
    )
    say(f"text: {tokens.about}")
    with make_progress() as progress:
        results = run(source, out, tokens, training, settings, jobs=jobs, progress=progress)
    text = write_comparison(results, out)
    brief = {**results, "table": comparison_table(results), "out": str(out)}
    brief["runs"] = [{k: v for k, v in run.items() if k != "curve"} for run in results["runs"]]
    brief["narrow"] = {k: v for k, v in results["narrow"].items() if k not in ("curve", "settings")}
    tell(json, brief, f"{text}\nThe table, the numbers and a picture are in {out}.")
    return 0


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
    tell(json, advice.to_dict(), str(advice))
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
    need_extras()
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
    from mupscale.study.runs.models import read_config
    from mupscale.study.runs.progress import make_progress, quiet

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
    tell(json, result, "\n".join([*lines, f"Picture and numbers are in {out}."]))
    return 1 if grows else 0
