"""The commands as the shell sees them: exit status, one JSON object on standard output, one-line errors."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from conftest import tiny_llama
from mupscale import GrowthError
from mupscale.cli import main
from mupscale.cli.comparing import STARTS
from mupscale.cli.factors import parse_axes
from mupscale.cli.training import train
from mupscale.growth import grow_checkpoint
from mupscale.operators.catalogue import OPERATORS
from mupscale.planner import plan
from mupscale.study.files import DEMOS, read_study
from mupscale.study.files.toml import read_toml
from mupscale.study.runs.budget import Budget
from mupscale.study.runs.workload import load_workload
from mupscale.study.spec.sweeps import only

STUDIES = Path(__file__).parents[2] / "examples" / "studies"

SHORT = [
    "--steps",
    "10",
    "--batch-size",
    "4",
    "--block-size",
    "16",
    "--warmup-steps",
    "2",
    "--eval-every",
    "5",
]
STUDY = """\
title = "Two rates"
seeds = 2

[model]
layers = 1
head_dim = 8

[data]
source = "TEXT"
vocab_size = 300
held_out = 0.1

[training]
batch_size = 4
block_size = 16
warmup_steps = 1
eval_every = 5
eval_blocks = 8
save_every = 1000

[sweep.first]
width = 16
steps = 6
try = { lr = [0.01, 0.02] }

