"""Many runs of one architecture as one: their weights stacked, one forward and backward pass for all.

A stack launches every operation once for all runs, which is most of what small models cost on a GPU. Each run
keeps its own optimizer, schedule and clipping, and so comes out as it would alone.

Knows torch and the Trainer's schedule; nothing of files, text or growth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset
from transformers import PreTrainedModel, get_scheduler

import mupscale
from mupscale.errors import GrowthError
from mupscale.study.data.flops import fixed_inputs, without_weights
from mupscale.study.data.stream import Batch, collate
from mupscale.study.runs.history import Point
from mupscale.study.spec.recipe import SCHEDULER, TrainConfig

# Of a transformers config: what says nothing of the forward pass, or is compared with the weights.
_NOTES = {"architectures", "dtype", "name_or_path", "transformers_version"}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a stack, set up as for a run of its own.

    Attributes:
        model: forward(**batch) gives something with the mean loss of the batch as .loss or ["loss"].
        optimizer: any, with its groups and state as they are.
        config: the settings. Steps, batch size, evaluation and precision are the same in all members.
        train: dicts of tensors, in order: step i takes the items from i · batch_size on.
        held_out: likewise, to evaluate on; one object in all members is collated once.
        plan: of a grown model, for clipping by the narrow model's norm.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    train: Dataset[Batch]
    held_out: Dataset[Batch]
    plan: mupscale.Plan | None = None


def train_stacked(
    members: Sequence[Member],
    *,
    device: torch.device | str | None = None,
    on_evaluate: Callable[[int, int, float], bool] = lambda index, step, loss: False,
) -> list[tuple[Point, ...]]:
    """Train all members at once; the models are changed in place, each as by a run of its own.

    Equal to `training.train` up to rounding, with one exception: dropout draws other masks. Attention in
    transformers' models is computed eagerly, and blocks are full: no padding.

    Args:
        members: runs of one architecture. Where the forward pass reads more than weights, buffers and the
            transformers config, it is the first member's.
        device: where to train; None stays where the first member is.
        on_evaluate: called with a member's index, the step and its held-out loss; True takes it out, and its
            model stays as it is then. A member whose loss is not finite is always taken out.

    Returns:
        Each member's held-out curve: at step 0, every `eval_every` steps, and at the last one.

    Raises:
        GrowthError: members that do not fit into one stack, or too little training data.

    Example:
        >>> class Line(nn.Linear):
        ...     def forward(self, x, y):
        ...         return {"loss": (super().forward(x) - y).square().mean()}
        >>> data = [{"x": torch.tensor([i / 40]), "y": torch.tensor([i / 20])} for i in range(40)]
        >>> config = TrainConfig(steps=10, batch_size=4, warmup_steps=0, eval_every=5)
        >>> models = [Line(1, 1) for _ in range(3)]
        >>> curves = train_stacked([
        ...     Member(model=m, optimizer=torch.optim.SGD(m.parameters(), lr), config=config,
        ...            train=data, held_out=data)
        ...     for m, lr in zip(models, (0.1, 0.2, 0.3))
        ... ])
        >>> [[point.step for point in curve] for curve in curves]
        [[0, 5, 10], [0, 5, 10], [0, 5, 10]]
    """
    if not members:
        return []
    _check(members)
    config = members[0].config
    device = torch.device(device or next(members[0].model.parameters()).device)
    for member in members:
        if next(member.model.parameters()).device != device:
            member.model.to(device)
            member.optimizer.load_state_dict(member.optimizer.state_dict())  # lets the state follow
    schedulers = [
        get_scheduler(SCHEDULER, m.optimizer, m.config.warmup_steps, m.config.steps, m.config.schedule)
        for m in members
    ]
    curves: list[list[Point]] = [[] for _ in members]
    live = list(range(len(members)))
    stack = _Stack(members)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        for step in range(config.steps + 1):
            if step % config.eval_every == 0 or step == config.steps:
                leaving = set()
                for index, loss in zip(live, stack.evaluate(), strict=True):
                    curves[index].append(Point(step=step, loss=loss))
                    if on_evaluate(index, step, loss) or not math.isfinite(loss):
                        leaving.add(index)
                if leaving:
                    stack.release()
                    live = [index for index in live if index not in leaving]
                    if not live:
                        break
                    stack = _Stack([members[index] for index in live])
            if step < config.steps:
                stack.backward(range(step * config.batch_size, (step + 1) * config.batch_size))
                for index in live:
                    _clip(members[index])
                    members[index].optimizer.step()
                    schedulers[index].step()
    stack.release()
    return [tuple(curve) for curve in curves]


class _Stack:
    """The weights and buffers of E members as tensors (E, …), of which the members' own become views."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.config = members[0].config
        self.shell = without_weights(members[0].model)
        self.params = self._joined([dict(member.model.named_parameters()) for member in members])
        self.buffers = self._joined([dict(member.model.named_buffers()) for member in members])

    @staticmethod
    def _joined(models: Sequence[Mapping[str, Tensor]]) -> Batch:
        joined = {}
        for name, first in models[0].items():
            joined_E = torch.stack([model[name].detach() for model in models])
            for model, view in zip(models, joined_E.unbind(), strict=True):
                model[name].data = view  # the optimizers know the tensors, and update the stack through them
            joined[name] = joined_E.requires_grad_(first.requires_grad)
        return joined

    def release(self) -> None:
        """Give each member storage of its own again."""
        for member in self.members:
            for tensor in (*member.model.parameters(), *member.model.buffers()):
                tensor.data, tensor.grad = tensor.data.clone(), None

    def losses(self, datasets: Sequence[Dataset[Batch]], places: range) -> Tensor:
        """The members' losses, (E,), each on the items at ``places`` of its own data."""
        shared = all(dataset is datasets[0] for dataset in datasets)
        device = next(iter(self.params.values())).device
        batches = [_batch(d, places) for d in (datasets[:1] if shared else datasets)]
        batch = {
            name: (value if shared else torch.stack([each[name] for each in batches])).to(device)
            for name, value in batches[0].items()
        }
        fixed = fixed_inputs(self.shell, batch)

        def loss(params: Batch, buffers: Batch, batch: Batch) -> Tensor:
            out = functional_call(self.shell, (params, buffers), kwargs={**batch, **fixed})
            value: Tensor = out["loss"] if isinstance(out, Mapping) else out.loss
            return value

        over = torch.vmap(loss, in_dims=(0, 0, None if shared else 0), randomness="different")
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16):
            losses_E: Tensor = over(self.params, self.buffers, batch)
        return losses_E

    def backward(self, places: range) -> None:
        """Put the gradient of each member's own loss into its parameters' ``grad``."""
        self.shell.train()
        losses_E = self.losses([member.train for member in self.members], places)
        trained = {name: p for name, p in self.params.items() if p.requires_grad}
        # The members have no weights in common: the gradient of the sum holds the gradient of each.
        grads = torch.autograd.grad(losses_E.sum(), list(trained.values()), allow_unused=True)
        views = {name: g.unbind() for name, g in zip(trained, grads, strict=True) if g is not None}
        for i, member in enumerate(self.members):
            for name, param in member.model.named_parameters():
                param.grad = views[name][i] if name in views else None

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Each member's mean loss over its held-out items."""
        self.shell.eval()
        held_out = [member.held_out for member in self.members]
        count, size = _count(held_out[0]), self.config.batch_size
        batches = [range(first, min(first + size, count)) for first in range(0, count, size)]
        # A last batch that is not full counts by its items.
        sums = [self.losses(held_out, places).double() * len(places) for places in batches]
        means: list[float] = (torch.stack(sums).sum(dim=0) / count).tolist()
        return means


