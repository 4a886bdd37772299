"""The engine on tiny models: every kind of sweep, resumed, stacked or not, with diverged and pruned points."""

import itertools
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from optuna.samplers import RandomSampler, TPESampler
from transformers import Trainer

from mupscale import GrowthError
from mupscale.cli import main
from mupscale.study.files import locating
from mupscale.study.questions.transfer import transfer
from mupscale.study.runs.history import History
from mupscale.study.runs.lab import Lab
from mupscale.study.runs.models import small_llama
from mupscale.study.runs.training import train
from mupscale.study.work import queue
from mupscale.study.work.board import MOST_MORE
from mupscale.study.work.driver import Job, estimate, run
from mupscale.study.work.results import collect
from mupscale.study.work.worker import Worker

STUDY = """\
seeds = 2

[model]
family = "llama"
layers = 1

[widths]
narrow = 32
large = 64
check = [32, 64]

[data]
vocab_size = 300
max_bytes = 200000

[training]
batch_size = 4
block_size = 32
warmup_steps = 2
eval_every = 4
eval_blocks = 8
log_every = 2
save_every = 1000

[scratch]
steps = 8
lr = [0.004, 0.008]

[grow]
steps = 8
lr = [0.002, 0.004]
noise = [0, 1.0]

[final]
steps = 16
lr = [0.004]
lengths = [0.5, 1]
"""
# The same for a classifier, whose runs take no time.
DIGITS = STUDY.replace('family = "llama"\nlayers = 1', 'family = "mlp"\nlayers = 2').replace(
    "[data]", '[data]\nsource = "digits"'
)


@pytest.fixture
def study(tmp_path):
    def write(text=STUDY, name="study"):
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return Job(file=path, out=tmp_path / name)

    return write


def lab_of(board):
    return Lab(board.budget, board.trained)


def work(job, *, stack=1, said=None):
    lines = [] if said is None else said
    with locating(job.file):
        board = job.open()
        Worker(lab_of(board), board, stack=stack, say=lines.append).work()
        return collect(board)


def some(job, *sweeps, **more):
    return replace(job, sweeps=sweeps, **more)


