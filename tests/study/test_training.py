"""Runs are exact: they depend on their settings alone, also when they are cut off, branched or carried on."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import mupscale
from mupscale import GrowthError
from mupscale.growth import grow_checkpoint
from mupscale.optim import Together
from mupscale.study.data.labelled import Labelled
from mupscale.study.data.tokens import Tokens
from mupscale.study.runs.history import History
from mupscale.study.runs.models import fresh_model
from mupscale.study.runs.networks import Classifier, mlp, resnet18
from mupscale.study.runs.optimizers import build_optimizer, carried_optimizer, decaying
from mupscale.study.runs.training import seen_blocks, train
from mupscale.study.spec.recipe import TrainConfig


class Killed(Exception):
    pass


class KillAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.step:
            raise Killed


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
    assert history.flops == 20 * tokens.step_flops(model, training)
    assert History.load(tmp_path) == history
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {"model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json"}
    assert "checkpoints" not in files
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(tokens.tokenizer)
    assert seen_blocks(tmp_path) == 80


@pytest.mark.parametrize("family", [LlamaConfig, GPT2Config])
def test_losses_are_the_models_own(
    family: type, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    # The Trainer counts the labels by itself, and for classes that it does not know it counts one too many.
    sizes: dict[str, Any] = {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = fresh_model(family(vocab_size=len(tokens.tokenizer), **sizes), 0)
    history = train(model, tokens, tmp_path, replace(training, steps=4))
    blocks = torch.stack([b["labels"] for b in tokens.held_out(training)])
    with torch.no_grad():
        own = model.cpu().eval()(input_ids=blocks, labels=blocks).loss.item()
    assert history.final_loss == pytest.approx(own, rel=1e-5)


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
    wide = mupscale.grow(model, plan, noise=None, operator="duplicate")
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
    with pytest.raises(GrowthError, match="expected at most the model's 64 positions"):
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


# ---- other models, other data, other optimizers ------------------------------------------------------------


@pytest.fixture(scope="session")
def clusters() -> Labelled:
    """Six inputs, three classes: which of three directions an item points to."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(250, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(dim=1)
    return Labelled(x[:200], y[:200], x[200:], y[200:], "clusters")


def network(factor: int = 1) -> Classifier:
    torch.manual_seed(0)
    return mlp(8 * factor, inputs=6, classes=3)


CLASSIFY = TrainConfig(
    steps=40, batch_size=16, lr=2e-2, warmup_steps=2, eval_every=10, eval_blocks=None, weight_decay=0.01
)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adamw", 2e-2)])
def test_a_plain_module_trains_and_is_resumed(
    optimizer: str, lr: float, clusters: Labelled, tmp_path: Path
) -> None:
    config = replace(CLASSIFY, optimizer=optimizer, lr=lr)
    whole = train(network(), clusters, tmp_path / "whole", config)
    assert whole.final_loss < whole.held_out[0].loss - 0.2
    assert whole.tokens_per_step == 16
    assert whole.flops_per_step == 3 * 2 * 16 * (6 * 8 + 2 * 8 * 8 + 8 * 3) - 2 * 16 * 6 * 8
    with pytest.raises(Killed):
        train(network(), clusters, tmp_path / "cut", config, callbacks=[KillAt(22)])
    assert train(network(), clusters, tmp_path / "cut", config) == whole
    (tmp_path / "whole" / "run.json").unlink()
    with pytest.raises(GrowthError, match="did not write"):
        train(network(), clusters, tmp_path / "whole", config)
    saved = network()
    load_model(saved, tmp_path / "whole" / "model.safetensors")
    with torch.no_grad():
        loss = saved(clusters.x_held_out, clusters.y_held_out)["loss"].item()
    # 50 items in batches of 13, 13, 13 and 11, which the Trainer counts alike
    assert loss == pytest.approx(whole.final_loss, rel=0.05)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adamw", 2e-2)])
def test_a_grown_plain_module_trains_in_lockstep(
    optimizer: str, lr: float, clusters: Labelled, tmp_path: Path
) -> None:
    """The second phase, of the narrow model and of its copy, with the optimizer carried."""
    first = replace(CLASSIFY, optimizer=optimizer, lr=lr, cooldown_fraction=0.0)
    narrow = network()
    train(narrow, clusters, tmp_path / "first", first)
    plan = mupscale.plan(network, width=3)
    second = replace(first, steps=20, skip_blocks=40 * 16, max_grad_norm=0.05)
    saved = carried_optimizer(narrow, second, None, tmp_path / "first")
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    fresh = build_optimizer(wide, second, plan)
    carried = mupscale.carry_optimizer(saved, narrow, wide, plan)
    assert [g["lr"] for g in carried.param_groups] == [g["lr"] for g in fresh.param_groups]
    left = train(wide, clusters, tmp_path / "wide", second, plan=plan, optimizer=carried)
    right = train(narrow, clusters, tmp_path / "narrow", second, optimizer=saved)
    assert [p.loss for p in left.held_out] == pytest.approx([p.loss for p in right.held_out], abs=1e-5)
    assert left.final_loss < left.held_out[0].loss