def _batch(dataset: Dataset[Batch], places: range) -> Batch:
    fetch: Callable[[list[int]], Sequence[Batch] | Batch] | None = getattr(dataset, "__getitems__", None)
    return collate(fetch(list(places)) if fetch else [dataset[place] for place in places])


def _clip(member: Member) -> None:
    max_norm = member.config.max_grad_norm
    if max_norm > 0 and member.plan is not None:
        mupscale.clip_grad_norm_(member.model, member.plan, max_norm)
    elif max_norm > 0:
        nn.utils.clip_grad_norm_(member.model.parameters(), max_norm)


def _check(members: Sequence[Member]) -> None:
    first = _traits(members[0])
    for index, member in enumerate(members):
        traits, needed = _traits(member), member.config.steps * member.config.batch_size
        for name in (*first, *traits):
            here, there = traits.get(name, "missing"), first.get(name, "missing")
            if here != there:
                raise GrowthError(
                    f"member {index}: {name} is {here}, in member 0 {there}; a stack takes only runs that "
                    "agree in architecture, steps, batch size and evaluation"
                )
        if (found := _count(member.train)) < needed:
            raise GrowthError(
                f"member {index}: {found} training items, expected {needed}: one for each place of "
                "every batch"
            )
    if len({id(member.model) for member in members}) < len(members):
        raise GrowthError("two members train the same model object; give each a copy of its own")
    window, block = first.get("sliding_window"), members[0].config.block_size
    if window is not None and block > window:
        raise GrowthError(
            f"sliding_window is {window}, less than block_size {block}; stacked attention is causal over the "
            "whole block: train these models one by one"
        )


def _traits(member: Member) -> dict[str, Any]:
    """What must be the same in all members."""
    model, config = member.model, member.config
    own = model.config.to_dict() if isinstance(model, PreTrainedModel) else {}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        **{name: getattr(config, name) for name in ("steps", "batch_size", "eval_every", "bf16")},
        "held_out": f"{_count(member.held_out)} items",
        **{name: f"{list(t.shape)} {t.dtype} trained={t.requires_grad}" for name, t in tensors.items()},
        **{name: v for name, v in own.items() if name not in _NOTES and not name.startswith("_")},
    }


def _count(dataset: Dataset[Batch]) -> int:
    return len(dataset)  # type: ignore[arg-type]
