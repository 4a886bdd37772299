"""`mupscale plan`, `grow` and `hparams`: read arguments, call the library, print.

Arguments are checked before torch and transformers are imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import mupscale
from mupscale.cli.factors import parse_axes, parse_count, parse_factor
from mupscale.cli.names import DEFAULT_GROWTH, DTYPES, OPERATORS, OPTIMIZERS
from mupscale.cli.terminal import (
    Json,
    bytes_bar,
    check_folder_given,
    print_json,
    print_table,
    print_text,
    quiet_libraries,
    terminable,
    unset,
)
from mupscale.errors import GrowthError

Source = Annotated[
    Positional[Path], arg(metavar="SRC", help="Hugging Face checkpoint directory of the narrow model")
]
Destination = Annotated[Positional[Path], arg(metavar="DST", help="checkpoint directory of the wide model")]
Width = Annotated[
    str | None,
    unset(metavar="FACTOR", help="grow d_model, d_ff and the number of heads by this factor, as 2"),
]
AxisFactors = Annotated[
    tuple[str, ...],
    unset(
        metavar="AXIS=FACTOR", help="growth by named axis, such as d_ff=3 kv_heads=1, or layers=2 for depth"
    ),
]
To = Annotated[Path | None, unset(help="a wide config.json to reach, or its folder, instead of factors")]
Order = Annotated[
    str | None,
    unset(
        metavar="repeat|cycle",
        help="of more layers: repeat each in place (1 1 2 2), the default, or cycle the stack (1 2 1 2)",
    ),
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
            metavar="NAME",
            help_behavior_hint="",
            help=f"{', '.join(OPERATORS)}; duplicate and expand (λ = 1) keep the function; by default "
            f"{DEFAULT_GROWTH[0]} with λ = {DEFAULT_GROWTH[1]}, from which training went on best, or "
            "duplicate where layers grow",
        ),
    ] = "default",
    noise: Annotated[
        str,
        arg(
            metavar="KIND:X",
            help_behavior_hint="",
            help="or none; by default balanced:1 for duplicate (keeps the function; others: relative, "
            "gaussian, spectral, hadamard, interpolate, paired, uneven; between, where layers grow), fresh:1 "
            "(times a fresh initialization) for zero_pad and expand, paired:10 (dB below the weights) for "
            "hyperclone",
        ),
    ] = "default",
    shrink: Annotated[
        tuple[str, ...],
        unset(
            metavar="λ [PATTERN=λ …]",
            help="λ of zero_pad (else 0.4) and expand (else 1): a number, and PATTERN=NUMBER for "
            "parameters, as '*.mlp.*=0.6'",
        ),
    ] = (),
    seed: Annotated[int, arg(help="of the noise")] = 0,
    dtype: Annotated[
        str | None, unset(metavar="DTYPE", help=f"store as {', '.join(DTYPES)}; default: as it is")
    ] = None,
    max_shard_size: Annotated[str, arg(metavar="SIZE", help="largest weight file")] = "5GB",
    workers: Annotated[int | None, unset(help="threads; the result does not depend on them")] = None,
    overwrite: Annotated[bool, arg(help="replace DST")] = False,
    no_optimizer: Annotated[bool, arg(help="leave optimizer.pt and the training state behind")] = False,
    carry_optimizer: Annotated[
        bool, arg(help="with zero_pad, expand: pad optimizer.pt, too, instead of starting fresh")
    ] = False,
    optimizer_state: Annotated[
        str,
        arg(
            metavar="carried|asymmetric",
            help="of copies: carried, or asymmetric: the first copies' alone, zeros for the others",
        ),
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
    Example: mupscale grow narrow same --width 2 --operator duplicate
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

    with bytes_bar("growing") as advance, terminable():
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


def hparams(
    destination: Destination,
    /,
    *,
    optimizer: Annotated[str, arg(help=f"one of {', '.join(OPTIMIZERS)}")] = "adamw",
    lr: Annotated[float, arg(help="learning rate of the narrow model")],
    weight_decay: Annotated[float, arg(help="weight decay of the narrow model")] = 0.0,
    eps: Annotated[float | None, unset(help="eps of the narrow model; default: torch's")] = None,
    betas: Annotated[
        tuple[float, float] | None, unset(metavar="BETA1 BETA2", help="its betas; default: torch's")
    ] = None,
    trainer_split: Annotated[
        bool, arg(help="no decay on norms and biases, as transformers.Trainer splits them")
    ] = False,
    batch_size: Annotated[
        tuple[str, str] | None,
        unset(
            metavar="NARROW WIDE", help="where they differ, in one unit: scale AdamW's values by them, too"
        ),
    ] = None,
    tokens: Annotated[
        tuple[str, str] | None,
        unset(metavar="NARROW WIDE", help="to train on, where they differ, such as 1.4B 22B; likewise"),
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
    check_folder_given(destination)
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
    check_folder_given(source)
    quiet_libraries()
    from mupscale.checkpoint.reader import Checkpoint

    wide = Checkpoint.read_config(to) if to is not None else None
    checkpoint = Checkpoint(source)
    checkpoint.check_layers()
    return mupscale.plan(checkpoint.config, width=factor, axes=factors, to=wide, order=order)
