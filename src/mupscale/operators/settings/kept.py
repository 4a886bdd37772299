"""What was changed on the narrow model and goes over to the wide one: settings that no width changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from enum import Enum
from functools import cache, partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from mupscale.errors import GrowthError, said_as
from mupscale.operators.filling import is_architecture
from mupscale.operators.settings.refused import MEND
from mupscale.operators.settings.side_by_side import (
    NO_SETTINGS,
    at,
    is_own_change,
    keeps_tables,
    side_by_side,
    source_name,
)
from mupscale.operators.settings.told import FUNCTIONS, UNKNOWN, Reader, differ, static
from mupscale.theory.manifest import Plan

_SET_LATER = ("_gradient_checkpointing_func", "_loss_function")  # by methods of transformers models


def keep_settings_(
    wide: nn.Module, narrow: nn.Module, made: nn.Module | None, plan: Plan, *, whole_numbers: bool = True
) -> None:
    """Let plain attributes that were changed after construction be as in the narrow model.

    That is a dropout that was switched off, a temperature: what the constructor makes alike at both widths.
    Whole numbers stay as they are beside tables that a call has made or changed, as they may count what these
    hold.

    Args:
        made: what `as_planned` gives.
        whole_numbers: else they all stay as they are, as tensor parallelism divides heads.

    Raises:
        GrowthError: names what goes by the width and was set otherwise.
    """
    if made is None or any(is_own_change(type(m), type(t)) for _, m, t in side_by_side(narrow, made)):
        return
    kept = _Kept(narrow, made, wide)
    again = cache(plan.build_narrow or (lambda: None))
    for name, module in wide.named_modules():
        source = source_name(name, plan)
        mine, theirs = at(narrow, source), at(made, source)
        if mine is None or theirs is None:
            continue
        vars(module).update({key: vars(mine)[key] for key in _SET_LATER if key in vars(mine)})
        tables_kept = cache(partial(keeps_tables, mine, theirs, module))
        for key, value in vars(mine).items():
            if key in NO_SETTINGS:
                continue
            there = static(module, key)
            new = kept(
                f"{name}.{key}".lstrip("."),
                (value, static(theirs, key), there),
                is_drawn=partial(_is_drawn, plan, made, again, source, key),
                numbers_stay=tables_kept if whole_numbers else lambda: True,
            )
            if new is not there:
                setattr(module, key, new)


class _Kept:
    """What attributes of the wide model are to be: what they are there, or copies of the narrow model's."""

    def __init__(self, narrow: nn.Module, made: nn.Module, wide: nn.Module) -> None:
        self._readers = [Reader(model) for model in (narrow, made, wide)]
        self._copies: dict[int, Any] = {}  # so that what modules share they share in the wide model, too
        self._fields: dict[tuple[int, int], tuple[Any, Any]] = {}

    def __call__(
        self,
        place: str,
        values: tuple[Any, Any, Any],
        *,
        is_drawn: Callable[[], bool | None],
        numbers_stay: Callable[[], bool],
    ) -> Any:
        """The value of one.

        Args:
            values: in the narrow model, in that as planned, and in the wide one.

        Raises:
            GrowthError: it goes by the width and was set otherwise.
        """
        value, then, there = values
        now, planned, wide = (reader.told(v) for reader, v in zip(self._readers, values, strict=True))
        tables, planned_tables, own_tables = (reader.tensors for reader in self._readers)
        elsewhere = isinstance(value, FUNCTIONS) or (isinstance(value, Tensor) and isinstance(there, Tensor))
        if elsewhere or UNKNOWN in (now, planned, wide):
            return there
        if now == wide:  # but for what tensors inside of it hold
            known = now == planned and not any(table.is_meta for table in planned_tables)
            if not differ(tables, own_tables) or (known and not differ(tables, planned_tables)):
                return there
            alike = known and not differ(planned_tables, own_tables)
            takes = alike or not any(map(is_architecture, tables, own_tables))
            return self._copy(place, value) if takes else there
        left = any(tensor.ndim for tensor in tables) and _shapes(tables) != _shapes(own_tables)  # by a call
        if now == planned or left:
            return there
        if _is_whole(value) and numbers_stay():
            return there
        if planned == wide:
            return self._copy(place, value)
        if all(map(_has_fields, values)):  # such as a config
            old, new = self._fields.setdefault((id(value), id(there)), (there, copy.copy(there)))
            for key, field in vars(value).items():
                fields = field, vars(then).get(key, UNKNOWN), vars(old).get(key, UNKNOWN)
                kept = self(f"{place}.{key}", fields, is_drawn=is_drawn, numbers_stay=numbers_stay)
                if kept is not fields[2]:
                    vars(new)[key] = kept
            return new
        if drawn := is_drawn():
            return self._copy(place, value)
        if drawn is False and type(value) not in (int, str):
            raise GrowthError(
                f"{place}: goes by the width, and is {_shown(value)} where the model that was planned has "
                f"{_shown(then)}{MEND}"
            )
        return there

    def _copy(self, place: str, value: Any) -> Any:
        with said_as(f"{place}: was changed since the model was planned, and cannot be copied", MEND):
            return copy.deepcopy(value, self._copies)


def _shapes(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _is_whole(value: object) -> bool:
    """Whether it is a whole number, which may count what tables beside it hold."""
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    return type(value) is int or isinstance(value, np.integer)


def _has_fields(value: Any) -> bool:
    """Whether all that an object holds is in its attributes."""
    if not hasattr(value, "__dict__") or isinstance(value, (*FUNCTIONS, type, Enum)):
        return False
    _, args, *rest = value.__reduce_ex__(4)
    return args in ((), (type(value),)) and rest[:1] == [vars(value)] and not any(rest[1:])


def _shown(value: object) -> str:
    return " ".join(repr(value).split())[:80]


def _is_drawn(
    plan: Plan, made: nn.Module, again: Callable[[], nn.Module | None], name: str, key: str
) -> bool | None:
    """Whether a constructor sets an attribute anew in every module; None where that is not to be seen.

    Args:
        made, again: the narrow model as its constructor builds it, and built once more.
    """
    other = again()
    if other is None or (plan.config is None and any(param.is_meta for param in other.parameters())):
        return None  # copies of a module that was given
    places = [(model, at(model, name)) for model in (made, other)]
    told = [module and Reader(model).told(static(module, key)) for model, module in places]
    return None if told[1] is None else told[0] != told[1]
