"""A transformers.Trainer stops, its checkpoint grows, and a Trainer goes on from there as if nothing had been."""

import shutil
from functools import partial

import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

import mupscale
from lockstep import assert_duplicates
from models import VOCAB, build
from mupscale import GrowthError
from mupscale.cli import main
from mupscale.growth import grow_checkpoint
from mupscale.integrations import PlanTrainer

STEPS, STOP = 12, 6


class Tokens(Dataset):
    """Sequences with a pattern to learn: every token follows from the one before."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        start = torch.randint(VOCAB, (1,), generator=generator).item()
        ids = torch.tensor([(start + 7 * i) % VOCAB for i in range(16)])
        return {"input_ids": ids, "labels": ids}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            control.should_training_stop = control.should_save = True


def trainer(model, out, *, optimizer=None, stop=None, plan=None, batch_size=None, tokens=None, **arguments):
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        weight_decay=0.1,
        max_grad_norm=0,
        lr_scheduler_type="linear",
        save_steps=STOP,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    return (partial(PlanTrainer, plan=plan, batch_size=batch_size, tokens=tokens) if plan else Trainer)(
        model,
        args,
        train_dataset=Tokens(),
        eval_dataset=Tokens(),
        optimizers=(optimizer, None),
        callbacks=[StopAt(stop)] if stop else [],
    )


def resumed(directory, out, *, by_argument=False):
    """A Trainer on the grown model, with groups from the plan that lies beside it."""
    model, plan = AutoModelForCausalLM.from_pretrained(directory), mupscale.Plan.load(directory)
    if by_argument:
        return trainer(model, out, plan=plan)
    decay = Trainer.get_decay_parameter_names(None, model)
    groups = mupscale.param_groups(model, plan, torch.optim.AdamW, lr=5e-3, weight_decay=0.1, decay=decay)
    return trainer(model, out, optimizer=torch.optim.AdamW(groups))


@pytest.fixture(scope="module", params=["llama_tied", "gpt2"])
def narrow_run(request, tmp_path_factory):
    """A narrow model trained half way, and what it becomes when it trains on by itself."""
    out = tmp_path_factory.mktemp(request.param)
    model = build(request.param).float()
    run = trainer(model, out, stop=STOP)
    run.train()
    evaluated = run.evaluate()["eval_loss"]
    on = trainer(AutoModelForCausalLM.from_pretrained(out / f"checkpoint-{STOP}"), out / "on")
    on.train(resume_from_checkpoint=str(out / f"checkpoint-{STOP}"))
    return out / f"checkpoint-{STOP}", evaluated, on


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_the_loss_continues_without_a_jump(narrow_run, tmp_path):
    checkpoint, evaluated, on = narrow_run
    assert (
        main(["grow", str(checkpoint), str(tmp_path / "wide"), "--width", "2", "--operator", "duplicate"])
        == 0
    )
    run = resumed(tmp_path / "wide", tmp_path / "out")
    assert abs(run.evaluate()["eval_loss"] - evaluated) < 1e-4
    run.train(resume_from_checkpoint=str(tmp_path / "wide"))
    assert run.state.global_step == STEPS
    # Noise lets the copies part, so that it trains on alike, but not the same.
    assert losses(run)[-1] == pytest.approx(losses(on)[-1], abs=0.3)


@pytest.mark.parametrize("by_argument", [False, True])
def test_without_noise_the_resumed_training_is_the_narrow_ones(by_argument, narrow_run, tmp_path):
    """Moments, step counts, learning rate schedule and data order all carry on."""
    checkpoint, _, on = narrow_run
    plan = grow_checkpoint(checkpoint, tmp_path / "wide", width=3, noise=None, operator="duplicate")
    run = resumed(tmp_path / "wide", tmp_path / "out", by_argument=by_argument)
    run.train(resume_from_checkpoint=str(tmp_path / "wide"))
    assert losses(run) == pytest.approx(losses(on), abs=1e-4)
    assert_duplicates(on.model, run.model, plan, rtol=2e-3)
    for group in run.optimizer.param_groups:
        assert group["lr"] == pytest.approx(on.lr_scheduler.get_last_lr()[0] * group["lr_scale"])


def test_a_grown_optimizer_grows_again(narrow_run, tmp_path):
    checkpoint, _, _ = narrow_run
    grow_checkpoint(checkpoint, tmp_path / "two", width=2, noise=None, operator="duplicate")
    grow_checkpoint(tmp_path / "two", tmp_path / "four", width=2, noise=None, operator="duplicate")
    grow_checkpoint(checkpoint, tmp_path / "at_once", width=4, noise=None, operator="duplicate")
    twice, once = (torch.load(tmp_path / d / "optimizer.pt") for d in ("four", "at_once"))
    assert twice["param_groups"] == once["param_groups"]
    for index, state in once["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(twice["state"][index][key], value, rtol=1e-6, atol=0)


def test_training_between_two_growths_is_still_the_narrow_ones(narrow_run, tmp_path):
    """Groups split at the second growth and come in another order; learning rates are the first model's."""
    checkpoint, _, on = narrow_run
    middle = STOP + 3
    axes = {"d_ff": 3}
    grow_checkpoint(checkpoint, tmp_path / "once", axes=axes, noise=None, operator="duplicate")
    model, plan = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "once"),
        mupscale.Plan.load(tmp_path / "once"),
    )
    run = trainer(model, tmp_path / "out", plan=plan, stop=middle)
    run.train(resume_from_checkpoint=str(tmp_path / "once"))
    last = grow_checkpoint(
        tmp_path / f"out/checkpoint-{middle}", tmp_path / "twice", width=2, noise=None, operator="duplicate"
    )
    assert mupscale.Plan.load(tmp_path / "twice", last_growth=True).growth == last.growth
    assert mupscale.Plan.load(tmp_path / "twice").growth == {**last.growth, "d_ff": 6}
    again = resumed(tmp_path / "twice", tmp_path / "out2", by_argument=True)
    again.train(resume_from_checkpoint=str(tmp_path / "twice"))
    # In float32 Adam blows rounding up where gradients are next to nothing; test_lockstep.py has it in float64.
    assert losses(again) == pytest.approx(losses(on), abs=1e-3)