def begin(job, name):
    """A sweep as the first worker finds it: the storage has its settings from here on, and no trial."""
    board = job.open()
    assert not board.queue(board.study.sweeps[name]).results()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study worked off, what was said on the way, and its results."""
    path = tmp_path_factory.mktemp("finished") / "study.toml"
    path.write_text(STUDY)
    job, said = Job(file=path, out=path.with_suffix("")), []
    return job, said, work(job, said=said)


def sweep(results, name):
    return next(sweep for sweep in results["sweeps"] if sweep["name"] == name)


def losses(results, name):
    return {tuple(row["point"].items()): row["loss"] for row in sweep(results, name)["points"]}


def test_the_whole_procedure(finished):
    """Each stage takes the best of those before; what is finished is not repeated."""
    job, said, results = finished
    assert [s["name"] for s in results["sweeps"]] == [
        "scratch-32",
        "base-32",
        "base-64",
        "grow-32",
        "grown-64",
        "fresh-128",
    ]
    assert all(s["finished"] for s in results["sweeps"])
    best = sweep(results, "scratch-32")["best"]["point"]
    assert {row["point"]["lr"] for row in sweep(results, "base-64")["points"]} == {best["lr"]}
    grow = sweep(results, "grow-32")["best"]["point"]
    for row in sweep(results, "grown-64")["points"]:
        assert row["point"]["noise"] == grow["noise"]
        short, long = row["lengths"]
        assert (short["steps"], long["steps"]) == (8, 16)
        assert long["loss"] == row["loss"] < short["loss"]
    assert {row["point"]["lr"] for row in sweep(results, "grown-64")["points"]} == {0.004, grow["lr"]}
    assert all(
        len(row["losses"]) == 2 and row["spread"] > 0 for s in results["sweeps"] for row in s["points"]
    )
    # 2 rates, 2 + 2 base models, 4 points, and 2 seeds at each rate of the last stage.
    assert len(said) == 2 + 2 + 2 + 4 + 2 * len(losses(results, "grown-64")) + 2 * len(
        losses(results, "fresh-128")
    )
    again = []
    assert {**work(job, said=again), "seconds": 0} == {**results, "seconds": 0}
    assert again == []


def test_where_nothing_is_left_no_worker_is_started(finished, monkeypatch):
    job, _, results = finished
    monkeypatch.setattr(multiprocessing, "get_context", None)
    assert {**run(job, jobs=2), "seconds": 0} == {**results, "seconds": 0}


def test_costs_are_those_of_the_runs(finished):
    """FLOPs by sweep: of one step, times the steps that were really trained; as the dry run foretells."""
    job, _, results = finished
    foretold = {row["sweep"]: row["flops"] for row in estimate(job)}
    scratch, large = sweep(results, "scratch-32"), sweep(results, "fresh-128")
    assert scratch["flops"] == scratch["flops_per_step"] * 2 * 2 * 8
    grown = sweep(results, "grown-64")
    # To the start of the longer cooldown once, and both cooldowns.
    steps = (16 - 3) + 3 + 2
    assert grown["flops"] == grown["flops_per_step"] * steps * 2 * len(grown["points"])
    assert grown["flops_per_step"] == large["flops_per_step"]
    for name in ("scratch-32", "base-32", "base-64", "grow-32"):
        assert sweep(results, name)["flops"] == foretold[name]


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_stack_finds_what_separate_runs_find(study, finished, optimizer):
    text = STUDY.replace("[training]", f'[training]\noptimizer = "{optimizer}"')
    stages = ("scratch-32", "base-32", "grow-32")
    *_, alone = finished  # under AdamW, one run after another
    if optimizer != "adamw":
        alone = work(some(study(text, "alone"), *stages))
    together = work(some(study(text, "together"), *stages), stack=8)
    for name in ("scratch-32", "grow-32"):
        ours, theirs = losses(together, name), losses(alone, name)
        assert ours.keys() == theirs.keys()
        for point, loss in ours.items():
            assert loss == pytest.approx(theirs[point], abs=1e-5 if optimizer == "adamw" else 2e-3)


def test_grown_runs_begin_where_the_base_model_ended(finished):
    """Balanced noise keeps the function, however strong; the carried optimizer and the rates are another thing."""
    *_, results = finished
    base = sweep(results, "base-32")["points"][0]["loss"]
    for row in sweep(results, "grow-32")["points"]:
        assert row["curve"][0][1] == pytest.approx(base, abs=1e-4)


def test_what_is_fresh_has_the_size_that_mup_gives_it_from_the_narrowest(finished):
    """Noise that was tuned at n would otherwise be √(N/n) times too strong at N."""
    board = finished[0].open()
    lab, name = lab_of(board), "model.layers.0.mlp.gate_proj.weight"
    grow = board.study.sweeps["grow-32"]
    for width in (32, 64):
        pure, noisy = (
            lab.begin(
                replace(grow, source=f"base-{width}", name=f"grow-{width}"),
                {"lr": 0.004, "noise": noise, "noise_kind": "gaussian"},
                0,
            ).model.get_parameter(name)
            for noise in (0, 1.0)
        )
        fresh = lab.workload.fresh(lab.workload.size(2 * width), 0).get_parameter(name)
        assert (noisy - pure).std().item() == pytest.approx(fresh.std().item(), rel=0.05)


def test_growth_does_not_draw_the_numbers_that_the_model_began_with(study):
    job = study(DIGITS)
    work(some(job, "scratch-32", "base-32"))
    board = job.open()
    lab, grow = lab_of(board), board.study.sweeps["grow-32"]
    noise = {"lr": 0.004, "noise": 1.0, "noise_kind": "gaussian"}
    pure, noisy = (lab.begin(grow, {**noise, "noise": n}, 0).model.body[1].weight for n in (0, 1.0))
    began = lab.workload.fresh(32, 0).body[1].weight
    drawn = (noisy - pure)[: len(began)]
    assert abs(torch.corrcoef(torch.stack([drawn.flatten(), began.flatten()]))[0, 1]) < 0.1


def test_the_base_models_optimizer_is_read_as_it_was_trained(study, finished):
    """With its own weight decay, whatever that of growth is; the carried state is its, scaled."""
    there = study(STUDY.replace("noise = [0, 1.0]", "weight_decay = 0.0"))
    board = replace(there, out=finished[0].out).open()
    run = lab_of(board).begin(board.study.sweeps["grow-32"], {"lr": 0.004}, 0)
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0.0}
    assert all(state["exp_avg_sq"].any() for state in run.optimizer.state.values())


def test_a_diverged_point_is_the_worst_and_no_crash(study):
    text = STUDY.replace("lr = [0.004, 0.008]", "lr = [0.008, 1e30]").replace(
        "[training]", "[training]\nmax_grad_norm = 0.0"
    )
    results = work(some(study(text), "scratch-32"))
    assert losses(results, "scratch-32")[("lr", 1e30),] == math.inf
    states = [row["state"] for row in sweep(results, "scratch-32")["points"]]
    assert states == ["complete", "diverged"]
    assert sweep(results, "scratch-32")["best"]["point"] == {"lr": 0.008}


def test_where_everything_diverges_the_field_is_named(study):
    text = STUDY.replace("lr = [0.004, 0.008]", "lr = [1e30]").replace(
        "[training]", "[training]\nmax_grad_norm = 0.0"
    )
    with pytest.raises(
        GrowthError, match=r"study\.toml:28: \[scratch\] lr: every point diverged; give lower"
    ):
        work(study(text))


@pytest.mark.parametrize(
    ("sampler", "stack"), [("random", 4), pytest.param("tpe", 1, marks=pytest.mark.slow)]
)
def test_other_samplers_knobs_and_pruning(study, sampler, stack, monkeypatch):
    for kind in (RandomSampler, TPESampler):  # what they draw is the same every time
        monkeypatch.setattr(queue, kind.__name__, partial(kind, seed=3))
    text = (
        STUDY[: STUDY.index("[grow]")]
        + f"""\
