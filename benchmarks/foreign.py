"""Models that other libraries wrote: is their growth proved, or refused, and is the proof right?

    make foreign
    python benchmarks/foreign.py --json
    python benchmarks/foreign.py --only 'timm/vit*' 'torch_nn/*'

Each model goes the public way: ``plan(make, width=2, inputs=...)``, grown without noise and with the
default's, its optimizer carried. Whether the wide model computes the same, and trains in lockstep for five
steps of AdamW, is checked here, in float64, with a comparison of its own. `foreign_cases` holds the models.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import fnmatch
import importlib
import importlib.metadata
import json
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from foreign_cases import LIBRARIES, Case
from torch import Tensor, nn

import mupscale
from mupscale.models.precision import Float64

STATUS = ("proved", "refused", "unproved", "crashed", "WRONG", "not built")
TOLERANCE = 1e-9
STEPS = 5
SECONDS = 120  # a case that takes longer has crashed

Row = dict[str, Any]


class Late(BaseException):
    """No Exception, so that nothing on the way takes it for an error of the model's own."""


def attempt(case: Case, width: int) -> Row:
    """What comes of a case: its status, and what goes with that."""
    row = tried(case, width)
    if row["status"] == "WRONG" and row.get("difference", 1.0) < 1e-6:
        # Constants that a constructor rounds to float32, as √d_model, part two widths by as much.
        with exactly():
            row = tried(case, width)
    return row


def tried(case: Case, width: int) -> Row:
    try:
        narrow = undropped(randomized(case.make(1).double()))
        optimizer = adamw(narrow)
        train(narrow, optimizer, case.inputs, steps=2)  # state to carry
    except Exception as error:
        return {"status": "not built", "reason": described(error)}
    verb = "plan"
    try:
        plan = mupscale.plan(case.make, width=width, inputs=case.inputs)
        if not plan.growth:
            return {"status": "not built", "reason": "nothing grows with the width"}
        verb = "grow"
        noisy, wide = (
            mupscale.grow(narrow, plan, operator="duplicate"),
            mupscale.grow(narrow, plan, noise=None, operator="duplicate"),
        )
        verb = "carry_optimizer"
        carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    except mupscale.GrowthError as error:
        return {"status": "refused", "reason": described(error), "verb": verb}
    except Exception as error:
        return {"status": "crashed", "reason": f"{verb}: {type(error).__name__}: {described(error)}"}
    row: Row = {"growth": {axis: str(factor) for axis, factor in plan.growth.items()}}
    try:
        row |= compared(narrow, wide, noisy, case.inputs)
        row |= in_lockstep((narrow, optimizer), (undropped(wide), carried), case.inputs)
    except Exception as error:
        return row | {"status": "WRONG", "reason": f"the wide model does not run: {described(error)}"}
    if row["difference"] > TOLERANCE or row["loss_difference"] > max(TOLERANCE, 100 * row.get("control", 0)):
        return row | {"status": "WRONG" if plan.proved else "unproved", "reason": "the wide model is another"}
    if not plan.proved:
        return row | {"status": "unproved", "reason": f"right, but {plan.unproved_because}"}
    return row | {"status": "proved"}


def compared(narrow: nn.Module, wide: nn.Module, noisy: nn.Module, inputs: Any) -> Row:
    """The largest difference of the outputs in evaluation mode, with and without noise."""
    expected = run(narrow.eval(), inputs)
    return {"difference": max(distance(expected, run(grown.eval(), inputs)) for grown in (wide, noisy))}


def in_lockstep(narrow: tuple[Any, Any], wide: tuple[Any, Any], inputs: Any) -> Row:
    """The largest difference of the losses; where it is one, what rounding alone makes of it besides.

    A norm over a few values that are almost alike multiplies rounding: then a control, the narrow model with
    weights that are off by 1e-15, drifts as far.
    """
    shifted = copy.deepcopy(narrow)  # with its optimizer, which goes on holding the copy's parameters
    losses, grown = (train(*pair, inputs, steps=STEPS) for pair in (narrow, wide))
    row: Row = {"loss_difference": parted(losses, grown)}
    if row["loss_difference"] > TOLERANCE:
        with torch.no_grad():
            for param in shifted[0].parameters():
                param *= 1 + 1e-15
        row["control"] = parted(losses, train(*shifted, inputs, steps=STEPS))
    return row


