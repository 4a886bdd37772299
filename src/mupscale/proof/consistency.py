"""What a wide model holds, and how, against what the narrow one holds: ties, tables, dtypes, references.

What it computes is `verification`'s; none of this need show in one run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.models.contents import one_memory, state_tensors, tie_names
from mupscale.notation.axes import Axes, duplicate, sum_copies
from mupscale.notation.dims import Dim
from mupscale.operators.filling import is_architecture, tables
from mupscale.theory.manifest import Plan

Found = Iterator[tuple[str, str]]  # a module, and what is wrong there


def held_otherwise(
    narrow: nn.Module, wide: nn.Module, plan: Plan, optimizer: torch.optim.Optimizer | None
) -> Found:
    """Where ``wide`` holds something otherwise than ``narrow`` does, module by module, with what is wrong."""
    yield from _ties(narrow, wide, plan)
    if (pair := one_memory(wide)) is not None:
        yield _at(pair[0], f"lies in one memory with {pair[1]}: one changes as the other trains")
    yield from _references(narrow, wide)
    yield from _tables(narrow, wide)
    yield from _kinds(narrow, wide, plan)
    if optimizer is not None:
        yield from _optimized(wide, optimizer)


def broken_parameters(model: nn.Module, wide: nn.Module, plan: Plan) -> dict[str, str]:
    """Modules whose weights do not reproduce the narrow one's, each with what is wrong."""
    broken: dict[str, str] = {}
    wide_state, state = state_tensors(wide), state_tensors(model)
    for name in (*plan.layout.params, *plan.layout.buffers):
        if name not in state or name not in wide_state:
            raise GrowthError(
                f"{name}: in the plan, but not in the {'wide' if name in state else 'narrow'} model; "
                "give the models of this plan"
            )
        theta, grown = state[name].detach(), wide_state[name].detach()
        for tensor, shape in (
            (theta, plan[name].axes.shape(plan.layout.sizes)),
            (grown, plan.wide_shape(name)),
        ):
            if tuple(tensor.shape) != shape:
                raise GrowthError(
                    f"{name}: the plan gives shape {shape}, found {tuple(tensor.shape)}; "
                    "give the models of this plan"
                )
        if not theta.numel():
            continue
        if not theta.is_floating_point() and not theta.is_complex():
            same = duplicate(theta, plan[name].axes, plan.layout.sizes, plan.growth)
            if not torch.equal(same.to(grown.device), grown):
                owner, _, leaf = name.rpartition(".")
                broken.setdefault(owner, f"{leaf}: its whole numbers are not the narrow model's")
            continue
        scaling = plan[name]
        copies = scaling.axes.expand_copies(plan.layout.sizes, plan.growth)
        exact = grown.to(torch.complex128) if grown.is_complex() else grown.double()
        # What contracted axes have grown is summed away, so that only copies of the outputs are left.
        outputs = Axes(
            tuple(
                Dim((n,)) if d.contracted else d for d, n in zip(scaling.axes.dims, theta.shape, strict=True)
            )
        )
        summed = sum_copies(exact, copies).reshape(outputs.wide_shape(plan.layout.sizes, plan.growth))
        expected = duplicate(theta.to(exact.device, exact.dtype), outputs, plan.layout.sizes, plan.growth)
        expected = (expected + scaling.offset) * scaling.fold - scaling.offset
        # Each of the summed copies is rounded where it is stored, and by the few operations that made it.
        slack = 4 * torch.finfo(grown.dtype).eps * float(scaling.fan_in) * exact.abs().max()
        wrong = ((summed - expected).abs() > slack) | ~summed.isfinite()
        if wrong.any():
            worst = (summed - expected).abs().max().item()
            owner, _, leaf = name.rpartition(".")
            broken.setdefault(
                owner,
                f"{leaf}: {int(wrong.sum())} of {wrong.numel()} sums over copies miss the narrow value, "
                f"by up to {worst:.3g}",
            )
    return broken


