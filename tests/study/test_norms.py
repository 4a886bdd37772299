"""Sizes of activations, weights and gradients, recorded while a Trainer trains."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from mupscale.study.data.tokens import Tokens
from mupscale.study.runs.models import fresh_model
from mupscale.study.runs.norms import RecordNorms, sizes, watch_activations
from mupscale.study.runs.training import train
from mupscale.study.spec.recipe import TrainConfig


def test_sizes_are_per_entry() -> None:
    assert sizes(torch.tensor([3.0, -4.0, 0.0, 5.0])) == pytest.approx((3.0, 12.5**0.5))


def test_activations_are_those_of_the_forward_pass(model_config: LlamaConfig) -> None:
    model = fresh_model(model_config, 0)
    with watch_activations(model) as found:
        output = model(torch.arange(8)[None])
    assert found["lm_head"] == [pytest.approx(sizes(output.logits))]
    assert "model.layers.0.mlp.down_proj" in found
    with watch_activations(model) as again:
        pass
    assert not again
    model(torch.arange(8)[None])
    assert not again  # nothing watches any more


def test_a_trainer_records_every_few_steps_and_the_last(
    tokens: Tokens, model_config: LlamaConfig, training: TrainConfig, tmp_path: Path
) -> None:
    norms = RecordNorms(every=4)
    model = fresh_model(model_config, 0)
    start = {name: sizes(param) for name, param in model.named_parameters()}
    plain = train(fresh_model(model_config, 0), tokens, tmp_path / "plain", replace(training, steps=10))
    watched = train(model, tokens, tmp_path / "watched", replace(training, steps=10), callbacks=[norms])
    assert [p.loss for p in watched.train] == [p.loss for p in plain.train]  # watching changes nothing
    rows = norms.rows()
    assert {step for step, *_ in rows} == {0, 4, 8, 9}
    first = {(kind, name): (l1, l2) for step, kind, name, l1, l2 in rows if step == 0}
    for name, expected in start.items():  # of one layer: each stands for itself
        name = name.replace("layers.0", "layers.*")
        assert first["weight", name] == pytest.approx(expected)
        assert first["gradient", name][0] > 0
    assert first["activation", "model.embed_tokens"][0] == pytest.approx(
        first["weight", "model.embed_tokens.weight"][0], rel=0.2
    )
    assert json.loads(json.dumps(rows)) == rows


def test_layers_are_told_together_as_their_mean(
    tokens: Tokens, model_config: LlamaConfig, training: TrainConfig, tmp_path: Path
) -> None:
    model_config.num_hidden_layers = 2
    model, norms = fresh_model(model_config, 0), RecordNorms()
    first, second = (sizes(layer.mlp.up_proj.weight) for layer in model.model.layers)
    train(model, tokens, tmp_path, replace(training, steps=1, warmup_steps=0), callbacks=[norms])
    found = {(kind, name): found for _, kind, name, *found in norms.rows()}
    mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert found["weight", "model.layers.*.mlp.up_proj.weight"] == pytest.approx(mean)
