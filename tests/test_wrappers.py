"""What loses the metadata of others: torch.compile, FSDP2, DDP, deepcopy, saving. Plans go by name."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

import mupscale
from models import CONFIGS, VOCAB

STEPS = 5


def wide_model(name="llama_tied"):
    torch.manual_seed(0)
    plan = mupscale.plan(CONFIGS[name](), width=2)
    return mupscale.init_(AutoModelForCausalLM.from_config(plan.config), plan, seed=0), plan


def train(model, plan):
    """Losses of a few steps with our groups and clipping; the rates are high so that faults show."""
    groups = mupscale.param_groups(model, plan, AdamW, lr=1e-2, weight_decay=0.1)
    assert (
        len(groups) == 3
    )  # hidden weights; embedding and norms; the last norm, into which the tie is folded
    optimizer = AdamW(groups)
    ids = torch.randint(VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        mupscale.clip_grad_norm_(model, plan, 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def plain():
    return train(*wide_model())


def test_training_learns_something(plain):
    assert plain[-1] < plain[0] - 0.1


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile(backend, plain):
    model, plan = wide_model()
    torch.compiler.reset()
    assert train(torch.compile(model, fullgraph=True, backend=backend), plan) == pytest.approx(
        plain, abs=1e-6
    )


def test_deepcopy(plain):
    model, plan = wide_model()
    assert train(copy.deepcopy(model), copy.deepcopy(plan)) == pytest.approx(plain, abs=1e-6)


def test_save_and_load(plain):
    model, plan = wide_model()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    again = AutoModelForCausalLM.from_config(plan.config)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert train(again, mupscale.Plan.from_json(plan.to_json())) == pytest.approx(plain, abs=1e-6)


def test_safetensors(plain, tmp_path):
    model, plan = wide_model()
    model.save_pretrained(tmp_path)
    assert train(AutoModelForCausalLM.from_pretrained(tmp_path).train(), plan) == pytest.approx(
        plain, abs=1e-6
    )


def test_activation_checkpointing(plain):
    model, plan = wide_model()
    model.gradient_checkpointing_enable()
    assert train(model, plan) == pytest.approx(plain, abs=1e-6)
    model, plan = wide_model()
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = checkpoint_wrapper(layer)
    assert train(model, plan) == pytest.approx(plain, abs=1e-6)


def test_export_of_a_grown_module():
    make = lambda width: nn.Sequential(nn.Linear(4, 8 * width), nn.ReLU(), nn.Linear(8 * width, 2))  # noqa: E731
    wide = mupscale.grow(make(1), mupscale.plan(make, width=2))
    assert torch.export.export(wide, (torch.randn(1, 4),)).module()(torch.zeros(1, 4)).shape == (1, 2)


# ---- two processes -----------------------------------------------------------------------------------------


def _worker(rank, address, kind, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        if kind == "ddp":
            model, plan = wide_model()
            losses = train(nn.parallel.DistributedDataParallel(model), plan)
        else:
            from torch.distributed.fsdp import fully_shard

            model, plan = wide_model()
            for layer in model.model.layers:
                fully_shard(layer)
            fully_shard(model)
            if kind == "fsdp2 init":  # initialized after sharding, from other weights
                with torch.no_grad():
                    for p in model.parameters():
                        p.zero_()
                mupscale.init_(model, plan, seed=0)
            losses = train(model, plan)
        if rank == 0:
            results.put(losses)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "fsdp2 init"])
def test_two_processes(kind, plain, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    torch.multiprocessing.spawn(_worker, args=(f"file://{tmp_path}/rendezvous", kind, results), nprocs=2)
    assert results.get() == pytest.approx(plain, abs=1e-6)
