"""What a module is beside its tensors: kinds of modules, functions, hooks and settings.

A plan is of a model as its constructor builds it. What was changed on the narrow model since then goes over
to the wide one, where no width changes it; what cannot go over is refused.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mupscale.errors import GrowthError
from mupscale.layout.base import DEPTH
from mupscale.layout.depth import renumbered
from mupscale.models.copying import content
from mupscale.theory.manifest import WRAPPERS, Plan, bare

_NO_SETTINGS = {*vars(nn.Module()), "_compiled_call_impl", "_is_hf_initialized", "name_or_path"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SET_LATER = ("_gradient_checkpointing_func", "_loss_function")  # by methods of transformers models
# Whose hooks, functions and kinds of modules leave what a module computes as it is.
_LIBRARIES = (
    *("accelerate", "bitsandbytes", "deepspeed", "kernels", "lightning", "liger_kernel", "peft", "trl"),
    *("pytorch_lightning", "torchao", "transformers.utils", "transformers.integrations", "unsloth"),
    *("transformers.modeling_utils", "wandb", "torch._dynamo", "torch._functorch", "torch.ao", "torch.fx"),
    *("torch.distributed", "torch.nn.parallel", "torch.nn.utils", "torch.profiler", "torch.utils"),
)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)
_UNKNOWN = object()
_MEND = "; plan the model as it is, mupscale.plan(make, ...) with a make that builds it so, or undo that"


def as_planned(plan: Plan) -> nn.Module | None:
    """The narrow model as its constructor builds it, without values where it can be; None where it cannot."""
    return None if plan.build_narrow is None else _without_values(plan.build_narrow)


def _without_values(build: Callable[[], nn.Module]) -> nn.Module | None:
    with torch.enable_grad():
        try:
            with torch.device("meta"):  # no memory, where the constructor asks nothing of numbers
                return build()
        except GrowthError:  # the plan was made from this very module, which has been sharded since
            return None
        except Exception:
            return build()


def check_as_planned(narrow: nn.Module, made: nn.Module | None) -> None:
    """Refuse a model that was changed since it was planned in what cannot be carried to the wide one.

    Args:
        made: what `as_planned` gives.

    Raises:
        GrowthError: a module is of another kind, is new or gone, has a hook, or another function.
    """
    if made is None:
        return
    for name, mine, theirs in _side_by_side(narrow, made):
        place = name or type(made).__name__
        if mine is None or theirs is None or not _same_kind(type(mine), type(theirs)):
            now, then = ("not there" if m is None else type(m).__name__ for m in (mine, theirs))
            raise GrowthError(f"{place}: is {now}, and {then} in the model that was planned{_MEND}")
        for kind in _HOOKS:
            planned = [_code(hook) for hook in vars(theirs)[kind].values()]
            for hook in vars(mine)[kind].values():
                if _code(hook) in planned:
                    planned.remove(_code(hook))
                elif not _is_of_library(_home(hook)):
                    what = kind.strip("_").removesuffix("s").replace("_", " ")
                    raise GrowthError(
                        f"{place}: has a {what} that the model that was planned has not, and that the wide "
                        f"one would lack{_MEND}"
                    )
        for key, value in vars(mine).items():
            then = _static(theirs, key)
            functions = [f for f in (value, then) if isinstance(f, _FUNCTIONS) or _compiled(f) is not f]
            if key in _NO_SETTINGS or then is _UNKNOWN or not functions or _code(value) == _code(then):
                continue
            around = f"_old_{key}" in vars(mine) or f"_original_{key}" in vars(
                mine
            )  # put there by accelerate
            if _is_of_library(_home(value)) or around or _is_made_by(type(mine), value):
                continue
            raise GrowthError(
                f"{name}.{key}".lstrip(".") + ": is another function than in the model that was planned, or "
                f"in its place{_MEND}"
            )


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
    if made is None or any(_is_own_change(type(m), type(t)) for _, m, t in _side_by_side(narrow, made)):
        return
    for name, module in wide.named_modules():
        source = _source(name, plan)
        mine, theirs = _at(narrow, source), _at(made, source)
        if mine is None or theirs is None:
            continue
        vars(module).update({key: vars(mine)[key] for key in _SET_LATER if key in vars(mine)})
        for key, value in vars(mine).items():
            now, then, there = (_told(v) for v in (value, _static(theirs, key), _static(module, key)))
            if key in _NO_SETTINGS or _UNKNOWN in (now, then, there) or now in (then, there):
                continue
            if type(value) is int and (not whole_numbers or _keeps_tables(mine, theirs, module)):
                continue
            if then == there or (drawn := _is_drawn(plan, source, key, then)):
                setattr(module, key, copy.deepcopy(value))
            elif drawn is False and type(value) not in (int, str):
                raise GrowthError(
                    f"{name}.{key}".lstrip(".")
                    + f": goes by the width, and is {value!r} where the model that "
                    f"was planned has {_static(theirs, key)!r}{_MEND}"
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


# --- Modules


def _inner(module: nn.Module) -> nn.Module:
    """What torch.compile, checkpoint_wrapper and FSDP have put something around."""
    while (name := next((n for n in WRAPPERS if module._modules.get(n) is not None), None)) is not None:
        module = module._modules[name]  # type: ignore[assignment]
    return module


def _at(model: nn.Module, name: str) -> nn.Module | None:
    """A submodule by name, whatever is around it; None where there is none."""
    module: nn.Module | None = _inner(model)
    for leaf in filter(None, name.split(".")):
        if module is not None and (module := module._modules.get(leaf)) is not None:
            module = _inner(module)
    return module


def _source(name: str, plan: Plan) -> str:
    """The narrow model's name of a module of the wide one: of layers, of the one that it comes from."""
    name = bare(name)
    layer = renumbered(f"{name}.", 0)[1]
    if layer is None or DEPTH not in plan.growth:
        return name
    own = next((n for w, n in plan.wide_names.items() if renumbered(w, 0)[1] == layer), name)
    return renumbered(f"{name}.", (renumbered(own, 0)[1] or 0) - layer)[0].rstrip(".")


