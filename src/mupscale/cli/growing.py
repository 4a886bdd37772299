"""`mupscale plan`, `grow`, `verify` and `hparams`: read arguments, call the library, print.

Arguments are checked before torch and transformers are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich import progress
from rich.console import Console
from tyro.conf import Positional, arg

import mupscale
from mupscale.cli.factors import parse_axes, parse_count, parse_factor
from mupscale.cli.names import DEFAULT_GROWTH, DTYPES, OPERATORS, OPTIMIZERS
from mupscale.cli.studying import need_extras
from mupscale.cli.terminal import Json, print_json, print_table, print_text, quiet_libraries, terminable
from mupscale.errors import GrowthError

if TYPE_CHECKING:  # it imports torch
    from mupscale.checkpoint.regrowth import Regrown
    from mupscale.verification import Report

Source = Annotated[
    Positional[Path], arg(metavar="SRC", help="Hugging Face checkpoint directory of the narrow model")
]
Destination = Annotated[Positional[Path], arg(metavar="DST", help="checkpoint directory of the wide model")]
Width = Annotated[str | None, arg(help="grow d_model, d_ff and the number of heads by this factor, as 2")]
AxisFactors = Annotated[
    tuple[str, ...], arg(help="growth by named axis, such as d_ff=3 kv_heads=1, or layers=2 for depth")
]
To = Annotated[Path | None, arg(help="a wide config.json to reach, or its folder, instead of factors")]
Order = Annotated[
    str | None,
    arg(help="of more layers: repeat each in place (1 1 2 2), the default, or cycle the stack (1 2 1 2)"),
]


def plan(
    source: Source,
    /,
    *,
    width: Width = None,
    axes: AxisFactors = (),
    to: To = None,
    order: Order = None,
    json: Json = False,
) -> int:
    """Show what becomes of every parameter and its hyperparameters when a checkpoint grows. Writes nothing.

    Example: mupscale plan narrow --width 2 --axes d_ff=3
    """
    made = _planned(source, width, axes, to, order)
    if json:
        from mupscale.theory.tables import scaling_rows

        print_json({"rows": scaling_rows(made.params), "inexact": made.inexact, **made.to_dict()})
    else:
        print_table(made.table)
    return 0


def grow(
    source: Source,
    destination: Destination,
    /,
    *,
    width: Width = None,
    axes: AxisFactors = (),
    to: To = None,
    order: Order = None,
    operator: Annotated[
        str,
        arg(
            help=f"{', '.join(OPERATORS)}; duplicate and expand (λ = 1) keep the function; by default "
            f"{DEFAULT_GROWTH[0]} with λ = {DEFAULT_GROWTH[1]}, from which training went on best, or "
            "duplicate where layers grow"
        ),
    ] = "default",
    noise: Annotated[
        str,
        arg(
            help="KIND:X, or none; balanced:1 for duplicate (keeps the function; others: relative, gaussian, "
            "spectral, hadamard, interpolate, paired, uneven; between, where layers grow), fresh:1 (times a "
            "fresh initialization) for zero_pad and expand, paired:10 (dB below the weights) for hyperclone"
        ),
    ] = "default",
    shrink: Annotated[
        tuple[str, ...],
        arg(
            help="λ of zero_pad (else 0.4) and expand (else 1): a number, and PATTERN=NUMBER for "
            "parameters, as '*.mlp.*=0.6'"
        ),
    ] = (),
    seed: Annotated[int, arg(help="of the noise")] = 0,
    dtype: Annotated[str | None, arg(help=f"store as {', '.join(DTYPES)}; default: as it is")] = None,
    max_shard_size: Annotated[str, arg(help="largest weight file")] = "5GB",
    workers: Annotated[int | None, arg(help="threads; the result does not depend on them")] = None,
    overwrite: Annotated[bool, arg(help="replace DST")] = False,
    no_optimizer: Annotated[bool, arg(help="leave optimizer.pt and the training state behind")] = False,
    carry_optimizer: Annotated[
        bool, arg(help="with zero_pad, expand: pad optimizer.pt, too, instead of starting fresh")
    ] = False,
    optimizer_state: Annotated[
        str, arg(help="of copies: carried, or asymmetric: the first copies' alone, zeros for the others")
    ] = "carried",
    allow_nonfinite: Annotated[bool, arg(help="let NaN and infinity in the weights through")] = False,
    json: Json = False,
) -> int:
    """Grow a checkpoint into a wider or deeper one, which appears whole or not at all.

    It loads with stock transformers. The default reaches any larger size and was measured to train on best,
    with a fresh optimizer; it does not compute the same. --operator duplicate does from the first step, at
    whole factors, and takes its optimizer along, to go on with one run; --operator expand does at any size,
    and refuses models whose function it would not keep. More layers (--axes layers=2) are repeated, each
    adding its share to the residual stream, which keeps the function nearly.

    Example: mupscale grow narrow wide --width 2
    Example: mupscale grow narrow wide --width 2 --operator duplicate
    Example: mupscale grow narrow deep --axes layers=2
    """
    if no_optimizer and carry_optimizer:
        raise GrowthError("--no-optimizer and --carry-optimizer: choose one")
    if dtype is not None and dtype not in DTYPES:
        raise GrowthError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    made = _planned(source, width, axes, to, order)
    if not made.growth:
        raise GrowthError("nothing grows: the sizes asked for are those of SRC; give larger ones")
    import torch

    from mupscale.growth import grow_checkpoint
    from mupscale.theory.manifest import Manifest

    with _progress("growing") as advance, terminable():
        grow_checkpoint(
            source,
            destination,
            made,
            operator=operator,
            noise=noise,
            shrink=shrink or None,
            seed=seed,
            dtype=getattr(torch, dtype) if dtype else None,
            max_shard_size=max_shard_size,
            workers=workers,
            optimizer=False if no_optimizer else carry_optimizer or None,
            state=optimizer_state,
            overwrite=overwrite,
            allow_nonfinite=allow_nonfinite,
            progress=advance,
        )
    written = Manifest.read(destination)
    if json:
        told = {key: value for key, value in written.to_dict().items() if key != "plan"}
        print_json({"destination": str(destination), **told})
    else:
        print_text(made.describe())
        carried = "with its optimizer" if written.recipe["optimizer"] else "weights only"
        if not written.recipe["optimizer"] and not no_optimizer and (source / "optimizer.pt").is_file():
            can = " (--carry-optimizer carries it)" if "shrink" in written.recipe else ""
            carried += f": the optimizer is to start afresh{can}"
        print_text(f"wrote {destination} ({written.made_by}, {carried})")
        print_text(f"next: mupscale verify {source} {destination}")
    return 0


def verify(
    source: Annotated[
        Positional[Path], arg(metavar="SRC", help="checkpoint directory of the narrow model; or DST alone")
    ],
    destination: Annotated[
        Positional[Path | None], arg(metavar="DST", help="checkpoint directory of the wide model")
    ] = None,
    /,
    *,
    steps: Annotated[int, arg(help="also train pure copies side by side for so many steps")] = 0,
    files_only: Annotated[
        bool, arg(help="compare the files alone, a tensor at a time; load and run no model")
    ] = False,
    picture: Annotated[
        Path | None, arg(help="of a deeper DST: folder for a picture, and numbers, of how far every layer is")
    ] = None,
    json: Json = False,
) -> int:
    """Check that DST holds what growing SRC gives, and, in float64, that it computes what SRC computes.

    Exit status 1 where one of the two does not hold. What DST holds are its weights, its config and its
    optimizer, compared to the last bit. A growth that is not to keep the function, such as by zero_pad, has
    to hold the first alone: by how much the outputs changed is said. Of DST alone the files are compared with
    the checksums that growing left there. Of a deeper model, which computes nearly the same, it says how far
    the residual stream is from the narrow model's behind every layer.

    Example: mupscale verify narrow wide --steps 5
    Example: mupscale verify narrow deep --picture deviations
    """
    if steps and (files_only or destination is None):
        raise GrowthError("--steps runs models: give SRC and DST, and no --files-only")
    quiet_libraries()
    from mupscale.checkpoint.reader import Checkpoint
    from mupscale.theory.manifest import MANIFEST, Manifest

    path = (destination or source) / MANIFEST
    with _progress("comparing") as advance:
        known = destination is None or path.is_file()
        again = _compared(source, destination, advance) if known else None
    if again is not None and not json:
        print_text(str(again))
    if files_only or destination is None:
        if again is None:
            raise GrowthError(f"{path}: does not say how it was grown; verify without --files-only")
        if json:
            print_json(again.to_dict())
        return 0 if again else 1
    narrow, wide = Checkpoint(source), Checkpoint(destination)
    manifest = Manifest.read(destination) if path.is_file() else None
    made = manifest.plan if manifest is not None else mupscale.plan(narrow.config, to=wide.config)
    operator = manifest.recipe.get("operator", "duplicate") if manifest is not None else "duplicate"
    report = mupscale.verify(narrow.load(), wide.load(), made, steps=steps, operator=operator)
    changes = again is not None and again.keeps_function is False and not report.equal
    if picture is not None:
        if not report.layers:
            raise GrowthError("--picture: is for a DST with more layers, which this is not; leave it out")
        _draw_layers(report, picture)
    if json:
        print_json({**report.to_dict(), "regrown": again.to_dict() if again is not None else None})
    elif again and changes:
        keeps = "the operators duplicate, with balanced noise, and expand, with λ = 1, keep it"
        if report.layers:
            keeps = "in depth stack_identity keeps it, and duplicate nearly\n" + report.depth
        print_text(f"not the same function, as {again.recipe} is not to keep it: {report.outputs}; {keeps}")
    else:
        print_text(str(report))
    return 0 if (report.equal or changes) and (again is None or again) else 1


def _draw_layers(report: Report, folder: Path) -> None:
    """A picture of how far a deeper model's residual stream is from the narrow one's, and its numbers."""
    need_extras()
    from mupscale.study.page.plots import Line, draw

    curve = [(at.layer, at.deviation) for at in report.layers]
    draw(
        "layers",
        {"": [Line(name="deeper model", curve=curve, marker="o")]},
        columns=("layer", "deviation"),
        x="layer of the narrow model",
        y="difference of the residual streams, in standard deviations",
        caption="How far the deeper model is from the narrow one, behind the last that each layer became.",
    ).save(folder)


def hparams(
    destination: Destination,
    /,
    *,
    optimizer: Annotated[str, arg(help=f"one of {', '.join(OPTIMIZERS)}")] = "adamw",
    lr: Annotated[float, arg(help="learning rate of the narrow model")],
    weight_decay: Annotated[float, arg(help="weight decay of the narrow model")] = 0.0,
    eps: Annotated[float | None, arg(help="eps of the narrow model; default: torch's")] = None,
    betas: Annotated[tuple[float, float] | None, arg(help="its betas; default: torch's")] = None,
    trainer_split: Annotated[
        bool, arg(help="no decay on norms and biases, as transformers.Trainer splits them")
    ] = False,
    batch_size: Annotated[
        tuple[str, str] | None,
        arg(metavar="NARROW WIDE", help="where they differ, in one unit: scale AdamW's values by them, too"),
    ] = None,
    tokens: Annotated[
        tuple[str, str] | None,
        arg(metavar="NARROW WIDE", help="to train on, where they differ, such as 1.4B 22B; likewise"),
    ] = None,
    json: Json = False,
) -> int:
    """Say what the narrow model's hyperparameters become, group by group, for a model that mupscale grew.

    With --batch-size and --tokens AdamW's and Adam's values go by these, too: lr and weight decay as the
    square root of batch size over tokens (Mlodozeniec et al. 2025, arXiv 2512.22382).

    Example: mupscale hparams wide --optimizer adamw --lr 3e-3 --weight-decay 0.1
    Example: mupscale hparams wide --lr 3e-3 --batch-size 64 256 --tokens 1.4B 22B
    """
    if optimizer not in OPTIMIZERS:
        raise GrowthError(f"optimizer {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
    if not 0 < lr < float("inf") or not 0 <= weight_decay < float("inf"):
        raise GrowthError(f"--lr {lr}, --weight-decay {weight_decay}: expected above 0 (a decay may be 0)")
    quiet_libraries()
    from transformers import Trainer

    from mupscale.models.skeletons import skeleton
    from mupscale.theory.horizon import STEPS_RATIO, in_words
    from mupscale.theory.manifest import Plan
    from mupscale.theory.registry import optimizer_names
    from mupscale.theory.tables import groups_table

    made = Plan.load(destination)
    if made.config is None:
        raise GrowthError(
            f"{destination}: is no transformers model, and its parameters can only be told from the module; "
            "give that to mupscale.param_groups(model, mupscale.Plan.load(directory), …)"
        )
    wide = skeleton(made.config)
    decay = Trainer.get_decay_parameter_names(None, wide) if trainer_split else None
    given: dict[str, Any] = {"weight_decay": weight_decay, "eps": eps, "betas": betas}
    only = mupscale.hidden_matrices(made) if optimizer == "muon" else None
    groups = mupscale.param_groups(
        wide,
        made,
        optimizer_names()[optimizer],
        lr=lr,
        decay=decay,
        only=only,
        batch_size=_pair("--batch-size", batch_size),
        tokens=_pair("--tokens", tokens),
        **{key: value for key, value in given.items() if value is not None},
    )
    if json:
        rows = [{k: v for k, v in g.items() if k != "params"} for g in groups]
        print_json({"optimizer": optimizer, "lr": lr, "groups": rows})
    else:
        print_text(f"{optimizer} at the narrow model's lr {lr:g}; {made.describe()}")
        if ratio := groups[0].get(STEPS_RATIO):
            print_text(in_words(ratio))
        print_table(lambda axes: groups_table(groups))
        if only is not None:
            print_text("Muon takes the hidden matrices; the rest goes to AdamW (--optimizer adamw)")
    return 0


def _pair(option: str, words: tuple[str, str] | None) -> tuple[float, float] | None:
    """Two numbers from words such as 1.4B."""
    if words is None:
        return None
    narrow, wide = (parse_count(option, word) for word in words)
    return narrow, wide


def _planned(
    source: Path, width: str | None, axes: tuple[str, ...], to: Path | None, order: str | None
) -> mupscale.Plan:
    factors = parse_axes(axes)
    factor = None if width is None else parse_factor(f"--width {width}", width, "a factor, such as 2")
    quiet_libraries()
    from mupscale.checkpoint.reader import Checkpoint

    wide = Checkpoint.read_config(to) if to is not None else None
    checkpoint = Checkpoint(source)
    checkpoint.check_layers()
    return mupscale.plan(checkpoint.config, width=factor, axes=factors, to=wide, order=order)


def _compared(source: Path, destination: Path | None, progress: Callable[[int, int], None]) -> Regrown | None:
    from mupscale.checkpoint.regrowth import regrow, unchanged

    if destination is None:
        return unchanged(source, progress=progress)
    return regrow(source, destination, progress=progress)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on a terminal's standard error; yields what is to be told (bytes done, bytes in all)."""
    console = Console(stderr=True)
    columns = (
        *(progress.TextColumn(what), progress.BarColumn(), progress.DownloadColumn()),
        *(progress.TransferSpeedColumn(), progress.TimeRemainingColumn()),
    )
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
