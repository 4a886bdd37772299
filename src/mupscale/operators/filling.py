"""Fill a wide module, in place: the one way for the proof and for `grow`.

In place, so that whatever refers to a parameter (a tie, a Python list, an optimizer) goes on referring to it.
Knows plans and modules; where the values come from is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.models.contents import (
    attribute_tensors,
    is_made_anew,
    not_dense,
    one_memory,
    persistent_buffers,
    tie_,
)
from mupscale.models.copying import gradient_hooks
from mupscale.theory.manifest import Plan


def fill_(wide: nn.Module, narrow: nn.Module, plan: Plan, grown: Callable[[str], Tensor]) -> nn.Module:
    """Make ``wide`` what ``narrow`` grows into: values, ties, dtypes, devices, what is frozen, and modes.

    Args:
        wide: a module of the wide architecture, with whatever values.
        grown: gives every tensor of the wide module by name, where the narrow one's is and in its dtype.

    Raises:
        GrowthError: the two do not hold the same tensors, or not the same ones tied.
    """
    tie_(wide, plan.layout.ties)  # those of the narrow model that the wide one's constructor has not made
    params, buffers = dict(wide.named_parameters()), persistent_buffers(wide)
    if odd := (params.keys() | buffers.keys()) ^ plan.wide_names.keys():
        name = min(odd)
        raise GrowthError(
            f"{name}: only in the {'plan' if name in plan.wide_names else 'wide module'}; the wide module "
            "has to be built as the narrow one is, with the same tensors tied"
        )
    own = dict(narrow.named_parameters())
    with torch.no_grad():
        for name, param in params.items():
            source = own[plan.canonical(name)]
            if len(gradient_hooks(source)) > len(gradient_hooks(param)):
                raise GrowthError(
                    f"{name}: has a hook on its gradient that the wide module's constructor does not "
                    "register; take it off, and register one of the wide size after growing"
                )
            put_(param, grown(name))
            param.requires_grad_(source.requires_grad)
            for key, value in vars(source).items():  # what was marked on the narrow one alone
                if isinstance(value, bool | int | float | str) and not hasattr(param, key):
                    setattr(param, key, value)
        fill_buffers_(wide, {id(buffer): grown(name) for name, buffer in buffers.items()})
        fill_tables_(wide, narrow)
    same_modes_(wide, narrow)
    return wide


def like(value: Tensor, other: Tensor) -> Tensor:
    """On the device of another tensor and, as far as both are floating point, in its dtype."""
    both = value.is_floating_point() and other.is_floating_point()
    return value.to(other.device, other.dtype if both else value.dtype)


def fill_buffers_(wide: nn.Module, new: Mapping[int, Tensor]) -> None:
    """Replace buffers, by their ids: a constant may be shared with whatever else was built from it."""
    for module in wide.modules():
        module._buffers |= {k: new[id(b)] for k, b in module._buffers.items() if id(b) in new}


def built(model: nn.Module, plan: Plan) -> nn.Module:
    """A wide module to fill, from its own constructor."""
    if plan.build_wide is None:
        raise GrowthError(
            "this plan was loaded from a file; make it here with mupscale.plan(...) to build the module"
        )
    wide = plan.build_wide()
    _keep_tables_(wide, model, plan)
    return wide


def check_given(plan: object, **models: object) -> None:
    """Refuse what is no plan, or no module.

    Raises:
        GrowthError: names it, and says what is there instead.
    """
    if not isinstance(plan, Plan):
        raise GrowthError(f"plan: expected what mupscale.plan(...) gives, found {type(plan).__name__}")
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise GrowthError(
                f"{name}: expected a torch.nn.Module, found {type(model).__name__}; load it first, or grow a "
                "checkpoint on disk, mupscale grow SRC DST"
            )


def check_memory(model: nn.Module) -> None:
    """Refuse a model in which two tensors lie in one memory, or one in none, as sparse ones do.

    Raises:
        GrowthError: names them.
    """
    if (name := not_dense(model)) is not None:
        raise GrowthError(f"{name}: is a sparse tensor, which cannot be grown; hold it dense, .to_dense()")
    if (pair := one_memory(model)) is not None:
        raise GrowthError(
            f"{pair[0]} and {pair[1]}: two tensors share one memory, so that training one changes the other; "
            "make them one parameter (head.weight = embedding.weight), or two (.clone())"
        )


def put_(tensor: nn.Parameter, value: Tensor) -> None:
    """Let a parameter be another one in value, dtype and device, and remain the same object."""
    if not tensor.is_meta:
        tensor.data = value.detach()
        return
    attributes = dict(vars(tensor))
    torch.utils.swap_tensors(tensor, nn.Parameter(value, requires_grad=False))  # type: ignore[no-untyped-call]
    vars(tensor).update(attributes)


def is_architecture(narrow: Tensor, wide: Tensor) -> bool:
    """Whether a table that no checkpoint holds is the wide architecture's own, and not to be taken over.

    It is where shapes differ, and where all of it is by one factor larger or smaller (√d_model). What was
    drawn at random or has counted something is taken over, and so are tables that no width changes.
    """
    if narrow.shape != wide.shape:
        return True
    if not (narrow.is_floating_point() and wide.is_floating_point()) or not narrow.numel():
        return False
    a, b = narrow.detach().double().cpu(), wide.detach().double().cpu()
    at = int(a.abs().argmax())
    ratio = float(b.flatten()[at] / a.flatten()[at]) if a.flatten()[at] else 0.0
    return abs(ratio - 1) > 1e-3 and ratio > 0 and torch.allclose(a * ratio, b, rtol=1e-3)


def tables(model: nn.Module) -> dict[tuple[str, str], Tensor]:
    """What no checkpoint holds, by module and attribute: buffers that are not persistent, plain tensors."""
    names = {id(module): name for name, module in model.named_modules()}
    stored = {id(buffer) for buffer in persistent_buffers(model).values()}
    found = {
        (names[id(m)], key): tensor for m, key, tensor in attribute_tensors(model) if not is_made_anew(m, key)
    }
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if id(buffer) not in stored:
            owner, _, leaf = name.rpartition(".")
            found[owner, leaf] = buffer
    return found


def fill_tables_(wide: nn.Module, narrow: nn.Module, *, in_place: bool = False) -> None:
    """Take over what no checkpoint holds, but for what belongs to the wide architecture.

    Args:
        in_place: leave it where the wide one's is and in its dtype; else it comes to be as the narrow one's.
    """
    given = tables(narrow)
    for (owner, leaf), table in tables(wide).items():
        if (source := given.get((owner, leaf))) is None:
            continue
        source = source.detach()
        if in_place and is_architecture(source, table):
            continue
        if in_place:
            value = like(source.clone(), table)
        elif not is_architecture(source, table):
            value = source.clone()
        elif table.is_floating_point() and source.is_floating_point():
            value = table.detach().to(source.device, source.dtype)
        else:
            value = table.detach().to(source.device)
        _hold(wide.get_submodule(owner), leaf, value)


def copied_tables(model: nn.Module) -> dict[tuple[str, str], Tensor]:
    """Copies of `tables` on the CPU; those that are computed of parameters are still to be told."""
    return {
        key: table.detach().cpu().clone().requires_grad_(table.requires_grad)
        for key, table in tables(model).items()
        if not table.is_meta
    }


def hold_tables_(model: nn.Module, held: Mapping[tuple[str, str], Tensor]) -> nn.Module:
    """Put tables where `tables` has found them."""
    for (owner, leaf), table in held.items():
        _hold(model.get_submodule(owner), leaf, table)
    return model


def same_modes_(wide: nn.Module, narrow: nn.Module) -> None:
    """Training or evaluation, module by module: a frozen part may stay in evaluation mode."""
    wide.train(narrow.training)
    modes: Mapping[str, bool] = {name: module.training for name, module in narrow.named_modules()}
    for name, module in wide.named_modules():
        module.training = modes.get(name, narrow.training)


def _hold(module: nn.Module, leaf: str, value: Tensor) -> None:
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        vars(module)[leaf] = value


def _keep_tables_(wide: nn.Module, narrow: nn.Module, plan: Plan) -> None:
    """Let what was changed in a table since it was built be so in a wide module, too, that is as built.

    Raises:
        GrowthError: a width changes the table, so that there is no telling what the change becomes.
    """
    mine, theirs = tables(narrow), tables(wide)
    both = [key for key in mine if key in theirs]
    with torch.enable_grad():
        made = tables(plan.build_narrow()) if both and plan.build_narrow else {}
    for key in both:
        now, there, then = mine[key], theirs[key], made.get(key)
        name = ".".join(filter(None, key))
        if there.is_meta and not now.is_meta:
            raise GrowthError(f"{name}: has no values in the wide module; build that off the meta device")
        if then is None or then.requires_grad:
            continue  # the latter: computed of parameters, and again in every call, as old weight norm is
        if then.is_meta:
            if now.shape == there.shape and is_architecture(now, there):
                raise GrowthError(
                    f"{name}: cannot tell whether it goes with the width, as the narrow module was planned "
                    "on the meta device; plan it with values"
                )
            continue
        if now.shape != there.shape:
            # What no width has changed, a call has, and the next one will.
            changed = then.shape != there.shape and not _is_as_built(now, then, rtol=1e-2, atol=1e-8)
        else:
            changed = now.shape == then.shape and not _is_as_built(now, then, rtol=1e-5, atol=0.0)
        if changed and is_architecture(then, there):
            how = "grows" if then.shape != there.shape else "goes"
            raise GrowthError(
                f"{name}: {how} with the width, but is no parameter and no persistent buffer, and no longer "
                "holds what the constructor put there; register it as a persistent buffer, or plan with a "
                "constructor that builds it so"
            )
        if changed:
            _hold(wide.get_submodule(key[0]), key[1], now.detach().clone())


def _is_as_built(now: Tensor, then: Tensor, **within: float) -> bool:
    """Whether a table holds what its constructor put there, in whatever dtype the model has been since."""
    if now.shape != then.shape:
        return False
    real = now.is_floating_point() and then.is_floating_point()
    rounded = {now.dtype, torch.bfloat16, torch.float16} if real else {now.dtype}
    value, made = now.detach().cpu().to(torch.complex128), then.detach().cpu()
    return any(torch.allclose(value, made.to(k).to(value), **within, equal_nan=True) for k in rounded)
