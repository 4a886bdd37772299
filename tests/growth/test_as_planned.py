"""A model that was changed since it was planned: the wide one is like it, or nothing is grown."""

import copy
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

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


class Tables(nn.Module):
    """Multiplies by what no checkpoint holds: one that no width changes, one that is the width's."""

    def __init__(self, width: int, power: float = 1.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 8 * width), nn.Linear(8 * width, 3)
        self.register_buffer("tau", torch.tensor(1.0), persistent=False)
        self.register_buffer("root", torch.tensor((8.0 * width) ** power), persistent=False)
        self.gate = torch.ones(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x) / self.root)
        return self.gate.to(x.dtype) * self.last(h) / self.tau


TABLES = {
    "tau": lambda net: net.tau.fill_(0.5),
    "gate": lambda net: setattr(net, "gate", net.gate * 0.1),
    "an entry of gate": lambda net: net.gate[1].fill_(2),
}


def planned_tables(given):
    """A plan of `Tables`, from its constructor or two instances."""
    if given:
        return mupscale.plan(Tables(1), to=Tables(2), inputs=X)
    return mupscale.plan(Tables, width=2, inputs=X)


@pytest.mark.parametrize("given", [False, True], ids=["make", "to"])
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_goes_by_no_width_is_carried(kind, given):
    plan, narrow = planned_tables(given), Tables(1).double()
    before = narrow(X)
    TABLES[kind](narrow)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert not torch.allclose(narrow(X), before)
    torch.testing.assert_close(wide(X), narrow(X), rtol=0, atol=1e-12)
    assert wide.root == Tables(2).root


@pytest.mark.parametrize("given", [False, True], ids=["make", "to"])
def test_a_table_that_goes_by_the_width_is_refused_once_it_is_changed(given):
    plan, narrow = planned_tables(given), Tables(1).double()
    narrow.root *= 1.005
    with pytest.raises(GrowthError, match=r"^root: goes with the width, .*no longer holds what"):
        mupscale.grow(narrow, plan, operator="duplicate")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_table_is_not_changed_by_another_dtype(dtype):
    plan = mupscale.plan(lambda width: Tables(width, 0.5), width=2, inputs=X)
    for narrow in (Tables(1, 0.5).to(dtype), Tables(1, 0.5).to(dtype).float()):
        wide = mupscale.grow(narrow, plan, operator="duplicate")
        assert wide.root == Tables(2, 0.5).root.to(narrow.root.dtype)


def test_a_table_without_values_is_refused():
    def make(width):
        with torch.device("meta"):
            return Tables(width)

    without, wide = mupscale.plan(make, width=2), mupscale.plan(make(1), to=Tables(2))
    for plan, message in ((without, "gate: has no values in the wide"), (wide, "root: cannot tell whether")):
        with pytest.raises(GrowthError, match=f"^{message}"):
            mupscale.grow(Tables(1), plan, operator="duplicate")


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


@dataclass
class Config:
    width: int
    temperature: float = 1.0


class Mode(Enum):
    ONE, HALF = 1.0, 0.5


Pair = namedtuple("Pair", "temperature")


class Divide:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x / self.by


def divide(x, by):
    return x / by


class Holding(nn.Module):
    """Divides what it computes by what an attribute holds."""

    def __init__(self, width, made, read):
        super().__init__()
        self.first, self.last, self.read = nn.Linear(4, 8 * width), nn.Linear(8 * width, 3), read
        self.held = made(width)

    def forward(self, x):
        out = self.last(torch.relu(self.first(x)))
        return self.held(out) if callable(self.held) else out / self.read(self.held)


def holding(made, read, change, width=2):
    torch.manual_seed(0)
    make = lambda width: Holding(width, made, read).double()  # noqa: E731
    x = torch.randn(5, 4, dtype=torch.float64)
    plan, narrow = mupscale.plan(make, width=width, inputs=x), make(1)
    before = narrow(x)
    change(narrow)
    assert not torch.allclose(narrow(x), before)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    torch.testing.assert_close(wide(x), narrow(x), rtol=0, atol=1e-12)
    return narrow, wide


def put(value):
    return lambda net: setattr(net, "held", value)


