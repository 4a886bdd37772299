"""What a model's own code puts into a tensor where that shows no law: tables, and draws of another kind.

A table is the same in every fresh model: positions, masks, the logarithms of 1, 2, … that state-space models
begin from. It has no law from which a wide one could be drawn, but the wide model's own code makes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from mupscale.operators.fresh import Law
from mupscale.theory.manifest import Plan


@dataclass(frozen=True)
class Own:
    """A tensor as a model's own code fills it.

    Attributes:
        narrow: the fresh narrow one, where it is always the same; else of its shape, and its mean throughout.
        wide: a fresh wide one.
        drawn: whether it is random.
    """

    narrow: Tensor
    wide: Tensor
    drawn: bool

    def fresh(self, strength: float) -> Tensor:
        """The wide one, its random part times ``strength``."""
        if not self.drawn or strength == 1:
            return self.wide
        return _throughout(self.wide).lerp(self.wide, strength)


def own_values(plan: Plan, laws: Mapping[str, Law], *, seed: int) -> dict[str, Own]:
    """What shows no law, by the wide model's names, as far as its own code tells what a fresh one holds.

    Of plain modules that a function builds it is tables: buffers or parameters that are always the same. Of
    transformers models it is buffers, and parameters that do not sum over what grows: the others have the
    size that μP gives, which the wide model's own draws do not have. No others are allocated.
    """
    if plan.build_narrow is None or plan.build_wide is None:
        return {}
    if plan.config is None:
        tables = {name for name, law in laws.items() if law.table}
        builders = plan.build_narrow, plan.build_narrow, plan.build_wide
        narrow, again, wide = (_held(build(), tables) for build in builders)
    else:
        params = {name for name in plan.layout.params if plan.of_narrow(name).init_scale == 1}
        names = (params | {*plan.layout.buffers}) - laws.keys()
        wide_names = {name for name, source in plan.wide_names.items() if source in names}
        narrow, again, wide = (
            _initialized(build(), own, seed + more) if own else {}
            for build, own, more in (
                (plan.build_narrow, names, 0),
                (plan.build_narrow, names, 1),
                (plan.build_wide, wide_names, 2),
            )
        )
    found = {}
    for name, source in plan.wide_names.items():
        if source not in narrow or name not in wide:
            continue
        if (value := narrow[source]).is_meta:
            continue  # of a module that was given, no values are kept
        drawn = not torch.equal(value, again[source])
        if not drawn or plan.config is not None:  # else it shows a law
            found[name] = Own(_throughout(value) if drawn else value, wide[name], drawn)
    return found


def _held(model: nn.Module, tables: Collection[str]) -> dict[str, Tensor]:
    """The buffers of a model, and some of its parameters."""
    params = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False) if n in tables}
    return dict(model.named_buffers(remove_duplicate=False)) | params


def _initialized(model: nn.Module, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """Some tensors of a transformers model on the meta device, as its initializer fills them."""
    real = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        before = getattr(module, leaf)
        if not before.is_floating_point() or isinstance(module, ParametrizationList):
            continue
        value = torch.full(before.shape, torch.nan)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[leaf] = value
        real[name] = module, leaf
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model.initialize_weights()  # type: ignore[operator]
    filled = {name: getattr(module, leaf).detach() for name, (module, leaf) in real.items()}
    return {name: value for name, value in filled.items() if not value.isnan().any()}


def _throughout(value: Tensor) -> Tensor:
    """A tensor's mean in all of its places."""
    return torch.full_like(value, value.mean().item())
