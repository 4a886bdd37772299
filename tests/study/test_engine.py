"""The procedure on tiny models: every stage, resumed, stacked or not, with diverged and pruned points."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mupscale import GrowthError
from mupscale.cli import main
from mupscale.study.runs.models import small_llama
from mupscale.study.tune.driver import Job, dry, summarize, tune
from mupscale.study.tune.procedure import selected
from mupscale.study.tune.results import transfer
from mupscale.study.tune.worker import Worker

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


@pytest.fixture
def study(tmp_path):
    def write(text=STUDY, name="study"):
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return Job(file=path, out=tmp_path / name)

    return write


def work(job, *, stack=1, said=None):
    lab, board = job.open()
    lines = [] if said is None else said
    Worker(lab, board, selected(board.sweeps, job.stages), stack=stack, say=lines.append).work()
    return summarize(lab, board)


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
        assert sorted(row["lengths"]) == [8, 16]
        assert row["lengths"][16] == row["loss"] < row["lengths"][8]
    assert {row["point"]["lr"] for row in sweep(results, "grown-64")["points"]} == {0.004, grow["lr"]}
    assert all(
        len(row["losses"]) == 2 and row["spread"] > 0 for s in results["sweeps"] for row in s["points"]
    )
    assert results["final"]["tuned"]["scratch_loss"] == sweep(results, "fresh-128")["best"]["loss"]
    # 2 rates, 2 + 2 base models, 4 points, and 2 seeds at each rate of the last stage.
    assert len(said) == 2 + 2 + 2 + 4 + 2 * len(losses(results, "grown-64")) + 2 * len(
        losses(results, "fresh-128")
    )
    again = []
    assert work(job, said=again) == results
    assert again == []


def test_costs_are_those_of_the_runs(finished):
    """FLOPs by sweep: of one step, times the steps that were really trained; as the dry run foretells."""
    job, _, results = finished
    foretold = {row["sweep"]: row["flops"] for row in dry(job)}
    scratch, large = sweep(results, "scratch-32"), sweep(results, "fresh-128")
    assert scratch["flops"] == scratch["flops_per_step"] * 2 * 2 * 8
    grown = sweep(results, "grown-64")
    # To the start of the longer cooldown once, and both cooldowns.
    steps = (16 - 3) + 3 + 2
    assert grown["flops"] == grown["flops_per_step"] * steps * 2 * len(grown["points"])
    assert grown["flops_per_step"] == large["flops_per_step"]
    tuned = results["tuned"]
    assert tuned["flops"] == sum(
        sweep(results, name)["flops"] for name in ("scratch-32", "base-32", "grow-32")
    )
    assert tuned["share_of_large_run"] == tuned["flops"] / (large["flops_per_step"] * 16)
    for name in ("scratch-32", "base-32", "base-64", "grow-32"):
        assert sweep(results, name)["flops"] == foretold[name]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stack_finds_what_separate_runs_find(study, optimizer):
    text = STUDY.replace("[training]", f'[training]\noptimizer = "{optimizer}"')
    alone, together = (
        work(
            Job(file=study(text, name).file, out=study(text, name).out, stages=("scratch", "base", "grow")),
            stack=stack,
        )
        for name, stack in (("alone", 1), ("together", 8))
    )
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


def test_what_is_fresh_has_the_size_that_mup_gives_it_from_the_narrowest(study):
    """Noise that was tuned at n would otherwise be √(N/n) times too strong at N."""
    lab, board = study().open()
    stage = lab.study.grow
    work(Job(file=study().file, out=study().out, stages=("scratch", "base")))
    name = "model.layers.0.mlp.gate_proj.weight"
    for width in (32, 64):
        pure, noisy = (
            lab.grown(
                stage, width, {"lr": 0.004, "noise": noise, "noise_kind": "gaussian"}, 0
            ).model.get_parameter(name)
            for noise in (0, 1.0)
        )
        fresh = lab.workload.fresh(2 * width, 0).get_parameter(name)
        assert (noisy - pure).std().item() == pytest.approx(fresh.std().item(), rel=0.05)
    assert board.about == lab.workload.data.about


def test_growth_does_not_draw_the_numbers_that_the_model_began_with(study):
    text = (
        STUDY.replace('family = "llama"', 'family = "mlp"')
        .replace("[data]", '[data]\nsource = "digits"')
        .replace("layers = 1", "layers = 2")
    )
    job = study(text)
    work(Job(file=job.file, out=job.out, stages=("scratch", "base")))
    lab, _ = job.open()
    noise = {"lr": 0.004, "noise": 1.0, "noise_kind": "gaussian"}
    pure, noisy = (
        lab.grown(lab.study.grow, 32, {**noise, "noise": n}, 0).model.body[1].weight for n in (0, 1.0)
    )
    began = lab.workload.fresh(32, 0).body[1].weight
    drawn = (noisy - pure)[: len(began)]
    assert abs(torch.corrcoef(torch.stack([drawn.flatten(), began.flatten()]))[0, 1]) < 0.1


def test_the_base_models_optimizer_is_read_as_it_was_trained(study):
    """With its own weight decay, whatever that of growth is; the carried state is its, scaled."""
    job = study(STUDY.replace("noise = [0, 1.0]", "weight_decay = 0.0"))
    work(Job(file=job.file, out=job.out, stages=("scratch", "base")))
    lab, _ = job.open()
    run = lab.grown(lab.study.grow, 32, {"lr": 0.004}, 0)
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0.0}
    assert all(state["exp_avg_sq"].any() for state in run.optimizer.state.values())


def test_a_diverged_point_is_the_worst_and_no_crash(study):
    text = STUDY.replace("lr = [0.004, 0.008]", "lr = [0.008, 1e30]").replace(
        "[training]", "[training]\nmax_grad_norm = 0.0"
    )
    results = work(Job(file=study(text).file, out=study(text).out, stages=("scratch",)))
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


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("stack", [1, 4])
def test_other_samplers_knobs_and_pruning(study, sampler, stack):
    text = (
        STUDY[: STUDY.index("[grow]")]
        + f"""\
