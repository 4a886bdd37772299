"""Does growing pay more when new weights move faster than old ones for a while?

    python benchmarks/faster_new_units.py --out faster-new-units.json     # 40 minutes of a core, resumable

SPARKLING (arXiv 2602.02472) goes on with the old weights as before, begins what is new without moments, and
warms its learning rate up anew, to 1.3 times the old one's. Here: a Llama of d_model 32 at 20 tokens per
parameter, made twice as wide, and trained on for 5 and 20; loss on held-out text by start, rate and length.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, TrainerCallback

import mupscale
from mupscale.study.data.tokens import Tokens, load_tokens
from mupscale.study.runs.models import fresh_model, load_checkpoint, small_llama
from mupscale.study.runs.optimizers import build_optimizer, carried_optimizer
from mupscale.study.runs.training import train
from mupscale.study.spec.recipe import TrainConfig

WIDTH, LAYERS, VOCABULARY = 32, 3, 512
TOKENS_PER_PARAMETER = (5, 20)
LENGTH_OF_WARMUP = 250  # the paper's


@dataclass(frozen=True, kw_only=True)
class Start:
    """A way to grow and to go on.

    Attributes:
        operator, shrink, noise: as `mupscale.grow` takes them.
        state: of the optimizer: fresh, or as `mupscale.carry_optimizer` takes it.
        faster: how many times as fast what is new moves, once it is warmed up; None: all weights alike.
    """

    operator: str
    shrink: float = 1.0
    noise: str | None = "default"
    state: str = "fresh"
    faster: float | None = None


STARTS = {
    "expand": Start(operator="expand", shrink=0.7),
    "expand, new × 1.3": Start(operator="expand", shrink=0.7, faster=1.3),
    "expand, new × 2": Start(operator="expand", shrink=0.7, faster=2),
    "expand, carried": Start(operator="expand", shrink=0.7, state="carried"),
    "expand, carried, new × 1.3": Start(operator="expand", shrink=0.7, state="carried", faster=1.3),
    "copies, asymmetric": Start(operator="duplicate", noise=None, state="asymmetric"),
    "copies, asymmetric, new × 1.3": Start(operator="duplicate", noise=None, state="asymmetric", faster=1.3),
}


class Faster(TrainerCallback):  # type: ignore[misc]
    """Multiply the steps of what is new, by a factor that rises from 0 for as long as a warmup takes."""

    def __init__(self, new: Mapping[str, Tensor], factor: float, warmup: int) -> None:
        self.new, self.factor, self.warmup = new, factor, warmup
        self.before: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = {n: p.detach().clone() for n, p in kwargs["model"].named_parameters()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self.factor * min(1.0, (state.global_step + 1) / self.warmup)
        with torch.no_grad():
            for name, param in kwargs["model"].named_parameters():
                param.addcmul_(self.new[name], param - self.before[name], value=now - 1)


def without_past(wide: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """1 where a weight is new, which is where its second moment is zero, else 0."""
    return {n: (optimizer.state[p]["exp_avg_sq"] == 0).to(p.dtype) for n, p in wide.named_parameters()}


def trained_on(
    start: Start, lr: float, narrow_at: Path, before: TrainConfig, tokens: Tokens, out: Path, seed: int
) -> dict[str, float]:
    """Held-out loss after each of the lengths, each with a cooldown of its own."""
    narrow = load_checkpoint(narrow_at)
    plan = mupscale.plan(narrow, width=2)
    how: dict[str, Any] = {"operator": start.operator, "noise": start.noise, "seed": seed}
    if start.operator == "expand":
        how["shrink"] = start.shrink
    wide = mupscale.grow(narrow, plan, **how)
    per_step = before.batch_size * before.block_size
    lengths = [round(n * wide.num_parameters() / per_step) for n in TOKENS_PER_PARAMETER]
    skip = before.skip_blocks + before.steps * before.batch_size
    configs = [replace(before, steps=n, lr=lr, skip_blocks=skip, cooldown_fraction=0.2) for n in lengths]
    saved = carried_optimizer(narrow, configs[-1], None, narrow_at)
    past = "asymmetric" if start.state == "asymmetric" else "carried"
    carried = mupscale.carry_optimizer(saved, narrow, wide, plan, state=past)
    new = without_past(wide, carried)
    callbacks: list[TrainerCallback] = []
    if start.faster is not None:
        if start.state != "fresh":  # the old weights go on as before: all warming up is of what is new
            configs = [replace(config, warmup_steps=0) for config in configs]
        callbacks.append(Faster(new, start.faster, LENGTH_OF_WARMUP))
    optimizer = build_optimizer(wide, configs[-1], plan)
    if start.state != "fresh":
        optimizer.state.update(carried.state)
    more: dict[str, Any] = {"plan": plan, "start": {"seed": seed}, "callbacks": callbacks}
    leaves = [config.cooldown_start for config in configs[:-1]]
    history = train(wide, tokens, out, configs[-1], optimizer=optimizer, keep_at=leaves, **more)
    found = {str(TOKENS_PER_PARAMETER[-1]): history.final_loss}
    for n, config, leave in zip(TOKENS_PER_PARAMETER, configs, leaves, strict=False):
        there = out / "checkpoints" / f"checkpoint-{leave}"
        branch = train(wide, tokens, out / f"to-{n}", config, branch_from=there, **more)
        found[str(n)] = branch.final_loss
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.004, 0.008])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--runs", type=Path, default=Path("faster-new-units"), help="where the runs lie")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    args = parser.parse_args()
    tokens = load_tokens(max_bytes=20_000_000, vocab_size=VOCABULARY)
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        small = small_llama(WIDTH, LAYERS, vocab_size=VOCABULARY)
        model = fresh_model(small, seed)
        assert isinstance(model, LlamaForCausalLM)
        config = TrainConfig(
            steps=round(20 * model.num_parameters() / 2048),
            batch_size=16,
            block_size=128,
            lr=0.008,
            warmup_steps=50,
            cooldown_fraction=0.0,
            eval_every=250,
            eval_blocks=512,
            seed=seed,
        )
        folder = args.runs / f"seed{seed}"
        train(model, tokens, folder / "narrow", config)
        for name in args.starts:
            for lr in args.lrs:
                out = folder / f"{name.replace(' ', '')}-{lr:g}"
                losses = trained_on(STARTS[name], lr, folder / "narrow", config, tokens, out, seed)
                rows.append({"start": name, "lr": lr, "seed": seed, "loss": losses})
                print(json.dumps(rows[-1], ensure_ascii=False), file=sys.stderr, flush=True)
    result = json.dumps({"width": WIDTH, "rows": rows}, indent=1, ensure_ascii=False)
    if args.out:
        args.out.write_text(result + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    main()
