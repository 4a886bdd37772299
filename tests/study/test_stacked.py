"""A stack of runs is the runs themselves: the same curves and weights, whoever else is in the stack."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import mupscale
from models import CONFIGS
from mupscale import GrowthError
from mupscale.study.data.tokens import Tokens
from mupscale.study.runs.history import Point
from mupscale.study.runs.models import fresh_model
from mupscale.study.runs.optimizers import build_optimizer, carried_optimizer
from mupscale.study.runs.stacked import Member, train_stacked
from mupscale.study.runs.training import train
from mupscale.study.spec.recipe import TrainConfig

PLAIN = TrainConfig(
    steps=6, batch_size=4, lr=0.05, warmup_steps=0, cooldown_fraction=0.0, eval_every=4, max_grad_norm=0.0
)


class Classifier(nn.Module):
    """Any network, with the loss in what it returns."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def mlp(seed: int, *, d_hidden: int = 8) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, d_hidden), nn.Tanh(), nn.Linear(d_hidden, 3)))


def convnet(seed: int) -> Classifier:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return Classifier(body.append(nn.Linear(64, 3)))


def with_dropout(seed: int) -> Classifier:
    model = mlp(seed)
    model.body.insert(3, nn.Dropout(0.5))
    return model


def pictures(seed: int, count: int = 48) -> list[dict[str, Tensor]]:
    noise = torch.Generator().manual_seed(seed)
    return [
        {"inputs": torch.randn(1, 6, 6, generator=noise) + i % 3, "labels": torch.tensor(i % 3)}
        for i in range(count)
    ]


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=0.01)


def member(model: nn.Module, seed: int, *, lr: float = 0.05, **changes: Any) -> Member:
    given = {
        "config": replace(PLAIN, seed=seed),
        "train": pictures(seed),
        "held_out": pictures(100, count=10),
    }
    return Member(model=model, optimizer=sgd(model, lr), **{**given, **changes})


def alone(run: Member) -> tuple[Point, ...]:
    """The run by a loop of its own, at a constant rate."""
    config, curve = run.config, []

    def batch(dataset: Dataset[Any], first: int, last: int) -> dict[str, Tensor]:
        return default_collate([dataset[place] for place in range(first, last)])

    for step in range(config.steps + 1):
        if step % config.eval_every == 0 or step == config.steps:
            run.model.eval()
            count = len(run.held_out)
            with torch.no_grad():
                losses = [run.model(**batch(run.held_out, i, i + 1))["loss"] for i in range(count)]
            curve.append(Point(step=step, loss=(sum(losses) / count).item()))
        if step < config.steps:
            run.model.train()
            run.optimizer.zero_grad()
            places = step * config.batch_size, (step + 1) * config.batch_size
            run.model(**batch(run.train, *places))["loss"].backward()
            run.optimizer.step()
    return tuple(curve)


def assert_same_curve(found: Sequence[Point], expected: Sequence[Point], tolerance: float = 1e-5) -> None:
    assert [p.step for p in found] == [p.step for p in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=tolerance), f"step {a.step}"


def assert_same_weights(found: nn.Module, expected: nn.Module, tolerance: float = 1e-5) -> None:
    ours = found.state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, atol=tolerance, rtol=tolerance, msg=f"{name} differs")


def language_member(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, config: TrainConfig, tokens: Tokens, **more: Any
) -> Member:
    data = {"train": tokens.training(config), "held_out": tokens.held_out(config)}
    return Member(model=model, optimizer=optimizer, config=config, **data, **more)


# ---- the Trainer's runs ------------------------------------------------------------------------------------


