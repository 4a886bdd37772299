"""Whole studies of a tiny MLP: which models are kept, what ends where, what diverges, what a look leaves alone."""

import json
import math

import pytest
import torch

from mupscale.errors import GrowthError
from mupscale.study.page import json_safe
from mupscale.study.questions import answers
from mupscale.study.runs import lab
from mupscale.study.runs.models import small_llama
from mupscale.study.work.driver import Job, estimate, run

MODEL = """
[model]
family = "mlp"
[data]
source = "digits"
[training]
warmup_steps = 1
batch_size = 8
eval_every = 5
eval_blocks = 16
save_every = 1000
cooldown_fraction = 0.2
"""


@pytest.fixture
def job(tmp_path):
    def write(text, **more):
        file = tmp_path / "study.toml"
        seeds, _, sweeps = text.partition("\n")
        file.write_text(f"{seeds}\n{MODEL}\n{sweeps}")
        return Job(file=file, out=tmp_path / "out", **more)

    return write


def found(results, name):
    return next(sweep for sweep in results["sweeps"] if sweep["name"] == name)


FURTHER_SEEDS = """seeds = 2
[sweep.base]
width = 8
steps = 10
try = { lr = [0.01, 0.02] }
search_seeds = 1
[sweep.grown]
from = "base"
growth = 2
steps = 10
lr = 0.01
"""


def test_further_seeds_are_grown_from_as_the_first_is(job):
    results = run(job(FURTHER_SEEDS))
    assert found(results, "grown")["points"][0]["seeds"] == [0, 1]


def test_a_run_that_others_begin_from_and_that_diverged_is_named(job, monkeypatch):
    train = lab.train

    def spoiled(model, data, out, config, **more):
        if out.parent.name == "base+":
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)
        return train(model, data, out, config, **more)

    monkeypatch.setattr(lab, "train", spoiled)
    with pytest.raises(
        GrowthError, match=r"sweep.base.*lr: with seed 1 it diverged, and others begin from it"
    ):
        run(job(FURTHER_SEEDS))


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("asked", ["lengths = [5, 10]", "record = 2", "keep = true"])
def test_a_sampler_changes_nothing_of_what_is_wanted_of_a_run(job, asked, stack):
    sampled = 'sampler = "random"\ntrials = 2\ntry = { lr = { low = 0.01, high = 0.02 } }'
    text = f"seeds = 1\n[sweep.a]\nwidth = 8\nsteps = 10\n{asked}\n{sampled}\n"
    study = job(text, stack=stack)
    point = found(run(study), "a")["points"][0]
    wanted = {
        "lengths = [5, 10]": [end["steps"] for end in point["lengths"]] == [5, 10],
        "record = 2": bool(point["norms"]),
        "keep = true": bool([*(study.out / "a").glob("*/model.safetensors")]),
    }
    assert wanted[asked]


def test_every_run_is_known_by_its_own_seed(job):
    results = run(job("seeds = [3, 7]\n[sweep.a]\nwidth = 8\nsteps = 5\nlr = 0.01\n"))
    assert found(results, "a")["points"][0]["seeds"] == [3, 7]


def test_a_dry_run_leaves_a_study_as_it_was(job):
    text = "seeds = 1\n[sweep.a]\nwidth = 8\nsteps = 5\nlr = [0.01, 0.02]\n"
    run(job(text))
    before = (job(text).journal).read_bytes()
    (row,) = estimate(job(text.replace("0.02]", "0.02, 0.04, 0.08]")))
    assert (row["done"], row["runs"]) == (2, 4)
    assert (job(text).journal).read_bytes() == before


def test_torch_has_as_many_threads_afterwards_as_before(job):
    before = torch.get_num_threads()
    study = job("seeds = 1\n[sweep.a]\nwidth = 8\nsteps = 5\nlr = 0.01\n", threads=before + 1)
    for call in estimate, run:
        call(study)
        assert torch.get_num_threads() == before


def test_a_dry_run_counts_what_a_run_would_do(job):
    study = job(FURTHER_SEEDS, sweeps=("base",))
    assert [(row["sweep"], row["runs"]) for row in estimate(study)] == [("base", 2), ("base+", 1)]
    with pytest.raises(GrowthError, match="sweep 'typo': expected some of base"):
        estimate(job(FURTHER_SEEDS, sweeps=("typo",)))


