"""Growing in place, in one process and in several: bit for bit what `grow` gives, and training goes on alike."""

import copy
import itertools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

import mupscale
from models import CONFIGS, VOCAB
from mupscale.distributed import grow_
from mupscale.models.sharding import whole

STEPS = 5
RECIPES = {
    "copies": {"operator": "duplicate"},
    "pure copies": {"operator": "duplicate", "noise": None},
    "copies, noise of the whole tensor": {"operator": "duplicate", "noise": "spectral:0.1"},
    "uneven copies": {"operator": "net2net"},
    "beside fresh units": {},
    "padded": {"operator": "zero_pad"},
    "padded less": {"operator": "zero_pad", "shrink": 0.9},
}

EVEN = [name for name in RECIPES if "copies" in name and "uneven" not in name]  # which take more layers, too


class Block(nn.Module):
    """Sizes that no number of processes divides, a buffer and a single number."""

    def __init__(self, width=1, heads=1):
        super().__init__()
        self.heads, self.temperature, d = heads, 1.0, 5 * width
        self.into, self.inner, self.out = nn.Linear(3, d), nn.Linear(d, 7 * width), nn.Linear(7 * width, 3)
        self.norm = nn.BatchNorm1d(d)

    def forward(self, x):
        return self.out(self.inner(self.norm(self.into(x)).relu()).relu() * self.heads / self.temperature)


def block(width, heads=1):
    torch.manual_seed(width)
    return Block(width, heads)


def transformers_model(config):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config)


def models(kind):
    """A narrow model, a plan, and what builds a wide one with values of its own."""
    if kind == "block":
        plan = mupscale.plan(block, width=2, inputs=torch.randn(4, 3))
        return block(1).eval(), plan, lambda: block(2)
    torch.manual_seed(0)
    narrow = AutoModelForCausalLM.from_config(CONFIGS["llama_tied" if kind == "deeper" else kind]())
    plan = mupscale.plan(narrow, width=2, axes={"layers": 2} if kind == "deeper" else None)
    return narrow, plan, lambda: transformers_model(plan.config)


def tensors(model):
    return {name: whole(tensor.detach()) for name, tensor in model.state_dict().items()}


def assert_same(found, expected):
    found, expected = tensors(found), tensors(expected)
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [*itertools.product(["llama_tied", "block"], RECIPES), *(("deeper", recipe) for recipe in EVEN)],
)
def test_in_place_it_is_what_grow_gives(kind, recipe):
    narrow, plan, build = models(kind)
    next(narrow.parameters()).requires_grad_(False)
    wide = build()
    params = list(wide.parameters())
    assert grow_(narrow, wide, plan, **RECIPES[recipe]) is wide
    expected = mupscale.grow(narrow, plan, **RECIPES[recipe])
    assert_same(wide, expected)
    assert all(a is b for a, b in zip(params, wide.parameters(), strict=True)), "an optimizer may hold them"
    assert [p.requires_grad for p in wide.parameters()] == [p.requires_grad for p in expected.parameters()]
    assert wide.training == narrow.training


def test_what_has_the_right_shapes_and_computes_something_else_is_refused():
    narrow, plan, _ = models("block")
    with pytest.raises(mupscale.GrowthError, match="heads: is 2 in the wide module, and 1 in the plan's"):
        grow_(narrow, block(2, heads=2), plan)
    with pytest.raises(
        mupscale.GrowthError, match="out_features: is 15 in the wide module, and 10 in the plan's"
    ):
        grow_(narrow, block(3), plan)
    wide = block(2)
    wide.into.weight = nn.Parameter(torch.zeros(10, 4))
    with pytest.raises(
        mupscale.GrowthError, match=r"into.weight: the plan gives shape \(10, 3\), found \(10, 4\)"
    ):
        grow_(narrow, wide, plan)
    narrow, plan, _ = models("llama_tied")
    other = CONFIGS["llama_tied"]()
    for key in ("hidden_size", "intermediate_size", "num_key_value_heads", "num_attention_heads", "head_dim"):
        setattr(other, key, getattr(plan.config, key))
    other.rope_parameters = {**other.rope_parameters, "rope_theta": 5.0}
    with pytest.raises(mupscale.GrowthError, match="rope_parameters is .*; build the wide model with that"):
        grow_(narrow, transformers_model(other), plan)