[grow]
steps = 8
lr = {{ low = 0.0001, high = 5.0, log = true }}
operator = ["duplicate", "zero_pad"]
optimizer_state = ["carried", "fresh"]
warmup_steps = [1, 2]
shrink = [0.4, 1.0]
sampler = "{sampler}"
trials = 8
pruner = "median"

[final]
steps = 8
"""
    )
    job = some(study(text), "scratch-32", "base-32", "grow-32")
    grow = sweep(work(job, stack=stack), "grow-32")
    assert grow["finished"]
    assert len(grow["points"]) == 8
    assert all(0.0001 <= row["point"]["lr"] <= 5 for row in grow["points"])
    for knob in ("operator", "optimizer_state", "warmup_steps", "shrink"):
        assert len({row["point"][knob] for row in grow["points"]}) == 2
    worst = max(grow["points"], key=lambda row: row["point"]["lr"])
    assert worst["point"]["lr"] > 1
    assert worst["state"] == "pruned"
    for row in grow["points"]:
        assert (row["loss"] is None) == (row["state"] == "pruned")
        assert row["state"] != "pruned" or row["steps"] < 16


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_classifiers_are_tuned_alike(study, optimizer):
    text = f"""\
seeds = 2
[model]
family = "mlp"
layers = 3
[widths]
narrow = 8
large = 16
check = [8, 16]
[data]
source = "digits"
[training]
optimizer = "{optimizer}"
batch_size = 32
warmup_steps = 1
max_grad_norm = 0.0
eval_every = 10
[scratch]
steps = 30
lr = [0.01, 0.02]
[grow]
steps = 20
lr = [0.01]
noise = [0.5, 1]
[final]
steps = 20
"""
    results = work(study(text), stack=4)
    assert sweep(results, "fresh-32")["best"]["loss"] < 2.2
    checked = work(some(study(text), check_transfer=True), stack=4)
    assert [row["width"] for row in checked["sweeps"] if row["begin"] == "grow"] == [32, 16]
    assert losses(checked, "grow-8") == losses(results, "grow-8")  # shared, not repeated


def test_a_stage_alone_needs_those_before(study):
    job = study(DIGITS)
    with pytest.raises(GrowthError, match="base-32 needs scratch-32, which is not finished; run that, too"):
        work(some(job, "base-32", "base-64"))
    with pytest.raises(GrowthError, match="sweep 'groww': expected some of scratch-32, base-32"):
        work(some(job, "groww"))
    work(some(job, "scratch-32"))
    results = work(some(job, "base-32", "base-64"))
    assert sweep(results, "base-64")["finished"]
    assert not sweep(results, "fresh-128")["finished"]


def test_a_study_with_other_settings_is_not_mixed_with_the_old(study):
    job = study()
    begin(job, "scratch-32")
    study(STUDY.replace("batch_size = 4", "batch_size = 8"))
    with pytest.raises(
        GrowthError,
        match=r"study/scratch-32: was begun with other settings \(settings.config.batch_size was 4, now 8\)",
    ):
        work(some(job, "scratch-32"))


def test_another_narrow_width_is_another_study(study):
    """Its learning rates are said as another model's."""
    text = DIGITS.replace("large = 64\ncheck = [32, 64]", "large = 64\ncheck = [64, 128]")
    job = study(text)
    work(some(job, "scratch-32"))
    begin(job, "base-64")
    study(text.replace("narrow = 32", "narrow = 64"))
    with pytest.raises(
        GrowthError, match=r"base-64: was begun with other settings \(settings\.model\.width was 32, now 64\)"
    ):
        work(some(job, "scratch-64", "base-64"))