@pytest.mark.parametrize(
    "growths", [({"d_model": 2, "kv_heads": 2}, {"d_ff": 4}), ({"d_ff": 3}, {"d_model": 4, "kv_heads": 2})]
)
def test_grown_twice_groups_and_scheduler_have_the_order_of_param_groups(growths, tmp_path):
    model = build("llama").float()
    run = trainer(model, tmp_path, stop=STOP)
    run.train()
    source = tmp_path / f"checkpoint-{STOP}"
    for i, axes in enumerate(growths):
        grow_checkpoint(source, tmp_path / str(i), axes=axes, noise=None, operator="duplicate")
        source = tmp_path / str(i)
    wide, plan = AutoModelForCausalLM.from_pretrained(source), mupscale.Plan.load(source)
    decay = Trainer.get_decay_parameter_names(None, wide)
    groups = mupscale.param_groups(wide, plan, torch.optim.AdamW, lr=5e-3, weight_decay=0.1, decay=decay)
    saved = torch.load(source / "optimizer.pt", weights_only=True)["param_groups"]
    assert [g["param_names"] for g in saved] == [g["param_names"] for g in groups]
    scheduler = torch.load(source / "scheduler.pt", weights_only=True)
    assert scheduler["base_lrs"] == pytest.approx([g["lr"] for g in groups])


def test_state_saved_in_other_groups_is_refused(narrow_run, tmp_path):
    checkpoint, _, _ = narrow_run
    grow_checkpoint(checkpoint, tmp_path / "wide", width=2, operator="duplicate")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    names, params = zip(*model.named_parameters(), strict=True)
    optimizer = mupscale.load_by_name(torch.optim.AdamW([{"params": params, "param_names": list(names)}]))
    with pytest.raises(GrowthError, match="saved with other values than"):
        optimizer.load_state_dict(torch.load(tmp_path / "wide/optimizer.pt"))


