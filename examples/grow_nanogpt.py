"""Grow a checkpoint that nanoGPT saved, optimizer and all, and train on.

    python examples/grow_nanogpt.py out/ckpt.pt wide/ckpt.pt --data data/openwebtext/train.bin [--width 2]
    python examples/grow_nanogpt.py --demo       trains a small checkpoint first, on Python's own source

The growing is `grow`, ten lines. The wide file has the form of the narrow one, so that nanoGPT's train.py
resumes from it (`init_from = "resume"`). train.py sets one learning rate for all parameters, where a wide
model wants one for each; to give it those, add to train.py, after ``optimizer.load_state_dict``:

    plan = mupscale.Plan.from_json(checkpoint["plan"])
    decay = [name for name, p in model.named_parameters() if p.dim() >= 2]
    groups = mupscale.param_groups(model, plan, torch.optim.AdamW, lr=learning_rate, decay=decay,
                                   betas=(beta1, beta2), weight_decay=weight_decay)
    loaded, optimizer = optimizer, torch.optim.AdamW(groups)
    optimizer.state.update(loaded.state)

and let it call ``mupscale.set_lr(optimizer, lr)`` where it sets the rate of every group, and
``mupscale.clip_grad_norm_(model, plan, grad_clip)`` where it clips: all values stay the narrow model's.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mupscale

BATCH = 12


class GPT(nn.Module):
    """GPT-2's architecture, its parameters named as nanoGPT names them; bring your own class instead."""

    def __init__(
        self,
        *,
        block_size: int,
        vocab_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "drop": nn.Dropout(dropout),
                "h": nn.ModuleList(Block(n_head, n_embd, dropout, bias) for _ in range(n_layer)),
                "ln_f": nn.LayerNorm(n_embd, bias=bias),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        for name, param in self.named_parameters():
            if param.dim() >= 2:
                depth = (2 * n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(param, std=0.02 * depth)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        parts = self.transformer
        x = parts["drop"](parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1], device=ids.device)))
        for block in parts["h"]:
            x = block(x)
        logits = self.lm_head(parts["ln_f"](x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


class Block(nn.Module):
    def __init__(self, n_head: int, n_embd: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(n_embd, bias=bias) for _ in range(2))
        self.attn = Attention(n_head, n_embd, dropout, bias)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(n_embd, 4 * n_embd, bias=bias),
                "c_proj": nn.Linear(4 * n_embd, n_embd, bias=bias),
                "dropout": nn.Dropout(dropout),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)))
        return x + self.mlp["dropout"](self.mlp["c_proj"](hidden))


class Attention(nn.Module):
    def __init__(self, n_head: int, n_embd: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=bias)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.c_attn(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))


def adamw(model: nn.Module, config: dict[str, Any]) -> torch.optim.AdamW:
    """The optimizer that nanoGPT makes: matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config["learning_rate"], betas=(config["beta1"], config["beta2"]))


def load(checkpoint: dict[str, Any]) -> tuple[GPT, torch.optim.AdamW]:
    """The model and the optimizer that a checkpoint holds."""
    model = GPT(**checkpoint["model_args"])
    # A model that torch.compile wrapped was saved under longer names.
    model.load_state_dict({k.removeprefix("_orig_mod."): v for k, v in checkpoint["model"].items()})
    optimizer = adamw(model, checkpoint["config"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return model, optimizer


def wide_args(args: dict[str, Any], width: int) -> dict[str, Any]:
    return {**args, "n_embd": width * args["n_embd"], "n_head": width * args["n_head"]}


def grow(
    checkpoint: dict[str, Any], width: int, batch: tuple[Tensor, Tensor]
) -> tuple[GPT, torch.optim.Optimizer, mupscale.Plan]:
    """All that growing takes: a plan, proved on a batch; the wide model; its optimizer."""
    args = checkpoint["model_args"]
    narrow, optimizer = load(checkpoint)
    plan = mupscale.plan(lambda w: GPT(**wide_args(args, w)), width=width, inputs=batch)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    print(mupscale.verify(narrow, wide, plan, batch))
    wide_optimizer = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    return wide, wide_optimizer, plan


def save(path: Path, model: GPT, optimizer: torch.optim.Optimizer, rest: dict[str, Any]) -> None:
    """Write a checkpoint as nanoGPT does, the optimizer's state in nanoGPT's two groups."""
    grouped = adamw(model, rest["config"])
    grouped.state.update(optimizer.state)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**rest, "model": model.state_dict(), "optimizer": grouped.state_dict()}, path)


def batch_of(data: np.ndarray, block_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(data) - block_size, (BATCH,), generator=generator).tolist()
    rows = torch.tensor(np.stack([data[i : i + block_size + 1] for i in starts]).astype(np.int64))
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def held_out_loss(model: GPT, data: np.ndarray, block_size: int) -> float:
    generator = torch.Generator().manual_seed(1)
    model.eval()
    losses = [model(*batch_of(data, block_size, generator))[1].item() for _ in range(20)]
    model.train()
    return sum(losses) / len(losses)


def train(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    data: np.ndarray,
    block_size: int,
    config: dict[str, Any],
    steps: int,
    plan: mupscale.Plan | None = None,
) -> None:
    generator = torch.Generator().manual_seed(2)
    mupscale.set_lr(optimizer, config["learning_rate"])  # said as the narrow model's, as the clipping norm is
    for step in range(steps):
        _, loss = model(*batch_of(data, block_size, generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if plan is None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config["grad_clip"])
        else:
            mupscale.clip_grad_norm_(model, plan, config["grad_clip"])
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"  step {step + 1}: training loss {loss.item():.3f}")


def library_source() -> np.ndarray:
    """A megabyte of Python's own source, a token a byte."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return np.frombuffer(b"".join(file.read_bytes() for file in files)[:1_000_000], dtype=np.uint8)


