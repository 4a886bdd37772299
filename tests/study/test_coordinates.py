"""Under μP and after growing no activation goes with the width; under the standard parametrization many do."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from mupscale import GrowthError
from mupscale.cli import main
from mupscale.study.coordinates import Slope, coordinate_check, holds, slopes

LLAMA = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_hidden_layers=2,
    vocab_size=128,
    bos_token_id=0,
    eos_token_id=0,
)
GPT2 = GPT2Config(
    n_embd=32,
    n_layer=2,
    n_head=2,
    n_positions=64,
    vocab_size=128,
    bos_token_id=0,
    eos_token_id=0,
    attn_pdrop=0,
    resid_pdrop=0,
    embd_pdrop=0,
)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_only_the_standard_parametrization_grows_with_width(config: PreTrainedConfig) -> None:
    found = slopes(coordinate_check(config))
    for slope in found:
        if slope.parametrization != "standard":
            assert abs(slope.slope) <= 0.15, slope
    standard = {s.module: s for s in found if s.parametrization == "standard"}
    assert standard["lm_head"].slope > 0.5
    assert standard["lm_head"].verdict == "grows"


def test_a_slope_is_that_of_the_power() -> None:
    points = [
        {"parametrization": "mup", "width": w, "seed": 0, "step": 1, "module": "m", "mean_abs": 3.0 * w**0.5}
        for w in (1, 2, 4, 8)
    ]
    (slope,) = slopes(points)
    assert slope.slope == pytest.approx(0.5)
    assert slope.interval == pytest.approx(0, abs=1e-9)
    assert slope.verdict == "grows"


@pytest.mark.parametrize("size", [float("inf"), float("nan")])
def test_an_overflow_counts_as_growing(size: float) -> None:
    points = [
        {"parametrization": "mup", "width": w, "step": 1, "module": "m", "mean_abs": size if w == 4 else 1.0}
        for w in (1, 2, 4)
    ]
    assert slopes(points)[0].verdict == "grows"


def test_command_writes_numbers_and_a_picture_and_tells_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LLAMA.save_pretrained(tmp_path / "narrow")
    options = ["--out", str(tmp_path / "out"), "--json"]
    assert main(["coord-check", str(tmp_path / "narrow"), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"]
    assert any(line.startswith("standard: ") and "lm_head grows" in line for line in result["verdicts"])
    assert any(line.startswith("mup: all 15 kinds of modules keep their size") for line in result["verdicts"])
    with (tmp_path / "out/coordinates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4 * 3 * 5 * 15  # parametrizations, widths, seeds, steps, modules
    assert (tmp_path / "out/coordinates.png").read_bytes().startswith(b"\x89PNG")
    narrow = str(tmp_path / "narrow/config.json")
    assert main(["coord-check", narrow, *options, "--parametrizations", "standard"]) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (2,)}, "at least two different factors"),
        ({"optimizer": "lbfgs"}, "expected one of .*adamw"),
        ({"parametrizations": ("ntk",)}, "expected some of standard, mup, grown"),
        ({"steps": 0}, "must be positive"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(GrowthError, match=message):
        coordinate_check(LLAMA, **fields)  # type: ignore[arg-type]


def test_the_standard_parametrization_is_judged_only_when_alone() -> None:
    standard, mup = (
        Slope(parametrization=name, module="m", slope=slope, interval=0.0, sizes={})
        for name, slope in (("standard", 1.0), ("mup", 0.1))
    )
    assert holds([standard, mup])
    assert not holds([standard])
