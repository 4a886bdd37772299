"""`mupscale verify`: is a checkpoint what growing another one gives, and does it compute the same?

Arguments are checked before torch and transformers are imported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

import mupscale
from mupscale.cli.studying import need_extras
from mupscale.cli.terminal import (
    Json,
    bytes_bar,
    check_folder_given,
    print_json,
    print_text,
    quiet_libraries,
    unset,
)
from mupscale.errors import GrowthError

if TYPE_CHECKING:  # it imports torch
    from mupscale.checkpoint.regrowth import Regrown
    from mupscale.theory.manifest import Manifest
    from mupscale.verification import Report


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
        Path | None,
        unset(help="of a deeper DST: folder for a picture, and numbers, of how far every layer is"),
    ] = None,
    json: Json = False,
) -> int:
    """Check that DST holds what growing SRC gives, and, in float64, that it computes what SRC computes.

    Exit status 1 where one of the two does not hold. What DST holds are its weights, its config and its
    optimizer, compared to the last bit. A growth that is not to keep the function, such as by zero_pad, has
    to hold the first alone: by how much the outputs changed is said. Of DST alone the files are compared with
    the checksums that growing left there. Of a deeper model, which computes nearly the same, it says how far
    the residual stream is from the narrow model's behind every layer.

    Example: mupscale verify narrow same --steps 5
    Example: mupscale verify narrow deep --picture deviations
    """
    if steps and (files_only or destination is None):
        raise GrowthError("--steps runs models: give SRC and DST, and no --files-only")
    if steps < 0:
        raise GrowthError(f"--steps {steps}: expected 0 or more")
    for folder in filter(None, (source, destination)):
        check_folder_given(folder)
    quiet_libraries()
    from mupscale.checkpoint.reader import Checkpoint
    from mupscale.theory.manifest import MANIFEST, Manifest

    path = (destination or source) / MANIFEST
    if steps and path.is_file():
        _check_lockstep(Manifest.read(path.parent))
    with bytes_bar("comparing") as advance:
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
        print_text(f"not the same function: {again.recipe} does not keep it; {report.outputs}; {keeps}")
    else:
        print_text(str(report))
    return 0 if (report.equal or changes) and (again is None or again) else 1


def _check_lockstep(manifest: Manifest) -> None:
    """See that pure copies by a plan can train beside the narrow model, before anything is grown again."""
    from mupscale.layout.base import DEPTH
    from mupscale.operators.catalogue import operator_named

    if DEPTH in manifest.plan.growth:
        raise GrowthError(
            "--steps: a deeper model does not train in lockstep with the narrow one; verify without"
        )
    operator = manifest.recipe.get("operator", "duplicate")
    if not operator_named(operator).copies_evenly:
        raise GrowthError(
            f"--steps: only even copies train in lockstep, and DST was grown by {operator}; verify without"
        )


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


def _compared(source: Path, destination: Path | None, progress: Callable[[int, int], None]) -> Regrown | None:
    from mupscale.checkpoint.regrowth import regrow, unchanged

    if destination is None:
        return unchanged(source, progress=progress)
    return regrow(source, destination, progress=progress)
