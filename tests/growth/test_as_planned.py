"""A model that was changed since it was planned: the wide one is like it, or nothing is grown."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from transformers import AutoModelForCausalLM, BigBirdConfig

import mupscale
from models import CONFIGS
from mupscale import GrowthError
from mupscale.distributed import grow_

X = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Net(nn.Module):
    """Reads plain attributes of many kinds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv1d(4, 8 * width, 3), nn.Conv1d(8 * width, 8 * width, 3)
        self.head = nn.Linear(8 * width, 3)
        self.act, self.function, self.acts = nn.ReLU(), F.relu, nn.Sequential(nn.Tanh())
        self.power, self.pad, self.clip, self.means = 2, (1, 1), None, {"all": [0.0]}
        self.temperature, self.mode, self.mirrored = 1.0, "constant", False
        self.shift, self.scale = np.zeros(1), (8 * width) ** -0.5

    def get_extra_state(self) -> dict[str, list[float]]:
        return self.means

    def set_extra_state(self, state: dict[str, list[float]]) -> None:
        self.means = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - float(self.shift[0]) - self.means["all"][0]
        h = self.act(self.first(x.flip(-1) if self.mirrored else x)) / self.temperature
        h = self.function(self.middle(F.pad(h, self.pad, self.mode)))
        h = self.acts(h if self.clip is None else h.clamp(max=self.clip)) ** self.power
        return self.head(h.mean(-1)) * self.scale


def grown(change, grow=lambda narrow, plan: mupscale.grow(narrow, plan, operator="duplicate")):
    torch.manual_seed(0)
    narrow, plan = Net(1).double().eval(), mupscale.plan(Net, width=2, inputs=X)
    change(narrow)
    return narrow, grow(narrow, plan)


CARRIED = {
    "a number": lambda net: setattr(net, "temperature", 0.5),
    "a word": lambda net: setattr(net, "mode", "replicate"),
    "a yes or no": lambda net: setattr(net, "mirrored", True),
    "a whole number": lambda net: setattr(net, "power", 3),
    "a tuple": lambda net: setattr(net, "pad", (3, 2)),
    "a tuple of a layer": lambda net: setattr(net.middle, "dilation", (2,)),
    "in place of None": lambda net: setattr(net, "clip", 0.1),
    "inside a dict": lambda net: net.means.update(all=[0.7]),
    "extra state": lambda net: net.load_state_dict({**net.state_dict(), "_extra_state": {"all": [0.7]}}),
    "an array": lambda net: setattr(net, "shift", np.array([0.7])),
}


@pytest.mark.parametrize("kind", CARRIED)
def test_what_goes_by_no_width_is_carried(kind):
    before = grown(lambda net: None)[0](X)
    narrow, wide = grown(CARRIED[kind])
    assert not torch.allclose(narrow(X), before)
    torch.testing.assert_close(wide(X), narrow(X), rtol=0, atol=1e-12)


def skip_forward(net):
    net.acts.forward = lambda h: h


