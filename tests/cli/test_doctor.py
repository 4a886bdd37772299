"""`mupscale doctor`: everything that was found out, and why what is refused is refused."""

import json

import pytest
from transformers import CTRLConfig, Dinov2Config, GPT2Config

import mupscale
from models import CONFIGS
from mupscale.cli import main


@pytest.fixture
def examined(tmp_path, capsys):
    def examined(config):
        config.save_pretrained(tmp_path)
        status = main(["doctor", str(tmp_path), "--json"])
        said = json.loads(capsys.readouterr().out)
        return status, said, {one["growth"]: one for one in said["growths"]}

    return examined


def test_of_a_llama_it_says_what_grows_and_why_head_dims_do_not(examined):
    status, said, growths = examined(CONFIGS["llama"]())
    assert status == 0
    follows = {axis["axis"]: axis["follows"] for axis in said["axes"]}
    assert follows["d_model"] == "hidden_size"
    assert follows["layers"] == "num_hidden_layers"
    for name in ("width", "d_model", "d_ff"):
        assert [growths[name][key] for key in ("copies", "fresh", "exact")] == [None] * 3
    assert "rotary" in growths["head_dim"]["copies"]
    assert growths["layers"]["copies"] is None
    assert "wider and no deeper" in growths["layers"]["fresh"]
    assert {fold["tensor"] for fold in growths["layers"]["folds"]} == {
        "model.layers.*.self_attn.o_proj.weight",
        "model.layers.*.mlp.down_proj.weight",
    }
    tensors = {row["tensor"]: row for row in said["tensors"]}
    assert tensors["model.layers.*.self_attn.q_proj.weight"]["axes"].endswith("[d_model]")
    assert "readout" in tensors["lm_head.weight"]["note"]


def test_what_it_says_is_what_a_plan_does(examined):
    config = GPT2Config(n_embd=32, n_head=4, n_layer=2)
    _, _, growths = examined(config)
    plan = mupscale.plan(config, width=2)
    assert growths["width"]["grows"] == {axis: str(g) for axis, g in plan.growth.items()}
    folds = {name.replace(".0.", ".*."): s.fold for name, s in plan.params.items() if s.fold != 1}
    assert {fold["tensor"]: fold["times"] for fold in growths["width"]["folds"]} == folds
    with pytest.raises(mupscale.GrowthError) as refused:
        mupscale.plan(config, axes={"d_model": 2})
    assert growths["d_model"]["copies"] == str(refused.value)


def test_what_a_run_does_not_reach_is_named(examined):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    config.architectures = ["Dinov2ForImageClassification"]
    _, said, growths = examined(config)
    missed = [row["tensor"] for row in said["tensors"] if row["note"].startswith("not reached")]
    assert any(name.endswith("mask_token") for name in missed)
    assert "mask_token" in growths["width"]["copies"]


def test_people_read_it_in_tables_and_lines(tmp_path, capsys):
    CTRLConfig(n_embd=16, dff=32, n_layer=2, n_head=2).save_pretrained(tmp_path)
    main(["doctor", str(tmp_path)])
    told = capsys.readouterr().out
    for words in ("What can grow, by 2", "by even copies?", "d_ff", "transformer.w.weight"):
        assert words in told
    assert "constants in transformer differ along it" in told


def test_what_is_no_checkpoint_is_one_line(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