def test_another_config_under_the_same_name_is_another_study(study, tmp_path):
    small_llama(32, 1, vocab_size=300, positions=64).save_pretrained(tmp_path / "own")
    job = study(STUDY.replace('family = "llama"\nlayers = 1', 'config = "own/config.json"'))
    begin(job, "scratch-32")
    small_llama(32, 2, vocab_size=300, positions=64).save_pretrained(tmp_path / "own")
    with pytest.raises(
        GrowthError, match=r"scratch-32: was begun with other settings \(settings\.model_config was"
    ):
        work(some(job, "scratch-32"))


def test_the_transfer_check_needs_a_grid(study):
    text = STUDY.replace("noise = [0, 1.0]", 'noise = [0, 1.0]\nsampler = "tpe"\ntrials = 4')
    with pytest.raises(GrowthError, match=r"\[grow\] sampler: the transfer check needs the same points"):
        work(some(study(text), check_transfer=True))


# ---- other kinds of sweeps ---------------------------------------------------------------------------------

LINE = """\
growth_seed = 0

[model]
family = "llama"
layers = 1

[data]
vocab_size = 300
max_bytes = 200000

[training]
batch_size = 4
block_size = 32
warmup_steps = 2
eval_every = 4
eval_blocks = 8
log_every = 2
save_every = 1000

[sweep.narrow]
width = 32
parametrization = "standard"
steps = 8
seeds = 1
lr = 0.008

[sweep.grown]
from = "narrow"
growth = 2
lengths = [0.5, 8]
steps = 16
try = { lr = [0.002, 0.004], operator = ["duplicate", "zero_pad"] }
seeds = 3
search_seeds = 1
verify = true

[sweep.continued]
begin = "continue"
from = "narrow"
steps = 8
lr = 0.004
seeds = 1

[sweep.scratch]
width = 64
after = "narrow"
steps = 8
lengths = [1.0]
constant = true
lr = 0.008
match = "grown"
seeds = 2
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    path = tmp_path_factory.mktemp("line") / "line.toml"
    path.write_text(LINE)
    job = Job(file=path, out=path.with_suffix(""))
    return job, work(job)


def test_all_seeds_may_grow_one_model(line):
    """Each on text of its own, and only the first tries every point."""
    _, results = line
    grown = sweep(results, "grown")
    seeds = {tuple(row["point"].values()): row["seeds"] for row in grown["points"]}
    best = tuple(grown["best"]["point"].values())
    assert seeds == {point: [0, 1, 2] if point == best else [0] for point in seeds}
    assert len(seeds) == 4
    assert grown["seeds"] == 3
    chosen = next(row for row in grown["points"] if len(row["seeds"]) == 3)
    assert len(set(chosen["losses"])) == 3
    assert (grown["done"], grown["total"]) == (6, 6)


DEEPER = """\
seeds = 1
[model]
family = "llama"
width = 32
layers = 1
[data]
vocab_size = 300
max_bytes = 200000
[training]
batch_size = 4
block_size = 32
warmup_steps = 2
eval_every = 8
eval_blocks = 8
save_every = 1000
[sweep.scratch]
layers = [2, 1]
steps = 8
try = { lr = [0.004, 0.008, 0.016] }
[sweep.grown]
from = "scratch"
layers = 4
steps = 8
lr = 0.008
operator = ["duplicate", "stack", "stack_identity"]
verify = true
[[question]]
ask = "transfer"
of = ["scratch"]
"""


@pytest.mark.slow
def test_depth_is_swept_as_width_is(study):
    """Every size from scratch is of the shallowest's hyperparameters, and each grows; in words, too."""
    job = study(DEEPER.replace('from = "scratch"', 'from = "scratch-2"'))
    results = work(job)
    assert [(s["name"], s["layers"], s["from_layers"]) for s in results["sweeps"]] == [
        ("scratch-2", 2, None),
        ("grown", 4, 2),
        ("scratch-1", 1, None),
    ]
    assert len(sweep(results, "grown")["points"]) == 3
    with locating(job.file):
        board = job.open()
    sizes = {name: board.budget.size(each) for name, each in board.study.sweeps.items()}
    assert {name: size.num_hidden_layers for name, size in sizes.items()} == {
        "scratch-2": 2,
        "scratch-1": 1,
        "grown": 4,
    }
    plan = board.budget.workload.relative(sizes["grown"])
    assert plan["model.layers.3.mlp.down_proj.weight"].weight_scale == 1 / 4
    found = transfer(results, of=["scratch-2", "scratch-1"]).headline
    assert found.startswith("From 32 with 1 layers to 32 with 2 layers, 2 times as deep, the optimum")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers = 4", "growth = 2", r"\[sweep.grown\] operator: 'stack' makes a model deeper and no wider"),
        ('"stack_identity"', '"expand"', r"operator: 'expand' makes a model wider and no deeper"),
        ("layers = [2, 1]", "layers = [2, 2]", r"\[sweep.scratch\] layers: \[2, 2\]: expected different"),
        (
            "layers = [2, 1]",
            "layers = 0",
            r"\[sweep.scratch\] layers: 0: expected a whole number of at least 1",
        ),
        ('"llama"\nwidth = 32\nlayers = 1', '"mlp"\nwidth = 32\nlayers = 3', "only language models grow in"),
        ("layers = 1\n[data]", "layers = 2\n[data]", "cannot grow by 1/2"),
    ],
)
def test_a_depth_that_cannot_be_is_said(study, old, new, message):
    text = DEEPER.replace(old, new)
    if '"mlp"' in new:
        text = text.replace("vocab_size = 300\nmax_bytes = 200000", 'source = "digits"')
    with pytest.raises(GrowthError, match=message):
        work(study(text))