[sweep.second]
width = 32
steps = 6
take = { lr = "first" }
"""


def call(command: Callable[..., int], *words: str | Path) -> int:
    return tyro.cli(command, args=[str(word) for word in words])


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(tiny_llama().to_json_string(use_diff=False))
    return path


@pytest.fixture
def study_file(tmp_path: Path, text_file: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY.replace("TEXT", str(text_file)))
    return path


@pytest.fixture
def mupscale(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """A command as the shell sees it: its status, and the object that it prints or the line that it says."""

    def run(*words: str | Path) -> tuple[int, Any]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        if status == 2:
            assert said.out == ""
            assert said.err.startswith("mupscale: ")
            assert said.err.count("\n") == 1
            return status, said.err
        return status, json.loads(said.out, parse_constant=pytest.fail) if "--json" in words else said.out

    return run


# ---- train -------------------------------------------------------------------------------------------------


def test_train_prints_one_json_object(
    tmp_path: Path, config_file: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [tmp_path / "out", "--config", config_file, "--data", text_file, *SHORT, "--lr", "1e-2", "--json"]
    assert call(train, *words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 10
    assert result["final_held_out_loss"] < result["first_held_out_loss"]
    assert call(train, *words, "--resume") == 0
    assert json.loads(capsys.readouterr().out) == result


def test_train_goes_on_from_a_grown_checkpoint(
    narrow: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grow_checkpoint(narrow, tmp_path / "grown", plan(tiny_llama(), width=2), operator="duplicate")
    words = [tmp_path / "out", "--from", tmp_path / "grown", "--data", text_file, "--held-out", "0.1", *SHORT]
    assert call(train, *words, "--lr", "5e-3", "--eval-blocks", "8", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    last = json.loads((narrow / "history.json").read_text())["curve"][-1]["held_out_loss"]
    assert result["first_held_out_loss"] == pytest.approx(last, abs=1e-4)
    assert (tmp_path / "out" / "mupscale.json").is_file()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["start"]["optimizer_carried"]
    assert run["config"]["skip_blocks"] == 160


def test_a_run_may_begin_with_a_fresh_optimizer(
    narrow: Path, tmp_path: Path, text_file: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    words = ["train", tmp_path / "out", "--from", narrow, "--data", text_file, "--held-out", "0.1", *SHORT]
    assert mupscale(*words, "--fresh-optimizer", "--json")[0] == 0
    state = torch.load(tmp_path / "out/optimizer.pt", weights_only=True)["state"]
    assert {one["step"].item() for one in state.values()} == {10}  # and not 40 more
    assert not json.loads((tmp_path / "out/run.json").read_text())["start"]["optimizer_carried"]


def test_a_run_computes_in_bfloat16_where_asked(
    tmp_path: Path, config_file: Path, text_file: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    words = ["--config", config_file, "--data", text_file, *SHORT, "--json"]
    whole, rounded = (
        mupscale("train", tmp_path / name, *words, *more)[1]["final_held_out_loss"]
        for name, more in (("float32", []), ("bfloat16", ["--bf16"]))
    )
    assert whole != rounded == pytest.approx(whole, rel=0.02)


def test_training_that_diverges_says_so_and_exits_with_1(
    tmp_path: Path, config_file: Path, text_file: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    words = ["train", tmp_path / "out", "--config", config_file, "--data", text_file, *SHORT, "--lr", "1e30"]
    words += ["--max-grad-norm", "0"]
    status, result = mupscale(*words, "--json")
    assert (status, result["final_held_out_loss"]) == (1, None)
    status, said = mupscale(*words)
    assert status == 1
    assert "the loss is not finite after 10 steps: training diverged; lower --lr" in said


def test_a_start_needs_its_own_tokenizer_and_has_its_own_config(
    narrow: Path, tmp_path: Path, text_file: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    words = ["train", tmp_path / "out", "--data", text_file, *SHORT, "--from"]
    assert "--config no-such: the start has a" in mupscale(*words, narrow, "--config", "no-such")[1]
    shutil.copytree(narrow, without := tmp_path / "without", ignore=shutil.ignore_patterns("tokenizer*"))
    for more in ([], ["--stages", "1:10", "2:10"]):
        status, said = mupscale(*words, without, *more)
        assert status == 2
        assert "no tokenizer.json; the text must be encoded with the model's own tokenizer" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "-1"], "seed is -1, expected 0 to"),
        (["--config", "no-such"], "no-such: no such file; expected a preset"),
        (["--data", "no-such"], "no-such: no such file or folder"),
        (["--resume"], "holds no run to resume"),
        (["--from", "no-such", "--data", "TEXT"], r"no-such: no config\.json"),
    ],
)
def test_train_names_bad_input(
    tmp_path: Path, text_file: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GrowthError, match=message) as error:
        call(train, "out", *(str(text_file) if word == "TEXT" else word for word in words))
    assert "\n" not in str(error.value)


# ---- compare -----------------------------------------------------------------------------------------------


def test_compare_writes_a_study_and_everything_that_it_finds(
    narrow: Path, tmp_path: Path, text_file: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    words = ["compare", narrow, out := tmp_path / "out", "--data", text_file, "--held-out", "0.1"]
    words += ["--widths", "2", "--starts", "scratch", "hyperclone", "--steps", "8", "--warmup-steps", "1"]
    words += ["--lrs", "1", "0.5", "--seeds", "2"]
    status, result = mupscale(*words, "--json")
    assert status == 0
    starts = {row["start"]: row for row in result["answers"][0]["starts"]}
    assert starts.keys() == {"scratch", "hyperclone"}
    last = json.loads((narrow / "history.json").read_text())["curve"][-1]["held_out_loss"]
    grown = json.loads((out / "results.json").read_text())["sweeps"][-1]
    assert grown["points"][0]["curve"][0][1] == pytest.approx(last, abs=1e-2)
    assert starts["scratch"]["share"] == 1
    assert {"report.html", "report.md", "results.json", "runs.csv", "starts.png", "starts.csv"} <= {
        path.name for path in out.iterdir()
    }
    with (out / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    # Both rates with the first seed, the second at the better one; each at a constant rate and cooled down.
    assert len([run for run in runs if run["sweep"] == "hyperclone-32"]) == 3
    assert {run["seed"] for run in runs if run["sweep"] == "scratch-32"} == {"0", "1"}

    status, said = mupscale(*words)
    assert status == 0
    assert "| start      |   lr | loss at step 0 |" in said
    shown = said[: said.index("\nPictures, settings")]
    assert (out / "report.md").read_text().startswith(shown)
    # The study that it wrote is one like any other.
    assert mupscale("study", out / "study.toml", "--out", out, "--json")[1]["answers"] == result["answers"]


def test_compare_names_bad_input(
    narrow: Path, tmp_path: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    for words, message in (
        ([tmp_path], "no config.json"),
        ([narrow, "--starts", "copy"], "start 'copy': expected scratch, continued or one of duplicate"),
        ([narrow, "--starts", "stack"], "start 'stack': stack grows layers, and widths are compared"),
        ([narrow, "--starts", "scratch,noise=none"], "scratch has no options"),
        ([narrow, "--starts", "zero_pad,shrink=x"], "shrink is 'x', expected a number"),
        ([narrow, "--starts", "duplicate,shrink=1"], "shrink is for zero_pad"),
        ([narrow, "--starts", "duplicate,nois=none"], "unknown option 'nois'"),
        ([narrow, "--widths", "1"], "expected whole factors of at least 2"),
        ([narrow, "--lrs", "1", "1"], "--lrs: 1.0, 1.0; give each once"),
        ([narrow, "--lrs"], "--lrs: expected at least one"),
        ([narrow, "--seeds", "0"], "seeds: 0: expected a whole number of at least 1"),
        (
            [narrow, "--cooldown-fraction", "0"],
            "cooldown_fraction: 0 of 300 steps are 0; expected a cooldown",
        ),
        ([narrow, "--starts", "duplicate", "continued"], "takes the FLOPs of scratch; give that start, too"),
    ):
        status, said = mupscale("compare", words[0], tmp_path / "out", *words[1:])
        assert status == 2
        assert message in said
        assert not (tmp_path / "out").exists()


def test_compare_leaves_another_study_where_it_is(
    narrow: Path,
    tmp_path: Path,
    text_file: Path,
    mupscale: Callable[..., tuple[int, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mupscale.cli.comparing.run_study", lambda *args, **more: 0)
    words = ["compare", narrow, tmp_path, "--data", text_file, "--steps", "10", "--warmup-steps", "1"]
    assert mupscale(*words)[0] == 0
    (tmp_path / "trials.journal").touch()
    before = (tmp_path / "study.toml").read_bytes()
    assert "another study, in which seeds differs" in mupscale(*words, "--seeds", "2")[1]
    assert "another study, in which continued-32 differs" in mupscale(*words, "--cooldown-fraction", "0.5")[1]
    assert mupscale(*words, "--lrs")[0] == 2
    assert (tmp_path / "study.toml").read_bytes() == before
    assert mupscale(*words, "--lrs", "1", "--widths", "2")[0] == 0  # other rates and widths go on
    assert {path.name for path in tmp_path.iterdir()} == {"study.toml", "trials.journal"}


def test_compare_tries_what_its_help_says(
    narrow: Path, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All operators that widen, but aki; and the narrow model, for the FLOPs of the wide one from scratch."""
    monkeypatch.setattr("mupscale.cli.comparing.run_study", lambda *args, **more: 0)
    words = ["compare", narrow, tmp_path, "--data", text_file, "--widths", "2", "--warmup-steps", "1"]
    assert main([str(word) for word in words]) == 0
    wide = {operator.name for operator in OPERATORS.values() if not operator.deepens}
    assert {start.partition(",")[0] for start in STARTS} == {"scratch", "continued", *wide} - {"aki"}
    study = read_study(tmp_path / "study.toml")
    default = study.sweeps["expand,shrink=0.7-32"]
    assert {"operator": only("expand"), "shrink": only(0.7)}.items() <= default.tried.items()
    budget = Budget(study, load_workload(study))
    ours, theirs = (study.sweeps[f"{start}-32"] for start in ("continued", "scratch"))
    assert (budget.width(ours), budget.width(theirs)) == (16, 32)
    assert budget.run_flops(ours) == pytest.approx(budget.run_flops(theirs), rel=0.01)


