"""What the README says: its commands run, on a machine that remembers nothing, and its map is the measured one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mupscale.operators.catalogue import DEFAULT
from mupscale.study.growing_pays import packaged

ROOT = Path(__file__).parents[2]

# What makes a command short enough for a test: other numbers in its place, and options besides.
SHORTER = {
    r"--steps \d+": "--steps 4 --config llama-tiny --batch-size 4 --block-size 16 --eval-blocks 4 --warmup-steps 1",
    r"--stages [\d: ]+": "--stages 1:4 2:4 --config llama-tiny --data texts --batch-size 4 --block-size 16 --eval-blocks 4 --warmup-steps 1",
    r"compare .*": r"\g<0> --data texts --steps 4 --seeds 1 --lrs 1 0.5 --warmup-steps 1 --starts scratch duplicate",
    r"(tune|study) +study\.toml": rf"\1 {ROOT}/examples/studies/llama_cpu.toml --dry-run",
    r"tune examples/(\S+)( --check-transfer)?$": rf"tune {ROOT}/examples/\1\2 --dry-run",
    r"tune examples/": f"tune {ROOT}/examples/",
    r"grow narrow wide --to": "grow narrow padded --to",
}


def shown() -> list[str]:
    lines = re.findall(r"^    mupscale +(.*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    commands = [re.sub(r" +# .*", "", line).strip() for line in lines]
    assert len(commands) > 10
    return sorted(commands, key=lambda command: not command.startswith("train  narrow"))


@pytest.mark.slow
def test_every_command_of_the_readme_runs_with_an_empty_cache(tmp_path):
    (tmp_path / "texts").mkdir()
    for source in (ROOT / "src/mupscale/notation/axes.py", ROOT / "src/mupscale/planner.py"):
        shutil.copy(source, tmp_path / "texts" / f"{source.stem}.txt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number, command in enumerate(shown()):
        for pattern, shorter in SHORTER.items():
            command = re.sub(pattern, shorter, command)
        words = re.sub("'", "", command).split()
        cache = {"MUPSCALE_CACHE": str(tmp_path / f"cache{number}")}
        done = subprocess.run(
            [sys.executable, "-m", "mupscale", *words],
            cwd=tmp_path,
            env=environment | cache,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"mupscale {command}\n{done.stdout[-800:]}\n{done.stderr[-800:]}"


def test_the_default_is_what_is_best_on_the_map():
    best = next(cell for cell in packaged()["cells"] if cell["start"] == packaged()["best"])
    assert best["recipe"] == "--operator {} --shrink {}".format(*DEFAULT)


@pytest.mark.parametrize(
    ("shown", "start"),
    [
        ("the default: `--operator expand --shrink 0.7`", "expand_shrunk"),
        ("`--operator zero_pad` (λ = 0.4)", "padded"),
        ("`--operator expand` (λ = 1)", "expand"),
        ("`--operator zero_pad --shrink 1`", "padded_whole"),
        ("`--operator duplicate`", "copied"),
        ("the narrow model continued, as many FLOPs", "continued"),
    ],
)
def test_the_shares_in_the_readme_are_those_of_the_map(shown, start):
    readme = (ROOT / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith(f"| {shown} |"))
    columns = [column.strip() for column in row.replace("*", "").split("|")[2:-2]]
    cells = {
        (cell["narrow_tokens_per_parameter"], cell["tokens_per_parameter"]): cell
        for cell in packaged()["cells"]
        if cell["start"] == start
    }
    for narrow, column in zip((5, 20, 80, 320), columns, strict=False):
        cell = cells[narrow, 20]
        spread = "" if cell["share_spread"] is None else f" ± {100 * cell['share_spread']:.0f} %"
        said = f"{cell['sign']}{100 * cell['share']:.0f} %{spread}"
        with_narrow = f" ({cell['sign']}{100 * cell['with_narrow']:.0f} %)"
        assert column == said + (with_narrow if narrow < 320 else "")
    short = cells[320, 5]
    assert columns[4] == f"{short['loss']:.3f} ± {short['loss_spread']:.3f}"
    assert f"(from scratch {short['scratch_loss']:.3f})" in readme
