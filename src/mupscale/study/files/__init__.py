"""Study files: TOML in, a `Study` out. Every complaint names the file, the line and the field.

Knows what a file may say; nothing of how anything is trained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mupscale.study.files.sweeps import read_sweeps
from mupscale.study.files.toml import locating, read_toml
from mupscale.study.files.tuning import as_sweeps
from mupscale.study.spec.sweeps import FieldError, Study

__all__ = ["DEMOS", "locating", "read_study"]

# What `mupscale demo` runs, by what grows.
DEMOS = {
    "width": Path(__file__).with_name("demo.toml"),
    "layers": Path(__file__).with_name("demo_along_layers.toml"),
}


def read_study(path: Path, *, check_transfer: bool = False) -> Study:
    """Read and check a study file: one of sweeps and questions, or one in the four tables of `mupscale tune`.

    Args:
        check_transfer: of the latter, not the procedure but the check whether its optimum stays.

    Raises:
        GrowthError: one line: the file, its line, the field, what was expected.
    """
    tables = read_toml(path)
    with locating(path):
        places = None
        for name in ("model", "data", "training"):
            if not isinstance(tables.get(name, {}), dict):
                raise FieldError("", name, f"{tables[name]!r}: expected a table [{name}]")
        if "sweep" not in tables and {"widths", "scratch", "grow"} & tables.keys():
            tables, places = as_sweeps(tables, path.stem, check_transfer=check_transfer)
        elif check_transfer:
            raise FieldError("", "widths", "the transfer check is for files in the tables of `mupscale tune`")
        study = read_sweeps(tables, path, places)
        return study if places is None else replace(study, width_at=("widths", "narrow"))