def test_a_stack_of_llamas_trains_as_the_trainer_does(
    model_config: LlamaConfig, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    base = replace(training, steps=12, eval_blocks=7)  # the last batch of the evaluation is not full
    configs = [
        base,
        replace(base, lr=3e-2, seed=1, max_grad_norm=0.1),
        replace(base, lr=3e-3, seed=2, warmup_steps=6, cooldown_fraction=0.5, max_grad_norm=0.0),
    ]
    expected = [fresh_model(model_config, config.seed) for config in configs]
    models = copy.deepcopy(expected)
    curves = train_stacked(
        [language_member(m, build_optimizer(m, c), c, tokens) for m, c in zip(models, configs, strict=True)]
    )
    for i, config in enumerate(configs):
        history = train(expected[i], tokens, tmp_path / str(i), config)
        assert_same_curve(curves[i], history.held_out)
        assert_same_weights(models[i], expected[i], 1e-4)
        assert curves[i][-1].loss < curves[i][0].loss


def test_grown_models_go_on_with_their_own_groups_state_and_clipping(
    model_config: LlamaConfig, tokens: Tokens, training: TrainConfig, tmp_path: Path
) -> None:
    narrow, config = fresh_model(model_config, 0), replace(training, steps=6, max_grad_norm=0.1)
    train(narrow, tokens, tmp_path, config)
    plan = mupscale.plan(narrow.config, width=2)
    starts: list[dict[str, Any] | None] = [{}, {"noise": None}, {"operator": "zero_pad"}, None]
    configs = [replace(config, seed=i) for i in range(len(starts))]

    def begin(how: dict[str, Any] | None, c: TrainConfig) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
        if how is None:
            wide = mupscale.init_(AutoModelForCausalLM.from_config(plan.config), plan, seed=c.seed)
        else:
            wide = mupscale.grow(narrow, plan, seed=c.seed, **how)
        optimizer = build_optimizer(wide, c, plan)
        if how is not None and "operator" not in how:
            saved = carried_optimizer(narrow, c, None, tmp_path)
            optimizer.state.update(mupscale.carry_optimizer(saved, narrow, wide, plan).state)
        return wide, optimizer

    def started() -> list[tuple[PreTrainedModel, torch.optim.Optimizer]]:
        return [begin(how, c) for how, c in zip(starts, configs, strict=True)]

    curves = train_stacked(
        [
            language_member(model, optimizer, c, tokens, plan=plan)
            for (model, optimizer), c in zip(started(), configs, strict=True)
        ]
    )
    for i, (model, optimizer) in enumerate(started()):
        history = train(model, tokens, tmp_path / str(i), configs[i], plan=plan, optimizer=optimizer)
        assert_same_curve(curves[i], history.held_out)


def test_bfloat16_computes_in_it_and_keeps_weights_in_float32(
    model_config: LlamaConfig, tokens: Tokens, training: TrainConfig
) -> None:
    curves = []
    for config in (training, replace(training, bf16=True)):  # the Trainer has it on a GPU only
        model = fresh_model(model_config, 0)
        curves += train_stacked([language_member(model, build_optimizer(model, config), config, tokens)])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same_curve(curves[1], curves[0], 3e-2)
    assert curves[0] != curves[1]


# ---- any network, any optimizer ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama_tied", "mistral", "qwen2", "qwen3", "gpt_neox"])
def test_every_family_stacks_tied_or_not(family: str) -> None:
    torch.manual_seed(0)
    models = [AutoModelForCausalLM.from_config(CONFIGS[family]()).double() for _ in range(2)]
    ids = torch.randint(0, 61, (24, 16))
    data = [{"input_ids": row, "labels": row} for row in ids]
    runs = [
        member(m, i, lr=0.05 * (i + 1), train=data[i:], held_out=data[:4], config=replace(PLAIN, steps=3))
        for i, m in enumerate(models)
    ]
    others = copy.deepcopy(runs)
    for curve, run, other in zip(train_stacked(runs), runs, others, strict=True):
        assert_same_curve(curve, alone(other), 1e-6)  # norms compute in float32
        assert_same_weights(run.model, other.model, 1e-6)


@pytest.mark.parametrize("network", [mlp, convnet])
@pytest.mark.parametrize("same_data", [True, False], ids=["same data", "own data"])
def test_a_network_with_momentum_and_running_statistics_trains_as_in_a_plain_loop(
    network: Callable[[int], Classifier], same_data: bool
) -> None:
    shared = {"train": pictures(0), "held_out": pictures(100, count=10)} if same_data else {}
    runs = [member(network(seed), seed, lr=0.02 * (seed + 1), **shared) for seed in range(3)]
    others = copy.deepcopy(runs)
    for curve, run, other in zip(train_stacked(runs), runs, others, strict=True):
        assert_same_curve(curve, alone(other))
        assert_same_weights(run.model, other.model)
    assert {p.untyped_storage().nbytes() for p in runs[0].model.parameters()} == {
        p.nbytes for p in runs[0].model.parameters()
    }


def test_state_that_an_optimizer_brings_counts() -> None:
    runs = [member(mlp(seed), seed, config=replace(PLAIN, steps=12)) for seed in range(2)]
    whole = copy.deepcopy(runs)
    expected = train_stacked(whole)
    halves = [replace(run, config=replace(PLAIN, steps=6)) for run in runs]
    train_stacked(halves)
    for run, half in zip(runs, halves, strict=True):
        object.__setattr__(half, "train", run.train[24:])
    assert [c[-1].loss for c in train_stacked(halves)] == pytest.approx([c[-1].loss for c in expected])


def test_dropout_differs_between_members_and_not_between_calls() -> None:
    def losses() -> list[float]:
        shared = {"train": pictures(0), "held_out": pictures(1)}
        return [c[-1].loss for c in train_stacked([member(with_dropout(0), 0, **shared) for _ in range(2)])]

    state = torch.get_rng_state()
    first = losses()
    torch.set_rng_state(state)
    assert first[0] != first[1]
    assert losses() == first


def test_frozen_weights_stay() -> None:
    runs = [member(mlp(seed), seed) for seed in range(2)]
    for run in runs:
        run.model.body[1].weight.requires_grad_(False)
    before = copy.deepcopy(runs)
    train_stacked(runs)
    for run, was in zip(runs, before, strict=True):
        assert torch.equal(run.model.body[1].weight, was.model.body[1].weight)
        assert not torch.equal(run.model.body[3].weight, was.model.body[3].weight)


# ---- members leave -----------------------------------------------------------------------------------------


def test_members_that_leave_change_nothing_for_the_others() -> None:
    config = replace(PLAIN, steps=12)

    def runs(rates: Sequence[float]) -> list[Member]:
        return [member(mlp(i), i, lr=lr, config=replace(config, seed=i)) for i, lr in enumerate(rates)]

    expected = [alone(run) for run in runs([0.05, 0.02, 0.05, 0.01])]
    found, seen = runs([0.05, 0.02, math.inf, 0.01]), []

    def prune(index: int, step: int, loss: float) -> bool:
        seen.append((index, step))
        return index == 1 and step == 8

    curves = train_stacked(found, on_evaluate=prune)
    assert_same_curve(curves[0], expected[0])
    assert_same_curve(curves[3], expected[3])
    assert_same_curve(curves[1], expected[1][:3])
    assert [p.step for p in curves[2]] == [0, 4]
    assert not math.isfinite(curves[2][-1].loss)
    assert seen == [(i, s) for s in (0, 4) for i in range(4)] + [(0, 8), (1, 8), (3, 8), (0, 12), (3, 12)]


def test_a_stack_that_all_leave_is_done() -> None:
    curves = train_stacked([member(mlp(i), i) for i in range(2)], on_evaluate=lambda index, step, loss: True)
    assert [[p.step for p in curve] for curve in curves] == [[0], [0]]
    assert train_stacked([]) == []


# ---- members that do not fit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: member(mlp(1, d_hidden=9), 1), "member 1: body.1.weight is [9, 36]"),
        (lambda: member(convnet(1), 1), "member 1: body.1.weight is [4, 1, 3, 3]"),
        (lambda: member(mlp(1), 1, config=replace(PLAIN, steps=5)), "member 1: steps is 5, in member 0 6"),
        (lambda: member(mlp(1), 1, config=replace(PLAIN, batch_size=3)), "member 1: batch_size is 3"),
        (lambda: member(mlp(1), 1, config=replace(PLAIN, eval_every=1)), "member 1: eval_every is 1"),
        (
            lambda: member(mlp(1), 1, held_out=pictures(0, 24)),
            "member 1: held_out is 24 items, in member 0 10",
        ),
        (lambda: member(mlp(1), 1, train=pictures(0, 23)), "member 1: 23 training items, expected 24"),
    ],
)
def test_members_that_do_not_fit_are_named(other: Callable[[], Member], message: str) -> None:
    with pytest.raises(GrowthError) as caught:
        train_stacked([member(mlp(0), 0), other()])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_no_shape_shows_is_seen_in_the_config(
    model_config: LlamaConfig, tokens: Tokens, training: TrainConfig
) -> None:
    other = copy.deepcopy(model_config)
    other.rms_norm_eps = 0.1
    models = [fresh_model(config, 0) for config in (model_config, other)]
    runs = [language_member(m, sgd(m, 0.1), training, tokens) for m in models]
    with pytest.raises(GrowthError, match="member 1: rms_norm_eps is 0.1"):
        train_stacked(runs)


def test_one_model_cannot_be_two_members() -> None:
    model = mlp(0)
    with pytest.raises(GrowthError, match="two members train the same model"):
        train_stacked([member(model, 0), member(model, 1)])


def test_a_window_narrower_than_the_block_is_refused(tokens: Tokens, training: TrainConfig) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["mistral"]())
    model.config.sliding_window = 8
    with pytest.raises(GrowthError, match="sliding_window is 8, less than block_size 16"):
        train_stacked([language_member(model, sgd(model, 0.1), training, tokens)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_stack_trains_as_on_the_cpu() -> None:
    runs = [member(convnet(seed), seed, config=replace(PLAIN, steps=3)) for seed in range(3)]
    train_stacked(runs)  # leaves a state that has to move along
    others = copy.deepcopy(runs)
    for curve, expected in zip(train_stacked(runs, device="cuda"), train_stacked(others), strict=True):
        assert_same_curve(curve, expected, 1e-3)
    assert next(runs[0].model.parameters()).is_cuda