def _side_by_side(
    narrow: nn.Module, made: nn.Module, name: str = "", seen: frozenset[int] = frozenset()
) -> Iterator[tuple[str, nn.Module | None, nn.Module | None]]:
    """Every module of both, by name: None where it is in one alone, and may be called."""
    narrow, made = _inner(narrow), _inner(made)
    yield name, narrow, made
    seen = seen | {id(made)}
    for leaf in dict.fromkeys((*made._modules, *narrow._modules)):
        mine, theirs = narrow._modules.get(leaf), made._modules.get(leaf)
        place = f"{name}.{leaf}".lstrip(".")
        if mine is not None and theirs is not None:
            if id(theirs) not in seen:
                yield from _side_by_side(mine, theirs, place, seen)
        elif theirs is not None or (
            mine is not None and (leaf in made._modules or isinstance(made, _CONTAINERS))
        ):
            yield place, mine, theirs


def _same_kind(mine: type[nn.Module], theirs: type[nn.Module]) -> bool:
    """Whether one computes what the other does: it is the same, or a library has wrapped it."""
    if mine is theirs or (issubclass(mine, _BatchNorm) and issubclass(theirs, _BatchNorm)):
        return True
    if _is_own_change(mine, theirs):
        return True
    if (mine.__module__, mine.__qualname__) == (theirs.__module__, theirs.__qualname__):
        return _code(mine.forward) == _code(theirs.forward)  # defined twice, as parametrized ones are
    one, other = (mine, theirs) if issubclass(mine, theirs) else (theirs, mine)
    if not issubclass(one, other):
        return False
    added = [k for k in one.__mro__ if k not in other.__mro__ and not _is_of_library(k.__module__)]
    return not any(hasattr(other, key) for k in added for key in vars(k) if not key.startswith("__"))


def _is_own_change(mine: type, theirs: type) -> bool:
    """Whether a model's own code changes one for the other, as BigBird's its attention on short texts.

    The wide model does so, too; until then the settings that go with either are its own.
    """
    home = mine.__module__
    return mine is not theirs and home == theirs.__module__ and home.startswith("transformers.models.")


