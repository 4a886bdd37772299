"""The command line: ``mupscale``. Thin: reads arguments, calls the library, prints.

Exit status: 0 done; 1 it ran and the answer is no; 2 bad usage or input, one line on standard error.
"""

from __future__ import annotations

import functools
import io
import json as json_module
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from tyro.conf import Positional, arg

import mupscale
from mupscale.checkpoint import Checkpoint
from mupscale.errors import GrowthError
from mupscale.growth import grow_checkpoint
from mupscale.layout import skeleton
from mupscale.operators import DEFAULT_SHRINK, OPERATORS, Noise
from mupscale.optim import optimizer_names
from mupscale.planning import MANIFEST, Plan
from mupscale.study import commands as study
from mupscale.tables import FULL_WIDTH, describe, groups_table, plan_rows, plan_table

Source = Annotated[
    Positional[Path], arg(metavar="SRC", help="Hugging Face checkpoint directory of the narrow model")
]
Destination = Annotated[Positional[Path], arg(metavar="DST", help="checkpoint directory of the wide model")]
Width = Annotated[int | None, arg(help="grow d_model, d_ff and the number of heads by this factor")]
AxisFactors = Annotated[tuple[str, ...], arg(help="growth by named axis, such as d_ff=3 kv_heads=1")]
To = Annotated[Path | None, arg(help="a wide config.json to reach, or its folder, instead of factors")]
Json = Annotated[bool, arg(help="print one JSON object")]

OPTIMIZERS = optimizer_names()
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def plan(
    source: Source, /, *, width: Width = None, axes: AxisFactors = (), to: To = None, json: Json = False
) -> int:
    """Show what becomes of every parameter and its hyperparameters when a checkpoint grows. Writes nothing.

    Example: mupscale plan narrow --width 2 --axes d_ff=3
    """
    made = _make_plan(Checkpoint(source), width, axes, to)
    if json:
        _print_json({"rows": plan_rows(made), "inexact": made.inexact, **made.to_dict()})
    else:
        _print_table(functools.partial(plan_table, made))
    return 0