WIDER = """\
seeds = 2
[model]
family = "mlp"
layers = 3
[data]
source = "digits"
[training]
batch_size = 32
warmup_steps = 1
max_grad_norm = 0.0
eval_every = 20
eval_blocks = 64
save_every = 1000
[sweep.scratch]
width = 8
steps = 20
try = { lr = [0.0001, 0.0002, 0.0004] }
search_seeds = 1
widen = true
"""


def test_a_grid_gets_wider_until_the_best_is_inside_or_no_more_is_to_be_had(study):
    job = study(WIDER)
    row = sweep(work(job), "scratch")
    rates = sorted({point["point"]["lr"] for point in row["points"]})
    assert rates == pytest.approx([0.0001 * 2**i for i in range(3 + MOST_MORE)])  # more is better so far
    assert row["at_edge"] == ["lr"]
    assert row["finished"]
    assert len(row["points"][-1]["seeds"]) == 2
    before = losses(work(job), "scratch")
    study(WIDER.replace("0.0001, 0.0002, 0.0004", "0.001, 0.01, 0.1, 1.0"))
    row = sweep(work(job), "scratch")
    assert row["at_edge"] == []
    assert row["best"]["point"]["lr"] > 0.0064
    assert before.items() <= losses({"sweeps": [row]}, "scratch").items()


