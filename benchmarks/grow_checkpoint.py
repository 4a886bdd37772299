"""What growing a checkpoint costs, against writing as many bytes to the disk and against building the model.

    python benchmarks/grow_checkpoint.py [gpt2] [gpt2-adamw] [llama] [llama-adamw] [--runs 3] [--folder DISK]

The models: GPT-2 of 124M parameters in float32 and a Llama of 1.1B in bfloat16, each without and with the
state of AdamW, made twice as wide, with noise and without. `write` writes as many bytes from a buffer in
memory, in order, and syncs them; `straight` does so past the memory that the system keeps of files, as
growing does, which is what the disk can do. `build` does as code does that copies weights: it loads the
narrow model, grows it in memory, and saves the wide one (without an optimizer).

All sides run in processes of their own, in turn; seconds are taken inside, without imports, peak memory is
the operating system's. Prints JSON: the medians, and the median ratios of growing to the others of the same
turn. Space for 6 GB (gpt2), 17 GB (gpt2-adamw), 27 GB (llama) or 80 GB (llama-adamw) is needed.

    sudo python benchmarks/grow_checkpoint.py llama-adamw --limit 1500000000 [--folder DISK]

grows once, in a group of processes that the system lets have so many bytes of memory, its files included (a
memory cgroup, which root can make; tried with the first version, not with the second). Prints the most that
it had, and how often the system had to take some back.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

import mupscale
from mupscale.checkpoint.outgoing import Outgoing
from mupscale.growth import grow_checkpoint

# TinyLlama's sizes.
LLAMA = LlamaConfig(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    vocab_size=32000,
)
MODELS: dict[str, tuple[PreTrainedConfig, torch.dtype]] = {
    "gpt2": (GPT2Config(), torch.float32),
    "gpt2-adamw": (GPT2Config(), torch.float32),
    "llama": (LLAMA, torch.bfloat16),
    "llama-adamw": (LLAMA, torch.bfloat16),
}
NOISES = ("none", "balanced:1")


def make(folder: Path, model: str) -> None:
    """The narrow checkpoint; in a process of its own, too, as a large one hands its peak memory on."""
    config, dtype = MODELS[model]
    narrow = AutoModelForCausalLM.from_config(config, dtype=dtype)
    narrow.save_pretrained(folder / "narrow")
    if model.endswith("adamw"):
        optimizer = torch.optim.AdamW(list(narrow.named_parameters()))
        for param in narrow.parameters():
            param.grad = torch.randn_like(param)
        optimizer.step()
        optimizer.zero_grad()
        torch.save(optimizer.state_dict(), folder / "narrow/optimizer.pt")


def grow(folder: Path, noise: str) -> None:
    grow_checkpoint(
        folder / "narrow", folder / "wide", width=2, noise=noise, overwrite=True, operator="duplicate"
    )


def build(folder: Path, noise: str) -> None:
    narrow = AutoModelForCausalLM.from_pretrained(folder / "narrow", dtype="auto")
    plan = mupscale.plan(narrow.config, width=2)
    mupscale.grow(narrow, plan, noise=noise, operator="duplicate").save_pretrained(folder / "built")


def write(folder: Path, _: str) -> None:
    """As many bytes as the wide directory holds."""
    left = sum(path.stat().st_size for path in (folder / "wide").iterdir())
    buffer = memoryview(os.urandom(1 << 26))
    with (folder / "baseline").open("wb", buffering=0) as file:
        while left:
            left -= file.write(buffer[:left])
        os.fsync(file.fileno())


def straight(folder: Path, _: str) -> None:
    left = sum(path.stat().st_size for path in (folder / "wide").iterdir())
    buffer, path = memoryview(os.urandom(1 << 26)), folder / "baseline"
    path.write_bytes(b"")
    with Outgoing(path) as file:
        while left:
            file.write(buffer[:left])
            left -= min(left, len(buffer))
    with path.open("rb") as written:
        os.fsync(written.fileno())


SIDES: dict[str, Callable[[Path, str], None]] = {
    "grow": grow,
    "write": write,
    "straight": straight,
    "build": build,
}
PARTS = {"make": make, **SIDES}


def measure(part: str, folder: Path, about: str, group: Path | None = None) -> dict[str, float]:
    """One side, in a process of its own; in a cgroup, where that is given."""
    command = [sys.executable, __file__, "--only", part, "--folder", str(folder), "--about", about]
    enter = None if group is None else (lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
    done = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=enter)
    os.sync()
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}


def compared(model: str, folder: Path, runs: int) -> dict[str, Any]:
    """All sides of one model, in turn."""
    measure("make", folder, model)
    measure("grow", folder, "none")  # a first time, so that all that is remembered of its family is there
    result: dict[str, Any] = {}
    sides = ["grow", "write", "straight"] if model.endswith("adamw") else [*SIDES]
    for noise in NOISES:
        turns = [{side: measure(side, folder, noise) for side in sides} for _ in range(runs)]
        ratios = [
            {f"grow_over_{s}": turn["grow"]["seconds"] / turn[s]["seconds"] for s in sides if s != "grow"}
            for turn in turns
        ]
        result[f"noise {noise}"] = {s: medians([t[s] for t in turns]) for s in sides} | medians(ratios)
    result["bytes_written"] = (folder / "baseline").stat().st_size
    return result


def limited(model: str, folder: Path, limit: int) -> dict[str, Any]:
    """One growth with so many bytes of memory."""
    root = Path("/sys/fs/cgroup")
    first = (root / "memory").is_dir()
    group = root / ("memory" if first else "") / f"mupscale-{os.getpid()}"
    names = ("limit_in_bytes", "max_usage_in_bytes", "failcnt") if first else ("max", "peak", "events")
    measure("make", folder, model)
    group.mkdir()
    try:
        (group / f"memory.{names[0]}").write_text(str(limit))
        grown = measure("grow", folder, "balanced:1", group)
        most, taken = ((group / f"memory.{name}").read_text().split() for name in names[1:])
        return {"limit": limit, "most": int(most[0]), "at_the_limit": taken, **grown}
    finally:
        group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="default: gpt2 and gpt2-adamw")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--limit", type=int, help="bytes of memory; needs root")
    parser.add_argument("--only", choices=[*PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--about", default="none", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        with tempfile.TemporaryDirectory() as name:  # so that all is imported, and remembered of the family
            small = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=8)
            AutoModelForCausalLM.from_config(small).save_pretrained(Path(name) / "narrow")
            grow(Path(name), "none")
        start = time.perf_counter()
        PARTS[args.only](args.folder, args.about)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": time.perf_counter() - start, "peak_memory_bytes": peak}))
        return
    result: dict[str, Any] = {"runs": args.runs}
    for model in args.models or ("gpt2", "gpt2-adamw"):
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            if args.limit:
                result[model] = limited(model, Path(name), args.limit)
            else:
                result[model] = compared(model, Path(name), args.runs)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