def test_state_of_another_model_is_refused(narrow_run, tmp_path):
    checkpoint, _, _ = narrow_run
    grow_checkpoint(checkpoint, tmp_path / "wide", width=2, operator="duplicate")
    model, plan = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "wide"),
        mupscale.Plan.load(tmp_path / "wide"),
    )
    names = [n for n, _ in model.named_parameters()][:-1]
    groups = mupscale.param_groups(model, plan, torch.optim.AdamW, lr=1e-3, only=names)
    optimizer = mupscale.load_by_name(torch.optim.AdamW(groups))
    with pytest.raises(GrowthError, match="only in one of the saved optimizer and this one"):
        optimizer.load_state_dict(torch.load(tmp_path / "wide/optimizer.pt"))


def test_state_dtypes_and_step_counts_are_kept(tmp_path):
    run = trainer(build("llama_tied").bfloat16(), tmp_path, stop=STOP)
    run.train()
    checkpoint = tmp_path / f"checkpoint-{STOP}"
    grow_checkpoint(checkpoint, tmp_path / "wide", width=2, operator="duplicate")
    narrow, wide = (torch.load(d / "optimizer.pt")["state"] for d in (checkpoint, tmp_path / "wide"))
    assert len(wide) == len(narrow)
    for state in wide.values():
        assert state["step"].item() == STOP
        assert {key: value.dtype for key, value in state.items()} == {
            "step": torch.float32, "exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16,
        }  # fmt: skip


def test_the_training_state_can_be_left_behind(narrow_run, tmp_path):
    checkpoint, _, _ = narrow_run
    assert (
        main(
            [
                "grow",
                str(checkpoint),
                str(tmp_path / "wide"),
                "--width",
                "2",
                "--operator",
                "duplicate",
                "--no-optimizer",
            ]
        )
        == 0
    )
    names = {p.name for p in (tmp_path / "wide").iterdir()}
    assert not names & {"optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"}


