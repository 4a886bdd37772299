"""Stage by stage: one history, fresh text, learning rates of the first model, and nothing lost by a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import mupscale
from conftest import tiny_llama
from mupscale import GrowthError
from mupscale.cli import main
from mupscale.study.files.stages import read_stages
from mupscale.study.runs.training import saved_checkpoints

STAGES = ["1:30", "2:40", "2:20"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> list[str]:
    """A command without its output folder."""
    folder = tmp_path_factory.mktemp("config")
    tiny_llama().save_pretrained(folder)
    words = ["--config", str(folder), "--data", str(text_file), "--held-out", "0.1", "--vocab-size", "300"]
    words += ["--batch-size", "4", "--block-size", "16", "--eval-every", "5", "--eval-blocks", "8"]
    return [*words, "--warmup-steps", "2", "--lr", "1e-2", "--stages"]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    out = tmp_path_factory.mktemp("line")
    assert main(["train", str(out), *words, *STAGES]) == 0
    return out


def history(out: Path) -> list[dict[str, Any]]:
    """What the picture of all stages shows."""
    with (out / "stages.csv").open(newline="") as file:
        rows = [{**row, "stage": int(row["line"].removeprefix("stage "))} for row in csv.DictReader(file)]
    numbers = ("step", "items", "flops", "loss")
    return [{"stage": row["stage"], **{key: float(row[key]) for key in numbers}} for row in rows]


def sweeps(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "results.json").read_text())["sweeps"]


def test_one_history_goes_through_all_stages(line: Path) -> None:
    rows, stages = history(line), sweeps(line)
    assert [max(r["step"] for r in rows if r["stage"] == n) for n in (1, 2, 3)] == [30, 70, 90]
    for key in ("step", "items", "flops"):
        assert [row[key] for row in rows] == sorted(row[key] for row in rows)
    assert rows[-1]["items"] == 90 * 64
    sizes = [stage["parameters"] for stage in stages]
    assert sizes == sorted(sizes)
    assert stages[2]["flops_per_step"] > 4 * stages[0]["flops_per_step"]
    assert rows[-1]["flops"] == sum(stage["run_flops"] for stage in stages)
    shown = {"report.html", "report.md", "stages.png", "study.toml", "stage1", "stage2", "stage3"}
    assert shown <= {path.name for path in line.iterdir()}


def test_growing_loses_nothing(line: Path) -> None:
    rows = history(line)
    for number in (2, 3):
        before = [row for row in rows if row["stage"] == number - 1][-1]
        after = next(row for row in rows if row["stage"] == number)
        assert (after["step"], after["flops"]) == (before["step"], before["flops"])
        assert after["loss"] == pytest.approx(before["loss"], abs=1e-4)


def test_every_stage_sees_the_text_that_follows(line: Path) -> None:
    runs = [json.loads((line / f"stage{n}/run.json").read_text()) for n in (1, 2, 3)]
    assert [run["config"]["skip_blocks"] for run in runs] == [0, 120, 280]
    assert [run["config"]["cooldown_fraction"] for run in runs] == [0.0, 0.0, 0.2]


def test_learning_rates_stay_the_first_models(line: Path) -> None:
    assert mupscale.Plan.load(line / "stage3").growth == {"d_model": 4, "d_ff": 4, "kv_heads": 4}
    assert AutoModelForCausalLM.from_pretrained(line / "stage3").config.hidden_size == 64
    state = json.loads((line / "stage3/trainer_state.json").read_text())
    assert max(e["learning_rate"] for e in state["log_history"] if "learning_rate" in e) == pytest.approx(
        1e-2
    )
    groups = torch.load(line / "stage3/optimizer.pt", weights_only=True)["param_groups"]
    assert {group["lr_scale"] for group in groups} == {1, 1 / 4}  # 1/4 of matrices that read what has grown
    assert {group["initial_lr"] / group["lr_scale"] for group in groups} == {1e-2}


def test_a_stage_is_a_checkpoint_like_any_other(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the manifest says of its growth is what other commands read."""
    manifest = json.loads((line / "stage2/mupscale.json").read_text())
    assert (manifest["operator"], manifest["noise"]) == ("duplicate", "balanced:1")
    assert main(["verify", str(line / "stage1"), str(line / "stage2"), "--json"]) == 1  # it has trained on
    assert not json.loads(capsys.readouterr().out)["equal"]
    assert main(["hparams", str(line / "stage3"), "--lr", "1e-2", "--json"]) == 0
    assert {0.25, 1.0} <= {group["lr_scale"] for group in json.loads(capsys.readouterr().out)["groups"]}


