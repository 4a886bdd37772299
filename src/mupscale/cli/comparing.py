"""`mupscale compare`: a study of several ways to begin, written for a checkpoint.

Knows what the command takes; the study it writes is run as any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from mupscale.cli.names import DEFAULT_GROWTH
from mupscale.cli.studying import HeldOut, Text, need_extras, run_study
from mupscale.cli.tables import check_folder, check_tables, text_source, training_table
from mupscale.cli.terminal import (
    Json,
    unset,
)
from mupscale.errors import GrowthError

STARTS = (
    "scratch",
    "continued",
    "duplicate",
    "duplicate,noise=gaussian:0.3",
    "zero_pad",
    "zero_pad,shrink=1",
    f"{DEFAULT_GROWTH[0]},shrink={DEFAULT_GROWTH[1]}",
    "hyperclone",
    "net2net",
)


def compare(
    source: Annotated[Positional[Path], arg(metavar="SRC", help="narrow checkpoint directory")],
    out: Annotated[
        Positional[Path],
        arg(metavar="OUT", help="folder for the study.toml that is run, and its report"),
    ],
    /,
    *,
    widths: Annotated[tuple[int, ...], arg(help="growth of d_model, d_ff and the heads")] = (2, 4),
    starts: Annotated[
        tuple[str, ...],
        arg(
            help="what to compare: scratch; continued: the narrow model, for as many FLOPs as scratch; or "
            "OPERATOR[,noise=KIND:X][,shrink=X][,optimizer=fresh|carried], operators as in `mupscale grow`, "
            "but for those of depth. Default: all of them but aki, expand as it is by default there",
        ),
    ] = STARTS,
    lrs: Annotated[tuple[float, ...], arg(help="rates to tune over, times the narrow model's")] = (
        2.0,
        1.0,
        0.5,
        0.25,
    ),
    seeds: Annotated[int, arg(help="repetitions, each with other noise, weights and text")] = 3,
    steps: Annotated[int, arg(help="steps of the wide model")] = 300,
    cooldown_fraction: Annotated[float, arg(help="share of the steps in the cooldown")] = 0.2,
    data: Text = "stdlib",
    held_out: HeldOut = 0.05,
    lr: Annotated[
        float | None, unset(help="the narrow model's learning rate; default: as it was trained")
    ] = None,
    batch_size: Annotated[
        int | None, unset(help="sequences in a step; default: as the narrow model was trained")
    ] = None,
    block_size: Annotated[int | None, unset(help="tokens in a sequence; default: likewise")] = None,
    weight_decay: Annotated[
        float | None, unset(help="AdamW's, of the narrow model; default: likewise")
    ] = None,
    warmup_steps: Annotated[int | None, unset(help="steps of linear warmup; default: likewise")] = None,
    jobs: Annotated[int, arg(help="runs side by side, which share the CPU threads; 1 on a GPU")] = 1,
    json: Json = False,
) -> int:
    """Compare growth operators with each other and with μP from scratch: losses, FLOPs to reach, a picture.

    All runs of a width have the same steps, blocks and schedules, or the same FLOPs, where the narrow model
    is continued; each side's learning rate is tuned over the same grid with the first seed. Given again, the
    command goes on where it stopped.

    Example: mupscale compare narrow comparison --widths 2 4 --starts scratch duplicate zero_pad,shrink=0.4
    """
    need_extras()
    from mupscale.study.files.toml import write_toml
    from mupscale.study.runs.models import load_checkpoint
    from mupscale.study.runs.training import training_like

    model = load_checkpoint(source)  # a broken checkpoint should fail before the text is read
    given = {
        "lr": lr,
        "batch_size": batch_size,
        "block_size": block_size,
        "weight_decay": weight_decay,
        "warmup_steps": warmup_steps,
    }
    settings = training_like(source, steps=steps, **{k: v for k, v in given.items() if v is not None})
    common = {
        "constant": True,
        "cooldown_fraction": cooldown_fraction,
        "try": {"lr": [settings.lr * factor for factor in lrs]},
        "search_seeds": 1,
    }

    def side(text: str, width: int) -> dict[str, Any]:
        if text == "continued":
            return _continued(source, width)
        return {**_start(text), "width": width, "steps": steps, "lengths": [1.0]}

    sides = [
        (f"{text}-{width}", side(text, width))
        for width in sorted((factor * model.config.hidden_size for factor in widths), reverse=True)
        for text in starts
    ]
    names = [name for name, _ in sides]
    for several, values in (("--starts", starts), ("--widths", widths), ("--lrs", lrs)):
        if not values:
            raise GrowthError(f"{several}: expected at least one; leave it out for the default")
        if len(set(values)) < len(values):
            raise GrowthError(f"{several}: {', '.join(map(str, values))}; give each once")
    if min(widths, default=0) < 2:
        raise GrowthError(f"--widths {widths}: expected whole factors of at least 2")
    if "continued" in starts and "scratch" not in starts:
        raise GrowthError("start 'continued': takes the FLOPs of scratch; give that start, too")
    tables = {
        "title": f"{source.name}: which start for the wide model?",
        "seeds": seeds,
        "growth_seed": 0,
        "model": {"checkpoint": str(source.absolute())},
        "data": {"source": text_source(data), "held_out": held_out},
        "training": training_table(settings),
        "sweep": {
            "narrow": {"begin": "checkpoint"},
            **{name: {**start, **common} for name, start in sides},
        },
        "question": [
            {"ask": "starts", "of": names, "against": [n for n in names if n.startswith("scratch-")]},
            {"ask": "cost"},
        ],
    }
    file = out / "study.toml"
    check_tables(tables, file)
    check_folder(tables, out)
    write_toml(tables, file)
    return run_study(file, out, jobs=jobs, stack=1, as_json=json)


def _continued(source: Path, width: int) -> dict[str, Any]:
    """The narrow model goes on, for the FLOPs that a wide one from scratch takes."""
    state = "carried" if (source / "optimizer.pt").is_file() else "fresh"
    return {"begin": "continue", "from": "narrow", "optimizer_state": state, "match": f"scratch-{width}"}


def _start(text: str) -> dict[str, Any]:
    """Read ``scratch`` or ``OPERATOR[,noise=KIND:X][,shrink=X][,optimizer=fresh|carried]`` as a sweep.

    Raises:
        GrowthError: an unknown operator, option or value.
    """
    from mupscale.operators.catalogue import OPERATORS, operator_named

    operator, *options = text.split(",")
    if operator == "scratch":
        if options:
            raise GrowthError(f"start {text!r}: scratch has no options; leave them out")
        return {"begin": "scratch", "after": "narrow"}
    if operator not in OPERATORS:
        raise GrowthError(f"start {text!r}: expected scratch, continued or one of {', '.join(OPERATORS)}")
    given = dict(option.partition("=")[::2] for option in options)
    if unknown := given.keys() - {"noise", "shrink", "optimizer"}:
        raise GrowthError(
            f"start {text!r}: unknown option {min(unknown)!r}; expected noise, shrink or optimizer"
        )
    if given.get("optimizer", "fresh") not in ("carried", "fresh"):
        raise GrowthError(f"start {text!r}: expected optimizer=carried or optimizer=fresh")
    noise = operator_named(operator).noise(given.get("noise", "default"))
    found: dict[str, Any] = {"from": "narrow", "operator": operator, "noise": str(noise or "none")}
    if OPERATORS[operator].deepens:
        raise GrowthError(f"start {text!r}: {operator} grows layers, and widths are compared; leave it out")
    found["optimizer_state"] = given.get("optimizer", "carried" if operator == "duplicate" else "fresh")
    if "shrink" in given and OPERATORS[operator].shrink is None:
        raise GrowthError(f"start {text!r}: shrink is for zero_pad and expand; leave it out")
    if (own := OPERATORS[operator].shrink) is not None:
        try:
            found["shrink"] = float(given.get("shrink", own))
        except ValueError:
            said = f"start {text!r}: shrink is {given['shrink']!r}, expected a number"
            raise GrowthError(said) from None
    return found
