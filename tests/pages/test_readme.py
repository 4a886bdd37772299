"""Every command that the README shows, run once, each on a machine that remembers nothing yet."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