@pytest.mark.slow
def test_killed_in_the_middle_of_stage_two_it_ends_the_same(
    line: Path, words: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mupscale", "train", str(tmp_path / "line"), *words, *STAGES]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not (saved := saved_checkpoints(tmp_path / "line/stage2/checkpoints")):
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert 0 < min(saved) < 40
    assert not (tmp_path / "line/stage2/history.json").exists()
    assert main(["train", str(tmp_path / "line"), *words, *STAGES, "--resume"]) == 0
    again, whole = history(tmp_path / "line"), history(line)
    assert again[-1]["loss"] == pytest.approx(whole[-1]["loss"], abs=1e-6)
    assert [row["step"] for row in again] == [row["step"] for row in whole]


def test_a_finished_line_is_not_repeated(
    line: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (line / "stage2/model.safetensors").stat().st_mtime_ns
    assert main(["train", str(line), *words, *STAGES, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answers"][0]
    assert (answer["steps"], answer["loss"]) == (90, history(line)[-1]["loss"])
    assert (line / "stage2/model.safetensors").stat().st_mtime_ns == before


def test_a_file_says_more_about_each_stage(words: list[str], tmp_path: Path) -> None:
    target = tiny_llama()
    target.hidden_size, target.num_attention_heads, target.num_key_value_heads = 24, 3, 1
    target.save_pretrained(tmp_path / "target")
    (tmp_path / "stages.toml").write_text(
        f"""
        [[stages]]
        steps = 6
        [[stages]]
        steps = 6
        to = "{tmp_path / "target"}"
        operator = "zero_pad"
        shrink = 0.6
        lr = 5e-3
        """
    )
    assert main(["train", str(tmp_path / "out"), *words, str(tmp_path / "stages.toml")]) == 0
    assert json.loads((tmp_path / "out/stage2/mupscale.json").read_text())["shrink"] == "0.6"
    run = json.loads((tmp_path / "out/stage2/run.json").read_text())
    assert run["config"]["lr"] == 5e-3
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out/stage2").config.hidden_size == 24


def test_a_line_grows_in_depth_and_in_width(words: list[str], tmp_path: Path) -> None:
    """Layers are repeated, and all rates stay the first model's: widths and depth multiply."""
    assert main(["train", str(tmp_path), *words, "1:8", "1x2:8", "2x2:8"]) == 0
    assert [stage["layers"] for stage in sweeps(tmp_path)] == [1, 2, 4]
    plan = mupscale.Plan.load(tmp_path / "stage3")
    assert plan.growth == {"d_model": 2, "d_ff": 2, "kv_heads": 2, "layers": 4}
    deepest = AutoModelForCausalLM.from_pretrained(tmp_path / "stage3").config
    assert (deepest.hidden_size, deepest.num_hidden_layers) == (32, 4)
    assert "| 16 with 2 layers |" in " ".join((tmp_path / "report.md").read_text().split())
    rows = history(tmp_path)
    before = [next(r["loss"] for r in reversed(rows) if r["stage"] == n) for n in (1, 2)]
    after = [next(r["loss"] for r in rows if r["stage"] == n) for n in (2, 3)]
    assert after == pytest.approx(before, abs=0.2)  # nearly, in depth: not exact


def test_another_stage_two_is_refused_or_grows_anew(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --overwrite the changed stage starts from the grown model, not from what the old one had learned."""
    assert main(["train", str(tmp_path / "line"), *words, "1:8", "2:8"]) == 0
    capsys.readouterr()
    assert main(["train", str(tmp_path / "line"), *words, "1:8", "2:12"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("choose another directory, or replace it (--overwrite)\n")
    assert said.count("\n") == 1
    assert main(["train", str(tmp_path / "line"), *words, "1:8", "2:8"]) == 0  # and is still there
    for folder in ("line", "fresh"):
        assert main(["train", str(tmp_path / folder), *words, "1:8", "2:12", "--overwrite"]) == 0
    assert history(tmp_path / "line") == history(tmp_path / "fresh")


def test_a_line_that_starts_grown_goes_by_its_first_model(
    line: Path, words: list[str], tmp_path: Path
) -> None:
    for start in (line / "stage2", tmp_path / "grown"):
        if start.name == "grown":
            command = ["grow", str(line / "stage1"), str(start), "--width", "2", "--operator", "duplicate"]
            assert main(command) == 0
        out = tmp_path / f"from-{start.name}"
        given = [word for word in words if word not in ("--config", words[1])]
        assert main(["train", str(out), "--from", str(start), *given, "1:4", "2:4"]) == 0
        for stage, growth in (("stage1", 2), ("stage2", 4)):
            found = mupscale.Plan.load(out / stage).growth
            assert found == {"d_model": growth, "d_ff": growth, "kv_heads": growth}
        # The optimizer goes along, and the text goes on behind what the start has seen.
        seen = 120 if start.name == "grown" else 280
        assert json.loads((out / "stage1/run.json").read_text())["config"]["skip_blocks"] == seen
        assert main(["train", str(out), "--from", str(start), "--skip-blocks", "7", *given, "1:4"]) == 2
        before = sweeps(line)[0 if start.name == "grown" else 1]["best"]["loss"]
        assert history(out)[0]["loss"] == pytest.approx(before, abs=1e-4)


def test_killed_before_its_manifest_was_written_a_stage_is_not_lost(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    command = ["train", str(tmp_path), *words, "1:4", "2:6"]
    monkeypatch.setattr("mupscale.study.runs.lab.write_json", killed)
    assert main(command) == 130
    monkeypatch.undo()
    assert (tmp_path / "stage2/history.json").is_file()
    assert main(command) == 0
    assert mupscale.Plan.load(tmp_path / "stage2").growth["d_model"] == 2


def test_a_last_stage_that_diverges_is_told_by_the_status(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = tmp_path / "stages.toml"
    stages.write_text("[[stages]]\nsteps = 4\n[[stages]]\nsteps = 4\nwidth = 2\nlr = 1e30\n")
    assert main(["train", str(tmp_path / "out"), *words, str(stages), "--max-grad-norm", "0", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["answers"]
    assert "the loss of stage2 is not finite: training diverged; lower its learning rate" in said.err


def test_a_later_stage_is_checked_before_the_first_step(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, message in (
        ("operator = 'stretch'", "stage2: operator: operator 'stretch' is unknown"),
        ("lr = 'high'", "stage2: lr: ['high']: expected numbers"),
        ("warmup_steps = 50", "stage2: warmup_steps: warmup_steps 50 and a cooldown"),
        ("learning_rate = 1", "stage2: learning_rate: unknown; expected after, batch_size"),
        ("optimizer = 'old'", "stage2: optimizer_state: 'old': expected one of carried, asymmetric, fresh"),
        ("noise = 1", "expected words for to, operator, noise and optimizer"),
    ):
        (tmp_path / "s.toml").write_text(f"[[stages]]\nsteps = 5\n[[stages]]\nsteps = 5\nwidth = 2\n{line}\n")
        assert main(["train", str(tmp_path / "out"), *words, str(tmp_path / "s.toml")]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["2:10"], "stage 1: the first has nothing to grow from"),
        (["1x2:10"], "stage 1: the first has nothing to grow from"),
        (["1:10", "1:5"], "stage 2: expected a width or layers above 1"),
        (["1:10", "2x5"], "stage '2x5': expected WIDTH:STEPS"),
        (["1:10", "2x:5"], "stage '2x:5': expected WIDTH:STEPS"),
        (["[[stages]]\nsteps = 1.5"], r"steps \(and width, layers\) must be whole"),
        (["[[stages]]\nsteps = 1\nlayers = 'two'"], r"steps \(and width, layers\) must be whole"),
        (["x = 1"], r"no \[\[stages\]\] in it"),
    ],
)
def test_bad_stages_are_named(given: list[str], message: str, tmp_path: Path) -> None:
    if len(given) == 1 and "=" in given[0]:
        (tmp_path / "stages.toml").write_text(given[0])
        given = [str(tmp_path / "stages.toml")]
    with pytest.raises(GrowthError, match=message):
        read_stages(given)
