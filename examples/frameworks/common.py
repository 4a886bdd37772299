"""What the examples of frameworks share: a model trained on Python's own source, and what must hold of it."""

from __future__ import annotations

import argparse
import json
import os
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import mupscale
from mupscale.distributed import grow_
from mupscale.models.sharding import whole

STEPS, FURTHER = 20, 10
BATCH, LENGTH = 8, 65


@dataclass(frozen=True)
class Framework:
    """What the demonstration asks of one.

    Attributes:
        make: its model of some width, of bytes.
        optimizer: its optimizer for a model; for a wide one by the plan.
        load: a model and its optimizer from a folder.
        save: both to a folder.
        grow: from a narrow folder to a wide one, with some noise.
        plan: from width 1 to width 2.
    """

    name: str
    make: Callable[[int], nn.Module]
    optimizer: Callable[[nn.Module, mupscale.Plan | None], torch.optim.Optimizer]
    load: Callable[[Path, nn.Module, torch.optim.Optimizer], None]
    save: Callable[[Path, nn.Module, torch.optim.Optimizer], None]
    grow: Callable[[Path, Path, str | None], mupscale.Plan]
    plan: Callable[[], mupscale.Plan]


def sharded(model: nn.Module) -> nn.Module:
    """By FSDP2, where there are several processes."""
    return fully_shard(model) if dist.get_world_size() > 1 else model


def plan_of(make: Callable[[int], nn.Module]) -> mupscale.Plan:
    """From width 1 to width 2, proved on random weights."""
    return mupscale.plan(make, width=2, inputs=torch.randint(256, (2, 16)))


def demonstrate(framework: Framework, about: str | None) -> None:
    """Train, save, grow, load and train on, in the processes of torchrun or in this one; print what came."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--noise", default="balanced:1", help="between the copies; none keeps both in lockstep"
    )
    parser.add_argument("--out", default=None, help="folder for the checkpoints; default: a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        if "RANK" in os.environ:
            dist.init_process_group("gloo")
        else:
            dist.init_process_group("gloo", init_method=f"file://{temporary}/meet", rank=0, world_size=1)
        folder = [args.out or f"{temporary}/checkpoints"]
        dist.broadcast_object_list(folder)
        try:
            found = _run(framework, Path(folder[0]).absolute(), None if args.noise == "none" else args.noise)
            if dist.get_rank() == 0:
                print(json.dumps(found))
            dist.barrier()
        finally:
            dist.destroy_process_group()


def _run(framework: Framework, folder: Path, noise: str | None) -> dict[str, object]:
    make, optimizer_of = framework.make, framework.optimizer
    torch.manual_seed(0)
    narrow = sharded(make(1))
    optimizer = optimizer_of(narrow, None)
    # Grown before its first step, and trained on the same text: what the carried moments should be.
    plan = framework.plan()
    along = grow_(narrow, sharded(make(2)), plan, operator="duplicate", noise=None)
    along_optimizer = optimizer_of(along, plan)
    train(along, along_optimizer, range(STEPS), plan)

    train(narrow, optimizer, range(STEPS))
    framework.save(folder / "narrow", narrow, optimizer)
    plan = framework.grow(folder / "narrow", folder / "wide", noise)
    wide = sharded(make(2))
    wide_optimizer = optimizer_of(wide, plan)
    framework.load(folder / "wide", wide, wide_optimizer)
    moments = moments_apart(wide_optimizer, wide, along_optimizer, along)

    further = range(STEPS, STEPS + FURTHER)
    went_on, grown = train(narrow, optimizer, further), train(wide, wide_optimizer, further, plan)
    apart = [abs(one - other) for one, other in zip(went_on, grown, strict=True)]
    return {
        "framework": framework.name,
        "processes": dist.get_world_size(),
        "losses": {"narrow": went_on, "grown": grown},
        "first losses differ by": apart[0],
        "losses differ by at most": max(apart),
        "moments differ from those of a wide model trained all along by, of the largest": moments,
    }


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, plan: mupscale.Plan | None = None
) -> list[float]:
    """The losses of some steps; with a plan, clipped as the narrow model's are."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    data = torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8).long()
    losses = []
    for step in steps:
        ids = data[step * BATCH * LENGTH :][: BATCH * LENGTH].view(BATCH, LENGTH)
        optimizer.zero_grad()
        loss = loss_of(model, ids)
        loss.backward()
        if plan is None:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        else:
            mupscale.clip_grad_norm_(model, plan, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    out = model(ids[:, :-1])
    logits = out if isinstance(out, Tensor) else out.logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def moments_apart(
    one: torch.optim.Optimizer, model: nn.Module, other: torch.optim.Optimizer, twin: nn.Module
) -> float:
    """How far the moments of two alike models are apart, over the largest of each parameter."""
    states, names = _states(other), dict(twin.named_parameters())
    apart = []
    for name, param in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            mine, theirs = whole(_states(one)[param][key]), whole(states[names[name]][key])
            apart.append((mine - theirs).abs().max() / mine.abs().max())
    return float(torch.stack(apart).max())  # NaN, too


def _states(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Tensor]]:
    """Of all that a container of optimizers holds, or of the one that it is."""
    held = getattr(optimizer, "optimizers", [optimizer])
    return {param: state for part in held for param, state in part.state.items()}
