"""Under μP and after growing no activation goes with the width; under the standard parametrization many do."""

from __future__ import annotations

import csv
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig

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


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    """The command on a Llama: its status, what it prints, and the folder with what it writes."""
    folder = tmp_path_factory.mktemp("checked")
    LLAMA.save_pretrained(folder / "narrow")
    with redirect_stdout(StringIO()) as printed:
        status = main(["coord-check", str(folder / "narrow"), "--out", str(folder), "--json"])
    return status, json.loads(printed.getvalue()), folder


def written(folder: Path) -> list[dict[str, Any]]:
    """The rows of the file that the command writes."""
    kinds = {"width": int, "seed": int, "step": int, "mean_abs": float}
    with (folder / "coordinates.csv").open(newline="") as file:
        return [{k: kinds.get(k, str)(v) for k, v in row.items()} for row in csv.DictReader(file)]


# A GPT-2 takes as long again.
FAMILIES = ["llama", pytest.param("gpt2", marks=pytest.mark.slow)]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_standard_parametrization_grows_with_width(
    family: str, request: pytest.FixtureRequest
) -> None:
    if family == "llama":  # the command's defaults are the function's
        found = slopes(written(request.getfixturevalue("checked")[-1]))
    else:
        found = slopes(coordinate_check(GPT2))
    for slope in found:
        if slope.parametrization != "standard":
            assert abs(slope.slope) <= 0.15, slope
    standard = {s.module: s for s in found if s.parametrization == "standard"}
    assert standard["lm_head"].slope > 0.5
    assert standard["lm_head"].verdict == "grows"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_the_standard_parametrization_grows_with_depth(family: str) -> None:
    config = {"llama": LLAMA, "gpt2": GPT2}[family]
    rows = coordinate_check(config, depths=(2, 4, 8, 16), widths=(1, 2), seeds=2)
    found = slopes(rows)
    assert {slope.width for slope in found} == {1, 2}
    for slope in found:
        if slope.parametrization != "standard":
            assert abs(slope.slope) <= 0.15, slope
    streams = [s for s in found if s.parametrization == "standard" and s.module.endswith(".*")]
    assert len(streams) == 2
    for stream in streams:
        assert stream.verdict == "grows", stream
    assert holds(found)


def test_depths_below_the_narrow_model_s_own_are_refused() -> None:
    with pytest.raises(GrowthError, match=r"depths \(1, 2\): expected at least two, of 2 layers"):
        coordinate_check(LLAMA, depths=(1, 2))


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
    checked: tuple[int, dict[str, Any], Path], tmp_path: Path
) -> None:
    status, result, folder = checked
    assert status == 0
    assert result["passed"]
    assert any(line.startswith("standard: ") and "lm_head grows" in line for line in result["verdicts"])
    assert any(line.startswith("mup: all 15 kinds of modules keep their size") for line in result["verdicts"])
    assert len(written(folder)) == 3 * 4 * 3 * 5 * 15  # parametrizations, widths, seeds, steps, modules
    assert (folder / "coordinates.png").read_bytes().startswith(b"\x89PNG")
    alone = ["coord-check", str(folder / "narrow/config.json"), "--parametrizations", "standard"]
    assert main([*alone, "--seeds", "1", "--out", str(tmp_path)]) == 1


def test_what_overflows_is_null_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LLAMA.save_pretrained(tmp_path)
    words = ["coord-check", str(tmp_path), "--widths", "1", "2", "--steps", "1", "--seeds", "1"]
    words += ["--lr", "1e30", "--parametrizations", "mup", "--out", str(tmp_path), "--json"]
    assert main(words) == 1
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert None in [slope["slope"] for slope in said["slopes"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps 0, --seeds 3, --lr 0.002: expected numbers above 0"),
        (["--lr", "inf"], "--lr inf: expected numbers above 0"),
        (["--parametrizations"], "--parametrizations: expected some of standard, mup, grown"),
        (["--optimizer", "muon"], "--optimizer muon: it takes hidden matrices alone"),
        (["--optimizer", "sparseadam"], "--optimizer sparseadam: it takes sparse gradients alone"),
    ],
)
def test_bad_options_are_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LLAMA.save_pretrained(tmp_path)
    assert main(["coord-check", str(tmp_path), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


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
