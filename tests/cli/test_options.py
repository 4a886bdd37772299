"""Options of the command line, each by the difference that it makes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import ReformerConfig

import mupscale
from models import batch, build, loss_of
from mupscale.cli import main


@pytest.fixture
def said(capsys):
    """The status of a command, and the object that it prints."""

    def run(*words):
        status = main([*map(str, words), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def narrow(tmp_path):
    """A Llama of two layers that has trained for a step, and its folder."""
    model = build("llama").float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of(model, batch("llama", 0)).backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "narrow")
    torch.save(optimizer.state_dict(), tmp_path / "narrow/optimizer.pt")
    return model, optimizer, tmp_path / "narrow"


@pytest.mark.parametrize(("order", "sources"), [("repeat", [0, 0, 1, 1]), ("cycle", [0, 1, 0, 1])])
def test_order_says_which_layer_each_comes_from(narrow, said, tmp_path, order, sources):
    model, _, folder = narrow
    assert said("grow", folder, tmp_path / "deep", "--axes", "layers=2", "--order", order)[0] == 0
    deep = load_file(tmp_path / "deep/model.safetensors")
    for layer, source in enumerate(sources):
        gain = model.model.layers[source].input_layernorm.weight
        assert torch.equal(deep[f"model.layers.{layer}.input_layernorm.weight"], gain)


def test_what_was_grown_is_told_as_json(narrow, said, tmp_path):
    words = ["--width", "2", "--operator", "duplicate", "--noise", "none", "--seed", "3"]
    status, told = said("grow", narrow[-1], tmp_path / "wide", *words)
    assert (status, told["destination"]) == (0, str(tmp_path / "wide"))
    recipe = {key: told[key] for key in ("operator", "noise", "seed", "optimizer")}
    assert recipe == {"operator": "duplicate", "noise": "none", "seed": 3, "optimizer": True}
    assert told["from_first"]["growth"] == {"d_model": "2", "d_ff": "2", "kv_heads": "2"}
    assert (
        told["sha256"].keys() > load_file(tmp_path / "wide/model.safetensors").keys()
    )  # and the optimizer's


def test_an_asymmetric_state_is_that_of_the_library(narrow, said, tmp_path):
    model, optimizer, folder = narrow
    words = ["--width", "2", "--operator", "duplicate", "--optimizer-state", "asymmetric"]
    assert said("grow", folder, tmp_path / "wide", *words)[0] == 0
    plan = mupscale.plan(model, width=2)
    wide = mupscale.grow(model, plan, operator="duplicate")
    expected = mupscale.carry_optimizer(optimizer, model, wide, plan, state="asymmetric")
    saved = torch.load(tmp_path / "wide/optimizer.pt", weights_only=True)
    for group in saved["param_groups"]:
        for index, name in zip(group["params"], group["param_names"], strict=True):
            for key in ("exp_avg", "exp_avg_sq"):
                moment = expected.state[wide.get_parameter(name)][key]
                torch.testing.assert_close(saved["state"][index][key], moment, rtol=1e-6, atol=0)
    carried = mupscale.carry_optimizer(optimizer, model, wide, plan)
    gain = wide.model.norm.weight
    assert (carried.state[gain]["exp_avg"] != expected.state[gain]["exp_avg"]).double().mean() == 0.5


def test_eps_is_the_narrow_models(narrow, said, tmp_path):
    """And goes with the gradients: c = 1/2 for a matrix between what has doubled, 1 for the readout."""
    assert said("grow", narrow[-1], tmp_path / "wide", "--width", "2")[0] == 0
    status, told = said("hparams", tmp_path / "wide", "--lr", "1e-3", "--eps", "1e-6")
    eps = {name: group["eps"] for group in told["groups"] for name in group["param_names"]}
    assert (status, eps["model.layers.0.mlp.up_proj.weight"]) == (0, pytest.approx(1e-6 / 2))
    assert eps["lm_head.weight"] == pytest.approx(1e-6)


def test_coordinates_are_checked_along_depths(narrow, said, tmp_path):
    words = ["--depths", "2", "4", "--steps", "1", "--seeds", "1", "--parametrizations", "mup"]
    status, told = said("coord-check", narrow[-1], *words, "--out", tmp_path)
    assert (status, told["passed"]) == (0, True)
    assert all("keep their size at every depth" in line for line in told["verdicts"])
    assert {tuple(slope["sizes"]) for slope in told["slopes"]} == {("2", "4")}


def test_a_model_that_cannot_grow_is_examined_with_status_1(said, tmp_path):
    """Reformer runs on texts of some lengths alone."""
    config = ReformerConfig(
        is_decoder=True, hidden_size=16, num_attention_heads=2, attention_head_size=8, feed_forward_size=16,
        vocab_size=64, axial_pos_embds=False, attn_layers=["local"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    status, told = said("doctor", tmp_path)
    assert (status, told["model_type"]) == (1, "reformer")
    assert all(one["copies"] and one["fresh"] for one in told["growths"])  # why not