def test_who_only_looks_on_sees_the_wider_grid(study):
    """As the process that shows how far its workers are, and waits for them to finish."""
    job = study(WIDER)
    onlooker = job.open()
    scratch = onlooker.study.sweeps["scratch"]
    assert (onlooker.queue(scratch).total, onlooker.is_finished(scratch)) == (3, False)
    work(job)
    assert onlooker.is_finished(scratch)
    assert onlooker.queue(scratch).total == 3 + MOST_MORE


def test_only_a_grid_of_rates_gets_wider(study):
    with pytest.raises(GrowthError, match="widen: there is no grid of rates to widen"):
        work(study(WIDER.replace("try = { lr = [0.0001, 0.0002, 0.0004] }", "lr = 0.01")))


def test_growing_is_verified_where_asked(line):
    _, results = line
    for row in sweep(results, "grown")["points"]:
        assert row["equality"]["equal"] == (row["point"]["operator"] == "duplicate")
    assert sweep(results, "scratch")["points"][0]["equality"] is None


def test_what_is_continued_goes_on_with_model_optimizer_and_text(line):
    job, results = line
    board = job.open()
    lab, continued = lab_of(board), board.study.sweeps["continued"]
    run = lab.begin(continued, {"lr": 0.004}, 0)
    narrow = sweep(results, "narrow")["points"][0]
    assert sweep(results, "continued")["points"][0]["curve"][0][1] == pytest.approx(narrow["loss"], abs=1e-6)
    assert run.config.skip_blocks == 8 * 4
    assert {float(state["step"]) for state in run.optimizer.state.values()} == {8.0}


def test_a_constant_run_is_kept_beside_its_cooldown(line):
    _, results = line
    scratch = sweep(results, "scratch")
    row = scratch["points"][0]
    assert row["curve"][-1][0] == scratch["lengths"][-1] == row["lengths"][-1]["steps"]
    assert row["curve"][-1][1] != row["loss"] == row["lengths"][-1]["loss"]
    # One more length: the FLOPs of a grown run and of the narrow one before it.
    narrow, grown = sweep(results, "narrow"), sweep(results, "grown")
    assert scratch["lengths"][-1] == round(
        (narrow["run_flops"] + grown["run_flops"]) / scratch["flops_per_step"]
    )


def test_lengths_that_leave_one_run_end_as_runs_of_their_own(line, tmp_path):
    """Up to its cooldown a run does not depend on its length, and loses no step of it."""
    job, results = line
    grown = sweep(results, "grown")
    board = job.open()
    lab, source = lab_of(board), board.study.sweeps["grown"]
    row = grown["points"][0]
    for end in row["lengths"]:
        begun = lab.begin(source, row["point"], 0)
        config = replace(begun.config, steps=end["steps"])
        history = train(
            begun.model,
            lab.workload.data,
            tmp_path / str(end["steps"]),
            config,
            plan=begun.plan,
            optimizer=begun.optimizer,
        )
        assert history.final_loss == pytest.approx(end["losses"][0], abs=1e-6)


def test_a_checkpoint_is_grown_as_a_sweep_s_run_is(line, tmp_path):
    """Of the narrow model's settings nothing is lost: the same study on its checkpoint finds the same losses."""
    job, results = line
    shutil.copytree(job.out / "narrow", tmp_path / "narrow")
    text = LINE[: LINE.index("[sweep.narrow]")] + '[sweep.narrow]\nbegin = "checkpoint"\n'
    text += LINE[LINE.index("[sweep.grown]") - 1 : LINE.index("[sweep.continued]")]
    text = text.replace('family = "llama"\nlayers = 1', 'checkpoint = "narrow"')
    (tmp_path / "own.toml").write_text(text)
    own = work(Job(file=tmp_path / "own.toml", out=tmp_path / "own"))
    assert losses(own, "grown") == pytest.approx(losses(results, "grown"), abs=1e-6)
    narrow, before = sweep(own, "narrow"), sweep(results, "narrow")
    assert narrow["best"]["loss"] == before["best"]["loss"]
    for key in ("run_flops", "flops", "steps", "width", "parameters"):
        assert narrow[key] == before[key], key


