"""What stacking runs saves: a sweep of a small Llama proxy over learning rates and seeds, four ways.

    python benchmarks/stacked.py [--members 16] [--width 32] [--steps 50] [--device cpu] [--jobs 2]

The same runs in one process, one after another through the Trainer (`mupscale.study.runs.training.train`),
one after another through `mupscale.study.runs.stacked.train_stacked`, and all stacked; then through the
Trainer in several processes. Prints JSON: seconds of each, how many times faster the stack is, and by how
much the final held-out losses differ from the Trainer's. Models are built before the clock starts, except in
the processes, which also load the libraries; the Trainer's runs write their checkpoints, as they always do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedModel

from mupscale.study.data.tokens import Tokens, load_tokens
from mupscale.study.runs.models import fresh_model, small_llama
from mupscale.study.runs.optimizers import build_optimizer
from mupscale.study.runs.stacked import Member, train_stacked
from mupscale.study.runs.training import train
from mupscale.study.spec.recipe import TrainConfig

BOUND = 1e-5


def timed(run: Callable[[], list[float]], device: str) -> tuple[list[float], float]:
    """What it returns, and its seconds."""
    start = time.perf_counter()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def by_trainer(tokens: Tokens, model: PreTrainedModel, config: TrainConfig) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return train(model, tokens, Path(folder), config).final_loss


def one_trial(tokens: Tokens, model_config: LlamaConfig, config: TrainConfig) -> float:
    return by_trainer(tokens, fresh_model(model_config, config.seed), config)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu", help="the Trainer takes a GPU wherever there is one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokens = load_tokens(max_bytes=400_000, vocab_size=512)
    model_config = small_llama(args.width, 2, vocab_size=512, positions=64)
    base = TrainConfig(
        steps=args.steps, batch_size=8, block_size=64, warmup_steps=min(10, args.steps // 4), eval_every=25
    )
    configs = [replace(base, lr=1e-3 * 2 ** (i % 4), seed=i) for i in range(args.members)]
    held_out = tokens.held_out(base)

    def models() -> list[PreTrainedModel]:
        return [fresh_model(model_config, config.seed).to(args.device) for config in configs]

    def members() -> list[Member]:
        return [
            Member(
                model=model,
                optimizer=build_optimizer(model, config),
                config=config,
                train=tokens.training(config),
                held_out=held_out,
            )
            for model, config in zip(models(), configs, strict=True)
        ]

    short = replace(base, steps=1, warmup_steps=0)
    by_trainer(tokens, models()[0], short)  # the first run of all loads what is loaded late
    train_stacked([replace(members()[0], config=short)])
    one_by_one, alone, together = models(), members(), members()
    runs: dict[str, Callable[[], list[float]]] = {
        "trainer": lambda: [by_trainer(tokens, m, c) for m, c in zip(one_by_one, configs, strict=True)],
        "stacks_of_one": lambda: [train_stacked([member])[0][-1].loss for member in alone],
        "stacked": lambda: [curve[-1].loss for curve in train_stacked(together)],
        "trainer_processes": lambda: list(pool.map(partial(one_trial, tokens, model_config), configs)),
    }
    losses, seconds = {}, {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, spawn, torch.set_num_threads, (1,)) as pool:
        for name, run in runs.items():
            losses[name], seconds[name] = timed(run, args.device)
    result: dict[str, Any] = {
        **vars(args),
        "seconds": {name: round(s, 2) for name, s in seconds.items()},
        "times_faster_stacked": {n: round(s / seconds["stacked"], 2) for n, s in seconds.items()},
        "largest_difference_to_trainer": {
            name: max(abs(a - b) for a, b in zip(found, losses["trainer"], strict=True))
            for name, found in losses.items()
        },
        "bound": BOUND,
    }
    result["within_bound"] = result["largest_difference_to_trainer"]["stacked"] <= BOUND
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
