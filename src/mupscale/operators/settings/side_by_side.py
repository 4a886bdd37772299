"""The modules of two models beside each other, by name, whatever wrappers are around them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mupscale.layout.base import DEPTH
from mupscale.layout.depth import renumbered
from mupscale.operators.settings.told import code, is_of_library
from mupscale.theory.manifest import WRAPPERS, Plan, bare

NO_SETTINGS = {*vars(nn.Module()), "_compiled_call_impl", "_is_hf_initialized", "name_or_path"}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _inner(module: nn.Module) -> nn.Module:
    """What torch.compile, checkpoint_wrapper and FSDP have put something around."""
    while (name := next((n for n in WRAPPERS if module._modules.get(n) is not None), None)) is not None:
        module = module._modules[name]  # type: ignore[assignment]
    return module


def at(model: nn.Module, name: str) -> nn.Module | None:
    """A submodule by name, whatever is around it; None where there is none."""
    module: nn.Module | None = _inner(model)
    for leaf in filter(None, name.split(".")):
        if module is not None and (module := module._modules.get(leaf)) is not None:
            module = _inner(module)
    return module


def source_name(name: str, plan: Plan) -> str:
    """The narrow model's name of a module of the wide one: of layers, of the one that it comes from."""
    name = bare(name)
    layer = renumbered(f"{name}.", 0)[1]
    if layer is None or DEPTH not in plan.growth:
        return name
    own = next((n for w, n in plan.wide_names.items() if renumbered(w, 0)[1] == layer), name)
    return renumbered(f"{name}.", (renumbered(own, 0)[1] or 0) - layer)[0].rstrip(".")


def side_by_side(
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
                yield from side_by_side(mine, theirs, place, seen)
        elif theirs is not None or (
            mine is not None and (leaf in made._modules or isinstance(made, _CONTAINERS))
        ):
            yield place, mine, theirs


def same_kind(mine: type[nn.Module], theirs: type[nn.Module]) -> bool:
    """Whether one computes what the other does: it is the same, or a library has wrapped it."""
    if mine is theirs or (issubclass(mine, _BatchNorm) and issubclass(theirs, _BatchNorm)):
        return True
    if is_own_change(mine, theirs):
        return True
    if (mine.__module__, mine.__qualname__) == (theirs.__module__, theirs.__qualname__):
        return code(mine.forward) == code(theirs.forward)  # defined twice, as parametrized ones are
    one, other = (mine, theirs) if issubclass(mine, theirs) else (theirs, mine)
    if not issubclass(one, other):
        return False
    added = [k for k in one.__mro__ if k not in other.__mro__ and not is_of_library(k.__module__)]
    return not any(hasattr(other, key) for k in added for key in vars(k) if not key.startswith("__"))


def is_own_change(mine: type, theirs: type) -> bool:
    """Whether a model's own code changes one for the other, as BigBird's its attention on short texts.

    The wide model does so, too; until then the settings that go with either are its own.
    """
    home = mine.__module__
    return mine is not theirs and home == theirs.__module__ and home.startswith("transformers.models.")


def keeps_tables(mine: nn.Module, theirs: nn.Module, wide: nn.Module) -> bool:
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
        elif key not in NO_SETTINGS and any(isinstance(part, Tensor) for part in parts):
            found[key] = len(parts)
    return found