def _keeps_tables(mine: nn.Module, theirs: nn.Module, wide: nn.Module) -> bool:
    """Whether a module holds tensors that a call has made or changed in shape, or that go by the width."""
    now, then, there = (_table_shapes(module) for module in (mine, theirs, wide))
    return not now == then == there


def _table_shapes(module: nn.Module) -> dict[str, object]:
    computed = {key: module._buffers[key] for key in module._non_persistent_buffers_set}
    found: dict[str, object] = {}
    for key, value in (vars(module) | computed).items():
        parts = (
            value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        )
        if isinstance(value, Tensor):
            found[key] = value.shape
        elif key not in _NO_SETTINGS and any(isinstance(part, Tensor) for part in parts):
            found[key] = len(parts)
    return found


# --- Values


def _static(module: nn.Module, key: str) -> Any:
    """An attribute of a module or of its class, as it stands there."""
    if key in vars(module):
        return vars(module)[key]
    found = inspect.getattr_static(type(module), key, _UNKNOWN)
    return found.__func__ if isinstance(found, staticmethod | classmethod) else found


def _told(value: object, depth: int = 0) -> object:
    """A plain value, and what is made of such, as what compares by content; of all else nothing is known."""
    if type(value) in _PLAIN:
        return type(value), repr(value)  # NaN is itself
    if isinstance(value, np.ndarray) and value.dtype != object:
        return str(value.dtype), value.shape, value.tobytes()
    if type(value) not in (tuple, list, dict) or depth > 4:
        return _UNKNOWN
    parts = [*value.items()] if isinstance(value, dict) else [*value]  # type: ignore[misc]
    told = [_told(part, depth + 1) for part in parts]
    return _UNKNOWN if _UNKNOWN in told else (type(value), tuple(told))


def _compiled(value: object) -> object:
    """The function itself, of one that torch.compile has wrapped."""
    return vars(value).get("_torchdynamo_orig_callable", value) if isinstance(value, FunctionType) else value


def _code(value: object, depth: int = 0) -> object:
    """What a function does, so that one that was made twice is the same; of anything else its kind."""
    value = _compiled(value)
    if isinstance(value, MethodType):
        return _code(value.__func__, depth)
    if isinstance(value, partial):
        return _code(value.func, depth), _told(value.args), _told(value.keywords)
    if isinstance(value, FunctionType):
        cells = [content(cell) for cell in value.__closure__ or ()] if depth < 4 else []
        inside = [_code(c, depth + 1) if callable(c) else _told(c) for c in cells]
        return value.__code__, _told(value.__defaults__), tuple(inside)
    return value if isinstance(value, BuiltinFunctionType | type) else type(value)


def _is_made_by(kind: type, value: object) -> bool:
    """Whether a method of the class itself has made a function, as it does in the wide model, too."""
    place = getattr(value, "__qualname__", "")
    return any(place.startswith(f"{each.__qualname__}.") and "<locals>" in place for each in kind.__mro__)


def _home(value: object) -> str:
    """The module that the code of a function is in."""
    value = _compiled(value)
    if isinstance(value, MethodType):
        return _home(value.__func__)
    if isinstance(value, partial):
        return _home(value.func)
    if isinstance(value, FunctionType):
        return str(value.__globals__.get("__name__"))
    return str((value if isinstance(value, BuiltinFunctionType | type) else type(value)).__module__)


def _is_of_library(home: str) -> bool:
    return any(f"{home}.".startswith(f"{library}.") for library in _LIBRARIES)


def _is_drawn(plan: Plan, name: str, key: str, then: object) -> bool | None:
    """Whether a constructor sets an attribute anew in every module; None where that is not to be seen."""
    assert plan.build_narrow is not None
    again = plan.build_narrow()
    if plan.config is None and any(param.is_meta for param in again.parameters()):
        return None  # copies of a module that was given
    module = _at(again, name)
    return None if module is None else _told(_static(module, key)) != then