def _ties(narrow: nn.Module, wide: nn.Module, plan: Plan) -> Found:
    own, theirs = ({**tie_names(m), **{n: n for n, _ in m.named_parameters()}} for m in (narrow, wide))
    for name, first in own.items():
        if name in theirs and plan.own_name(theirs[name]) != plan.own_name(first):
            yield _at(name, f"is {theirs[name]}, but {first} in the narrow model")
        elif name in theirs and theirs[name] == name != first:
            yield _at(
                name, f"is one with {first} in the narrow model, but a parameter of its own in the wide"
            )


def _references(narrow: nn.Module, wide: nn.Module) -> Found:
    """Lists and dicts whose parameters are the model's own in the narrow one, but not in the wide one."""
    params = {id(p) for p in narrow.parameters()}, {id(p) for p in wide.parameters()}
    others = dict(wide.named_modules())
    for name, module in narrow.named_modules():
        if name not in others:
            continue
        for key, value in vars(module).items():
            mine = [id(p) in params[0] for p in _parameters_in(value, key)]
            also = [id(p) in params[1] for p in _parameters_in(vars(others[name]).get(key), key)]
            if any(mine) and mine != also:
                yield name, f"{key}: holds parameters that are not, or no longer, the wide model's own"


def _parameters_in(value: Any, key: str) -> list[nn.Parameter]:
    if key in ("_parameters", "_buffers", "_modules") or isinstance(value, nn.Module):
        return []
    if isinstance(value, nn.Parameter):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [param for v in values for param in _parameters_in(v, "")]


def _tables(narrow: nn.Module, wide: nn.Module) -> Found:
    others = tables(wide)
    for (owner, leaf), table in tables(narrow).items():
        other = others.get((owner, leaf))
        if other is None or table.is_meta or is_architecture(table, other):
            continue
        a, b = table.detach().cpu(), other.detach().cpu()
        rounding = max((4 * torch.finfo(t.dtype).eps for t in (a, b) if t.is_floating_point()), default=0.0)
        if not torch.allclose(a.to(torch.complex128), b.to(torch.complex128), rtol=rounding, atol=rounding):
            yield owner, f"{leaf}: no longer holds what it holds in the narrow model"


def _kinds(narrow: nn.Module, wide: nn.Module, plan: Plan) -> Found:
    """Tensors left behind where the others have the narrow model's dtypes, or are all on one device."""
    own, theirs = _tensors(narrow), _tensors(wide)
    pairs = [(n, own[plan.canonical(n)], t) for n, t in theirs.items() if plan.canonical(n) in own]
    kept = [a.dtype == b.dtype for _, a, b in pairs]
    if 2 * sum(kept) > len(kept):  # else the wide model has been given another dtype on purpose
        for name, a, b in pairs:
            if a.dtype != b.dtype:
                yield _at(name, f"has dtype {b.dtype}, but {a.dtype} in the narrow model")
    devices = Counter(b.device for _, _, b in pairs)
    if len({a.device for _, a, _ in pairs}) == 1 < len(devices):
        usual = devices.most_common(1)[0][0]
        for name, _, b in pairs:
            if b.device != usual:
                yield _at(name, f"is on {b.device}, but the others are on {usual}")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _optimized(wide: nn.Module, optimizer: torch.optim.Optimizer) -> Found:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in wide.named_parameters()}
    if strange := [p for p in held if id(p) not in names]:
        yield "the optimizer", f"holds {len(strange)} parameters that are not the wide model's"
    counts = dict.fromkeys(names, 0)
    for p in held:
        counts[id(p)] = counts.get(id(p), 0) + 1
    for name, p in wide.named_parameters():
        if p.requires_grad and counts[id(p)] != 1:
            yield _at(name, f"is held {counts[id(p)]} times by the optimizer; it has to be held once")


def _at(name: str, what: str) -> tuple[str, str]:
    owner, _, leaf = name.rpartition(".")
    return owner, f"{leaf}: {what}"
