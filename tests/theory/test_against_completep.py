"""CompleteP (Dey et al. 2025, arXiv 2505.01618) at α = 1 as the reference, written out.

Its models multiply what each branch adds to the residual stream by 1/m_L, and the logits by 1/m_N; ours are the
stock ones with both in their weights. Trained by its own table, or for SGD and Muon by what follows from it, they
lose the same, step by step.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim
from torch.overrides import TorchFunctionMode
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import mupscale
from lockstep import default_dtype
from models import batch, build, loss_of
from mupscale.models.precision import Float64

LR, DECAY, EPS, MUON_LR = 3e-3, 0.1, 1e-4, 0.02  # of the narrow and shallow model; an eps that is felt


class ExplicitLlamaLayer(LlamaDecoderLayer):
    multiplier: float

    def forward(self, hidden_states, **kwargs):
        added, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.multiplier * added
        added = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.multiplier * added


class ExplicitGPT2Block(GPT2Block):
    multiplier: float

    def forward(self, hidden_states, past_key_values=None, attention_mask=None, *args, **kwargs):
        added = self.attn(self.ln_1(hidden_states), attention_mask=attention_mask)[0]
        hidden_states = hidden_states + self.multiplier * added
        return hidden_states + self.multiplier * self.mlp(self.ln_2(hidden_states))


class ExplicitReadout(nn.Linear):
    divisor: float

    def forward(self, hidden_states):
        return super().forward(hidden_states) / self.divisor


class NoBfloat16(TorchFunctionMode):
    """Newton–Schulz in float64: what Muon asks of bfloat16, it gets in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.bfloat16:
            return args[0].double()
        return func(*args, **(kwargs or {}))


def explicit(stock: nn.Module, m_n: int, m_l: int, *, tied: bool) -> nn.Module:
    """The same function, with its multipliers in the code and out of its weights."""
    model = copy.deepcopy(stock)
    kind = ExplicitLlamaLayer if hasattr(model, "model") else ExplicitGPT2Block
    for layer in model.model.layers if hasattr(model, "model") else model.transformer.h:
        layer.__class__, layer.multiplier = kind, 1 / m_l
    model.lm_head.__class__, model.lm_head.divisor = ExplicitReadout, m_n
    with torch.no_grad():
        for name, param in model.named_parameters():
            if is_writer(name):
                param *= m_l
            if name.startswith("lm_head") or (tied and is_last_norm(name)):
                param *= m_n
    return model


def is_writer(name: str) -> bool:
    return any(part in name for part in ("o_proj.", "down_proj.", "c_proj."))


def is_last_norm(name: str) -> bool:
    return name.startswith(("model.norm.", "transformer.ln_f."))


def in_block(name: str) -> bool:
    return ".layers." in name or ".h." in name


def adamw(name: str, param: nn.Parameter, m_n: int, m_l: int) -> dict[str, float]:
    """The paper's table: hidden rates ÷ m_N, their decay × m_N, eps ÷ m_N, and ÷ m_L in the blocks."""
    hidden = in_block(name) and param.ndim == 2
    return {
        "lr": LR / m_n if hidden else LR,
        "weight_decay": DECAY * m_n if hidden else DECAY,
        "eps": EPS / (m_n * m_l if in_block(name) else m_n),
    }


def sgd(name: str, param: nn.Parameter, m_n: int, m_l: int) -> dict[str, float]:
    """Every rate over the size of its gradient, which is 1/m_L in the blocks and 1/m_N outside of matrices."""
    gradient = 1.0 if in_block(name) and param.ndim == 2 else 1 / m_n
    gradient /= m_l if in_block(name) else 1
    return {"lr": 0.03 / gradient, "weight_decay": 0.01 * gradient}


def muon(name: str, param: nn.Parameter, m_n: int, m_l: int) -> dict[str, float]:
    """Orthogonal updates need nothing, in width (square growth) nor in depth."""
    return {"lr": MUON_LR}


def by_table(model, table, kind, m_n, m_l, only=None, **values):
    return kind(
        [
            {"params": [p], **table(n, p, m_n, m_l)}
            for n, p in model.named_parameters()
            if only is None or n in only
        ],
        **values,
    )


def optimizers(which, stock, reference, plan, m_n, m_l):
    """Of the stock model by our plan, and of the explicit one by the table."""
    momentum = {"momentum": 0.9}
    if which == "adamw":
        groups = mupscale.param_groups(stock, plan, optim.AdamW, lr=LR, weight_decay=DECAY, eps=EPS)
        return [optim.AdamW(groups)], [by_table(reference, adamw, optim.AdamW, m_n, m_l)]
    if which == "sgd":
        groups = mupscale.param_groups(stock, plan, optim.SGD, lr=0.03, weight_decay=0.01, **momentum)
        return [optim.SGD(groups)], [by_table(reference, sgd, optim.SGD, m_n, m_l, **momentum)]
    matrices = {*mupscale.hidden_matrices(plan)}
    rest = {n for n, _ in stock.named_parameters()} - matrices
    groups = mupscale.param_groups(
        stock, plan, optim.Muon, lr=MUON_LR, weight_decay=0.0, adjust_lr_fn="original", only=matrices
    )
    others = mupscale.param_groups(stock, plan, optim.AdamW, lr=LR, weight_decay=DECAY, eps=EPS, only=rest)
    return (
        [optim.Muon(groups, adjust_lr_fn="original"), optim.AdamW(others)],
        [
            by_table(
                reference, muon, optim.Muon, m_n, m_l, matrices, weight_decay=0.0, adjust_lr_fn="original"
            ),
            by_table(reference, adamw, optim.AdamW, m_n, m_l, rest),
        ],
    )


@pytest.mark.parametrize(("m_l", "m_n"), [(2, 1), (3, 2)], ids=["deeper", "deeper and wider"])
@pytest.mark.parametrize("which", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_biases", "gpt2"])
def test_a_stock_model_under_our_plan_is_complete_p(name, which, m_l, m_n):
    if which == "muon" and name.startswith("gpt2"):
        name = "gpt2_untied"
    narrow = build(name)
    tied = narrow.config.tie_word_embeddings
    plan = mupscale.plan(narrow, width=m_n if m_n > 1 else None, axes={"layers": m_l})
    with Float64(), NoBfloat16(), default_dtype(torch.float64):
        stock = mupscale.init_(type(narrow)(plan.config).double(), plan, seed=1).train()
        reference = explicit(stock, m_n, m_l, tied=tied)
        ours, theirs = optimizers(which, stock, reference, plan, m_n, m_l)
        losses = []
        for step in range(20):
            for model, several in ((stock, ours), (reference, theirs)):
                model.zero_grad()
                loss = loss_of(model, batch(name, step % 2))
                loss.backward()
                for optimizer in several:
                    optimizer.step()
                losses.append(loss.item())
            assert abs(losses[-1] - losses[-2]) <= 1e-10, f"step {step}: {losses[-2:]}"
    assert losses[-1] < losses[0] - 0.02  # it does train


def test_the_init_of_explicit_branches_knows_no_depth():
    """σ²/m_N, whatever the depth: layer by layer the draws of a model of the narrow one's depth."""
    narrow = build("llama")
    plans = [mupscale.plan(narrow, width=2, axes=axes) for axes in ({}, {"layers": 2})]
    shallow, deep = (mupscale.init_(type(narrow)(plan.config).double(), plan, seed=3) for plan in plans)
    by_name = dict(explicit(deep, 1, 2, tied=False).named_parameters())
    for name, param in shallow.named_parameters():
        assert torch.equal(param, by_name[name]), name
