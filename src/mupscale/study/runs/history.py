"""What a training run leaves behind for people and programs: its settings and its curves.

Knows JSON; nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mupscale.errors import GrowthError
from mupscale.study.writing import write_json

HISTORY_FILE = "history.json"


class Point(NamedTuple):
    """One place on a curve.

    Attributes:
        step: optimizer steps done.
        loss: cross-entropy per token (or other item), in nats.
    """

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class History:
    """The record of one finished run.

    Attributes:
        settings: everything that fixes the run: the `TrainConfig`, how the model started, the data.
        flops_per_step: floating point operations of one step, forward and backward.
        tokens_per_step: tokens in one step; of other data, items.
        train: mean training loss since the point before.
        held_out: loss on the held-out data; the first point is at step 0, before any training.
        seconds: wall time of the last uninterrupted stretch.
    """

    settings: dict[str, Any]
    flops_per_step: int
    tokens_per_step: int
    train: tuple[Point, ...]
    held_out: tuple[Point, ...]
    seconds: float = field(default=0.0, compare=False)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return int(self.settings["config"]["steps"])

    @property
    def flops(self) -> int:
        """Floating point operations of the whole run."""
        return self.steps * self.flops_per_step

    @property
    def final_loss(self) -> float:
        """Held-out loss at the end, in nats per token."""
        return self.held_out[-1].loss

    def save(self, folder: Path) -> None:
        """Write `history.json` into a checkpoint directory, whole or not at all.

        The curves are rows of step, tokens, FLOPs, training loss and held-out loss (None: not measured).
        """
        train, held_out = dict(self.train), dict(self.held_out)
        curve = [
            {
                "step": step,
                "tokens": step * self.tokens_per_step,
                "flops": step * self.flops_per_step,
                "train_loss": train.get(step),
                "held_out_loss": held_out.get(step),
            }
            for step in sorted({*train, *held_out})
        ]
        plain = {name: getattr(self, name) for name in ("settings", "flops_per_step", "tokens_per_step")}
        write_json(folder / HISTORY_FILE, {**plain, "seconds": round(self.seconds, 1), "curve": curve})

    @classmethod
    def load(cls, folder: Path) -> History | None:
        """Read a finished run's record; None where there is none.

        Raises:
            GrowthError: the file is there but cannot be read.
        """
        path = folder / HISTORY_FILE
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = data.pop("curve")
            return cls(**data, train=curve_of(rows, "train_loss"), held_out=curve_of(rows, "held_out_loss"))
        except (ValueError, KeyError, TypeError) as error:
            raise GrowthError(
                f"{path}: not a history that mupscale wrote ({error}); remove it to train anew"
            ) from None


def curve_of(rows: Iterable[Mapping[str, Any]], key: str) -> tuple[Point, ...]:
    """The curve of one quantity that some rows have; of repeated steps the last counts."""
    found = {row["step"]: float(row[key]) for row in rows if row.get(key) is not None}
    return tuple(Point(*point) for point in sorted(found.items()))