# ---- study -------------------------------------------------------------------------------------------------


def test_study_answers_what_it_is_asked(
    study_file: Path, tmp_path: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    status, result = mupscale("study", study_file, "--jobs", "1", "--json")
    assert status == 0
    assert [answer["title"] for answer in result["answers"]] == [
        "Tuned values",
        "What it cost",
        "All points",
        "How it was measured",
    ]
    assert result["report"] == str(tmp_path / "study/report.html")
    rates = {name: result["answers"][0][name]["point"]["lr"] for name in ("first", "second")}
    assert rates["first"] == rates["second"]
    again = mupscale("study", study_file, "--jobs", "1", "--json")[1]
    assert again == result  # the seconds, too: nothing was run
    said = mupscale("study", study_file, "--jobs", "1")[1]
    assert said.startswith("# Two rates\n")
    assert said.endswith("Pictures, settings and all numbers are in " + result["report"] + ".\n")


def test_a_dry_run_tells_runs_flops_and_time(
    study_file: Path, tmp_path: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    status, told = mupscale("study", study_file, "--dry-run", "--json")
    assert status == 0
    first, second = told["sweeps"]
    assert (first["runs"], first["trials"], first["steps"]) == (4, 2, 6)
    assert (second["runs"], second["width"]) == (2, 32)
    assert told["flops"] == first["flops"] + second["flops"] > 0
    assert told["seconds"] > 0
    assert not (tmp_path / "study/trials.journal").exists()
    status, said = mupscale("study", study_file, "--dry-run", "--sweeps", "first", "third")
    assert (status, said) == (2, "mupscale: --sweeps third: no such sweep; expected some of first, second\n")
    said = mupscale("study", study_file, "--dry-run", "--jobs", "2")[1]
    assert f"{told['flops']:.2e}" in said
    assert "with 2 workers" in said
    results = mupscale("study", study_file, "--jobs", "1", "--json") and json.loads(
        (tmp_path / "study/results.json").read_text()
    )
    assert sum(sweep["flops"] for sweep in results["sweeps"]) == told["flops"]


def test_some_sweeps_and_one_more_worker(
    study_file: Path, tmp_path: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    status, said = mupscale("study", study_file, "--sweeps", "second", "--jobs", "1")
    assert status == 2
    assert "second needs first, which is not finished; run that" in said
    status, said = mupscale("study", study_file, "--sweeps", "first", "--jobs", "1")
    assert status == 0
    assert "Not finished: second (0 of 1 trials)." in said
    report = tmp_path / "study/report.html"
    before = report.read_bytes()
    assert mupscale("study", study_file, "--worker", "--jobs", "1") == (0, "")
    status, said = mupscale("study", study_file, "--worker", "--json")
    assert (status, "a worker reports nothing; leave one of them out" in said) == (2, True)
    assert report.read_bytes() == before  # a worker reports nothing: the command that leads does
    result = mupscale("study", study_file, "--jobs", "1", "--json")[1]
    assert result["answers"][0].keys() >= {"first", "second"}
    assert "third" in (said := mupscale("study", study_file, "--sweeps", "third")[1])
    assert "expected some of first, second" in said


def test_the_answer_no_is_exit_status_one(study_file: Path, mupscale: Callable[..., tuple[int, Any]]) -> None:
    """From one width to the next the best rate moves here as it is made to: only one is tried at each."""
    text = study_file.read_text().replace('take = { lr = "first" }', "lr = 0.0001")
    study_file.write_text(f'{text}[[question]]\nask = "transfer"\nof = [["first"], ["first", "second"]]\n')
    status, result = mupscale("study", study_file, "--jobs", "1", "--json")
    assert (status, result["answers"][0]["passed"]) == (0, None)  # the first list has but one width
    study_file.write_text(text + '[[question]]\nask = "transfer"\nof = [["first", "second"]]\n')
    status, result = mupscale("study", study_file, "--jobs", "1", "--json")
    assert (status, result["answers"][0]["passed"]) == (1, False)


def test_study_names_bad_input(
    study_file: Path, tmp_path: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    text = study_file.read_text()
    for old, new, message in (
        ("steps = 6", "stepps = 6", "study.toml:23: [sweep.first] stepps: unknown; did you mean steps?"),
        ("", '[[question]]\nask = "savings"\n', "question 'savings': did you mean saving?"),
        ("", '[[question]]\nask = "saving"\nof = "second"\n', "question saving: against is missing"),
        ('lr = "first"', 'lr = "fist"', "study.toml:29: [sweep.second] take: 'fist': no such sweep"),
    ):
        study_file.write_text(text.replace(old, new, 1) if old else text + new)
        status, said = mupscale("study", study_file)
        assert status == 2
        assert message in said
        assert not (tmp_path / "study").exists()
    assert "no-such.toml: cannot be read" in mupscale("study", tmp_path / "no-such.toml")[1]
    study_file.write_text(text)
    assert "--jobs 0" in mupscale("study", study_file, "--jobs", "0")[1]
    assert "the transfer check is for files" in mupscale("tune", study_file, "--check-transfer")[1]
    assert "stage 'groww': expected some of scratch" in mupscale("tune", study_file, "--stages", "groww")[1]


def test_tune_takes_files_of_sweeps_too(study_file: Path, mupscale: Callable[..., tuple[int, Any]]) -> None:
    assert mupscale("tune", study_file, "--dry-run", "--json")[1]["sweeps"][0]["sweep"] == "first"


def test_stages_that_a_file_does_not_have_are_refused(
    study_file: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    status, said = mupscale("tune", study_file, "--stages", "final", "--dry-run")
    assert status == 2
    assert "--stages final: no such stage in" in said
    assert "a file of sweeps has none; give --sweeps" in said
    words = ["tune", STUDIES / "llama_cpu.toml", "--check-transfer", "--dry-run", "--stages"]
    said = mupscale(*words, "grow", "final")[1]
    assert "--stages final: no such stage" in said
    assert "expected some of scratch, base, grow" in said


# ---- demo --------------------------------------------------------------------------------------------------


def test_the_demo_tells_the_whole_story(
    tmp_path: Path, text_file: Path, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    """The file that `mupscale demo` runs, on less."""
    text = DEMOS["width"].read_text()
    for old, new in {
        '"stdlib"': f'"{text_file}"\nvocab_size = 300',
        "layers = 3": "layers = 1\nhead_dim = 8",
        "batch_size = 12": "batch_size = 4\nblock_size = 16\nwarmup_steps = 2\nsave_every = 1000",
        "eval_every = 35\neval_blocks = 96": "eval_every = 5\neval_blocks = 8",
        "width = 64": "width = 16",
        "width = 128": "width = 32",
        "steps = 500": "steps = 20",
        "steps = 140": "steps = 10",
        "steps = 525\nlengths = [140, 525]": "steps = 30\nlengths = [10, 30]",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "demo.toml").write_text(text)
    status, result = mupscale("study", tmp_path / "demo.toml", "--jobs", "1", "--json")
    assert status == 0
    saving, equality, line, cost, *_ = result["answers"]
    assert saving["tuned"]["equal_steps"]["steps"] == 10
    assert saving["tuned"]["equal_compute"]["steps"] > 10
    assert saving["tuned"]["with_before"] > saving["tuned"]["ratio"]
    assert equality["passed"]
    assert equality["grown"]["max_abs_diff"] < 1e-4
    assert line["steps"] == 30
    assert cost["tuning_flops"] == 0
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"report.html", "final_loss_over_flops.png", "stages.png", "narrow", "grown"} <= names
    said = mupscale("study", tmp_path / "demo.toml", "--jobs", "1")[1]
    assert "No: on held-out data the narrow and the grown model gave the same outputs" in said
    assert "model.embed_tokens.weight" in said
    shutil.rmtree(tmp_path / "demo/grown")  # a model that nothing is grown from need not stay
    assert mupscale("study", tmp_path / "demo.toml", "--jobs", "1", "--json")[1] == result


@pytest.mark.parametrize("along", DEMOS)
def test_demo_runs_the_study_in_the_box(
    along: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    ran: dict[str, Any] = {}
    monkeypatch.setattr(
        "mupscale.cli.studying.run_study", lambda *args, **more: ran.update(more, args=args) or 0
    )
    assert mupscale("demo", "--out", tmp_path / "demo", "--along", along, "--threads", "1")[0] == 0
    assert ran["args"] == (tmp_path / "demo/study.toml", tmp_path / "demo")
    assert (ran["jobs"], ran["threads"]) == (1, 1)
    assert read_toml(tmp_path / "demo/study.toml") == read_toml(DEMOS[along])
    study = read_study(tmp_path / "demo/study.toml")
    assert study.sweeps["grown"].growth == (2 if along == "width" else None)
    assert study.sweeps["grown"].layers == (None if along == "width" else 2 * study.model.layers)


def test_demo_leaves_another_demo_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    monkeypatch.setattr("mupscale.cli.studying.run_study", lambda *args, **more: 0)
    assert mupscale("demo", "--out", tmp_path)[0] == 0
    (tmp_path / "trials.journal").touch()
    status, said = mupscale("demo", "--out", tmp_path, "--along", "layers")
    assert status == 2
    assert "holds another study" in said
    assert (tmp_path / "study.toml").read_text() == DEMOS["width"].read_text()
    assert mupscale("demo", "--out", tmp_path)[0] == 0


# ---- advise ------------------------------------------------------------------------------------------------


def test_advice_on_numbers_beyond_floats_is_json_all_the_same(
    mupscale: Callable[..., tuple[int, Any]],
) -> None:
    words = ["advise", "--params", "1e300", "--to", "1e301", "--tokens", "1e308", "--json"]
    status, result = mupscale(*words)
    assert (status, result["scratch_flops"]) == (0, None)


def test_a_comparison_cannot_be_read_without_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mupscale: Callable[..., tuple[int, Any]]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["advise", "--params", "5M", "--to", "10M", "--tokens", "100M"]
    assert mupscale(*words)[0] == 0
    assert "matplotlib not installed" in mupscale(*words, "--compare", tmp_path / "results.json")[1]


def test_axes_are_parsed() -> None:
    assert parse_axes([]) is None
    assert parse_axes(["d_ff=3", "kv_heads=1", "d_model=3/2"]) == {"d_ff": 3, "kv_heads": 1, "d_model": 1.5}
