"""A Lightning module for a wide model: grown from a narrow checkpoint, or from scratch under μP.

    pip install lightning
    python examples/lightning_module.py [--steps 100] [--from NARROW_CHECKPOINT]

`configure_optimizers` and `configure_gradient_clipping` are all that a plan needs: one line each.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel

import mupscale
from mupscale.study.data.stream import collate
from mupscale.study.data.tokens import load_tokens
from mupscale.study.runs.models import small_llama
from mupscale.study.spec.recipe import TrainConfig


class WideModel(lightning.LightningModule):
    """Trains `model`, which `plan` leads to; `lr` and `weight_decay` are the narrow model's."""

    def __init__(self, model: PreTrainedModel, plan: mupscale.Plan, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.model, self.plan, self.lr, self.weight_decay = model, plan, lr, weight_decay

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.model(**batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = mupscale.param_groups(
            self.model, self.plan, torch.optim.AdamW, lr=self.lr, weight_decay=self.weight_decay
        )
        return torch.optim.AdamW(groups)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        # The norm that the narrow model's gradient would have: clip as it was clipped.
        if gradient_clip_val:
            mupscale.clip_grad_norm_(self.model, self.plan, gradient_clip_val)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a wide Llama under a plan with Lightning.")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    args = parser.parse_args()

    lightning.seed_everything(0)
    tokens = load_tokens(max_bytes=2_000_000, vocab_size=512)
    plan = mupscale.plan(small_llama(64, 3, vocab_size=512), width=2)
    wide = mupscale.init_(AutoModelForCausalLM.from_config(plan.config), plan, seed=0)
    trainer = lightning.Trainer(
        max_steps=args.steps,
        gradient_clip_val=1.0,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    blocks = tokens.training(TrainConfig(steps=args.steps, batch_size=8, block_size=64, warmup_steps=0))
    data = DataLoader(blocks, batch_size=8, collate_fn=collate)
    trainer.fit(WideModel(wide, plan, lr=4e-3, weight_decay=0.1), data)
    print(f"loss after {trainer.global_step} steps: {trainer.callback_metrics['loss'].item():.3f}")


if __name__ == "__main__":
    main()