LATE = "seeds = 1\n[sweep.a]\nwidth = 8\nsteps = 20\nlengths = [5, 20]\nlr = [0.01, 0.02]\n"


def test_what_diverges_late_counts_where_it_ended_before(job, monkeypatch):
    """A rate that is too high for a long run may be the best of a short one."""
    whole = found(run(job(LATE)), "a")
    train = lab.train

    class Spoil(lab.Listen):
        def on_step_end(self, args, state, control, **more):
            if state.global_step == 12:
                with torch.no_grad():
                    next(more["model"].parameters()).fill_(math.nan)

    def spoiled(*args, callbacks=(), **more):
        return train(*args, callbacks=[*callbacks, Spoil()], **more)

    monkeypatch.setattr(lab, "train", spoiled)
    study = job(LATE)
    study.journal.unlink()
    cut = found(run(study), "a")
    assert [point["state"] for point in cut["points"]] == ["diverged"] * 2
    assert [end["steps"] for end in cut["best_ends"]] == [5]
    assert cut["best_ends"][0]["loss"] == whole["best_ends"][0]["loss"]
    assert [point["steps"] for point in cut["points"]] == [
        15 + 1
    ] * 2  # of the trunk, and the short one's cooldown
    assert not [*(study.out / "runs" / "a").iterdir()]
    json.dumps(json_safe(cut), allow_nan=False)


def test_a_pruner_and_lengths_do_not_go_together(job):
    sampled = 'sampler = "random"\ntrials = 2\npruner = "median"\ntry = { lr = { low = 0.01, high = 0.02 } }'
    with pytest.raises(GrowthError, match="pruner: a run that ends in several places cannot be given up"):
        run(job(f"seeds = 1\n[sweep.a]\nwidth = 8\nsteps = 10\nlengths = [5, 10]\n{sampled}\n"))


def test_sizes_are_told_of_what_begins_with_zeros(job):
    question = '[[question]]\nask = "norms"\nof = "a"\n'
    results = run(job(f"seeds = 1\n[sweep.a]\nwidth = 8\nsteps = 5\nlr = 0.01\nrecord = 5\n{question}"))
    assert "Sizes of" in answers(results)[0].title


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ('ask = "tuned"\nof = [["a"]]', "tuned: of: expected names of sweeps"),
        ('ask = "transfer"\nof = ["a", ["b"]]', "expected names of sweeps, or lists of them alone"),
        ('ask = "transfer"\nof = ["a", "b"]\nnames = ["x", "y"]', "names are of lists in of, which has none"),
        ('ask = "plan"\nof = "a"', "plan: of: 'a' is not grown"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_before_anything_is_trained(job, question, said):
    sweeps = (
        "seeds = 1\n[sweep.a]\nwidth = 8\nsteps = 5\nlr = 0.1\n[sweep.b]\nwidth = 16\nsteps = 5\nlr = 0.1\n"
    )
    with pytest.raises(GrowthError, match=said):
        run(job(f"{sweeps}[[question]]\n{question}\n"))


def test_another_config_under_the_same_name_makes_another_study(tmp_path):
    small_llama(16, 1, vocab_size=300, head_dim=8).to_json_file(tmp_path / "narrow.json")
    wide = small_llama(32, 1, vocab_size=300, head_dim=8)
    wide.to_json_file(tmp_path / "wide.json")
    (tmp_path / "study.toml").write_text(
        'seeds = 1\n[model]\nconfig = "narrow.json"\n[data]\nvocab_size = 300\nmax_bytes = 100000\n'
        "[training]\nwarmup_steps = 1\nbatch_size = 2\nblock_size = 16\neval_blocks = 4\n"
        '[sweep.a]\nsteps = 5\nlr = 0.01\n[sweep.b]\nfrom = "a"\nto = "wide.json"\nsteps = 5\nlr = 0.01\n'
        'operator = "zero_pad"\n'
    )
    study = Job(file=tmp_path / "study.toml", out=tmp_path / "out")

    def begin():
        board = study.open()
        board.queue(board.study.sweeps["b"])

    begin()
    wide.intermediate_size = 64
    wide.to_json_file(tmp_path / "wide.json")
    with pytest.raises(GrowthError, match="study/b: was begun with other settings"):
        begin()