REFUSED = {
    "act: is GELU, and ReLU in": lambda net: setattr(net, "act", nn.GELU()),
    "act: is not there, and ReLU in": lambda net: setattr(net, "act", None),
    "acts.1: is ReLU, and not there in": lambda net: net.acts.append(nn.ReLU()),
    "function: is another function": lambda net: setattr(net, "function", F.gelu),
    "acts.forward: is another function": skip_forward,
    "middle: has a forward hook": lambda net: net.middle.register_forward_hook(lambda m, a, out: out / 2),
    "middle: has a forward pre hook": lambda net: net.middle.register_forward_pre_hook(lambda m, args: args),
    "head: has a backward hook": lambda net: net.head.register_full_backward_hook(lambda m, gi, go: None),
    "scale: goes by the width, and is 0.5": lambda net: setattr(net, "scale", 0.5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_carried_is_refused(message):
    with pytest.raises(GrowthError, match=f"^{message}.*; plan the model as it is"):
        grown(REFUSED[message])


@pytest.mark.parametrize("message", [m for m in REFUSED if "goes by" not in m])
def test_growing_in_place_refuses_it_too(message):
    with pytest.raises(GrowthError, match=f"^{message}"):
        grown(REFUSED[message], lambda narrow, plan: grow_(narrow, Net(2), plan, operator="duplicate"))


class Subclass(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_subclass_that_computes_something_else_is_refused():
    with pytest.raises(GrowthError, match="^Net: is Subclass, and Net in the model that was planned"):
        mupscale.grow(Subclass(1), mupscale.plan(Net, width=2, inputs=X))


def compiled(net):
    net.forward = torch.compile(net.forward, backend="eager")
    net.acts = torch.compile(net.acts, backend="eager")
    net.head.compile(backend="eager")


def run(net):
    net.train()(X)
    net.criterion, net.last = nn.MSELoss(), net(X)


@pytest.mark.parametrize("change", [compiled, run, lambda net: net.first.eval()])
def test_what_changes_nothing_is_let_be(change):
    narrow, wide = grown(change)
    torch.testing.assert_close(wide(X), narrow(X), rtol=0, atol=1e-12)


class Counting(nn.Module):
    """Keeps a table from call to call, and how long it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8 * width), nn.Linear(8 * width, 3)
        self.length, self.table = 0, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.length != len(x):
            self.length, self.table = len(x), x.new_ones(len(x), self.first.out_features)
        return self.last(self.first(x) * self.table)


def test_what_counts_a_table_of_a_call_is_not_carried():
    x = X[0].T.float()
    narrow, plan = Counting(1), mupscale.plan(Counting, width=2, inputs=x)
    narrow(x)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert wide.length == 0
    assert torch.allclose(narrow(x), wide(x), atol=1e-6)


def transformers_model(name="gpt2"):
    torch.manual_seed(0)
    narrow = AutoModelForCausalLM.from_config(CONFIGS[name]()).double().eval()
    return narrow, mupscale.plan(narrow, width=2)


def test_transformers_models_are_alike_in_place_and_anew():
    narrow, plan = transformers_model()
    for module in narrow.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.25
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-2
    ids = torch.arange(8)[None]
    anew = mupscale.grow(narrow, plan, operator="duplicate")
    in_place = grow_(
        narrow,
        AutoModelForCausalLM.from_config(plan.config).double().eval(),
        plan,
        operator="duplicate",
    )
    for wide in (anew, in_place):
        assert {m.p for m in wide.modules() if isinstance(m, _DropoutNd)} == {0.25}
        assert {m.eps for m in wide.modules() if isinstance(m, nn.LayerNorm)} == {1e-2}
        torch.testing.assert_close(wide(ids).logits, narrow(ids).logits, rtol=0, atol=1e-6)


def test_what_the_wide_config_changes_stays():
    """Expanding makes the eps of norms smaller; one that was set by hand goes by no rule."""
    narrow, plan = transformers_model("llama")
    wide = mupscale.grow(narrow, plan, operator="expand")
    assert wide.model.norm.variance_epsilon == narrow.model.norm.variance_epsilon / 2
    narrow.model.norm.variance_epsilon = 1e-3
    assert mupscale.grow(narrow, plan).model.norm.variance_epsilon == 1e-3
    with pytest.raises(GrowthError, match=r"norm\.variance_epsilon: goes by the width, and is 0\.001"):
        mupscale.grow(narrow, plan, operator="expand")


def test_gradient_checkpointing_goes_along():
    narrow, plan = transformers_model("llama")
    narrow.gradient_checkpointing_enable()
    wide = mupscale.grow(narrow, plan, operator="duplicate").train()
    assert wide.is_gradient_checkpointing
    wide(torch.arange(8)[None], use_cache=False).logits.sum().backward()


def test_a_deeper_model_has_the_settings_of_the_layers_that_its_own_come_from():
    narrow, _ = transformers_model("llama_tied")
    narrow.model.layers[1].self_attn.attention_dropout = 0.3
    wide = mupscale.grow(narrow, mupscale.plan(narrow, axes={"layers": 2}))
    assert [layer.self_attn.attention_dropout for layer in wide.model.layers] == [0, 0, 0.3, 0.3]


def test_a_replaced_part_of_a_transformers_model_is_refused():
    narrow, plan = transformers_model("llama")
    narrow.model.layers[1].mlp.act_fn = nn.GELU()
    with pytest.raises(GrowthError, match=r"layers\.1\.mlp\.act_fn: is GELU, and SiLU"):
        mupscale.grow(narrow, plan)


def test_what_is_no_model_or_no_plan_is_refused():
    plan = mupscale.plan(Net, width=2, inputs=X)
    with pytest.raises(GrowthError, match="^plan: expected what .* gives, found dict"):
        mupscale.grow(Net(1), {"width": 2})
    with pytest.raises(GrowthError, match="^model: expected a torch.nn.Module, found str"):
        mupscale.grow("net", plan)
    with pytest.raises(GrowthError, match="^wide: expected a torch.nn.Module, found type"):
        grow_(Net(1), Net, plan)


@pytest.mark.parametrize(
    "how",
    [
        {"operator": ["expand"]},
        {"noise": 0.3},
        {"noise": True},
        {"shrink": {"*": None}},
        {"shrink": [0.4]},
        {"shrink": object()},
        {"shrink": torch.tensor([0.4, 0.5])},
    ],
)
def test_arguments_of_another_kind_are_refused(how):
    (name, value), plan = *how.items(), mupscale.plan(Net, width=2, inputs=X)
    said = repr(None) if name == "shrink" and isinstance(value, dict) else repr(value)[:6]
    with pytest.raises(GrowthError) as refusal:
        mupscale.grow(Net(1), plan, **how)
    assert str(refusal.value).startswith(name)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_lazy_module_is_to_be_called_first():
    with pytest.raises(GrowthError, match=r"^weight: has no shape yet.*call the model once first"):
        mupscale.plan(lambda width: nn.LazyLinear(8 * width), width=2, inputs=X)


def test_float8_is_to_be_converted_first():
    make = lambda width: nn.Sequential(nn.Linear(4, 16 * width), nn.Linear(16 * width, 3))  # noqa: E731
    narrow = make(1).to(torch.float8_e4m3fn)
    with pytest.raises(GrowthError, match=r"^0.weight: is torch.float8_e4m3fn.*model.to\(torch.bfloat16\)"):
        mupscale.grow(narrow, mupscale.plan(make, width=2), operator="duplicate")


def test_what_a_model_s_own_code_has_made_of_it_is_no_change():
    """BigBird puts another kind of attention in place of its own when it meets a short text."""
    config = BigBirdConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        is_decoder=True,
    )  # fmt: skip
    narrow = AutoModelForCausalLM.from_config(config)
    narrow(torch.arange(8)[None])
    plan = mupscale.plan(narrow, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert mupscale.verify(narrow, wide, plan).equal
