"""Should one grow, in how many stages and by how much? What was measured, else a law and published findings.

Where a map of `mupscale.study.growing_pays` holds the case, its shares of the FLOPs decide, of several maps
that of the models nearest in size. Elsewhere the estimate rests on a scaling law. With L(N, D) = E + A/N^α
+ B/D^β the loss of N parameters after D tokens, a narrow model's loss L(N₀, D₀) is one that the wide model
would reach by itself after D* tokens: the head start of a growth that loses nothing and then learns as from
scratch. Training FLOPs are 6·N·D.

Knows arithmetic and the literature; trains nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from mupscale.errors import GrowthError
from mupscale.study.growing_pays import (
    Found,
    OutsideMapError,
    around,
    continued_instead,
    elsewhere,
    judged,
    longest,
    packaged,
)
from mupscale.theory.tables import count

# Hoffmann et al. 2022, Approach 3.
E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28

SOURCES = {
    "law": "Hoffmann et al. 2022, arXiv 2203.15556: L(N, D) = 1.69 + 406.4/N^0.34 + 410.7/D^0.28",
    "when": "Mallik et al. 2026, arXiv 2605.13405: growth by 2 is the most reliable; gains are largest below "
    "20 tokens per parameter and shrink beyond; past some factor training from scratch is more efficient",
    "warmstart": "Mallik et al. 2024, arXiv 2411.07340: stage by stage from 5M to 70M parameters, each stage "
    "about doubling them, at 20 and 30 tokens per parameter",
    "stack": "Du et al. 2024, arXiv 2405.15319: by stacking layers, a 7B model reached with 194B tokens the "
    "loss that took 300B from scratch",
}
LARGEST_FACTOR, MOST_STAGES, LARGEST_PUBLISHED = 3.0, 4, 7e9
SATURATED = 20.0
OWN_RUNS = "Your own runs say more: mupscale compare, then --compare results.json."
GOOD_ALREADY = (
    "So the narrow model is as good already as the target, from scratch, will be: see also what it reaches "
    "when it is simply continued. [law]"
)
UNKNOWN = (
    "The law's constants are those of one family of models, tokenizer and text; only ratios are used here, "
    f"and those move, too. {OWN_RUNS}",
    "How fast a grown model goes on learning; the law takes it to be as fast as from scratch, and operators "
    "differ in that.",
    "Whether published growth factors count parameters or widths is not said everywhere; parameters are "
    "taken here, the more careful reading.",
)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do, and why.

    Attributes:
        verdict: "grow", "grow in stages" or "train from scratch".
        sizes: parameters from the narrow model to the target, by the recommended way.
        head_start: share of the target's tokens that growing in one step is worth, by the law.
        saved_in_stages: share of the FLOPs from scratch that growing in steps of about 2 saves, by the law,
            when the narrow model is there anyway and the sizes in between are trained on the way.
        scratch_flops, narrow_flops: of the target, trained from scratch; of the narrow model's own training.
        reasons: sentences, each with its source.
        unknown: what this does not know.
        measured: what the user's own study says.
        went_by: "map", of what was measured, or "law".
        shares: of the FLOPs from scratch by that map, of every start, the one that was best on it first.
        sources: of the reasons, by the words in brackets.
    """

    verdict: str
    sizes: tuple[float, ...]
    head_start: float
    saved_in_stages: float
    scratch_flops: float
    narrow_flops: float
    reasons: tuple[str, ...]
    unknown: tuple[str, ...]
    measured: tuple[str, ...] = ()
    went_by: str = "law"
    shares: tuple[Found, ...] = ()
    sources: Mapping[str, str] = field(default_factory=lambda: SOURCES)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        way = "" if self.verdict == "train from scratch" else ": " + " → ".join(map(count, self.sizes))
        if continued_instead(self.shares):
            way += "; but for so short a run, continue the narrow model"
        said = {
            "Your own study": self.measured,
            "Why, by what was measured" if self.went_by == "map" else "Why, by the law": self.reasons,
            "What this does not know": self.unknown,
            "Sources": [f"[{key}] {text}" for key, text in self.sources.items()],
        }
        blocks = [
            "\n".join([title, *(f"  * {line}" for line in lines)]) for title, lines in said.items() if lines
        ]
        return "\n\n".join([self.verdict + way, *blocks])