def make_checkpoint(path: Path, data: np.ndarray, steps: int) -> None:
    """Train a small model and save it, for want of a checkpoint of nanoGPT's own."""
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 48, "block_size": 64, "vocab_size": 256}
    args = {**sizes, "dropout": 0.1, "bias": False}
    config = {"learning_rate": 3e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "grad_clip": 1.0}
    torch.manual_seed(0)
    model = GPT(**args)
    optimizer = adamw(model, config)
    train(model, optimizer, data, args["block_size"], config, steps)
    rest = {"model_args": args, "iter_num": steps, "best_val_loss": torch.tensor(9.9), "config": config}
    save(path, model, optimizer, rest)


def main() -> None:
    parser = argparse.ArgumentParser(description="Grow a checkpoint that nanoGPT saved, and train on.")
    parser.add_argument("source", type=Path, nargs="?", default=Path("runs/nanogpt/ckpt.pt"))
    parser.add_argument("target", type=Path, nargs="?", default=Path("runs/nanogpt-wide/ckpt.pt"))
    parser.add_argument("--data", type=Path, help="tokens as nanoGPT prepares them; else Python's own source")
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="steps of the wide model")
    parser.add_argument("--demo", action="store_true", help="make a small checkpoint at SOURCE first")
    parser.add_argument("--narrow-steps", type=int, default=300, help="steps of that one")
    options = parser.parse_args()

    data = np.memmap(options.data, dtype=np.uint16, mode="r") if options.data else library_source()
    data, held_out = data[: len(data) * 19 // 20], data[len(data) * 19 // 20 :]
    if options.demo:
        make_checkpoint(options.source, data, options.narrow_steps)

    checkpoint = torch.load(options.source, weights_only=True, map_location="cpu")
    config, block_size = checkpoint["config"], checkpoint["model_args"]["block_size"]
    batch = batch_of(data, block_size, torch.Generator().manual_seed(0))
    wide, optimizer, plan = grow(checkpoint, options.width, batch)
    print(f"narrow:            held-out loss {held_out_loss(load(checkpoint)[0], held_out, block_size):.4f}")
    print(f"wide, as grown:    held-out loss {held_out_loss(wide, held_out, block_size):.4f}")
    train(wide, optimizer, data, block_size, config, options.steps, plan)
    loss = held_out_loss(wide, held_out, block_size)
    print(f"wide, trained on:  held-out loss {loss:.4f}")
    args = wide_args(checkpoint["model_args"], options.width)
    rest = {
        "model_args": args,
        "iter_num": checkpoint["iter_num"] + options.steps,
        "best_val_loss": torch.tensor(loss),
        "config": {**config, "n_embd": args["n_embd"], "n_head": args["n_head"]},
        "plan": plan.to_json(),
    }
    save(options.target, wide, optimizer, rest)
    print(f"written: {options.target}")


if __name__ == "__main__":
    main()