def randomized(model: nn.Module) -> nn.Module:
    """No parameter is left at a zero or one that hides what it does."""
    draw = torch.Generator().manual_seed(14)
    with torch.no_grad():
        for param in model.parameters():
            if param.is_floating_point():
                param += 0.05 * torch.randn(param.shape, generator=draw, dtype=param.dtype)
    return model


def undropped(model: nn.Module) -> nn.Module:
    """Nothing is dropped at random: masks of two widths differ."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for key, value in vars(module).items():
            if "drop" in key and isinstance(value, float):
                setattr(module, key, 0.0)
    return model


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Decays what most do: matrices, and neither gains nor biases."""
    trained = [param for param in model.parameters() if param.requires_grad]
    groups = [
        {"params": [param for param in trained if param.ndim > 1], "weight_decay": 0.1},
        {"params": [param for param in trained if param.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any, *, steps: int) -> list[float]:
    model.train()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        loss = sum((pulled(output) for output in call(model, inputs)), start=torch.zeros(()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def pulled(output: Tensor) -> Tensor:
    """A mean, which copies leave as it is, with a different pull on every row."""
    rows = output if output.ndim else output[None]
    target = torch.cos(torch.arange(len(rows), dtype=rows.dtype)).reshape(-1, *[1] * (rows.ndim - 1))
    return (rows - target).square().mean()


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(0)  # for models that sample in evaluation, too
    with torch.no_grad():
        return call(model, inputs)


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Everything that the model returns, in float64 throughout."""
    with exactly():
        if isinstance(inputs, Mapping):
            output = model(**{name: doubled(value) for name, value in inputs.items()})
        else:
            output = model(*map(doubled, inputs if isinstance(inputs, tuple) else (inputs,)))
    return list(tensors(output))


@contextmanager
def exactly() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64():
            yield
    finally:
        torch.set_default_dtype(before)


def doubled(value: Any) -> Any:
    if isinstance(value, list):
        return [doubled(item) for item in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors(value)
    elif dataclasses.is_dataclass(output) or type(output).__module__.startswith("diffusers"):
        yield from tensors(vars(output))


def distance(narrow: Sequence[Tensor], wide: Sequence[Tensor]) -> float:
    """Largest difference over the standard deviation; what grows must hold each value equally often."""
    worst = 0.0
    for a, b in zip(narrow, wide, strict=True):
        copies, rest = divmod(b.numel(), a.numel())
        if rest or a.ndim != b.ndim:
            return float("inf")
        if copies > 1:
            a, b = a.flatten().repeat_interleave(copies).sort().values, b.flatten().sort().values
        error = ((a - b).abs().max() / (a.std(correction=0) + 1e-6)).item()
        worst = max(worst, error if error == error else float("inf"))
    return worst


def parted(losses: Sequence[float], others: Sequence[float]) -> float:
    apart = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(losses, others, strict=True)]
    return max(d if d == d else float("inf") for d in apart)


def described(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def counted(rows: Sequence[Row]) -> dict[str, Any]:
    """How many of each status, and what share of the growths that even copies can express is proved."""
    exact = [
        row
        for row in rows
        if row["status"] != "not built" and (not row["inexact"] or row["status"] != "refused")
    ]
    proved = sum(row["status"] == "proved" for row in rows)
    counts = Counter(row["status"] for row in rows)
    return {**{s: counts[s] for s in STATUS}, "exact": len(exact), "share": proved / max(1, len(exact))}


def page(rows: Sequence[Row], counts: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """The page for the docs: what was tried, how many hold, and one line a model."""
    versions_said = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# Models of other libraries",
        "",
        f"Models that other libraries wrote ({versions_said}), built small,",
        "each planned with `plan(make, width=2, inputs=...)`, grown, and trained beside the narrow one",
        "(`benchmarks/foreign.py`, which writes this page; `make foreign`). *Proved*: `plan.proved`, and the",
        "wide model, with noise and without, gives the same outputs by this script's own comparison in",
        "float64, and the same losses over five steps of AdamW; the numbers are the largest differences.",
        "*Refused*: with the reason; nothing is grown. *Unproved*: the plan says so. *Exact*: even copies",
        "can express the growth; where they cannot, the line says why, and to refuse is right.",
        "",
        "| | exact | proved | of them | " + " | ".join(STATUS[1:]) + " |",
        "|---" * (len(STATUS) + 3) + "|",
    ]
    for library, count in counts.items():
        cells = [count["exact"], count["proved"], f"{count['share']:.0%}", *(count[s] for s in STATUS[1:])]
        lines.append(f"| {library} | " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| model | | outputs, losses; or the reason |", "|---|---|---|"]
    for row in rows:
        said = (
            f"{row['difference']:.0e}, {row['loss_difference']:.0e}"
            if row["status"] == "proved"
            else row["reason"]
        )
        why = f" — *not exact*: {row['inexact']}" if row["inexact"] else ""
        lines.append(f"| `{row['name']}` | {row['status']} | {escaped(said)}{why} |")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def collected(only: Sequence[str]) -> tuple[list[tuple[str, Case]], dict[str, str]]:
    """The cases whose names fit one of the patterns, and why libraries are left out."""
    chosen, missing = [], {}
    for library in LIBRARIES:
        if only and not any(fnmatch.fnmatch(library, pattern.partition("/")[0]) for pattern in only):
            continue
        try:
            table = importlib.import_module(f"foreign_cases.{library}").cases()
        except ImportError as error:
            missing[library] = described(error)
            continue
        named = [(f"{library}/{case.name}", case) for case in table]
        assert len(dict(named)) == len(named), "names tell cases apart"
        chosen += [(n, c) for n, c in named if not only or any(fnmatch.fnmatch(n, p) for p in only)]
    return chosen, missing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="such as 'timm/vit*'")
    parser.add_argument("--page", type=Path, help="write a page for the docs here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()

    def late(*_: object) -> None:
        raise Late(f"not done after {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    chosen, missing = collected(args.only)
    rows = []
    for number, (name, case) in enumerate(chosen, start=1):
        start = time.perf_counter()
        signal.alarm(SECONDS)
        try:
            row = attempt(case, args.width)
        except Late as error:
            row = {"status": "crashed", "reason": str(error)}
        finally:
            signal.alarm(0)
        row = {"name": name, "inexact": case.inexact} | row | {"seconds": time.perf_counter() - start}
        rows.append(row)
        if not args.json:
            print(f"{number:3}/{len(chosen)} {line(row)}", flush=True)
    libraries = {row["name"].partition("/")[0] for row in rows}
    of = {name: [row for row in rows if row["name"].startswith(f"{name}/")] for name in LIBRARIES}
    counts = {name: counted(of[name]) for name in LIBRARIES if name in libraries} | {"all": counted(rows)}
    versions = {name: version for name in ("torch", *LIBRARIES) if (version := installed(name))}
    if args.page:
        args.page.write_text(page(rows, counts, versions), encoding="utf-8")
    if args.json:
        print(
            json.dumps({"versions": versions, "missing": missing, "counts": counts, "rows": rows}, indent=1)
        )
        return
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}")
    for name, count in counts.items():
        said = ", ".join(f"{count[s]} {s}" for s in STATUS if count[s])
        print(f"{name:16} {said}; {count['share']:.0%} of {count['exact']} that are exact")


def line(row: Row) -> str:
    said = row.get("reason") or f"{row['difference']:.0e}, {row['loss_difference']:.0e}"
    if row["status"] in ("WRONG", "unproved") and "loss_difference" in row:
        said += f": {row['difference']:.0e}, {row['loss_difference']:.0e}"
    why = f"[{row['inexact']}] " if row["inexact"] else ""
    return f"{row['name']:44} {row['status']:9} {row['seconds']:5.1f} s  {why}{said}"[:300]


def installed(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