def head_start(narrow: float, narrow_tokens: float, wide: float) -> float:
    """D*: the tokens after which the wide model, from scratch, has the narrow one's loss, by the law.

    >>> round(head_start(35e6, 700e6, 70e6) / 1.4e9, 2)
    0.29
    """
    excess = A / narrow**ALPHA + B / narrow_tokens**BETA - A / wide**ALPHA
    return float((B / excess) ** (1 / BETA))


def staged_flops(sizes: tuple[float, ...], tokens_per_parameter: float, narrow_tokens: float) -> float:
    """FLOPs of training every size but the first from its head start to its budget, one after the other."""
    flops, before = 0.0, narrow_tokens
    for narrow, wide in pairwise(sizes):
        tokens = tokens_per_parameter * wide
        flops += 6 * wide * max(0.0, tokens - head_start(narrow, before, wide))
        before = tokens
    return flops


def advise(
    narrow: float,
    wide: float,
    tokens: float,
    *,
    narrow_tokens: float | None = None,
    along: str = "width",
    comparison: Path | None = None,
) -> Advice:
    """Whether to grow from `narrow` to `wide` parameters, in how many stages and by how much.

    Args:
        narrow, wide: numbers of parameters.
        tokens: the wide model's training budget.
        narrow_tokens: what the narrow model was trained on; None takes as many a parameter as the wide one.
        along: what is to grow, ``"width"`` or ``"layers"``; of each there is a map. The law knows numbers of
            parameters alone.
        comparison: `results.json` of the user's own `mupscale compare`, or of another study that asks about
            starts or savings.

    Raises:
        GrowthError: the wide model is not larger, the comparison cannot be read, or nothing grows so.

    >>> advise(100e6, 200e6, 1e9).verdict
    'grow'
    """
    if wide <= narrow:
        raise GrowthError(f"from {count(narrow)} to {count(wide)} parameters: give a larger target (--to)")
    case = _Case(narrow, wide, tokens, narrow_tokens or tokens / wide * narrow)
    table = packaged(along)
    asked = {"factor": case.factor, "narrow_ratio": case.narrow_tokens / narrow, "ratio": case.ratio}
    found: list[Found] = []
    sources, unknown = SOURCES, list(UNKNOWN)
    try:
        (nearest, found), *others = around(table, narrow, **asked)
    except OutsideMapError as outside:
        verdict, reasons = _by_law(case)
        reasons.insert(0, f"This goes by the law alone: {outside}.")
        unknown += [said] if (said := longest(table)) else []
    else:
        verdict, reasons = judged(found, nearest["model"])
        reasons += [elsewhere(there, other["model"]) for other, there in others]
        sources = {"law": SOURCES["law"], "map": f"{nearest['about']} {nearest['command']}"}
        unknown = [f"Whether what was measured with {nearest['model']} holds for yours. {OWN_RUNS}"]
    assumed = (
        f"How long the narrow model was trained: {count(case.narrow_tokens)} tokens are assumed, as many a "
        "parameter as the target gets (--narrow-tokens says otherwise)."
    )
    return Advice(
        verdict=verdict,
        sizes=case.sizes if verdict == "grow in stages" else (narrow, wide),
        head_start=case.head_start,
        saved_in_stages=case.saved_in_stages,
        scratch_flops=case.scratch_flops,
        narrow_flops=case.narrow_flops,
        reasons=(case.costs, *reasons),
        unknown=tuple(unknown if narrow_tokens else [*unknown, assumed]),
        measured=_measured(comparison, case.ratio) if comparison else (),
        went_by="map" if found else "law",
        shares=tuple(found),
        sources=sources,
    )