def test_sizes_are_recorded_on_the_way(study):
    text = (
        LINE[: LINE.index("[sweep.continued]")]
        .replace("verify = true", "record = 4")
        .replace("lengths = [0.5, 8]\n", "")
    )
    job = study(text, "recorded")
    rows = sweep(work(job), "grown")["points"]
    norms = rows[0]["norms"]
    assert {kind for _, kind, *_ in norms} == {"activation", "weight", "gradient"}
    assert {step for step, *_ in norms} == {0, 4, 8, 12, 15}
    assert ("model.layers.*.mlp", "activation") in {(name, kind) for _, kind, name, *_ in norms}


def test_a_killed_run_goes_on_where_it_was(study, monkeypatch):
    job = study(
        LINE[: LINE.index("[sweep.grown]")].replace("save_every = 1000", "save_every = 2") + "keep = true\n",
        "cut",
    )
    steps = itertools.count()
    step = Trainer.training_step

    def dies(*args, **kwargs):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        work(job)
    assert sweep(work(job), "narrow")["finished"]
    assert next(steps) == 5 + 1 + 4  # from the checkpoint at step 4 on
    assert History.load(job.out / "narrow").steps == 8


# ---- processes ---------------------------------------------------------------------------------------------


def done(job):
    """The finished trials, and when each was."""
    if not job.file.is_file():
        return set()
    board = job.open()
    return {
        (s.name, t.number, t.datetime_complete)
        for s in board.selected
        if board.is_open(s)
        for t in board.queue(s).results()
    }


def kill_five_times(words, job):
    """Run a command and kill it, each time after it has finished another trial; what was done stays done."""
    known = set()
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-m", "mupscale", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and len(done(job)) <= len(known) and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        now = done(job)
        assert known <= now
        known = now
    return known


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_a_study_that_is_killed_five_times_repeats_nothing_and_ends_the_same(study, workers):
    calm = run(study(), jobs=1)
    job = study(name="killed")
    known = kill_five_times(["tune", str(job.file), "--jobs", str(workers), "--out", str(job.out)], job)
    killed = run(job, jobs=workers)
    for name in ("scratch-32", "grow-32", "grown-64", "fresh-128"):
        assert losses(killed, name) == pytest.approx(losses(calm, name), abs=1e-6)
        assert sweep(killed, name)["done"] == sweep(killed, name)["total"] == sweep(calm, name)["total"]
    assert known <= done(job)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_a_comparison_that_is_killed_five_times_ends_the_same(narrow, text_file, tmp_path, workers):
    words = ["--widths", "2", "--starts", "scratch", "duplicate", "zero_pad", "--seeds", "2", "--steps", "16"]
    words += ["--lrs", "1", "0.5", "--data", str(text_file), "--held-out", "0.1", "--jobs", str(workers)]
    assert main(["compare", str(narrow), str(tmp_path / "calm"), *words]) == 0
    calm = run(Job(file=tmp_path / "calm/study.toml", out=tmp_path / "calm"))
    job = Job(file=tmp_path / "killed/study.toml", out=tmp_path / "killed")
    known = kill_five_times(["compare", str(narrow), str(job.out), *words], job)
    killed = run(job, jobs=workers)
    for row in calm["sweeps"]:
        assert losses(killed, row["name"]) == pytest.approx(losses(calm, row["name"]), abs=1e-6)
        assert sweep(killed, row["name"])["done"] == row["done"] == row["total"]
    assert known <= done(job)


@pytest.mark.slow
def test_the_command_line(study, capsys, tmp_path):
    job = study()
    assert main(["tune", str(job.file), "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "report.html" in out
    assert (tmp_path / "study" / "report.html").is_file()
    assert (tmp_path / "study" / "runs.csv").is_file()
    assert main(["tune", str(job.file), "--check-transfer", "--jobs", "2", "--json"]) in (0, 1)


def test_dry_run_writes_no_trials(study, capsys, tmp_path):
    job = study()
    assert main(["tune", str(job.file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "grow-32" in out
    assert not (tmp_path / "study" / "trials.journal").exists()