HELD = {
    "dataclass": (lambda w: Config(8), lambda c: c.temperature, lambda n: setattr(n.held, "temperature", 0.5)),
    "dataclass with the width in it": (
        lambda w: Config(8 * w), lambda c: c.temperature, lambda n: setattr(n.held, "temperature", 0.5)
    ),
    "namespace": (
        lambda w: SimpleNamespace(t=1.0, width=w), lambda c: c.t, lambda n: setattr(n.held, "t", 0.5)
    ),
    "named tuple": (lambda w: Pair(1.0), lambda c: c.temperature, put(Pair(0.5))),
    "enum": (lambda w: Mode.ONE, lambda c: c.value, put(Mode.HALF)),
    "set": (lambda w: {1.0}, lambda c: next(iter(c)), put({0.5})),
    "fraction": (lambda w: Fraction(1), float, put(Fraction(1, 2))),
    "number of numpy": (lambda w: np.float64(1), float, put(np.float64(0.5))),
    "number of numpy for one": (lambda w: 1.0, float, put(np.float32(0.5))),
    "tensor for a number": (lambda w: 1.0, float, put(torch.tensor(0.5))),
    "ordered dict": (lambda w: OrderedDict(t=1.0), lambda c: c["t"], lambda n: n.held.update(t=0.5)),
    "default dict": (lambda w: defaultdict(float, t=1.0), lambda c: c["t"], lambda n: n.held.update(t=0.5)),
    "array of objects": (lambda w: np.array([1.0, None]), lambda c: c[0], put(np.array([0.5, None]))),
    "deep list": (lambda w: [[[[[[[1.0]]]]]]], lambda c: c[0][0][0][0][0][0][0], put([[[[[[[0.5]]]]]]])),
    "bytes": (lambda w: bytearray(b"\2"), lambda c: c[0] / 2, put(bytearray(b"\1"))),
    "list of a tensor": (lambda w: [torch.tensor(1.0)], lambda c: c[0], lambda n: n.held[0].fill_(0.5)),
    "dict of a tensor": (
        lambda w: {"t": torch.tensor([1.0, 2.0])},
        lambda c: c["t"][0],
        lambda n: n.held["t"].copy_(torch.tensor([0.5, 3.0])),
    ),
    "list of functions": (
        lambda w: [lambda: 1.0], lambda c: c[0](), lambda n: n.held.__setitem__(0, lambda: 0.5)
    ),
    "callable object": (lambda w: Divide(1.0), None, put(Divide(0.5))),
    "callable object with another number": (lambda w: Divide(1.0), None, lambda n: setattr(n.held, "by", 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HELD)
def test_whatever_can_be_read_is_carried(kind):
    narrow, wide = holding(*HELD[kind])
    if not isinstance(narrow.held, Fraction | Mode | np.generic | Pair):
        assert wide.held is not narrow.held


def test_fields_that_go_by_the_width_stay():
    assert holding(*HELD["dataclass with the width in it"])[1].held == Config(16, 0.5)


class Frozen(OrderedDict):
    """Its entries are attributes, too; a copy of it has these in another order."""

    def __init__(self, *args, **entries):
        super().__init__(*args, **entries)
        vars(self).update(self, frozen=True)


def test_attributes_in_another_order_are_no_change():
    make = lambda width: Holding(width, lambda w: Frozen(width=w), lambda c: 1.0)  # noqa: E731
    plan, narrow = mupscale.plan(make, width=2, inputs=torch.randn(5, 4)), make(1)
    assert [*vars(copy.deepcopy(narrow.held))] != [*vars(narrow.held)]
    assert mupscale.grow(narrow, plan, operator="duplicate").held == Frozen(width=2)


@pytest.mark.parametrize(
    ("made", "changed"),
    [
        (lambda w: partial(divide, by=torch.tensor(1.0)), partial(divide, by=torch.tensor(0.5))),
        (lambda w: (lambda by: lambda x: x / by)(torch.tensor(1.0)), lambda x: x / 0.5),
        (lambda w: Divide(1.0).__call__, Divide(0.5).__call__),
    ],
)
def test_a_function_over_another_value_is_refused(made, changed):
    with pytest.raises(GrowthError, match="^held: is another function than in the model that was planned"):
        holding(made, None, put(changed))


def closing_over(by):
    return lambda x: x / by


def test_a_function_over_another_tensor_is_refused():
    with pytest.raises(GrowthError, match="^held: is another function than in the model that was planned"):
        holding(lambda w: closing_over(torch.tensor(1.0)), None, put(closing_over(torch.tensor(0.5))))


def test_what_goes_by_the_width_is_refused_in_one_line_inside_of_an_object():
    made = lambda w: SimpleNamespace(t=float(w))  # noqa: E731
    with pytest.raises(GrowthError, match=r"^held\.t: goes by the width, and is 0.5 where .* has 1.0"):
        holding(made, lambda c: c.t, lambda n: setattr(n.held, "t", 0.5))


def test_tensors_that_a_call_has_left_in_a_list_stay_behind():
    class Leaving(Holding):
        def forward(self, x):
            self.held.append(torch.relu(self.first(x)).detach())
            return self.last(self.held[-1])

    make = lambda width: Leaving(width, lambda w: [], None)  # noqa: E731
    x = torch.randn(5, 4)
    plan, narrow = mupscale.plan(make, width=2, inputs=x), make(1)
    narrow(x)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert wide.held == []
    torch.testing.assert_close(wide(x), narrow(x))