def test_what_was_changed_on_the_narrow_model_is_carried_or_let_be():
    narrow, plan, _ = models("block")
    narrow.temperature, narrow.heads = 3.0, 7  # heads: as tensor parallelism divides it
    for changed in ({}, {"temperature": 3.0, "heads": 5}):
        wide = block(2)
        for key, value in changed.items():
            setattr(wide, key, value)
        grow_(narrow, wide, plan, operator="duplicate")
        assert wide.temperature == 3.0
        assert wide.heads == changed.get("heads", 1)
    narrow, plan, build = models("llama_tied")
    wide = build()
    wide.config.pad_token_id, wide.config.output_hidden_states = 3, True
    narrow.config.attention_dropout = wide.config.attention_dropout = 0.2
    grow_(narrow, wide, plan, operator="duplicate")
    assert (wide.config.pad_token_id, wide.config.output_hidden_states) == (3, True)
    assert wide.config.attention_dropout == 0.2
    assert_same(wide, mupscale.grow(narrow, plan, operator="duplicate"))


def test_buffers_keep_their_dtype_as_parameters_do():
    narrow, plan, _ = models("block")
    wide = grow_(narrow, block(2).bfloat16(), plan, operator="duplicate")
    assert {t.dtype for t in wide.state_dict().values() if t.is_floating_point()} == {torch.bfloat16}
    wide.eval()(torch.randn(4, 3, dtype=torch.bfloat16))


def test_to_expand_with_the_same_function_the_norms_say_what_they_need():
    narrow, plan, _ = models("llama_tied")
    with pytest.raises(mupscale.GrowthError, match="rms_norm_eps is .*, expected .*; build the wide model"):
        grow_(narrow, transformers_model(plan.config), plan, operator="expand")
    expected = mupscale.grow(narrow, plan, operator="expand")
    wide = grow_(narrow, transformers_model(expected.config), plan, operator="expand")
    assert_same(wide, expected)


def test_a_wide_model_without_the_tie_or_without_memory_is_refused():
    narrow, plan, build = models("llama_tied")
    wide = build()
    wide.lm_head.weight = nn.Parameter(wide.lm_head.weight.clone())
    with pytest.raises(
        mupscale.GrowthError, match=r"lm_head.weight: in the wide model only; .*call tie_weights after it"
    ):
        grow_(narrow, wide, plan)
    with pytest.raises(
        mupscale.GrowthError, match=r"on the meta device in the wide model; give it memory first"
    ):
        grow_(narrow, build().to("meta"), plan)


# ---- several processes -------------------------------------------------------------------------------------


def fsdp(model):
    for layer in model.model.layers if hasattr(model, "model") else [model.inner]:
        # Mixed placements: matrices by columns, all else by rows.
        fully_shard(
            layer, shard_placement_fn=lambda p: Shard(p.ndim - 1) if p.shape[-1] % 4 == 0 else Shard(0)
        )
    return fully_shard(model)


