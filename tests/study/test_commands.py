"""The commands as the shell sees them: exit status, one JSON object on standard output, one-line errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro
from mupscale.study.demo import DemoConfig, demo
from mupscale.study.warmstart import WarmstartConfig

from conftest import TRAINING, tiny_llama
from mupscale import GrowthError
from mupscale.growth import grow_checkpoint
from mupscale.planner import plan
from mupscale.study import commands
from mupscale.study.data.corpus import DataConfig

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


def call(command: Any, *words: str | Path) -> int:
    return tyro.cli(command, args=[str(word) for word in words])


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(tiny_llama().to_json_string(use_diff=False))
    return path


def test_train_prints_one_json_object(
    tmp_path: Path, config_file: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [tmp_path / "out", "--config", config_file, "--data", text_file, *SHORT, "--lr", "1e-2", "--json"]
    assert call(commands.train, *words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 10
    assert result["final_held_out_loss"] < result["first_held_out_loss"]
    assert call(commands.train, *words, "--resume") == 0
    assert json.loads(capsys.readouterr().out) == result


def test_train_goes_on_from_a_grown_checkpoint(
    comparison: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = comparison / "narrow"
    grow_checkpoint(narrow, tmp_path / "grown", plan(tiny_llama(), width=2))
    words = [tmp_path / "out", "--from", tmp_path / "grown", "--data", text_file, "--held-out", "0.1", *SHORT]
    assert call(commands.train, *words, "--lr", "5e-3", "--eval-blocks", "8", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    last = json.loads((narrow / "history.json").read_text())["curve"][-1]["held_out_loss"]
    assert result["first_held_out_loss"] == pytest.approx(last, abs=1e-4)
    assert (tmp_path / "out" / "mupscale.json").is_file()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["start"]["optimizer_carried"]
    assert run["config"]["skip_blocks"] == 160


def test_compare_writes_everything(
    comparison: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [comparison / "narrow", tmp_path / "out", "--data", text_file, "--held-out", "0.1"]
    words += ["--widths", "2", "--starts", "scratch", "hyperclone", "--steps", "8", "--warmup-steps", "1"]
    words += ["--lrs", "1", "0.5", "--seeds", "2"]
    assert call(commands.compare, *words, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {row["start"] for row in result["table"]} == {
        "from scratch, μP",
        "hyperclone, paired:10 dB, optimizer fresh",
    }
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"comparison.{kind}" for kind in ("json", "md", "png", "csv")} <= names
    assert call(commands.compare, *words) == 0
    said = capsys.readouterr().out
    assert "| start | lr × | loss at step 0 | constant | cooldown | reaches scratch at |" in said
    assert said.startswith((tmp_path / "out" / "comparison.md").read_text())


def test_demo_runs_the_whole_story(tmp_path: Path) -> None:
    config = DemoConfig(
        data=DataConfig(max_bytes=200_000, vocab_size=300),
        narrow=replace(TRAINING, steps=10),
        wide_steps=10,
        compare=WarmstartConfig(scratch_lrs=(1.0,), scratch_lengths=(1.0,)),
    )
    results = demo(tmp_path, config)
    assert results["verification"]["equal"]
    assert results["narrow"]["steps"] == 10
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == json.loads(
        json.dumps(results["runs"])
    )
    assert {"report.html", "loss_over_steps.png", "loss_over_steps.csv"} <= {
        p.name for p in tmp_path.iterdir()
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
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
        call(commands.train, "out", *(str(text_file) if word == "TEXT" else word for word in words))
    assert "\n" not in str(error.value)


def test_compare_names_bad_input(comparison: Path, tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match=r"no config\.json"):
        call(commands.compare, tmp_path, tmp_path / "out")
    with pytest.raises(GrowthError, match="start 'copy': expected scratch or one of duplicate"):
        call(commands.compare, comparison / "narrow", tmp_path / "out", "--starts", "copy")


def test_axes_are_parsed() -> None:
    assert commands.parse_axes([]) is None
    assert commands.parse_axes(["d_ff=3", "kv_heads=1"]) == {"d_ff": 3, "kv_heads": 1}