[grow]
steps = 8
lr = {{ low = 0.0001, high = 0.05, log = true }}
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
    job = Job(file=study(text).file, out=study(text).out, stages=("scratch", "base", "grow"))
    grow = sweep(work(job, stack=stack), "grow-32")
    assert grow["finished"]
    assert len(grow["points"]) == 8
    assert all(0.0001 <= row["point"]["lr"] <= 0.05 for row in grow["points"])
    for row in grow["points"]:
        assert (row["loss"] is None) == (row["state"] == "pruned")
        assert row["state"] != "pruned" or row["steps"] < 16


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
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
    assert results["final"]["tuned"]["scratch_loss"] < 2.2
    checked = work(Job(file=study(text).file, out=study(text).out, check_transfer=True), stack=4)
    assert checked["transfer"]["width_ratio"] == 2
    assert losses(checked, "grow-8") == losses(results, "grow-8")  # shared, not repeated


def test_a_stage_alone_needs_those_before(study):
    job = study()
    with pytest.raises(
        GrowthError, match=r"base-32 needs scratch-32: run that stage, too \(--stages scratch\)"
    ):
        work(Job(file=job.file, out=job.out, stages=("base",)))
    with pytest.raises(GrowthError, match="stage 'groww': expected some of scratch, base, grow, final"):
        work(Job(file=job.file, out=job.out, stages=("groww",)))
    work(Job(file=job.file, out=job.out, stages=("scratch",)))
    results = work(Job(file=job.file, out=job.out, stages=("base",)))
    assert sweep(results, "base-64")["finished"]
    assert results["final"] is None


def test_a_study_with_other_settings_is_not_mixed_with_the_old(study):
    job = study()
    work(Job(file=job.file, out=job.out, stages=("scratch",)))
    study(STUDY.replace("batch_size = 4", "batch_size = 8"))
    with pytest.raises(
        GrowthError,
        match=r"study/scratch-32: was begun with other settings \(settings.config.batch_size was 4, now 8\)",
    ):
        work(Job(file=job.file, out=job.out, stages=("scratch",)))


def test_another_narrow_width_is_another_study(study):
    """Its learning rates are said as another model's."""
    text = STUDY.replace("large = 64\ncheck = [32, 64]", "large = 64\ncheck = [64, 128]")
    job = study(text)
    work(Job(file=job.file, out=job.out, stages=("scratch", "base")))
    study(text.replace("narrow = 32", "narrow = 64"))
    with pytest.raises(
        GrowthError, match=r"base-64: was begun with other settings \(settings\.narrow was 32, now 64\)"
    ):
        work(Job(file=job.file, out=job.out, stages=("scratch", "base")))


