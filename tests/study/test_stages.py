"""Stage by stage: one history, fresh text, learning rates of the first model, and nothing lost by a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mupscale.study.stages import read_stages
from transformers import AutoModelForCausalLM

import mupscale
from conftest import tiny_llama
from mupscale import GrowthError
from mupscale.cli import main
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


def curve(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "history.json").read_text())["curve"]


def test_one_history_goes_through_all_stages(line: Path) -> None:
    rows = curve(line)
    assert [max(r["step"] for r in rows if r["stage"] == n) for n in (1, 2, 3)] == [30, 70, 90]
    for key in ("step", "tokens", "flops"):
        assert [row[key] for row in rows] == sorted(row[key] for row in rows)
    assert rows[-1]["tokens"] == 90 * 64
    sizes = [next(r["parameters"] for r in rows if r["stage"] == n) for n in (1, 2, 3)]
    assert sizes == sorted(sizes)
    costs = [[r for r in rows if r["stage"] == n] for n in (1, 3)]
    per_step = [(c[-1]["flops"] - c[0]["flops"]) / (c[-1]["step"] - c[0]["step"]) for c in costs]
    assert per_step[1] > 4 * per_step[0]
    assert {"history.csv", "stages.png", "stage1", "stage2", "stage3"} <= {p.name for p in line.iterdir()}
    assert not list(line.glob("grown*"))


def test_growing_loses_nothing(line: Path) -> None:
    rows = curve(line)
    for number in (2, 3):
        before = [r for r in rows if r["stage"] == number - 1 and r["held_out_loss"] is not None][-1]
        after = next(r for r in rows if r["stage"] == number)
        assert after["step"] == before["step"]
        assert after["held_out_loss"] == pytest.approx(before["held_out_loss"], abs=1e-4)


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
    assert main(["train", str(tmp_path / "line"), *words, *STAGES]) == 0
    again, whole = curve(tmp_path / "line"), curve(line)
    assert again[-1]["held_out_loss"] == pytest.approx(whole[-1]["held_out_loss"], abs=1e-6)
    assert [row["step"] for row in again] == [row["step"] for row in whole]


def test_a_finished_line_is_not_repeated(
    line: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (line / "stage2/model.safetensors").stat().st_mtime_ns
    assert main(["train", str(line), *words, *STAGES, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 90
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


def test_another_stage_two_grows_anew(words: list[str], tmp_path: Path) -> None:
    """With --overwrite the changed stage starts from the grown model, not from what the old one had learned."""
    for folder, stages in (("line", ["1:8", "2:8"]), ("line", ["1:8", "2:12"]), ("fresh", ["1:8", "2:12"])):
        assert main(["train", str(tmp_path / folder), *words, *stages, "--overwrite"]) == 0
    assert curve(tmp_path / "line") == curve(tmp_path / "fresh")


def test_a_line_that_starts_grown_goes_by_its_first_model(
    line: Path, words: list[str], tmp_path: Path
) -> None:
    for start in (line / "stage2", tmp_path / "grown"):
        if start.name == "grown":
            assert main(["grow", str(line / "stage1"), str(start), "--width", "2"]) == 0
        out = str(tmp_path / f"from-{start.name}")
        given = [word for word in words if word not in ("--config", words[1])]
        assert main(["train", out, "--from", str(start), *given, "1:4", "2:4"]) == 0
        assert mupscale.Plan.load(f"{out}/stage2").growth == {"d_model": 4, "d_ff": 4, "kv_heads": 4}


def test_killed_before_its_manifest_was_written_a_stage_is_not_lost(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    command = ["train", str(tmp_path), *words, "1:4", "2:6"]
    monkeypatch.setattr("mupscale.study.stages.shutil.copy", killed)
    assert main(command) == 130
    monkeypatch.undo()
    assert (tmp_path / "stage2/history.json").is_file()
    assert main(command) == 0
    assert mupscale.Plan.load(tmp_path / "stage2").growth["d_model"] == 2


def test_a_later_stage_is_checked_before_the_first_step(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, message in (
        ("operator = 'stretch'", "stage 2: operator 'stretch' is unknown"),
        ("lr = 'high'", "stage 2: "),
        ("warmup_steps = 50", "stage 2: warmup_steps 50 and a cooldown"),
        ("noise = 1", "noise and optimizer are words"),
    ):
        (tmp_path / "s.toml").write_text(f"[[stages]]\nsteps = 5\n[[stages]]\nsteps = 5\nwidth = 2\n{line}\n")
        assert main(["train", str(tmp_path / "out"), *words, str(tmp_path / "s.toml")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out/stage1").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["2:10"], "stage 1: the first has nothing to grow from"),
        (["1:10", "1:5"], "stage 2: expected a width above 1"),
        (["1:10", "2x5"], "stage '2x5': expected WIDTH:STEPS"),
        (
            ["[[stages]]\nsteps = 1\nlearning_rate = 1"],
            "stage 1: unknown key 'learning_rate'; expected batch_size",
        ),
        (["[[stages]]\nsteps = 1.5"], r"steps \(and width\) must be whole"),
        (["[[stages]]\nsteps = 1\noptimizer = 'old'"], "optimizer is carried or fresh, not 'old'"),
        (["x = 1"], r"no \[\[stages\]\] to read there"),
    ],
)
def test_bad_stages_are_named(given: list[str], message: str, tmp_path: Path) -> None:
    if len(given) == 1 and "=" in given[0]:
        (tmp_path / "stages.toml").write_text(given[0])
        given = [str(tmp_path / "stages.toml")]
    with pytest.raises(GrowthError, match=message):
        read_stages(given)