@dataclass(frozen=True)
class _Case:
    """What is asked about, and what follows from it by arithmetic and the law."""

    narrow: float
    wide: float
    tokens: float
    narrow_tokens: float

    @property
    def factor(self) -> float:
        return self.wide / self.narrow

    @property
    def ratio(self) -> float:
        return self.tokens / self.wide

    @property
    def scratch_flops(self) -> float:
        return 6 * self.wide * self.tokens

    @property
    def narrow_flops(self) -> float:
        return 6 * self.narrow * self.narrow_tokens

    @property
    def head_start(self) -> float:
        return min(1.0, head_start(self.narrow, self.narrow_tokens, self.wide) / self.tokens)

    @property
    def sizes(self) -> tuple[float, ...]:
        """Of stages of about 2."""
        stages = max(1, round(math.log2(self.factor)))
        return tuple(self.narrow * self.factor ** (i / stages) for i in range(stages + 1))

    @property
    def saved_in_stages(self) -> float:
        return 1 - staged_flops(self.sizes, self.ratio, self.narrow_tokens) / self.scratch_flops

    @property
    def costs(self) -> str:
        share = self.narrow_flops / self.scratch_flops
        return (
            f"From scratch the target costs {self.scratch_flops:.2g} FLOPs (6·N·D at {self.ratio:.3g} tokens "
            f"per parameter); the narrow model's own training cost {self.narrow_flops:.2g}, "
            f"{f'{share:.0%} of' if share < 2 else f'{share:.3g} times'} that."
        )


def _by_law(case: _Case) -> tuple[str, list[str]]:
    """By the head start, and by what was published of growth by so much."""
    factor, own = case.factor, case.narrow_flops / case.scratch_flops
    stages = len(case.sizes) - 1
    reasons = [
        f"Grown ×{factor:.3g} in one step, the narrow model's loss is what the target reaches by itself "
        f"after {case.head_start:.1%} of its tokens: that is the head start. [law]",
        *[GOOD_ALREADY] * (case.head_start == 1),
        "Published gains can be larger, since a grown model may also learn faster: 35 % fewer tokens with "
        "layers stacked ×4. They can be smaller, too. [stack, when]",
    ]
    verdict = "train from scratch"
    if factor <= LARGEST_FACTOR:
        verdict = "grow"
        reasons += [
            f"×{factor:.3g} is near the factor that was found most reliable, 2. [when]",
            f"If the narrow model has to be trained for this alone, {own:.0%} of the cost from scratch has "
            f"to be set against the {case.head_start:.0%}.",
        ]
    elif stages <= MOST_STAGES and case.wide <= LARGEST_PUBLISHED:
        verdict = "grow in stages"
        reasons += [
            f"×{factor:.3g} at once is beyond the factor that was found reliable; {stages} stages of "
            f"×{factor ** (1 / stages):.3g} each stay at it, as was done from 5M to 70M. [when, warmstart]",
            f"With every size on the way trained at {case.ratio:.3g} tokens per parameter from its own head "
            f"start, all stages together cost {1 - case.saved_in_stages:.0%} of training the target from "
            "scratch; you get the models in between besides. [law]",
        ]
    else:
        too_large = " and no target that large" if case.wide > LARGEST_PUBLISHED else ""
        reasons.append(
            f"×{factor:.3g} would take {stages} stages of about 2, each of them a training run of its own; "
            f"no chain that long{too_large} has been published. A model of {count(case.wide / 2)} to "
            f"{count(case.wide / 4)} parameters would be worth growing from, if you have one. "
            "[when, warmstart, stack]"
        )
    if case.ratio > SATURATED:
        less = f"expect less than that: gains shrink beyond {SATURATED:g}. [when]"
        reasons.append(f"At {case.ratio:.3g} tokens per parameter {less}")
    if case.ratio > 10 * SATURATED and verdict != "train from scratch":
        verdict = "train from scratch"
        reasons.append("So far beyond it, nothing published says that a gain is left.")
    return verdict, reasons


def _measured(path: Path, ratio: float) -> tuple[str, ...]:
    """What a study found of growing, in the words of its own answers."""
    from mupscale.study.questions import ask  # draws pictures: only where there is something to ask

    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        asked = [question for question in results["questions"] if question["ask"] in ("starts", "saving")]
        said = [ask(results, question).headline for question in asked]
        narrow = min(sweep["parameters"] for sweep in results["sweeps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GrowthError(
            f"{path}: not the results.json that `mupscale compare` writes ({error!r})"
        ) from None
    return (
        *(said or ["It asks neither which start is best nor what growing saves."]),
        f"There the narrow model had {count(narrow)} parameters; the budget asked about is {ratio:.3g} "
        "tokens per parameter.",
    )