def by_tensors(model):
    """Tensor parallel in one mesh dimension, FSDP2 in the other."""
    half = max(2, torch.distributed.get_world_size() // 2)
    mesh = init_device_mesh(
        "cpu", (torch.distributed.get_world_size() // half, half), mesh_dim_names=("data", "tensor")
    )
    parallelize_module(
        model,
        mesh["tensor"],
        {"inner": ColwiseParallel(), "out": RowwiseParallel(), "into": ColwiseParallel()},
    )
    return fully_shard(model, mesh=mesh["data"])


def forward(model):
    with torch.no_grad():
        model(torch.zeros(2, 3)) if hasattr(model, "inner") else model(input_ids=torch.arange(4)[None])


def resharded(model):
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return model


def losses(model, optimizer, plan=None):
    ids = torch.randint(VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        if plan is not None:
            mupscale.clip_grad_norm_(model, plan, 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


def grown_with_optimizer(shard, grown):
    """A trained narrow model and what it grows into, with its optimizer."""
    narrow, plan, build = models("llama_tied")
    narrow = shard(narrow)
    optimizer = AdamW(narrow.parameters(), lr=1e-2, weight_decay=0.1)
    losses(narrow, optimizer)
    wide = grown(narrow, plan, build)
    return wide, mupscale.carry_optimizer(optimizer, narrow, wide, plan), plan


def in_place(narrow, plan, build):
    return grow_(narrow, fsdp(build()), plan, operator="duplicate")


def _worker(rank, processes, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-{processes}", rank=rank, world_size=processes
    )
    try:
        for kind, shard in (("llama_tied", fsdp), ("deeper", fsdp), ("block", fsdp), ("block", by_tensors)):
            for recipe in (RECIPES[name] for name in (EVEN if kind == "deeper" else RECIPES)):
                narrow, plan, build = models(kind)
                expected = mupscale.grow(narrow, plan, **recipe)
                narrow, wide = shard(narrow), shard(build())
                for model in (narrow, wide) if shard is fsdp else ():
                    forward(model)  # leaves whole parameters in the root, which do not last
                assert_same(resharded(grow_(narrow, wide, plan, **recipe)), expected)
        plan = models("llama_tied")[1]
        wide = fsdp(models("llama_tied")[2]())
        forward(wide)
        assert_same(resharded(mupscale.init_(wide, plan)), mupscale.init_(models("llama_tied")[2](), plan))
        wide, optimizer, plan = grown_with_optimizer(fsdp, in_place)
        dcp.save(state_of(wide, optimizer), checkpoint_id=f"{folder}/saved-{processes}")
        keep(losses(wide, optimizer, plan), folder, processes)
    finally:
        torch.distributed.destroy_process_group()


def _go_on(rank, processes, saved, folder):
    """From what another number of processes has saved."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-again", rank=rank, world_size=processes
    )
    try:
        _, plan, build = models("llama_tied")
        wide = fsdp(build())
        optimizer = AdamW(mupscale.param_groups(wide, plan, AdamW, lr=1e-2, weight_decay=0.1))
        state = state_of(wide, optimizer)
        dcp.load(state, checkpoint_id=saved)
        set_state_dict(wide, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        keep(losses(wide, optimizer, plan), folder, processes)
    finally:
        torch.distributed.destroy_process_group()


def state_of(model, optimizer):
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def keep(found, folder, processes):
    if torch.distributed.get_rank() == 0:
        torch.save(found, f"{folder}/losses-{processes}.pt")


@pytest.fixture(scope="module")
def in_one_process():
    """The wide model right after growth, and its losses from there on."""
    wide, optimizer, plan = grown_with_optimizer(
        lambda model: model, lambda narrow, plan, build: mupscale.grow(narrow, plan, operator="duplicate")
    )
    return copy.deepcopy(wide), losses(wide, optimizer, plan)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_make_what_one_does(processes, tmp_path, in_one_process):
    wide, expected = in_one_process
    torch.multiprocessing.spawn(_worker, args=(processes, tmp_path), nprocs=processes)
    state = {"model": {name: torch.empty_like(tensor) for name, tensor in wide.state_dict().items()}}
    dcp.load(state, checkpoint_id=f"{tmp_path}/saved-{processes}", no_dist=True)
    for name, tensor in wide.state_dict().items():  # the narrow one was trained in as many processes
        torch.testing.assert_close(state["model"][name], tensor, rtol=0, atol=1e-6, msg=name)
    assert torch.load(f"{tmp_path}/losses-{processes}.pt") == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_what_two_processes_have_grown_four_train_on(tmp_path, in_one_process):
    _, expected = in_one_process
    torch.multiprocessing.spawn(_worker, args=(2, tmp_path), nprocs=2)
    torch.multiprocessing.spawn(_go_on, args=(4, f"{tmp_path}/saved-2", tmp_path), nprocs=4)
    assert torch.load(f"{tmp_path}/losses-4.pt") == pytest.approx(expected, abs=1e-6)


def test_a_wrong_shape_is_found_before_anything_is_overwritten():
    make = lambda width: nn.Sequential(nn.Linear(4, 8 * width), nn.Linear(8 * width, 3))  # noqa: E731
    wide = make(2)
    wide[1].bias = nn.Parameter(torch.zeros(5))
    before = wide[0].weight.clone()
    with pytest.raises(mupscale.GrowthError, match=r"^1.bias: the plan gives shape \(3,\), found \(5,\)"):
        grow_(make(1), wide, mupscale.plan(make, width=2), operator="duplicate")
    assert torch.equal(wide[0].weight, before)
