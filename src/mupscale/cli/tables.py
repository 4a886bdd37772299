"""Study files that commands write, `OUT/study.toml`, and what is checked before.

Knows what such files say; what is run is any study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mupscale.errors import GrowthError
from mupscale.study.spec.recipe import TrainConfig
from mupscale.study.spec.sweeps import FieldError

# What all runs of a study go by; of its sweeps, what is tried may become more.
_FIXED = ("seeds", "growth_seed", "skip_blocks", "model", "data", "training")


def text_source(data: str) -> str:
    """What `--data` names: a corpus with a name, or else a path, from anywhere."""
    from mupscale.study.data.corpus import NAMED

    return data if data in NAMED else str(Path(data).absolute())


def training_table(settings: TrainConfig) -> dict[str, Any]:
    """Settings as the table [training] of a study file."""
    from mupscale.study.files.knobs import TRAINING

    return {key: value for key, value in asdict(settings).items() if key in TRAINING and value is not None}


def check_tables(tables: Mapping[str, Any], file: Path) -> None:
    """See that tables are a study, before they are written into a file.

    Raises:
        GrowthError: they are not; names the sweep, or the table, and the key.
    """
    from mupscale.study.files.sweeps import read_sweeps

    try:
        read_sweeps(tables, file)
    except FieldError as error:  # there is no file yet to point into
        place = [error.table.removeprefix("sweep."), error.key]
        raise GrowthError(f"{': '.join(filter(None, place))}: {error}") from None


def check_folder(tables: Mapping[str, Any], out: Path) -> None:
    """See that no other study was begun in a folder: its `study.toml` tells what its results are of.

    Raises:
        GrowthError: one was.
    """
    from mupscale.study.files.toml import read_back, read_toml

    file = out / "study.toml"
    if not (file.is_file() and (out / "trials.journal").is_file()):
        return
    before, now = read_toml(file), read_back(tables)
    old, new = before.get("sweep", {}), now["sweep"]
    other = [key for key in _FIXED if before.get(key) != now.get(key)]
    other += [name for name in old.keys() & new.keys() if _settled(old[name]) != _settled(new[name])]
    if other:
        raise GrowthError(
            f"{out}: holds another study, in which {sorted(other)[0]} differs; choose another folder"
        )


def _settled(sweep: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sweep.items() if key != "try"}