def test_muon_trains_is_resumed_and_carried(
    model_config: LlamaConfig, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    config = replace(training, optimizer="muon", cooldown_fraction=0.0)
    model = fresh_model(model_config, 0)
    whole = train(model, tokens, tmp_path / "whole", config)
    assert whole.final_loss < whole.held_out[0].loss - 0.3
    with pytest.raises(Killed):
        train(fresh_model(model_config, 0), tokens, tmp_path / "cut", config, callbacks=[KillAt(13)])
    assert train(fresh_model(model_config, 0), tokens, tmp_path / "cut", config) == whole

    second = replace(config, steps=10, skip_blocks=80)
    saved = carried_optimizer(model, second, None, tmp_path / "whole")
    assert len(saved.state) == len(list(model.parameters()))
    plan = mupscale.plan(model, width=2)
    wide = mupscale.grow(model, plan, noise=None, operator="duplicate")
    carried = mupscale.carry_optimizer(saved, model, wide, plan)
    assert isinstance(carried, Together)
    fresh = build_optimizer(wide, second, plan)
    assert {(g["lr"], g["weight_decay"]) for g in carried.param_groups} == {
        (g["lr"], g["weight_decay"]) for g in fresh.param_groups
    }
    grow_checkpoint(tmp_path / "whole", tmp_path / "grown", plan, noise=None, operator="duplicate")
    from_file = carried_optimizer(wide, second, plan, tmp_path / "grown")
    assert from_file.state.keys() == carried.state.keys()
    for param, state in carried.state.items():
        torch.testing.assert_close(from_file.state[param], state)
    rates = torch.load(tmp_path / "grown" / "scheduler.pt", weights_only=True)["base_lrs"]
    assert rates == pytest.approx([group["lr"] for group in from_file.param_groups])
    left = train(wide, tokens, tmp_path / "wide", second, plan=plan, optimizer=carried)
    right = train(model, tokens, tmp_path / "narrow", second, optimizer=saved)
    # Muon's iteration is in bfloat16
    assert [p.loss for p in left.held_out] == pytest.approx([p.loss for p in right.held_out], abs=0.02)


def test_muon_takes_the_hidden_matrices(model: PreTrainedModel) -> None:
    optimizer = build_optimizer(model, TrainConfig(optimizer="muon"))
    names = {id(p): n for n, p in model.named_parameters()}
    muon = [names[id(p)] for g in optimizer.param_groups if "adjust_lr_fn" in g for p in g["params"]]
    assert len(muon) == 7
    assert all(name.startswith("model.layers.0.") for name in muon)
    plan = mupscale.plan(network, width=2)
    wide = build_optimizer(network(2), TrainConfig(optimizer="muon"), plan)
    shapes = [tuple(p.shape) for g in wide.param_groups if "adjust_lr_fn" in g for p in g["params"]]
    assert shapes == [(16, 6), (16, 16), (16, 16)]


def test_batch_norms_do_not_decay() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert decaying(module) == {"0.weight"}


def test_what_cannot_be_trained_is_named(tokens: Tokens, tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match="optimizer is 'adam', expected one of adamw, sgd, muon"):
        TrainConfig(optimizer="adam")
    with pytest.raises(GrowthError, match="momentum is 1, expected at least 0 and less than 1"):
        TrainConfig(momentum=1)
    for key in ("lr", "weight_decay", "eps", "max_grad_norm"):
        for value in (float("inf"), float("nan")):
            with pytest.raises(GrowthError, match=f"{key} is {value}, expected a finite number"):
                TrainConfig(**{key: value})
    for seed in (-1, 2**32):
        with pytest.raises(GrowthError, match=f"seed is {seed}, expected 0 to 4294967295"):
            TrainConfig(seed=seed)
    with pytest.raises(GrowthError, match="optimizer muon: only a plan tells hidden matrices"):
        build_optimizer(network(), TrainConfig(optimizer="muon"))
    make = partial(resnet18, channels=1, classes=2)
    with pytest.raises(GrowthError, match="no hidden matrices"):
        build_optimizer(make(2), TrainConfig(optimizer="muon"), mupscale.plan(make, width=2))
    with pytest.raises(GrowthError, match="a Classifier does not train on text"):
        train(network(), tokens, tmp_path, CLASSIFY)
