"""What our parameter groups cost in a step: AdamW on the shape of GPT-2 (124M), foreach and fused.

    python benchmarks/optimizer_step.py [--rounds 30] [--device cpu]

Side by side in one process, in turn: plain AdamW in one group; AdamW with the groups of
`mupscale.param_groups` (relative to a model of half the width); and, where it is installed, microsoft/mup's
MuAdamW on the same parameters. Prints JSON: median milliseconds of `optimizer.step()`, and the median ratio
to plain AdamW.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import mupscale

NARROW = GPT2Config(n_embd=384, n_head=6)


def timed(step: Callable[[], Any], device: str) -> float:
    """Milliseconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def fresh(plan: mupscale.Plan, device: str) -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(plan.config).to(device)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    return model


def optimizers(plan: mupscale.Plan, device: str, flags: dict[str, bool]) -> dict[str, torch.optim.Optimizer]:
    values = {"lr": 1e-4, "weight_decay": 0.1}
    ours = fresh(plan, device)
    made: dict[str, torch.optim.Optimizer] = {
        "plain": torch.optim.AdamW(fresh(plan, device).parameters(), **values, **flags),
        "mupscale": torch.optim.AdamW(
            mupscale.param_groups(ours, plan, torch.optim.AdamW, **values, **flags)
        ),
    }
    try:
        import mup
    except ImportError:
        return made
    theirs = fresh(plan, device)
    mup.set_base_shapes(theirs, GPT2LMHeadModel(NARROW), rescale_params=False, do_assert=False)
    made["mup"] = mup.MuAdamW(theirs.parameters(), **values, **flags)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    plan = mupscale.plan(NARROW, width=2)
    result: dict[str, Any] = {"rounds": args.rounds, "device": args.device}
    for flag in ("foreach", "fused"):
        made = optimizers(plan, args.device, {flag: True})
        for optimizer in made.values():
            optimizer.step()  # makes the state
        rounds = [{n: timed(o.step, args.device) for n, o in made.items()} for _ in range(args.rounds)]
        result[flag] = {
            name: {
                "groups": len(optimizer.param_groups),
                "milliseconds": statistics.median(r[name] for r in rounds),
                "ratio_to_plain": statistics.median(r[name] / r["plain"] for r in rounds),
            }
            for name, optimizer in made.items()
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
