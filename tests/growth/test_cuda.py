"""The same on a GPU; these need one and are skipped elsewhere."""

import pytest
import torch

import mupscale
from lockstep import assert_duplicates
from models import NAMES, batch, build, loss_of, plan_source
from mupscale.models.precision import Float64

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(data):
    return tuple(t.cuda() for t in data)


@pytest.mark.parametrize("flags", [{"foreach": True}, {"fused": True}, {"capturable": True}])
@pytest.mark.parametrize("name", NAMES)
def test_grown_on_the_gpu_stays_in_lockstep(name, flags):
    narrow = build(name).cuda()
    plan = mupscale.plan(plan_source(name, narrow), width=2)
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=3e-3, weight_decay=0.1, **flags)

    def step(model, optim, seed, clip):
        optim.zero_grad()
        loss = loss_of(model, on_gpu(batch(name, seed)))
        loss.backward()
        clip(model)
        optim.step()
        return loss.item()

    def plain(model):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    with Float64():
        for seed in range(3):
            step(narrow, optimizer, seed, plain)
        wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
        carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
        for seed in range(3, 10):
            a = step(narrow, optimizer, seed, plain)
            b = step(wide, carried, seed, lambda model: mupscale.clip_grad_norm_(model, plan, 0.1))
            assert abs(a - b) < 1e-9
    assert all(p.is_cuda for p in wide.parameters())
    assert_duplicates(narrow, wide, plan, rtol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_noise_and_init_are_those_of_the_cpu(name):
    narrow = build(name)
    plan = mupscale.plan(plan_source(name, narrow), width=3)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    on_device = mupscale.grow(build(name).cuda(), plan, operator="duplicate")
    for (n, a), (_, b) in zip(wide.named_parameters(), on_device.named_parameters(), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-12, atol=1e-14, msg=n)
    inputs = None if hasattr(narrow, "config") else on_gpu(batch(name, 0))[0]
    assert mupscale.verify(build(name).cuda(), on_device, plan, inputs, steps=2)
    mupscale.init_(wide, plan, seed=1)
    mupscale.init_(on_device, plan, seed=1)
    for (n, a), (_, b) in zip(wide.named_parameters(), on_device.named_parameters(), strict=True):
        assert torch.equal(b.cpu(), a), n
