"""`grow` broken in ten ways, on a model where each matters: `verify` sees all of them, the proof what shows there.

A mutation changes the wide model after it has been filled, or the optimizer after it has been carried.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import mupscale
from mupscale import GrowthError
from mupscale.operators.filling import fill_

VOCAB, PLACES, HEAD_DIM = 13, 6, 4
IDS = torch.randint(VOCAB, (3, PLACES), generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """A language model with a tie, a list of parameters, tables, grouped keys, a seam and a weight norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        d, self.heads, self.kv_heads = 8 * width, 4 * width, 2 * width
        self.embedding = nn.Embedding(VOCAB, d)
        self.register_buffer("places", torch.linspace(-1, 1, PLACES)[:, None], persistent=False)
        self.norm = nn.LayerNorm(d)
        self.q = nn.Linear(d, self.heads * HEAD_DIM)
        self.k, self.v = (nn.Linear(d, self.kv_heads * HEAD_DIM) for _ in range(2))
        self.join = nn.Linear(d + self.heads * HEAD_DIM, d)
        self.normed = weight_norm(nn.Linear(d, d))
        self.gain = nn.Parameter(torch.ones(d))
        self.kept = [self.gain]
        self.last_norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, VOCAB)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embedding(ids) + self.places
        normed = self.norm(h)
        q, k, v = (p(normed).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
        scores = q @ k.transpose(-2, -1) / HEAD_DIM**0.5
        out = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        h = h + self.join(torch.cat([h, out], dim=-1))
        h = h + F.gelu(self.normed(h)) * self.kept[0]
        return self.head(self.last_norm(h))


def tie_lost(wide):
    wide.head.weight = nn.Parameter(wide.head.weight.detach().clone())


def buffer_stale(wide):
    """What the constructor made, which is what it should be in the proof, but not where the narrow one's moved."""
    wide.places = torch.linspace(-1, 1, PLACES, dtype=wide.places.dtype)[:, None]


def list_stale(wide):
    wide.kept = [nn.Parameter(wide.gain.detach().clone())]


def fold_left_out(wide):
    wide.last_norm.weight.data *= 2
    wide.last_norm.bias.data *= 2


def seam_wrong(wide):
    """What reads the two parts of the concatenation takes the second to begin earlier than it does."""
    d = wide.embedding.embedding_dim
    wide.join.weight.data = torch.cat(
        [
            wide.join.weight.data[:, : d // 2],
            wide.join.weight.data[:, d:],
            wide.join.weight.data[:, d // 2 : d],
        ],
        dim=1,
    )


def dtype_wrong(wide):
    wide.norm.float()


def device_wrong(wide):
    wide.gain = nn.Parameter(wide.gain.detach().to("meta"))
    wide.kept = [wide.gain]


def noise_in_a_weight_that_is_normalized(wide):
    """It sums to zero over the copies of each input, as it should where a weight is used as it is."""
    weight = wide.normed.parametrizations.weight.original1
    noise = torch.randn_like(weight[:, ::2])
    weight.data += torch.stack([noise, -noise], dim=-1).flatten(1)


def kv_heads_tiled(wide):
    """Copies as 0 1 0 1, where queries look for them as 0 0 1 1."""
    for layer in (wide.k, wide.v):
        for param in layer.parameters():
            heads = param.data.unflatten(0, (2, 2, HEAD_DIM))  # head, copy, entry
            param.data = heads.transpose(0, 1).flatten(0, 2).contiguous()


def alias_missing(wide, optimizer):
    """The optimizer holds a parameter of its own where the model has the tied one."""
    for group in optimizer.param_groups:
        group["params"] = [
            nn.Parameter(p.detach().clone()) if p is wide.head.weight else p for p in group["params"]
        ]


OF_THE_MODEL = [
    tie_lost,
    buffer_stale,
    list_stale,
    fold_left_out,
    seam_wrong,
    dtype_wrong,
    device_wrong,
    noise_in_a_weight_that_is_normalized,
    kv_heads_tiled,
]
UNSEEN_BY_THE_PROOF = [buffer_stale]


@pytest.fixture(scope="module")
def planned():
    """(a narrow model that has been trained a little and whose table has moved, its optimizer, the plan)."""
    torch.manual_seed(0)
    narrow = Model(1).double()
    narrow.places += 0.3
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        narrow(IDS).square().mean().backward()
        optimizer.step()
    return narrow, optimizer, mupscale.plan(Model, width=2, inputs=IDS)


def grown(planned, noise=None):
    narrow, optimizer, plan = planned
    wide = mupscale.grow(narrow, plan, noise=noise, operator="duplicate")
    return wide, mupscale.carry_optimizer(optimizer, narrow, wide, plan)


@pytest.mark.parametrize("noise", [None, "balanced:1"])
def test_unbroken_it_passes(planned, noise):
    narrow, _, plan = planned
    wide, optimizer = grown(planned, noise)
    assert plan.proved
    assert plan.layout.folds
    assert mupscale.verify(narrow, wide, plan, IDS, steps=2, optimizer=optimizer)


def caught(narrow, wide, plan, optimizer) -> bool:
    try:
        return not mupscale.verify(narrow, wide, plan, IDS, optimizer=optimizer)
    except GrowthError:  # it does not even run
        return True


@pytest.mark.parametrize("noise", [None, "balanced:1"])
@pytest.mark.parametrize("mutation", [*OF_THE_MODEL, alias_missing])
def test_verify_catches(planned, mutation, noise):
    narrow, _, plan = planned
    wide, optimizer = grown(planned, noise)
    mutation(wide, optimizer) if mutation is alias_missing else mutation(wide)
    assert caught(narrow, wide, plan, optimizer)


@pytest.mark.parametrize("mutation", OF_THE_MODEL)
def test_the_proof_catches(mutation, monkeypatch):
    """What is proved is what is shipped: a break in the code that fills a model shows in the proof."""

    def fill_wrongly_(wide, *args):
        mutation(fill_(wide, *args))
        return wide

    monkeypatch.setattr("mupscale.proof.proof.fill_", fill_wrongly_)
    if mutation in UNSEEN_BY_THE_PROOF:
        assert mupscale.plan(Model, width=2, inputs=IDS).proved
    else:
        with pytest.raises(GrowthError):
            mupscale.plan(Model, width=2, inputs=IDS)
