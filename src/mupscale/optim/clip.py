"""Clipping by the narrow-equivalent norm: the norm of a duplicated gradient is c·√m times the narrow one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mupscale.models.sharding import local, whole
from mupscale.operators.filling import check_given
from mupscale.theory.manifest import Plan


@torch.no_grad()
def clip_grad_norm_(wide: nn.Module, plan: Plan, max_norm: float) -> Tensor:
    """Clip the wide model's gradients in place by the norm that the narrow model's gradients would have.

    Each parameter's squared norm is weighed by 1 / (m·c²); all gradients are then scaled alike, as
    ``torch.nn.utils.clip_grad_norm_`` does. Gradients may be sharded (FSDP2): every rank must call.

    Raises:
        GrowthError: a parameter is not in the plan, or has another shape there.

    Returns:
        The weighed norm before clipping: the narrow model's, as long as both are in lockstep.
    """
    check_given(plan, wide=wide)
    named = [(n, p.grad) for n, p in wide.named_parameters() if p.grad is not None]
    if not named:
        return torch.tensor(0.0)
    for name, grad in named:
        plan.check_shape(name, grad)
    grads = [g for _, g in named]
    weights = [(float(plan[n].copies) ** -0.5) / plan[n].grad_scale for n, _ in named]
    norms = torch.stack([whole(norm) for norm in torch._foreach_norm(grads)])
    total: Tensor = torch.linalg.vector_norm(
        norms * torch.tensor(weights, dtype=norms.dtype, device=norms.device)
    )
    # The 1e-6 is torch's own, so that both clip by the same factor.
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(g) for g in grads], factor)
    return total
