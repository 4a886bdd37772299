"""verify tells equal from unequal, and names where the difference starts."""

import re

import pytest
import torch
from torch import nn

import mupscale
from models import NAMES, batch, build, make_mlp, plan_source
from mupscale import GrowthError


def grown(name, noise="default"):
    narrow = build(name)
    plan = mupscale.plan(plan_source(name, narrow), width=2)
    inputs = None if hasattr(narrow, "config") else batch(name, 0)[0]
    return narrow, mupscale.grow(narrow, plan, operator="duplicate", noise=noise), plan, inputs


@pytest.mark.parametrize("name", NAMES)
def test_grown_models_are_equal(name):
    narrow, wide, plan, inputs = grown(name)
    report = mupscale.verify(narrow, wide, plan, inputs, steps=3)
    assert report.equal
    assert report.first_deviation is None
    assert report.max_abs_diff < 1e-10
    assert report.max_loss_diff < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_any_weight_changed_by_hand_is_found_and_its_module_named(name):
    narrow, wide, plan, inputs = grown(name)
    kinds = {re.sub(r"\.\d+", "", parameter): parameter for parameter in plan.params}  # of the last layer
    for parameter in kinds.values():
        weight = wide.get_parameter(parameter).detach().view(-1)
        index = torch.randint(weight.numel(), (1,)).item()
        before = weight[index].clone()
        weight[index] += 1e-4
        report = mupscale.verify(narrow, wide, plan, inputs)
        assert not report.equal, parameter
        assert report.first_deviation == parameter.rpartition(".")[0]
        weight[index] = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_of_the_stored_dtype_is_not_a_difference(dtype):
    narrow = build("llama_tied").to(dtype)
    plan = mupscale.plan(narrow, width=3)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    report = mupscale.verify(narrow, wide, plan)
    assert report.equal
    assert report.max_abs_diff > 0
    with torch.no_grad():
        wide.model.layers[1].mlp.up_proj.weight[5, 5] += 0.5
    assert mupscale.verify(narrow, wide, plan).first_deviation == "model.layers.1.mlp.up_proj"


def test_noise_that_changes_the_function_is_reported():
    narrow, wide, plan, _ = grown("llama", noise="gaussian:0.3")
    report = mupscale.verify(narrow, wide, plan)
    assert not report.equal
    assert report.max_abs_diff > 1e-3
    assert report.first_deviation == "model.layers.0.self_attn.q_proj"
    assert "NOT equal" in str(report)


def test_changed_outputs_are_found_where_weights_are_right():
    """A part of the function that no parameter shows: here, the eps of one norm."""
    narrow, wide, plan, _ = grown("llama")
    wide.model.layers[1].post_attention_layernorm.variance_epsilon = 1.0
    report = mupscale.verify(narrow, wide, plan)
    assert not report.equal
    assert report.first_deviation == "model.layers.1.post_attention_layernorm"


def test_changed_running_statistics_are_found():
    narrow, wide, plan, inputs = grown("resnet")
    wide.stages[1][0].bn1.running_var[3] += 0.1
    assert mupscale.verify(narrow, wide, plan, inputs).first_deviation == "stages.1.0.bn1"


class Flipping(nn.Module):
    """Computes the same at every width, and turns a gradient around at all but the first."""

    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)
        self.sign = 1 if width == 1 else -1

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last((1 - self.sign) * h.detach() + self.sign * h)


def test_models_that_are_equal_at_rest_alone_are_not_equal_over_steps():
    narrow, plan = Flipping(1), mupscale.plan(Flipping, width=2)  # by shape alone: it is not proved
    wide, inputs = mupscale.grow(narrow, plan, operator="duplicate"), torch.randn(6, 5)
    assert mupscale.verify(narrow, wide, plan, inputs)
    report = mupscale.verify(narrow, wide, plan, inputs, steps=3)
    assert not report
    assert (report.steps, report.first_deviation) == (3, None)
    assert report.max_abs_diff <= report.tolerance
    assert report.max_loss_diff > 1e-8
    assert "lockstep over 3 AdamW steps" in str(report)


def test_nan_is_not_equal():
    narrow, wide, plan, _ = grown("gpt2")
    with torch.no_grad():
        wide.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
    assert not mupscale.verify(narrow, wide, plan).equal


def test_plain_modules_need_inputs_and_fitting_models():
    plan = mupscale.plan(make_mlp, width=2)
    with pytest.raises(GrowthError, match="needs inputs"):
        mupscale.verify(make_mlp(1), make_mlp(2), plan)
    with pytest.raises(GrowthError, match=r"the plan gives shape \(24, 7\), found \(36, 7\)"):
        mupscale.verify(make_mlp(1), make_mlp(3), plan, torch.randn(2, 7))


def test_outputs_without_a_number_prove_nothing():
    plan = mupscale.plan(make_mlp, width=2)
    rows = batch("mlp", 0)[0][:0]
    with pytest.raises(
        GrowthError, match="^inputs: the outputs hold no number, so there is nothing to compare"
    ):
        mupscale.verify(make_mlp(1), make_mlp(2), plan, rows, operator="expand")


def test_steps_are_a_number():
    narrow, wide, plan, inputs = grown("mlp")
    with pytest.raises(GrowthError, match="^steps: expected a whole number .* found True"):
        mupscale.verify(narrow, wide, plan, inputs, steps=True)
