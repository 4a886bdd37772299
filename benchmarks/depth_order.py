"""How nearly growing in depth keeps the function: the loss right after it, by how many layers were trained.

    python benchmarks/depth_order.py --depths 4 8 16 --seeds 3 --out depth-order.json

Llamas of several depths are trained on Python's standard library under depth-μP, relative to the shallowest,
and each is made twice as deep in three ways: "repeat", every layer in place with half of what it adds;
"cycle", the whole stack again with half; "stack", the whole stack again as it is, G_stack's. What is measured
is the held-out loss after growing less the loss before. Repeating is a finer Euler step of one flow, off by
order 1/layers; the others are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedModel

import mupscale
from mupscale.study.data.stream import collate
from mupscale.study.data.tokens import Tokens, load_tokens
from mupscale.study.runs.models import small_llama
from mupscale.study.spec.recipe import TrainConfig

WIDTH, VOCABULARY, LR = 32, 512, 8e-3
WAYS = {
    "repeat": {"order": "repeat"},
    "cycle": {"order": "cycle"},
    "stack": {"order": "cycle", "operator": "stack"},
}


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, tokens: Tokens, config: TrainConfig) -> float:
    batches = DataLoader(tokens.held_out(config), batch_size=config.batch_size, collate_fn=collate)
    return statistics.fmean(model(**batch).loss.item() for batch in batches)


def trained(depth: int, shallowest: int, seed: int, tokens: Tokens, config: TrainConfig) -> PreTrainedModel:
    """A model of this depth, from scratch, by the hyperparameters of the shallowest."""
    base = small_llama(WIDTH, shallowest, vocab_size=VOCABULARY)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(small_llama(WIDTH, depth, vocab_size=VOCABULARY))
    plan = mupscale.plan(base, to=model.config)
    mupscale.init_(model, plan, seed=seed)
    groups = mupscale.param_groups(
        model, plan, torch.optim.AdamW, lr=LR, weight_decay=0.1, betas=config.betas
    )
    optimizer = torch.optim.AdamW(groups)
    batches = DataLoader(tokens.training(config), batch_size=config.batch_size, collate_fn=collate)
    for step, batch in zip(range(config.steps), batches, strict=False):
        mupscale.set_lr(optimizer, LR * min(1, (step + 1) / 20, (config.steps - step) / (0.2 * config.steps)))
        optimizer.zero_grad()
        model(**batch).loss.backward()
        mupscale.clip_grad_norm_(model, plan, 1.0)
        optimizer.step()
    return model


def measured(depth: int, shallowest: int, seed: int, tokens: Tokens, config: TrainConfig) -> dict[str, Any]:
    model = trained(depth, shallowest, seed, tokens, config)
    before = held_out_loss(model, tokens, config)
    row: dict[str, Any] = {"depth": depth, "seed": seed, "loss": before}
    for way, how in WAYS.items():
        plan = mupscale.plan(model, axes={"layers": 2}, order=how["order"])
        deeper = mupscale.grow(model, plan, operator=how.get("operator", "duplicate"))
        row[way] = held_out_loss(deeper, tokens, config) - before
    return row


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, by depth."""
    found = []
    for depth in sorted({row["depth"] for row in rows}):
        mine = [row for row in rows if row["depth"] == depth]
        line: dict[str, Any] = {"depth": depth, "seeds": len(mine)}
        for key in ("loss", *WAYS):
            values = [row[key] for row in mine]
            line[key] = statistics.fmean(values)
            line[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of 2048 tokens")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    args = parser.parse_args()
    tokens = load_tokens(max_bytes=4_000_000, vocab_size=VOCABULARY)
    rows = []
    for seed in range(args.seeds):
        config = TrainConfig(steps=args.steps, eval_blocks=64, seed=seed)
        for depth in args.depths:
            rows.append(measured(depth, min(args.depths), seed, tokens, config))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = json.dumps({"steps": args.steps, "table": summary(rows), "rows": rows}, indent=1)
    if args.out:
        args.out.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    main()
