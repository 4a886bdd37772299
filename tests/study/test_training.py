"""Runs are exact: they depend on their settings alone, also when they are cut off, branched or carried on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, Trainer

import mupscale
from mupscale import GrowthError
from mupscale.study.data import Tokens
from mupscale.study.flops import training_flops
from mupscale.study.history import History
from mupscale.study.models import fresh_model
from mupscale.study.recipe import TrainConfig, build_optimizer, carried_optimizer
from mupscale.study.training import seen_blocks, train


class Killed(Exception):
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def assert_same(left: Path, right: Path) -> None:
    for (name, a), b in zip(weights(left).items(), weights(right).values(), strict=True):
        assert torch.equal(a, b), name


def curve(history: History) -> list[tuple[int, float]]:
    return [(p.step, p.loss) for p in history.held_out]


@pytest.fixture
def model(model_config: LlamaConfig) -> PreTrainedModel:
    return fresh_model(model_config, 0)


def test_training_learns_and_leaves_a_whole_checkpoint(
    model: PreTrainedModel, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    history = train(model, tokens, tmp_path, training)
    assert history.final_loss < history.held_out[0].loss - 0.3
    assert [p.step for p in history.held_out] == [0, 5, 10, 15, 20]
    assert [p.step for p in history.train] == list(range(1, 21))
    assert history.flops == 20 * training_flops(model.config, batch_size=4, block_size=16)
    assert History.load(tmp_path) == history
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {"model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json"}
    assert "checkpoints" not in files
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(tokens.tokenizer)
    assert seen_blocks(tmp_path) == 80


def test_schedule_is_warmup_constant_cooldown(
    model: PreTrainedModel, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    train(model, tokens, tmp_path, training)
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] / training.lr for entry in log if "learning_rate" in entry]
    assert rates == pytest.approx([0, 0.5] + [1.0] * 15 + [0.75, 0.5, 0.25])


def test_killed_run_ends_as_if_it_had_not_been(
    model_config: LlamaConfig,
    tokens: Tokens,
    training: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train(fresh_model(model_config, 0), tokens, tmp_path / "whole", training)
    step = Trainer.training_step
    calls = 0

    def dying(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 14:
            raise Killed
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", dying)
        with pytest.raises(Killed):
            train(fresh_model(model_config, 0), tokens, tmp_path / "cut", training)
    # What a kill in the middle of saving leaves behind must not be resumed from.
    broken = tmp_path / "cut" / "checkpoints" / "checkpoint-13"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_')
    resumed = train(fresh_model(model_config, 0), tokens, tmp_path / "cut", training)
    assert curve(resumed) == curve(whole)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_finished_run_is_not_repeated_and_another_is_not_overwritten(
    model_config: LlamaConfig,
    tokens: Tokens,
    training: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = train(fresh_model(model_config, 0), tokens, tmp_path, training)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", lambda *_: pytest.fail("trained again"))
        assert train(fresh_model(model_config, 0), tokens, tmp_path, training) == first
    other = replace(training, lr=5e-3)
    with pytest.raises(GrowthError, match=r"other settings \(lr was 0\.01, now 0\.005\)"):
        train(fresh_model(model_config, 0), tokens, tmp_path, other)
    assert train(fresh_model(model_config, 0), tokens, tmp_path, other, overwrite=True) != first


def test_branch_of_a_longer_run_is_the_shorter_run(
    model_config: LlamaConfig, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    longer = replace(training, steps=40)
    alone = train(fresh_model(model_config, 0), tokens, tmp_path / "alone", training)
    train(fresh_model(model_config, 0), tokens, tmp_path / "trunk", longer, keep_at=[training.cooldown_start])
    trunk = tmp_path / "trunk" / "checkpoints" / "checkpoint-16"
    branch = train(fresh_model(model_config, 1), tokens, tmp_path / "branch", training, branch_from=trunk)
    assert curve(branch) == curve(alone)
    assert_same(tmp_path / "alone", tmp_path / "branch")


def test_wide_model_trains_in_lockstep_with_the_narrow_one(
    model: PreTrainedModel, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    """Groups, schedule, decay and clipping through the Trainer: pure copies follow the narrow model."""
    plan = mupscale.plan(model, width=2)
    wide = mupscale.grow(model, plan, noise=None)
    clipped = replace(training, max_grad_norm=0.2, log_every=5)  # low enough to clip most steps
    narrow = train(model, tokens, tmp_path / "narrow", clipped)
    grown = train(wide, tokens, tmp_path / "wide", clipped, plan=plan)
    assert [p.loss for p in grown.held_out] == pytest.approx([p.loss for p in narrow.held_out], abs=1e-4)
    assert grown.final_loss < grown.held_out[0].loss - 0.3


def test_decay_spares_norms_and_biases(model: PreTrainedModel) -> None:
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.3))
    names = {id(p): n for n, p in model.named_parameters()}
    decay, rest = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert all("norm" in name for name in rest)
    assert not any("norm" in name for name in decay)
    assert len(decay) + len(rest) == len(names)


def test_carried_optimizer_starts_a_fresh_phase(
    model_config: LlamaConfig, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    train(fresh_model(model_config, 0), tokens, tmp_path / "first", training)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    second = replace(training, lr=4e-3, skip_blocks=80)
    optimizer = carried_optimizer(model, second, None, tmp_path / "first")
    assert {group["lr"] for group in optimizer.param_groups} == {4e-3}  # it was zero after the cooldown
    assert all(float(state["step"]) == 20 for state in optimizer.state.values())
    train(model, tokens, tmp_path / "second", second, optimizer=optimizer)
    state = torch.load(tmp_path / "second" / "optimizer.pt", weights_only=True)
    assert {float(s["step"]) for s in state["state"].values()} == {40.0}
    log = json.loads((tmp_path / "second" / "trainer_state.json").read_text())["log_history"]
    assert max(entry.get("learning_rate", 0) for entry in log) == pytest.approx(4e-3)


def test_bad_input_is_named(
    model: PreTrainedModel, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(GrowthError, match="only 64 positions"):
        train(model, tokens, tmp_path / "a", replace(training, block_size=128))
    with pytest.raises(GrowthError, match="do not fit into 3 steps"):
        replace(training, steps=3, warmup_steps=3)
    with pytest.raises(GrowthError, match=r"optimizer\.pt: not there"):
        carried_optimizer(model, training, None, tmp_path)
    train(model, tokens, tmp_path / "b", training)
    shutil.copy(tmp_path / "b" / "config.json", tmp_path)
    with pytest.raises(GrowthError, match="did not write"):
        train(model, tokens, tmp_path, training)
    small = LlamaConfig(**{**model.config.to_dict(), "vocab_size": 200})
    with pytest.raises(GrowthError, match="the tokenizer has 300 entries"):
        train(fresh_model(small, 0), tokens, tmp_path / "c", training)
