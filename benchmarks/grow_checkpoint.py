"""What growing a checkpoint costs: GPT-2 of 124M parameters by 2, against writing as many bytes from memory.

    python benchmarks/grow_checkpoint.py [--runs 5]

Both sides run in processes of their own, in turn; seconds are taken inside, without imports, peak memory is
the operating system's. Prints JSON: the median of each, and the median ratio of the pairs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

import mupscale
from mupscale.growth import grow_checkpoint


def report(start: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_memory_bytes": peak}))


def grow(folder: Path, noise: str) -> None:
    start = time.perf_counter()
    grow_checkpoint(
        folder / "narrow", folder / "wide", width=2, noise=noise, overwrite=True, operator="duplicate"
    )
    report(start)


def write(folder: Path, _noise: str) -> None:
    plan = mupscale.plan(GPT2Config(), width=2)
    tensors = {name: torch.randn(plan.wide_shape(name)) for name in plan.params}
    start = time.perf_counter()
    save_file(tensors, folder / "baseline.safetensors", metadata={"format": "pt"})
    report(start)


def measure(what: str, folder: Path, noise: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", what, "--folder", str(folder), "--noise", noise]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=["grow", "write"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--noise", default="balanced:1")
    args = parser.parse_args()
    if args.only:
        {"grow": grow, "write": write}[args.only](args.folder, args.noise)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder / "narrow")
        result: dict[str, Any] = {}
        measure("write", folder, "none")  # warm the disk cache
        for noise in ("balanced:1", "none"):
            pairs = [
                (measure("grow", folder, noise), measure("write", folder, noise)) for _ in range(args.runs)
            ]
            ratios = [{f"{k}_ratio_to_save_file": g[k] / w[k] for k in g} for g, w in pairs]
            result[f"grow, noise {noise}"] = medians([g for g, _ in pairs]) | medians(ratios)
            result[f"save_file, beside noise {noise}"] = medians([w for _, w in pairs])
        result["bytes_written"] = (folder / "wide/model.safetensors").stat().st_size
        result["runs"] = args.runs
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
