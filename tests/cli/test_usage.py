"""What is wrong is said in one line that names what to do; and nothing is cut on a narrow terminal."""

import re

import pytest

import mupscale
from models import build
from mupscale.cli import main
from mupscale.theory.tables import scaling_rows


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow")
    build("llama").float().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("gorw narrow", "unknown command 'gorw'; did you mean grow?"),
        ("init --help", "unknown command 'init'; expected one of plan, grow, "),
        ("hparams wide --lr 1 --batch-size 64", "--batch-size: expected 2 values, found 1; mupscale hparams --help"),
        ("hparams wide --lr 1 --betas 0.9", "--betas: expected 2 values, found 1; "),
        ("hparams wide --lr abc", "--lr: expected a number, found 'abc'; mupscale hparams --help says more"),
        ("tune a.toml --jobs many", "--jobs: expected a whole number, found 'many'; mupscale tune --help"),
        ("grow a b --widht 2", "--widht, 2; did you mean --width? mupscale grow --help says more"),
        ("grow a b c", "Unrecognized options: c; mupscale grow --help says more"),
        ("hparams wide", "Missing from mupscale hparams: --lr FLOAT"),
        ("verify a b --steps -1", "--steps"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(words, said, capsys):
    assert main(words.split()) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert "[bold]" not in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    "command", ["plan {} --width 2", "grow {} wide --width 2", "verify {}", "hparams {} --lr 1"]
)
def test_a_file_is_no_folder(command, narrow, capsys):
    assert main(command.format(narrow / "config.json").split()) == 2
    assert capsys.readouterr().err == f"mupscale: {narrow / 'config.json'}: is a file; give its folder\n"


def test_layers_grow_by_whole_factors(narrow, tmp_path, capsys):
    argv = ["grow", str(narrow), str(tmp_path / "deep"), "--axes", "layers=1.5"]
    assert main(argv) == 2
    assert capsys.readouterr().err == "mupscale: layers by 3/2: layers grow by whole factors; choose 2\n"


def test_steps_that_cannot_be_are_refused_before_anything_is_compared(narrow, tmp_path, capsys):
    for to, axes in (("wide", "d_ff=2"), ("deep", "layers=2")):
        assert main(["grow", str(narrow), str(tmp_path / to), "--axes", axes]) == 0
    capsys.readouterr()
    for to, said in (
        ("wide", "only even copies train in lockstep, and DST was grown by expand"),
        ("deep", "a deeper model"),
    ):
        assert main(["verify", str(narrow), str(tmp_path / to), "--steps", "2"]) == 2
        told = capsys.readouterr()
        assert said in told.err
        assert told.out == ""


def test_no_bar_is_drawn_where_nobody_looks(narrow, capsys):
    assert main(["doctor", str(narrow)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [60, 80])
def test_on_a_narrow_terminal_names_are_folded_and_numbers_whole(columns, narrow, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal does
    assert main(["plan", str(narrow), "--width", "3"]) == 0
    told = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in told
    assert all(len(line) <= columns for line in told.splitlines())
    lines = [line.split() for line in told.splitlines()]
    assert ["copies", "weight", "grad", "Adam", "SGD", "AdamW"] in lines
    shown = [line[-6:] for line in lines if len(line) >= 7 and line[-1].replace(".", "").isdigit()]
    keys = ("copies", "weight_scale", "grad_scale", "adam_lr", "sgd_lr", "weight_decay")
    rows = scaling_rows(mupscale.plan(build("llama").config, width=3).params)
    assert shown == [[f"{row[key]:.4g}" for key in keys] for row in rows]
    assert main(["doctor", str(narrow)]) == 0
    told = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in told
    assert "[d_ff]" in told


def test_a_short_run_warms_up_for_what_it_has(tmp_path, capsys):
    (text := tmp_path / "numbers.txt").write_text(" ".join(map(str, range(20_000))))
    words = "--held-out 0.1 --steps 4 --eval-blocks 1 --batch-size 1 --block-size 8 --vocab-size 300"
    words = ["--data", str(text), *words.split()]
    assert main(["train", str(tmp_path / "short"), *words]) == 0
    capsys.readouterr()
    assert main(["train", str(tmp_path / "other"), *words, "--warmup-steps", "9"]) == 2
    assert "a shorter warmup" in capsys.readouterr().err