@pytest.mark.parametrize("spoil", ["foreign", "truncated", "missing_parameters", "no_dict", "unknown_class"])
def test_an_optimizer_that_does_not_fit_is_refused(spoil, narrow_run, tmp_path, capsys):
    checkpoint = tmp_path / "narrow"
    shutil.copytree(narrow_run[0], checkpoint)
    path = checkpoint / "optimizer.pt"
    state = torch.load(path)
    if spoil == "foreign":
        next(iter(state["state"].values()))["exp_avg"] = torch.zeros(3, 3)
    elif spoil == "missing_parameters":
        state["param_groups"][0]["params"].pop()
    elif spoil == "unknown_class":
        state["param_groups"] = [{"params": list(state["state"]), "lr": 1.0, "rho": 0.9}]
    elif spoil == "no_dict":
        state = [1, 2]
    torch.save(state, path)
    if spoil == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    assert (
        main(["grow", str(checkpoint), str(tmp_path / "wide"), "--width", "2", "--operator", "duplicate"])
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert "--no-optimizer" in error
    assert {p.name for p in tmp_path.iterdir()} == {"narrow"}


def test_pickles_that_run_code_are_not_loaded(narrow_run, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    checkpoint = tmp_path / "narrow"
    shutil.copytree(narrow_run[0], checkpoint)
    torch.save(Harmful(), checkpoint / "optimizer.pt")
    with pytest.raises(GrowthError, match="cannot be read"):
        grow_checkpoint(checkpoint, tmp_path / "wide", width=2, operator="duplicate")


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch_fused"])
def test_other_optimizers_of_the_trainer_are_carried(optim, tmp_path):
    run = trainer(build("llama").float(), tmp_path, stop=STOP, optim=optim)
    run.train()
    plan = grow_checkpoint(tmp_path / f"checkpoint-{STOP}", tmp_path / "wide", width=2, operator="duplicate")
    state = torch.load(tmp_path / "wide/optimizer.pt")
    assert {n for g in state["param_groups"] for n in g["param_names"]} == set(plan.params)


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adagrad"])
def test_plan_trainer_trains_the_wide_model_as_the_trainer_does_the_narrow(optim, tmp_path):
    """The same arguments, clipping included, give the same losses on a pure copy."""
    narrow = build("llama_tied").float()
    plan = mupscale.plan(narrow, width=3)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    runs = []
    for model, make in ((narrow, Trainer), (wide, partial(PlanTrainer, plan=plan))):
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=8,
            per_device_train_batch_size=8,
            learning_rate=2e-2,
            weight_decay=0.1,
            max_grad_norm=0.1,
            optim=optim,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        run = make(model, args, train_dataset=Tokens())
        run.train()
        assert args.max_grad_norm == 0.1
        runs.append(losses(run))
    assert runs[0][0] > runs[0][-1] + 0.01
    assert runs[1] == pytest.approx(runs[0], abs=1e-4)


SIZES = {"batch_size": (2, 8), "tokens": (1e6, 16e6)}


def test_plan_trainer_goes_by_batch_size_and_tokens_as_param_groups_do(tmp_path):
    """And resumes by them; what is grown from that grows again."""
    narrow = build("llama_tied").float()
    plan = mupscale.plan(narrow, width=3)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    run = trainer(wide, tmp_path, plan=plan, stop=STOP, **SIZES)
    run.train()
    decay = Trainer.get_decay_parameter_names(None, wide)
    values = {"lr": 5e-3, "weight_decay": 0.1, "betas": (0.9, 0.999), "decay": decay}
    groups = mupscale.param_groups(wide, plan, torch.optim.AdamW, **values, **SIZES)
    shared = ("param_names", "lr_scale", "weight_decay", "betas", "eps", "steps_ratio")
    for group, wanted in zip(run.optimizer.param_groups, groups, strict=True):
        assert {key: group[key] for key in shared} == {key: wanted[key] for key in shared}
        assert group["initial_lr"] == wanted["lr"]
    checkpoint = tmp_path / f"checkpoint-{STOP}"
    again = trainer(AutoModelForCausalLM.from_pretrained(checkpoint), tmp_path, plan=plan, **SIZES)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == STEPS
    grow_checkpoint(checkpoint, tmp_path / "twice", width=2, operator="duplicate")
    saved = torch.load(tmp_path / "twice/optimizer.pt")["param_groups"]
    assert {group["steps_ratio"] for group in saved} == {0.25}


def test_a_run_is_not_resumed_by_another_batch_size(narrow_run, tmp_path):
    """The values in the optimizer.pt would take the place of those that were asked for."""
    plan = grow_checkpoint(narrow_run[0], tmp_path / "wide", width=2, operator="duplicate")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    run = trainer(model, tmp_path / "out", plan=plan, **SIZES)
    with pytest.raises(GrowthError, match="another batch size or number of tokens"):
        run.train(resume_from_checkpoint=str(tmp_path / "wide"))


def plan_trainer(tmp_path, **arguments):
    model, out = build("llama_tied"), tmp_path / "out"
    args = TrainingArguments(
        str(out), max_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, **arguments
    )
    plan = mupscale.plan(model, width=2)
    made = PlanTrainer(mupscale.grow(model, plan), args, train_dataset=Tokens(), plan=plan)
    made.train()
    return made


def test_the_plan_trainer_takes_no_clipping_and_optimizers_that_decay_by_themselves(tmp_path):
    plan_trainer(tmp_path, max_grad_norm=None)
    pytest.importorskip("schedulefree")
    trained = plan_trainer(tmp_path, optim="schedule_free_adamw", weight_decay=0.1)
    assert max(group["weight_decay"] for group in trained.optimizer.param_groups) == pytest.approx(0.2)


def test_saved_arguments_say_the_clipping_that_was_asked_for(tmp_path):
    made = plan_trainer(tmp_path, max_grad_norm=0.5)
    saved = torch.load(tmp_path / "out/checkpoint-2/training_args.bin", weights_only=False)
    assert (saved.max_grad_norm, made.args.max_grad_norm) == (0.5, 0.0)  # which the callback does
