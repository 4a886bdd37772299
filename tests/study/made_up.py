"""Results of studies that nobody ran: every number in them is known."""

import json
import math
from itertools import product
from statistics import fmean, stdev
from typing import Any

from mupscale.study.page import json_safe

Row = dict[str, Any]
RATES = [0.001, 0.002, 0.004, 0.008, 0.016]
NOISES = [0.0, 0.5, 1.0, 2.0]
STEP_FLOPS = {32: 10, 64: 40, 128: 160, 256: 640}


def row(
    point: Row,
    losses: list[float | None],
    number: int = 0,
    *,
    steps: int = 100,
    drop: float = 2.0,
    **more: Any,
) -> Row:
    """A point with a loss for each seed; None: that one diverged."""
    known = [loss for loss in losses if loss is not None]
    complete = None not in losses
    mean = fmean(known) if known else math.inf

    def at(step: int) -> list[float]:
        above = drop * (1 - step / steps) ** 3
        return [step, mean + above, min(known) + above, max(known) + above]

    made = {
        "trials": [number],
        "point": point,
        "state": "complete" if complete else "diverged",
        "loss": mean if complete else math.inf,
        "spread": stdev(known) if len(known) > 1 and complete else None,
        "losses": losses,
        "seeds": list(range(len(losses))),
        "curve": [at(step) for step in range(0, steps + 1, max(1, steps // 10))] if complete else [],
        "curve_end": {"loss": mean if complete else math.inf, "spread": None},
        "lengths": [],
        "steps": steps * len(losses),
        "norms": None,
        "equality": None,
        "train_curve": [],
    }
    return made | more


def pruned(point: Row, number: int) -> Row:
    return row(point, [3.1], number, steps=40) | {"state": "pruned", "loss": None, "spread": None}


def ends(losses: dict[int, list[float]]) -> Row:
    """What a row has besides where its runs end in several places."""
    lengths = [
        {"steps": steps, "loss": fmean(x), "spread": stdev(x) if len(x) > 1 else None, "losses": x}
        for steps, x in sorted(losses.items())
    ]
    return {"lengths": lengths}


def best_ends(points: list[Row], steps: int, at_edge: dict[int, list[str]] | None = None) -> list[Row]:
    """The best point at each length, with knobs at the edge there."""
    found: dict[int, Row] = {}
    for point in points:
        whole = {"steps": steps, **{key: point[key] for key in ("loss", "spread", "losses")}}
        for end in (point["lengths"] or [whole]) if point["state"] == "complete" else []:
            if end["steps"] not in found or end["loss"] < found[end["steps"]]["loss"]:
                found[end["steps"]] = {
                    **end,
                    "point": point["point"],
                    "at_edge": (at_edge or {}).get(end["steps"], []),
                }
    return [end for _, end in sorted(found.items())]


def sweep(name: str, points: list[Row], *, begin: str = "scratch", **more: Any) -> Row:
    """A sweep named KIND-WIDTH; its cost follows from the width."""
    width = more.pop("width", None) or int(name.rsplit("-")[-1])
    best = min((p for p in points if p["state"] == "complete"), key=lambda p: p["loss"], default=None)
    done = sum(len(point["trials"]) for point in points)
    total = more.pop("total", done)
    lengths = sorted({length["steps"] for point in points for length in point["lengths"]})
    steps = (
        more.pop("steps", None)
        or max(lengths, default=0)
        or (points[0]["steps"] // max(1, len(points[0]["losses"])) if points else 100)
    )
    made = {
        "name": name, "begin": begin, "source": None, "width": width, "from_width": width // 2 if begin == "grow" else None,
        "parameters": width * 1000, "takes": {}, "constant": False, "total": total, "done": done, "finished": done == total and done > 0,
        "seeds": max((len(point["losses"]) for point in points), default=1), "steps": steps, "lengths": lengths,
        "flops_per_step": STEP_FLOPS[width], "items_per_step": 1000, "run_flops": steps * STEP_FLOPS[width],
        "flops": STEP_FLOPS[width] * sum(point["steps"] for point in points), "passes": 0.5,
        "knobs": list(points[0]["point"]) if points else ["lr"], "at_edge": [],
        "best": best and {key: best[key] for key in ("point", "loss", "spread")}, "points": points,
        "best_ends": best_ends(points, steps),
    }  # fmt: skip
    return made | more


def study(sweeps: list[Row], *questions: Row, **more: Any) -> Row:
    made = {
        "mupscale": "0.1.0", "study": "toy", "title": "A toy", "data": "made-up text", "unit": "nats per token",
        "model": {"family": "llama", "layers": 3}, "width_word": "d_model", "narrow": 32,
        "training": {"optimizer": "adamw", "betas": [0.9, 0.95]}, "sweeps": sweeps, "questions": list(questions), "seconds": 90.0,
    }  # fmt: skip
    return made | more


def read_back(results: Row) -> Row:
    """As it comes out of `results.json`."""
    return json.loads(json.dumps(json_safe(results), allow_nan=False))


def valley(
    best_lr: float, best_noise: float, floor: float, *, rates: Any = RATES, noises: Any = NOISES, **fixed: Any
) -> list[Row]:
    """A grid whose lowest loss is at a known place; four times its rate diverges."""
    points = []
    for number, (lr, noise) in enumerate(product(rates, noises)):
        loss = floor + 0.03 * math.log2(lr / best_lr) ** 2 + 0.02 * (noise - best_noise) ** 2
        losses: list[float | None] = [loss - 0.004, loss, loss + 0.004]
        points.append(
            row(
                {"lr": lr, "noise": noise, **fixed},
                [loss, None, None] if lr >= 4 * best_lr else losses,
                number,
            )
        )
    return points


def rates(best_lr: float, floor: float, **more: Any) -> list[Row]:
    """A sweep of the rate alone, two seeds."""
    return [
        row(
            {"lr": lr},
            [floor + 0.05 * math.log2(lr / best_lr) ** 2 + d for d in (-0.01, 0.01)],
            number,
            **more,
        )
        for number, lr in enumerate(RATES)
    ]


def procedure(grown: dict[int, float], *, goal: float = 1.5, transferred: float = 1.6) -> Row:
    """Tuned at 32 → 64, used at 128 → 256: 400 steps from scratch end at `goal` with lr 0.008, at `transferred` with 0.004."""
    seeds = {steps: [loss - 0.01, loss + 0.01] for steps, loss in grown.items()}
    longest = max(grown)
    ours = row({"lr": 0.004, "noise": 1.0}, seeds[longest], steps=longest, drop=0.4, **ends(seeds))
    theirs = [
        row({"lr": lr}, [x - 0.02, x + 0.02], i, steps=400)
        for i, (lr, x) in enumerate([(0.004, transferred), (0.008, goal)])
    ]
    from_scratch = {"takes": {"lr": "scratch-32"}}
    return study(
        [
            sweep("scratch-32", rates(0.004, 2.0)),
            sweep("base-32", [row({"lr": 0.004}, [2.0, 2.1])], **from_scratch),
            sweep("base-128", [row({"lr": 0.004}, [2.0, 2.1])], **from_scratch),
            sweep("grow-32", valley(0.004, 1.0, 1.8), begin="grow", width=64, source="base-32"),
            sweep(
                "grown-128",
                [ours],
                begin="grow",
                width=256,
                source="base-128",
                takes={"lr": "grow-32", "noise": "grow-32"},
            ),
            sweep("fresh-256", theirs, **from_scratch),
        ],
        {"ask": "tuned", "of": ["scratch-32", "grow-32"]},
        {"ask": "saving", "of": "grown-128", "against": "fresh-256"},
        {"ask": "cost"},
        {"ask": "points", "of": ["scratch-32", "grow-32"]},
    )


def check(best: dict[int, tuple[float, float]]) -> Row:
    """A transfer check whose optimum is known at each narrow width."""
    grows = [
        sweep(
            f"grow-{w}",
            valley(*at, 2.2 - 0.2 * math.log2(w / 32)),
            begin="grow",
            width=2 * w,
            source=f"base-{w}",
        )
        for w, at in best.items()
    ]
    bases = [sweep(f"base-{w}", [row({"lr": 0.004}, [2.0])], takes={"lr": "scratch-32"}) for w in best]
    names = [grow["name"] for grow in grows]
    return study([sweep("scratch-32", rates(0.004, 2.0)), *bases, *grows], {"ask": "transfer", "of": names})


def demo(grown: float = 3.0, scratch: dict[int, float] | None = None, *, narrow_steps: int = 400) -> Row:
    """A grown model of 100 steps, from scratch at two rates and three lengths."""
    scratch = scratch or {100: 4.0, 200: 3.2, 400: 2.6}
    theirs = [
        row(
            {"lr": 0.004 * (1 + i)},
            [scratch[max(scratch)] + worse],
            i,
            steps=max(scratch),
            **ends({s: [x + worse] for s, x in scratch.items()}),
        )
        for i, worse in enumerate((0.0, 0.4))
    ]
    equality = {"equal": True, "max_abs_diff": 2.5e-15, "logits_std": 1.25, "text": "equal"}
    return study(
        [
            sweep("narrow-64", [row({"lr": 0.004}, [3.4], steps=narrow_steps)]),
            sweep(
                "grown-128",
                [row({"lr": 0.002}, [grown], steps=100, drop=0.4, equality=equality)],
                begin="grow",
                source="narrow-64",
            ),
            sweep("scratch-128", theirs),
        ],
        {"ask": "saving", "of": "grown-128", "against": "scratch-128"},
        {"ask": "equality", "of": "grown-128"},
        {"ask": "line", "of": ["narrow-64", "grown-128"]},
        {"ask": "plan", "of": "grown-128"},
        plans={"grown-128": [{"parameter": "model.embed_tokens.weight", "count": 1, "weight_scale": 0.5}]},
    )


def comparison() -> Row:
    """Three starts at two widths against scratch; curves at the constant rate end 0.1 above the cooldown."""
    sweeps = [sweep("narrow-64", [row({"lr": 0.008}, [3.4, 3.45], steps=400)])]
    for width, floor in ((128, 3.0), (256, 2.9)):
        for kind, begin, above, drop in (
            ("duplicate", "grow", 0.0, 0.3),
            ("zero_pad", "grow", 0.05, 1.5),
            ("scratch", "scratch", 0.4, 3.0),
        ):
            points = []
            for number, (lr, worse) in enumerate([(0.002, 0.05), (0.004, 0.0), (0.008, 0.1)]):
                loss = floor + above + worse
                point = row({"lr": lr}, [loss - 0.01, loss + 0.01], number, drop=drop)
                point["curve"] = [[step, *(x + 0.1 for x in band)] for step, *band in point["curve"]]
                point["curve_end"] = {"loss": loss + 0.1, "spread": 0.012}
                points.append(point)
            source = "narrow-64" if begin == "grow" else None
            more = {"constant": True, "from_width": 64 if source else None, "source": source}
            sweeps.append(sweep(f"{kind}-{width}", points, begin=begin, **more))
    return study(
        sweeps,
        {
            "ask": "starts",
            "of": [s["name"] for s in sweeps if s["begin"] == "grow"],
            "against": ["scratch-128", "scratch-256"],
        },
    )


def dynamics() -> Row:
    """Sizes for three λ at two widths: at λ = 1 activations double with the width."""
    sweeps = []
    for width in (128, 256):
        points = []
        for number, shrink in enumerate((0.0, 0.4, 1.0)):
            norms = [
                [step, kind, name, (1 + shrink) * (1 + step / 100) * (width / 128) ** (shrink == 1.0), 1.0]
                for step in (0, 50, 100)
                for kind, name in (
                    ("activation", "model.embed_tokens"),
                    ("activation", "model.layers.*.mlp"),
                    ("weight", "lm_head.weight"),
                    ("gradient", "lm_head.weight"),
                )
            ]
            points.append(row({"shrink": shrink}, [3.0 + abs(shrink - 0.4)], number, norms=norms))
        sweeps.append(sweep(f"pad-{width}", points, begin="grow"))
    return study(sweeps, {"ask": "norms", "of": ["pad-128", "pad-256"]})


def parametrizations(*, at_edge: Any = ()) -> Row:
    """Two panels: under the standard parametrization the best rate falls by 4, under μP it stays."""
    best = {"standard": {64: 0.008, 256: 0.002}, "mup": {64: 0.004, 256: 0.004}}
    sweeps = [
        sweep(
            f"{name}-{width}", rates(lr, 3.0 - width / 1000), at_edge=list(at_edge) if name == "mup" else []
        )
        for name, widths in best.items()
        for width, lr in widths.items()
    ]
    panels = [[f"{name}-{width}" for width in widths] for name, widths in best.items()]
    return study(sweeps, {"ask": "transfer", "of": panels, "names": ["standard parametrization", "μP"]})


# Of the map: tokens per parameter, what scratch ends at there, and what it loses for every further doubling.
RATIOS = [2.5, 5, 10, 20, 40]
HIGH, SLOPE = 3.0, 0.2


def growing(
    starts: dict[str, dict[int, tuple[float, float]]] | None = None,
    *,
    ratios: dict[str, list[float]] | None = None,
    offsets: dict[str, tuple[float, ...]] | None = None,
    at_edge: dict[str, dict[float, list[str]]] | None = None,
) -> Row:
    """Narrow models of width 32 at some tokens per parameter, each grown to 64 in some ways; a line in log₂ each.

    At a budget of 2.5 · 2ˣ training from scratch ends at 3 − 0.2·x, and a start so much lower as it says for the
    shortest budget, a lead of which it loses so much with every doubling.

    Args:
        starts: its lead and what it loses of it, by start and tokens per parameter of the narrow model.
        ratios: budgets of a sweep, where they are not all.
        offsets: of each seed's losses, by start; without any −0.01, 0 and 0.01.
        at_edge: knobs that stand at the edge, by sweep and budget.
    """
    starts = starts or {
        "continued": {20: (0.35, 0.18), 320: (0.6, 0.18)},
        "default": {20: (0.25, 0.1), 320: (0.5, 0.15)},
        "expand": {20: (0.3, 0.1), 320: (0.55, 0.15)},
    }

    def ended(name: str, unit: int, lead: float, lost: float) -> Row:
        budgets = (ratios or {}).get(name, RATIOS)
        x = {round(unit * ratio): math.log2(ratio / 2.5) for ratio in budgets}
        seeds = (offsets or {}).get(name.rpartition("-")[0] or name, (-0.01, 0.0, 0.01))
        losses = {s: [HIGH - SLOPE * x[s] - lead + lost * x[s] + off for off in seeds] for s in x}
        point = row({"lr": 0.004}, losses[max(x)], steps=max(x), **ends(losses))
        worse = row({"lr": 0.008}, [9.0], 1, steps=max(x))
        edges = {round(unit * ratio): knobs for ratio, knobs in (at_edge or {}).get(name, {}).items()}
        return {"points": [point, worse], "best_ends": best_ends([point], max(x), edges)}

    narrows = sorted({ratio for leads in starts.values() for ratio in leads})
    sweeps = [
        sweep(
            f"narrow-{ratio}",
            [row({"lr": 0.004}, [3.2] * 3, steps=32 * ratio)],
            width=32,
        )
        for ratio in narrows
    ]
    for start, leads in starts.items():
        grown = start != "continued"
        size: Row = {"width": 64, "begin": "grow"} if grown else {"width": 32, "begin": "continue"}
        for ratio, (lead, lost) in leads.items():
            name = f"{start}-{ratio}"
            made = ended(
                name, 64 if grown else 256, lead, lost
            )  # 4 steps of the narrow one take as many FLOPs
            sweeps.append(sweep(name, made.pop("points"), source=f"narrow-{ratio}", **size, **made))
    scratch = ended("scratch", 64, 0.0, 0.0)
    sweeps.append(sweep("scratch", scratch.pop("points"), width=64, **scratch))
    names = [one["name"] for one in sweeps if one["source"]]
    return study(sweeps, {"ask": "map", "of": names, "against": "scratch"})
