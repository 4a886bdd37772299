"""A training loop in plain torch: train a narrow Llama, grow it with its optimizer, train the wide one on.

    python examples/plain_loop.py [--steps 200] [--wide-steps 100]

Every value is said once, as the narrow model's: the plan scales learning rates, weight decay, eps, clipping.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedModel

import mupscale
from mupscale.study.data.stream import collate
from mupscale.study.data.tokens import load_tokens
from mupscale.study.runs.models import small_llama
from mupscale.study.spec.recipe import TrainConfig

BATCH, BLOCK, LR = 8, 64, 4e-3


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, batches: DataLoader[dict[str, Tensor]]) -> float:
    losses = [model(**batch).loss.item() for batch in batches]
    return sum(losses) / len(losses)


def train(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict[str, Tensor]],
    steps: int,
    plan: mupscale.Plan | None = None,
) -> None:
    for step in range(steps):
        # A schedule in the narrow model's rates: constant, with a linear cooldown over the last fifth.
        mupscale.set_lr(optimizer, LR * min(1.0, (steps - step) / (0.2 * steps)))
        loss = model(**next(batches)).loss
        optimizer.zero_grad()
        loss.backward()
        if plan is None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        else:
            mupscale.clip_grad_norm_(model, plan, 1.0)  # the narrow model's norm
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"  step {step + 1}: training loss {loss.item():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a narrow Llama, grow it, train the wide one on.")
    parser.add_argument("--steps", type=int, default=200, help="steps of the narrow model")
    parser.add_argument("--wide-steps", type=int, default=100, help="steps of the wide model")
    args = parser.parse_args()

    torch.manual_seed(0)
    tokens = load_tokens(max_bytes=2_000_000, vocab_size=512)
    steps = args.steps + args.wide_steps
    both = TrainConfig(steps=steps, batch_size=BATCH, block_size=BLOCK, warmup_steps=0, eval_blocks=64)
    batches = iter(DataLoader(tokens.training(both), batch_size=BATCH, collate_fn=collate))
    held_out = DataLoader(tokens.held_out(both), batch_size=BATCH, collate_fn=collate)

    narrow = LlamaForCausalLM(small_llama(64, 3, vocab_size=512))
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
    print(f"narrow: {narrow.num_parameters():,} parameters")
    train(narrow, optimizer, batches, args.steps)
    print(f"narrow, after training: held-out loss {held_out_loss(narrow, held_out):.4f}")

    plan = mupscale.plan(narrow, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    wide_optimizer = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    print(f"wide: {wide.num_parameters():,} parameters")
    print(f"wide, as grown:         held-out loss {held_out_loss(wide, held_out):.4f}")
    train(wide, wide_optimizer, batches, args.wide_steps, plan)
    print(f"wide, trained on:       held-out loss {held_out_loss(wide, held_out):.4f}")


if __name__ == "__main__":
    main()
