"""Tables of a TOML file as checked values. Every complaint names the file, the line and the field.

Knows TOML and dataclasses; nothing of studies.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import tomli_w

from mupscale.errors import GrowthError
from mupscale.study.spec.recipe import LARGEST_SEED
from mupscale.study.spec.sweeps import FieldError
from mupscale.study.writing import write_whole

MOST_SEEDS = 10_000


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        GrowthError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise GrowthError(f"{path}: not TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GrowthError(f"{path}: cannot be read ({error}); expected a TOML file") from None


@contextmanager
def locating(path: Path) -> Iterator[None]:
    """Say of a `FieldError` from inside where in the file its field stands."""
    try:
        yield
    except FieldError as error:
        place = f"[{error.table}] {error.key}".strip() if error.table else error.key
        raise GrowthError(f"{path}:{_line_of(path, error.table, error.key)}: {place}: {error}") from None


def _line_of(path: Path, table: str, key: str) -> int:
    """Where a key of a table stands; the table's head where the key is missing, else the first line."""
    current, head = "", 1
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\[\]]+?)\s*\]", line):
            current = re.sub(r"[\"']", "", header[1])
            if current == table or (not table and current == key):
                head = number
        elif current == table and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return head


def only_known(table: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise `FieldError` for the first key that is none of those known, with the closest that is."""
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(sorted(known))}"
            raise FieldError(table, key, f"unknown; {hint}")


def table_as(kind: type[Any], name: str, values: Any) -> Any:
    """A table as a dataclass, every value as its field's type."""
    if not isinstance(values, dict):
        raise FieldError("", name, f"expected a table [{name}]")
    hints = get_type_hints(kind)
    only_known(name, values, hints)
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
    if missing:
        raise FieldError(name, missing[0], "missing")
    return kind(**{key: typed(name, key, value, hints[key]) for key, value in values.items()})


def typed(table: str, key: str, value: Any, hint: Any) -> Any:
    """The value as a type; whole numbers do for fractions, lists for tuples."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            inner = get_args(kind)[0]
            return tuple(typed(table, key, each, inner) for each in value)
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if (kind is int and is_whole(value)) or (kind in (bool, str) and isinstance(value, kind)):
            return value
    names = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    expected = " or ".join(names.get(kind, "a list") for kind in kinds if kind is not type(None))
    raise FieldError(table, key, f"{value!r}: expected {expected}")


def whole(table: str, key: str, value: Any) -> int:
    """A whole number of at least 1."""
    if value is None:
        raise FieldError(table, key, "missing")
    if not is_whole(value) or value < 1:
        raise FieldError(table, key, f"{value!r}: expected a whole number of at least 1")
    return int(value)


def seeds_of(table: str, value: Any) -> tuple[int, ...]:
    """How many, from 0 on; or which."""
    if isinstance(value, list) and value and all(is_whole(seed) and seed >= 0 for seed in value):
        if max(value) > LARGEST_SEED:
            raise FieldError(table, "seeds", f"{max(value)}: expected seeds of at most {LARGEST_SEED}")
        return tuple(sorted(set(value)))
    if (count := whole(table, "seeds", value)) > MOST_SEEDS:
        raise FieldError(table, "seeds", f"{count}: expected at most {MOST_SEEDS}")
    return tuple(range(count))


def write_toml(tables: Mapping[str, Any], path: Path) -> None:
    """Write tables into a file, whole or not at all; what is None is left out."""
    write_whole(path, tomli_w.dumps(_plain(tables)))


def read_back(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Tables as they would be read from the file that they are written into."""
    return tomllib.loads(tomli_w.dumps(_plain(tables)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    return str(value) if isinstance(value, Path) else value


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)