def test_another_config_under_the_same_name_is_another_study(study, tmp_path):
    small_llama(32, 1, vocab_size=300, positions=64).save_pretrained(tmp_path / "own")
    job = study(STUDY.replace('family = "llama"\nlayers = 1', 'config = "own/config.json"'))
    work(Job(file=job.file, out=job.out, stages=("scratch",)))
    small_llama(32, 2, vocab_size=300, positions=64).save_pretrained(tmp_path / "own")
    with pytest.raises(
        GrowthError, match=r"scratch-32: was begun with other settings \(settings\.model_config was"
    ):
        work(Job(file=job.file, out=job.out, stages=("scratch",)))


def test_the_transfer_check_needs_a_grid(study):
    text = STUDY.replace("noise = [0, 1.0]", 'noise = [0, 1.0]\nsampler = "tpe"\ntrials = 4')
    with pytest.raises(GrowthError, match=r"\[grow\] sampler: the transfer check needs the same points"):
        work(Job(file=study(text).file, out=study(text).out, check_transfer=True))


def grow_sweep(width, table):
    points = [
        {"point": {"lr": lr, "noise": noise}, "loss": loss, "state": "complete"}
        for (lr, noise), loss in table.items()
    ]
    best = min(points, key=lambda row: row["loss"])
    return {"width": width, "to": 2 * width, "points": points, "best": {**best, "spread": 0.0}, "at_edge": []}


def test_transfer_is_judged_by_factor_and_regret():
    narrow = grow_sweep(32, {(1, 1): 1.0, (2, 1): 1.1, (4, 1): 1.2})
    same = grow_sweep(128, {(1, 1): 0.902, (2, 1): 0.9, (4, 1): 1.0})
    found = transfer([same, narrow])
    assert found["factor"] == {"lr": 2, "noise": 1}
    assert found["regret"] == pytest.approx(0.902 / 0.9 - 1)
    assert found["width_ratio"] == 4
    assert found["transfers"]
    far = transfer([narrow, grow_sweep(128, {(1, 1): 0.902, (2, 1): 0.91, (4, 1): 0.9})])
    assert far["factor"]["lr"] == 4
    assert not far["transfers"]
    dear = transfer([narrow, grow_sweep(128, {(1, 1): 0.95, (2, 1): 0.9, (4, 1): 1.0})])
    assert not dear["transfers"]
    gone = transfer([narrow, grow_sweep(128, {(1, 1): math.inf, (2, 1): 0.9, (4, 1): 1.0})])
    assert gone["regret"] == math.inf
    assert not gone["transfers"]
    assert transfer([narrow]) is None
    lost = {**same, "width": 256, "best": None}
    assert transfer([narrow, same, lost])["diverged"] == [256]
    assert not transfer([narrow, same, lost])["transfers"]


# ---- processes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_five_times_it_repeats_nothing_and_ends_with_the_same_table(study, tmp_path):
    calm = tune(study(), jobs=1)
    job = study(name="killed")
    command = [sys.executable, "-m", "mupscale", "tune", str(job.file), "--jobs", "2", "--out", str(job.out)]
    known = set()

    def done():
        _, board = job.open()
        return {
            (s.name, t.number, t.datetime_complete)
            for s in board.sweeps
            if board.is_open(s)
            for t in board.queue(s).results()
        }

    for _ in range(5):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and len(done()) <= len(known) and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        now = done()
        assert known <= now  # what was done is still there, as it was
        known = now
    killed = tune(job, jobs=2)
    for name in ("scratch-32", "grow-32", "grown-64", "fresh-128"):
        assert losses(killed, name) == pytest.approx(losses(calm, name), abs=1e-6)
    assert known <= done()


@pytest.mark.slow
def test_the_command_line(study, capsys, tmp_path):
    job = study()
    assert main(["tune", str(job.file), "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "report.html" in out
    assert (tmp_path / "study" / "report.html").is_file()
    assert (tmp_path / "study" / "trials.csv").is_file()
    assert main(["tune", str(job.file), "--check-transfer", "--jobs", "2", "--json"]) in (0, 1)


def test_dry_run_writes_no_trials(study, capsys, tmp_path):
    job = study()
    assert main(["tune", str(job.file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "grow-32" in out
    assert not (tmp_path / "study" / "trials.journal").exists()
    assert torch.get_num_threads() >= 1
