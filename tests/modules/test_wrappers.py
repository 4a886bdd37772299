"""What loses the metadata of others: torch.compile, FSDP2, DDP, deepcopy, saving. Plans go by name."""

import copy
import io

import onnxruntime
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
    # Hidden weights; embedding and norms; the last norm, into which the tie is folded.
    assert len(groups) == 3
    return run(model, AdamW(groups), plan)


def run(model, optimizer, plan=None):
    ids = torch.randint(VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        if plan is not None:
            mupscale.clip_grad_norm_(model, plan, 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained_narrow(wrap=lambda model: model):
    torch.manual_seed(0)
    narrow = wrap(AutoModelForCausalLM.from_config(CONFIGS["llama_tied"]()))
    optimizer = AdamW(narrow.parameters(), lr=1e-2, weight_decay=0.1)
    run(narrow, optimizer)
    return narrow, optimizer


def train_carried(wrap=lambda model: model, wrap_narrow=lambda model: model):
    """Losses of a grown model that goes on with the optimizer of the narrow one."""
    narrow, _ = trained_narrow()
    plan = mupscale.plan(narrow, width=2)
    wide = wrap(mupscale.grow(narrow, plan, operator="duplicate"))
    narrow, optimizer = trained_narrow(wrap_narrow)
    return run(wide, mupscale.carry_optimizer(optimizer, narrow, wide, plan), plan)


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


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits


def test_onnx_export_of_a_grown_model(tmp_path):
    narrow, _ = trained_narrow()
    wide = mupscale.grow(narrow, mupscale.plan(narrow, width=2), operator="duplicate").eval()
    ids = torch.randint(VOCAB, (2, 8))
    torch.onnx.export(Logits(wide).eval(), (ids,), tmp_path / "wide.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "wide.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    expected = Logits(narrow.eval())(ids).detach().numpy()
    assert abs(logits - expected).max() < 1e-5 * expected.std()


def test_carry_to_a_wrapped_model():
    plain = train_carried()
    torch.compiler.reset()
    assert train_carried(lambda model: torch.compile(model, backend="eager")) == pytest.approx(
        plain, abs=1e-6
    )


def test_what_data_parallel_has_wrapped_is_planned_grown_and_verified():
    narrow, _ = trained_narrow()
    wrapped = nn.DataParallel(narrow)
    plan = mupscale.plan(wrapped, width=2)
    assert plan == mupscale.plan(narrow, width=2)
    wide = mupscale.grow(wrapped, plan, operator="duplicate")
    assert type(wide) is type(narrow)
    assert mupscale.verify(wrapped, nn.DataParallel(wide), plan)
    with torch.no_grad():
        wide.lm_head.weight[0, 0] += 1
    assert not mupscale.verify(wrapped, nn.DataParallel(wide), plan)


WRAPS = {
    "compile": lambda model: torch.compile(model, backend="eager"),
    "data parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_what_a_make_has_wrapped_is_planned_without(wrap):
    def make(width):
        return WRAPS[wrap](nn.Sequential(nn.Linear(4, 8 * width), nn.ReLU(), nn.Linear(8 * width, 3)))

    x = torch.randn(5, 4)
    narrow, plan = make(1), mupscale.plan(make, width=2, inputs=x)
    assert plan.proved
    assert "0.weight" in plan.params
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert mupscale.verify(narrow, wide, plan, x).equal


class Adapted(nn.Linear):
    """What wraps a model in adapters, as peft does, is known by this method."""

    def get_base_model(self):
        return self


def test_a_model_in_adapters_is_to_be_merged_first():
    with pytest.raises(mupscale.GrowthError, match=r"^Adapted wraps a model in adapters: .*merge_and_unload"):
        mupscale.plan(Adapted(3, 4), to=Adapted(3, 8))


def test_a_plan_from_a_file_builds_no_plain_module():
    plan = mupscale.plan(lambda width: nn.Linear(3, 4 * width), width=2)
    for operator in ("duplicate", "zero_pad"):
        with pytest.raises(
            mupscale.GrowthError, match=r"loaded from a file; make it here with mupscale\.plan"
        ):
            mupscale.grow(nn.Linear(3, 4), mupscale.Plan.from_json(plan.to_json()), operator=operator)


# ---- two processes -----------------------------------------------------------------------------------------


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


KINDS = ("ddp", "fsdp2", "fsdp2 init", "ddp carry", "fsdp2 carry")


def _losses(kind):
    ddp = nn.parallel.DistributedDataParallel
    if "carry" in kind:
        wrap = ddp if kind.startswith("ddp") else sharded
        return train_carried(wrap, wrap)
    model, plan = wide_model()
    if kind == "ddp":
        return train(ddp(model), plan)
    sharded(model)
    if kind == "fsdp2 init":  # initialized after sharding, from other weights
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        mupscale.init_(model, plan, seed=0)
    return train(model, plan)


def _worker(rank, address, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        for kind in KINDS:
            losses = _losses(kind)
            if rank == 0:
                results.put((kind, losses))
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes(plain, tmp_path):
    """All kinds in one pair of processes, which take longer to start than to train."""
    carried = train_carried()
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_worker, args=(f"file://{tmp_path}/rendezvous", results), nprocs=2)
    for kind in KINDS:
        name, losses = results.get()
        assert name == kind
        assert losses == pytest.approx(carried if "carry" in kind else plain, abs=1e-6), kind
