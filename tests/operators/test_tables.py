"""What a constructor fills by no law of chance: tables, rows of padding, parts; and parameters of no rows."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import mupscale
from models import CONFIGS
from mupscale import GrowthError
from mupscale.operators.catalogue import OPERATORS

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(1))
WIDER = [name for name, operator in OPERATORS.items() if not operator.deepens]


class Tables(nn.Module):
    """Keeps tables in parameters, as MAE, DiT and Mamba do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        d = 16 * width
        self.first, self.inner, self.last = nn.Linear(8, d), nn.Linear(d, d, bias=False), nn.Linear(d, 3)
        nn.init.eye_(self.inner.weight)
        angles = torch.arange(6.0)[:, None] / 100 ** (torch.arange(d // 2) / (d // 2))
        self.places = nn.Parameter(torch.cat([angles.sin(), angles.cos()], -1), requires_grad=False)
        self.decay = nn.Parameter(torch.log(torch.arange(1.0, 5.0)).repeat(d, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inner(self.first(x)) + self.places
        return self.last(h * (-self.decay.exp()).exp().sum(-1))


TABLES = ("inner.weight", "places", "decay")


@pytest.mark.parametrize("how", ["init_", "default", "zero_pad"])
def test_tables_in_parameters_are_made_by_the_wide_models_own_code(how):
    plan, own = mupscale.plan(Tables, width=2, inputs=X), Tables(2)
    init = how == "init_"
    wide = mupscale.init_(Tables(2), plan) if init else mupscale.grow(Tables(1), plan, operator=how)
    for name in TABLES:
        assert torch.equal(wide.get_parameter(name), own.get_parameter(name)), name
    assert not torch.equal(wide.first.weight, own.first.weight)
    assert not wide.places.requires_grad


def test_what_a_table_was_trained_to_is_kept():
    narrow, plan, own = Tables(1), mupscale.plan(Tables, width=2, inputs=X), Tables(2)
    with torch.no_grad():
        narrow.decay += 1
    padded = mupscale.grow(narrow, plan, operator="zero_pad", shrink=0.5).decay
    torch.testing.assert_close(padded[:16] - own.decay[:16], torch.full((16, 4), 0.5))
    assert torch.equal(padded[16:], own.decay[16:])
    kept = mupscale.grow(narrow, plan, operator="expand").decay
    assert torch.equal(kept[:16], narrow.decay)
    assert torch.equal(kept[16:], own.decay[16:])


def test_a_constructor_with_a_seed_makes_no_tables():
    def make(width):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(8, 64 * width), nn.Tanh(), nn.Linear(64 * width, 3))

    plan, own = mupscale.plan(make, width=2, inputs=X), make(2)
    wide = mupscale.init_(make(2), plan)
    assert not torch.equal(wide[0].weight, own[0].weight)
    assert wide[0].weight.std().item() == pytest.approx(1 / math.sqrt(3 * 8), rel=0.1)


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16 * width, padding_idx=4)
        self.memory, self.last = nn.LSTM(16 * width, 16 * width, batch_first=True), nn.Linear(16 * width, 3)
        self.fill(16 * width)

    def fill(self, size: int) -> None: ...

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.memory(self.embedding(ids))[0])


@pytest.mark.parametrize("how", ["init_", "default", "expand", "zero_pad"])
def test_the_row_of_padding_stays_zero(how, monkeypatch):
    monkeypatch.setattr("mupscale.operators.noise.BLOCK_ENTRIES", 100)  # the row stands in the second block
    plan = mupscale.plan(Recurrent, width=2, inputs=IDS)
    if how == "init_":
        wide = mupscale.init_(Recurrent(2), plan)
    else:
        wide = mupscale.grow(Recurrent(1), plan, operator=how)
    zero = (wide.embedding.weight == 0).all(dim=1)
    assert zero.nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("how", ["init_", "default", "zero_pad"])
def test_the_row_of_padding_of_a_transformers_model_stays_zero(how):
    config = CONFIGS["llama"]()
    config.pad_token_id = 4
    narrow = AutoModelForCausalLM.from_config(config)
    plan = mupscale.plan(narrow, width=2)
    if how == "init_":
        wide = mupscale.init_(AutoModelForCausalLM.from_config(plan.config), plan)
    else:
        wide = mupscale.grow(narrow, plan, operator=how)
    zero = (wide.model.embed_tokens.weight == 0).all(dim=1)
    assert zero.nonzero().flatten().tolist() == [4]
    assert wide.lm_head.weight.any(dim=1).all()


class Refilled(Recurrent):
    """Fills its table over again, the row of padding too."""

    def fill(self, size: int) -> None:
        nn.init.normal_(self.embedding.weight)


def test_a_row_of_padding_that_is_drawn_is_drawn():
    wide = mupscale.init_(Refilled(2), mupscale.plan(Refilled, width=2, inputs=IDS))
    assert wide.embedding.weight.any(dim=1).all()


class Forgetful(Recurrent):
    """Remembers at first, as LSTMs are often begun: a part of its bias has a mean of its own."""

    def fill(self, size: int) -> None:
        nn.init.constant_(self.memory.bias_ih_l0[size : 2 * size].data, 1.0)


class Sparse(Recurrent):
    def fill(self, size: int) -> None:
        nn.init.sparse_(self.last.weight, 0.6)


@pytest.mark.parametrize(("make", "name"), [(Forgetful, "memory.bias_ih_l0"), (Sparse, "last.weight")])
def test_what_is_filled_by_several_laws_is_refused(make, name):
    plan = mupscale.plan(make, width=2, inputs=IDS)
    with pytest.raises(GrowthError, match=rf"^{name}: cannot tell .* one law"):
        mupscale.init_(make(2), plan)
    with pytest.raises(GrowthError, match=rf"^{name}: cannot tell"):
        mupscale.grow(make(1), plan)
    mupscale.grow(make(1), plan, operator="duplicate")


class Empty(nn.Module):
    """With a parameter of no rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16 * width), nn.Linear(16 * width, 3)
        self.rows = nn.Parameter(torch.zeros(0, 16 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) + self.rows.sum(0))


@pytest.mark.parametrize("operator", [*WIDER, "default", "init_"])
def test_a_parameter_of_no_rows_grows(operator):
    plan = mupscale.plan(Empty, width=2, inputs=X)
    if operator == "init_":
        wide = mupscale.init_(Empty(2), plan)
    else:
        wide = mupscale.grow(Empty(1).double(), plan, operator=operator)
        assert wide.rows.dtype == torch.float64
    assert wide.rows.shape == (0, 32)


def test_shrink_may_be_a_tensor_of_one_number():
    narrow, plan = Empty(1), mupscale.plan(Empty, width=2, inputs=X)
    one, other = (
        mupscale.grow(narrow, plan, operator="zero_pad", shrink=λ) for λ in (0.5, torch.tensor(0.5))
    )
    assert torch.equal(one.first.weight, other.first.weight)
