"""What was changed on a model since it was planned and cannot go over to the wide one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.operators.settings.side_by_side import NO_SETTINGS, same_kind, side_by_side
from mupscale.operators.settings.told import (
    FUNCTIONS,
    UNKNOWN,
    Reader,
    code,
    compiled,
    differ,
    home,
    is_made_by,
    is_of_library,
    static,
)
from mupscale.theory.manifest import Plan

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
MEND = "; plan the model as it is, mupscale.plan(make, ...) with a make that builds it so, or undo that"


def as_planned(plan: Plan) -> nn.Module | None:
    """The narrow model as its constructor builds it, without values where it can be; None where it cannot."""
    return None if plan.build_narrow is None else _without_values(plan.build_narrow)


def _without_values(build: Callable[[], nn.Module]) -> nn.Module | None:
    with torch.enable_grad():
        try:
            with torch.device("meta"):  # no memory, where the constructor asks nothing of numbers
                made = build()
        except GrowthError:  # the plan was made from this very module, which has been sharded since
            return None
        except Exception:
            return build()
        return build() if _misses_values(made) else made


def _misses_values(made: nn.Module) -> bool:
    """Whether functions or lists of a module hold tensors, by whose values they are to be compared."""
    reader = Reader(made)
    for key, value in ((k, v) for module in made.modules() for k, v in vars(module).items()):
        if key not in NO_SETTINGS and not isinstance(value, Tensor):
            code(value, reader)
    return any(tensor.is_meta for tensor in reader.tensors)


def check_as_planned(narrow: nn.Module, made: nn.Module | None) -> None:
    """Refuse a model that was changed since it was planned in what cannot be carried to the wide one.

    Args:
        made: what `as_planned` gives.

    Raises:
        GrowthError: a module is of another kind, is new or gone, has a hook, or another function.
    """
    if made is None:
        return
    own, planned_by = Reader(narrow), Reader(made)
    for name, mine, theirs in side_by_side(narrow, made):
        place = name or type(made).__name__
        if mine is None or theirs is None or not same_kind(type(mine), type(theirs)):
            now, then = ("not there" if m is None else type(m).__name__ for m in (mine, theirs))
            raise GrowthError(f"{place}: is {now}, and {then} in the model that was planned{MEND}")
        for kind in _HOOKS:
            planned = [code(hook) for hook in vars(theirs)[kind].values()]
            for hook in vars(mine)[kind].values():
                if code(hook) in planned:
                    planned.remove(code(hook))
                elif not is_of_library(home(hook)):
                    what = kind.strip("_").removesuffix("s").replace("_", " ")
                    raise GrowthError(
                        f"{place}: has a {what} that the model that was planned has not, and that the wide "
                        f"one would lack{MEND}"
                    )
        for key, value in vars(mine).items():
            then = static(theirs, key)
            functions = [f for f in (value, then) if isinstance(f, FUNCTIONS) or compiled(f) is not f]
            if key in NO_SETTINGS or then is UNKNOWN or not functions:
                continue
            own.tensors, planned_by.tensors = [], []
            if code(value, own) == code(then, planned_by) and not differ(own.tensors, planned_by.tensors):
                continue
            # Put there by accelerate.
            around = f"_old_{key}" in vars(mine) or f"_original_{key}" in vars(mine)
            if is_of_library(home(value)) or around or is_made_by(type(mine), value):
                continue
            raise GrowthError(
                f"{name}.{key}".lstrip(".") + ": is another function than in the model that was planned, or "
                f"in its place{MEND}"
            )


def check_built(wide: nn.Module, narrow: nn.Module, plan: Plan) -> None:
    """Refuse a module of the right shapes whose settings are not those of the plan's: other heads, say.

    What was changed on the narrow module after it was built may differ on the wide one, too.

    Raises:
        GrowthError: names the first that differs.
    """
    if plan.build_wide is None or plan.build_narrow is None:
        raise GrowthError(
            "this plan was loaded from a file; make it here with mupscale.plan(...), which knows the module"
        )
    made, before = (_settings(_without_values(build)) for build in (plan.build_wide, plan.build_narrow))
    own, theirs = _settings(narrow), _settings(wide)
    for place, value in made.items():
        if (found := theirs.get(place, value)) != value and own.get(place) == before.get(place):
            raise GrowthError(
                f"{'.'.join(place).lstrip('.')}: is {found!r} in the wide module, and {value!r} in the "
                "plan's; build it alike"
            )


def _settings(model: nn.Module | None) -> dict[tuple[str, str], bool | int | float | str]:
    return {
        (name, key): value
        for name, module in (model.named_modules() if model is not None else ())
        for key, value in vars(module).items()
        if type(value) in (bool, int, float, str) and key != "training"
    }