def grow(
    source: Source,
    destination: Destination,
    /,
    *,
    width: Width = None,
    axes: AxisFactors = (),
    to: To = None,
    operator: Annotated[
        str, arg(help=f"{', '.join(OPERATORS)}; the first keeps the function, the second takes any size")
    ] = "duplicate",
    noise: Annotated[
        str,
        arg(
            help="KIND:X, or none; balanced:1 for duplicate (keeps the function; others: relative, gaussian, "
            "spectral, hadamard, interpolate, paired), fresh:1 for zero_pad, paired:10 (dB) for hyperclone"
        ),
    ] = "default",
    shrink: Annotated[
        tuple[str, ...],
        arg(help="λ of zero_pad: a number, and PATTERN=NUMBER for parameters, as '*.mlp.*=0.6'"),
    ] = (f"{DEFAULT_SHRINK:g}",),
    seed: Annotated[int, arg(help="of the noise")] = 0,
    dtype: Annotated[str | None, arg(help=f"store as {', '.join(DTYPES)}; default: as it is")] = None,
    max_shard_size: Annotated[str, arg(help="largest weight file")] = "5GB",
    overwrite: Annotated[bool, arg(help="replace DST")] = False,
    no_optimizer: Annotated[bool, arg(help="leave optimizer.pt and the training state behind")] = False,
    carry_optimizer: Annotated[
        bool, arg(help="with zero_pad: pad optimizer.pt, too, instead of starting fresh")
    ] = False,
    allow_nonfinite: Annotated[bool, arg(help="let NaN and infinity in the weights through")] = False,
    json: Json = False,
) -> int:
    """Grow a checkpoint into a wider one that computes the same, with its optimizer where there is one.

    DST appears whole or not at all, and loads with stock transformers. --operator zero_pad reaches any larger
    size, with a fresh optimizer, and does not keep the function.

    Example: mupscale grow narrow wide --width 2
    """
    if no_optimizer and carry_optimizer:
        raise GrowthError("--no-optimizer and --carry-optimizer: choose one")
    if dtype is not None and dtype not in DTYPES:
        raise GrowthError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    made = _make_plan(Checkpoint(source), width, axes, to)
    console = Console(stderr=True)
    columns = (
        TextColumn("growing"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("growing", total=None)
        grow_checkpoint(
            source,
            destination,
            made,
            operator=operator,
            noise=noise,
            shrink=shrink,
            seed=seed,
            dtype=DTYPES[dtype] if dtype else None,
            max_shard_size=max_shard_size,
            optimizer=False if no_optimizer else carry_optimizer or None,
            overwrite=overwrite,
            allow_nonfinite=allow_nonfinite,
            progress=lambda done, total: bar.update(task, completed=done, total=max(done, total)),
        )
    written = json_module.loads((destination / MANIFEST).read_text())
    if json:
        _print_json({"destination": str(destination), **{k: v for k, v in written.items() if k != "plan"}})
    else:
        _print(describe(made))
        carried = (
            "with its optimizer" if written["optimizer"] else "weights only: no optimizer.pt was carried"
        )
        how = f"{operator}, shrink {written['shrink']}" if "shrink" in written else operator
        _print(f"wrote {destination} ({how}, noise {written['noise']}, {carried})")
        _print(f"next: mupscale verify {source} {destination}")
    return 0


def verify(
    source: Source,
    destination: Destination,
    /,
    *,
    steps: Annotated[int, arg(help="also train pure copies side by side for so many steps")] = 0,
    json: Json = False,
) -> int:
    """Check, in float64, that DST computes what SRC computes; exit status 1 where it does not.

    Example: mupscale verify narrow wide --steps 5
    """
    narrow, wide = Checkpoint(source), Checkpoint(destination)
    known = (destination / MANIFEST).is_file()
    made = Plan.load(destination, last_growth=True) if known else mupscale.plan(narrow.config, to=wide.config)
    manifest = json_module.loads((destination / MANIFEST).read_text()) if known else {}
    operator, noise = manifest.get("operator", "duplicate"), Noise.parse(manifest.get("noise"))
    report = mupscale.verify(narrow.load(), wide.load(), made, steps=steps, operator=operator)
    if json:
        _print_json(report.to_dict())
    else:
        _print(str(report))
        if not OPERATORS[operator].copies_evenly:
            _print(f"{operator}: {OPERATORS[operator].summary}")
        elif not report.equal and noise is not None and not noise.keeps_function:
            _print(f"{noise} noise changes the function; balanced noise keeps it")
    return 0 if report.equal else 1


def hparams(
    destination: Destination,
    /,
    *,
    optimizer: Annotated[str, arg(help=f"one of {', '.join(OPTIMIZERS)}")] = "adamw",
    lr: Annotated[float, arg(help="learning rate of the narrow model")],
    weight_decay: Annotated[float, arg(help="weight decay of the narrow model")] = 0.0,
    eps: Annotated[float | None, arg(help="eps of the narrow model; default: torch's")] = None,
    trainer_split: Annotated[
        bool, arg(help="no decay on norms and biases, as transformers.Trainer splits them")
    ] = False,
    json: Json = False,
) -> int:
    """Say what the narrow model's hyperparameters become, group by group, for a model that mupscale grew.

    Example: mupscale hparams wide --optimizer adamw --lr 3e-3 --weight-decay 0.1
    """
    if optimizer not in OPTIMIZERS:
        raise GrowthError(f"optimizer {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
    if not 0 < lr < float("inf") or not 0 <= weight_decay < float("inf"):
        raise GrowthError(f"lr {lr} and weight decay {weight_decay}: expected positive numbers")
    made = Plan.load(destination)
    assert made.config is not None
    wide = skeleton(made.config)
    decay = transformers.Trainer.get_decay_parameter_names(None, wide) if trainer_split else None
    values: dict[str, Any] = {"weight_decay": weight_decay} | ({"eps": eps} if eps is not None else {})
    only = mupscale.hidden_matrices(made) if optimizer == "muon" else None
    groups = mupscale.param_groups(wide, made, OPTIMIZERS[optimizer], lr=lr, decay=decay, only=only, **values)
    if json:
        rows = [{k: v for k, v in g.items() if k != "params"} for g in groups]
        _print_json({"optimizer": optimizer, "lr": lr, "groups": rows})
    else:
        _print(f"{optimizer} at the narrow model's lr {lr:g}; {describe(made)}")
        _print_table(lambda axes: groups_table(groups))
        if only is not None:
            _print("Muon takes the hidden matrices; the rest goes to AdamW (--optimizer adamw)")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "plan": plan,
    "grow": grow,
    "verify": verify,
    "hparams": hparams,
    "train": study.train,
    "tune": study.tune,
    "compare": study.compare,
    "coord-check": study.coord_check,
    "advise": study.advise,
    "demo": study.demo,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    # What these libraries say of themselves while loading is not the user's concern.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return _parse(sys.argv[1:] if argv is None else argv)()
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (GrowthError, OSError) as error:
        print(f"mupscale: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mupscale: interrupted", file=sys.stderr)
        return 130


def _parse(argv: list[str]) -> Callable[[], int]:
    """The command to run, with its arguments bound.

    Raises:
        GrowthError: the arguments are not as they should be.
    """

    def bind(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
        return functools.wraps(command)(lambda *args, **kwargs: functools.partial(command, *args, **kwargs))

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(  # type: ignore[no-any-return]
                {name: bind(command) for name, command in COMMANDS.items()},
                prog="mupscale",
                description="Grow a small trained network into the wide one: exactly, with its optimizer, "
                "and with every hyperparameter scaled.",
                args=argv,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        # One line, out of the box that it is drawn in.
        text = re.sub(r"\x1b\[[0-9;]*m|\u256d.*|[\u2500-\u257f]", " ", said.getvalue())
        raise GrowthError(" ".join(text.split())) from None


def _make_plan(checkpoint: Checkpoint, width: int | None, axes: tuple[str, ...], to: Path | None) -> Plan:
    wide = Checkpoint.read_config(to) if to is not None else None
    return mupscale.plan(checkpoint.config, width=width, axes=study.parse_axes(axes), to=wide)


def _print(text: str) -> None:
    Console(highlight=False).print(text, soft_wrap=True, markup=False)


def _print_table(make: Callable[[bool], Table]) -> None:
    """Print ``make(axes)``; without the wide column of axes on a narrow terminal."""
    console = Console(highlight=False)
    roomy = not console.is_terminal or console.width >= FULL_WIDTH
    Console(highlight=False, width=max(console.width, FULL_WIDTH) if roomy else None).print(make(roomy))


def _print_json(data: dict[str, Any]) -> None:
    print(json_module.dumps(data, indent=1))
