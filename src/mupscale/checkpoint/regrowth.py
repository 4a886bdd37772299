"""A grown directory against what growing gives, to the last bit, by any operator and in any precision.

With the source it is grown *again*; without, compared by the checksums that growing left. Either way a tensor
is in memory at a time, and no model is run. What the models compute is `mupscale.verification`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mupscale.checkpoint.differences import difference, kind_of_machine
from mupscale.checkpoint.grown import GrownCheckpoint
from mupscale.checkpoint.journal import sha256
from mupscale.checkpoint.reader import Checkpoint, ModelTensors
from mupscale.checkpoint.stored import loaded
from mupscale.checkpoint.training_state import OPTIMIZER, WideTrainingState, leaves, load_state
from mupscale.errors import GrowthError
from mupscale.layout.known import family_of
from mupscale.models.skeletons import PreTrainedConfig, skeleton
from mupscale.optim.carry import way_of
from mupscale.theory.manifest import MANIFEST, Manifest

Progress = Callable[[int, int], None]
Findings = Iterator[tuple[str, float | str, int]]  # where, how far off or what is wrong, bytes compared


@dataclass(frozen=True, kw_only=True)
class Regrown:
    """How a directory compares with what growing gives. True in a condition when it is the same.

    Attributes:
        recipe: the operator, noise and seed that the directory's manifest names.
        keeps_function: whether that is to compute what the source does; None where it was not grown again.
        tensors: how many were compared, those of the optimizer among them.
        rounding: 0 where all are the same to the last bit; else how far the farthest is off, over the largest
            number of its tensor, as after growing on a machine of another kind.
        differing: how many things do differ: tensors, fields of the config, groups of the optimizer.
        first: the first of them, with what is wrong.
    """

    recipe: str
    keeps_function: bool | None
    tensors: int
    rounding: float
    differing: int
    first: str | None

    def __bool__(self) -> bool:
        return not self.differing

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"as_grown": bool(self), **asdict(self)}

    def __str__(self) -> str:
        if self.keeps_function is None:
            grown = f"growing ({self.recipe}) left"
            if self:
                return f"unchanged: config and {self.tensors} tensors have the checksums that {grown}"
            return (
                f"CHANGED: {self.differing} of the config's fields and {self.tensors} tensors are not what "
                f"{grown}\nfirst that differs: {self.first}"
            )
        if self:
            how = f"but for rounding of {self.rounding:.2g}" if self.rounding else "to the last bit"
            return f"as grown: config and {self.tensors} tensors are what {self.recipe} gives, {how}"
        return (
            f"NOT as grown: {self.differing} of the config's fields and {self.tensors} tensors are not what "
            f"{self.recipe} gives, so that it was changed, or trained on\nfirst that differs: {self.first}"
        )


def regrow(
    source: str | Path, destination: str | Path, *, progress: Progress | None = None
) -> Regrown | None:
    """Grow a checkpoint again, as a directory's ``mupscale.json`` says, and compare all that it holds.

    Args:
        progress: called with (bytes compared, bytes in all).

    Returns:
        What was found; None if the manifest does not say how the directory was grown.

    Raises:
        GrowthError: a file cannot be read, or ``source`` is not of the size that the directory grew from.
    """
    narrow, wide, manifest = Checkpoint(source), Checkpoint(destination), Manifest.read(destination)
    recipe = manifest.recipe
    if "operator" not in recipe:
        return None
    plan, shrink = manifest.plan, recipe.get("shrink")
    grown = GrownCheckpoint(
        narrow,
        plan,
        operator=recipe["operator"],
        noise=recipe["noise"],
        shrink=shrink and shrink.split(),
        seed=recipe["seed"],
        from_first=manifest.from_first,
        allow_nonfinite=True,
    )
    training = None
    if recipe.get("optimizer"):
        way = way_of(recipe["operator"], recipe.get("optimizer_state", "carried"), plan)
        training = WideTrainingState.of(narrow.path, plan, way)
        if training is None:
            raise GrowthError(
                f"{narrow.path}: its optimizer is gone, but {wide.path} was grown with it; put it back"
            )
    held, rounded = _tensors(wide), recipe.get("machine") != kind_of_machine()

    def findings() -> Findings:
        yield from _fields(grown.config(), wide)
        for name in plan.wide_names:
            mine, theirs = grown(name, held.dtype(name)), held(name)
            yield held.place(name), difference(mine, theirs, rounded=rounded), theirs.nbytes
        for place, mine, theirs in training.beside(wide.path) if training else ():
            nbytes = theirs.nbytes if isinstance(theirs, Tensor) else 0
            yield place, difference(mine, theirs, rounded=rounded), nbytes

    found = _summed_up(findings(), wide, manifest, grown.grower.keeps_function, progress)
    sums = recipe.get("source", {}).get("sha256")
    if not found and sums and narrow.checksums() != sums:
        raise GrowthError(
            f"{narrow.path}: its weights are not those that {wide.path} was grown from; "
            "give the checkpoint that it was grown from"
        )
    return found


def unchanged(destination: str | Path, *, progress: Progress | None = None) -> Regrown:
    """Compare a directory with the checksums that growing left in its ``mupscale.json``.

    Args:
        progress: called with (bytes compared, bytes in all).

    Raises:
        GrowthError: a file cannot be read, or there are no checksums.
    """
    wide, manifest = Checkpoint(destination), Manifest.read(destination)
    recipe = manifest.recipe
    if "operator" not in recipe or "sha256" not in recipe:
        raise GrowthError(
            f"{wide.path / MANIFEST}: holds no checksums; compare with what it was grown from: "
            "mupscale verify SRC DST"
        )
    config = manifest.plan.config
    assert config is not None
    held, sums = _tensors(wide), recipe["sha256"]
    saved = leaves(load_state(wide.path / OPTIMIZER)) if recipe.get("optimizer") else {}
    trained = {name: value for name, value in saved.items() if isinstance(value, Tensor)}

    def findings() -> Findings:
        yield from _fields(config, wide)
        for name in dict.fromkeys((*manifest.plan.wide_names, *trained, *sums)):
            if name in trained:
                place, theirs = f"{wide.path}/{name}", loaded(wide.path / OPTIMIZER, trained[name])
            elif name in held:
                place, theirs = held.place(name), held(name)
            else:
                place, theirs = f"{wide.path}: {name!r}", None
            if name not in sums:
                found: float | str = f"has no checksum in {MANIFEST}"
            else:
                same = theirs is not None and sha256(theirs) == sums[name]
                found = 0.0 if same else "is not what was written"
            yield place, found, theirs.nbytes if theirs is not None else 0

    return _summed_up(findings(), wide, manifest, None, progress)


def _tensors(wide: Checkpoint) -> ModelTensors:
    model = skeleton(wide.config)
    return ModelTensors(wide, family_of(wide.config).layout(model, wide.config), model)


def _fields(config: PreTrainedConfig, wide: Checkpoint) -> Findings:
    """The fields of a config against those that growing gives, but for notes and the dtype."""
    mine, theirs = config.to_dict(), wide.config.to_dict()
    for key in sorted({*mine, *theirs} - {"transformers_version", "_name_or_path", "dtype"}):
        yield f"{wide.path / 'config.json'}: {key}", difference(mine.get(key), theirs.get(key)), 0


def _summed_up(
    findings: Findings,
    wide: Checkpoint,
    manifest: Manifest,
    keeps_function: bool | None,
    progress: Progress | None,
) -> Regrown:
    paths = [*wide.weight_files, *([wide.path / OPTIMIZER] if manifest.recipe.get("optimizer") else [])]
    total = sum(path.stat().st_size for path in paths)
    done, tensors, rounding, wrong = 0, 0, 0.0, []
    with torch.no_grad():
        for place, found, nbytes in findings:
            if isinstance(found, str):
                wrong.append(f"{place}: {found}")
            else:
                rounding = max(rounding, found)
            tensors += nbytes > 0
            done += nbytes
            if progress is not None:
                progress(done, total)
    return Regrown(
        recipe=f"{manifest.made_by}, seed {manifest.recipe['seed']}",
        keeps_function=keeps_function,
        tensors=tensors,
        rounding=rounding,
        differing=len(wrong),
        first=wrong[0] if wrong else None,
    )
