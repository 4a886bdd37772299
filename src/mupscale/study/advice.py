"""Should one grow, in how many stages and by how much? Compute accounting and published findings, in words.

The estimate rests on a scaling law. With L(N, D) = E + A/N^α + B/D^β the loss of N parameters after D
tokens, a narrow model's loss L(N₀, D₀) is one that the wide model would reach by itself after D* tokens: the
head start of a growth that loses nothing and then learns as from scratch. Training FLOPs are 6·N·D.

Knows arithmetic and the literature; trains nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mupscale.errors import GrowthError
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
UNKNOWN = (
    "The law's constants are those of one family of models, tokenizer and text; only ratios are used here, "
    "and those move, too. Your own runs say more: mupscale compare, then --compare results.json.",
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "sources": SOURCES}

    def __str__(self) -> str:
        way = "" if self.verdict == "train from scratch" else ": " + " → ".join(map(count, self.sizes))
        said = {
            "Your own study": self.measured,
            "Why": self.reasons,
            "What this does not know": self.unknown,
            "Sources": [f"[{key}] {text}" for key, text in SOURCES.items()],
        }
        blocks = [
            "\n".join([title, *(f"  * {line}" for line in lines)]) for title, lines in said.items() if lines
        ]
        return "\n\n".join([self.verdict + way, *blocks])


def parse_count(text: str, what: str = "count") -> float:
    """A number with K, M, B or T behind it.

    Raises:
        GrowthError: not such a number, or not above 0.

    >>> parse_count("1.4B")
    1400000000.0
    """
    units = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    word = text.strip().upper()
    try:
        value = float(word[:-1]) * units[word[-1]] if word[-1:] in units else float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise GrowthError(f"{what} {text!r}: expected a number above 0, such as 70M or 1.4B")
    return value


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
    comparison: Path | None = None,
) -> Advice:
    """Whether to grow from `narrow` to `wide` parameters, in how many stages and by how much.

    Args:
        narrow, wide: numbers of parameters.
        tokens: the wide model's training budget.
        narrow_tokens: what the narrow model was trained on; None takes as many a parameter as the wide one.
        comparison: `results.json` of the user's own `mupscale compare`, or of another study that asks about
            starts or savings.

    Raises:
        GrowthError: the wide model is not larger, or the comparison cannot be read.

    >>> advise(100e6, 200e6, 1e9).verdict
    'grow'
    """
    if wide <= narrow:
        raise GrowthError(f"from {count(narrow)} to {count(wide)} parameters: growing needs a larger target")
    factor, ratio = wide / narrow, tokens / wide
    seen = narrow_tokens or ratio * narrow
    scratch, own = 6 * wide * tokens, 6 * narrow * seen
    share = min(1.0, head_start(narrow, seen, wide) / tokens)
    stages = max(1, round(math.log2(factor)))
    sizes = tuple(narrow * factor ** (i / stages) for i in range(stages + 1))
    saved = 1 - staged_flops(sizes, ratio, seen) / scratch

    reasons = [
        f"From scratch the target costs {scratch:.2g} FLOPs (6·N·D at {ratio:.3g} tokens per parameter); the "
        f"narrow model's own training cost {own:.2g}, {100 * own / scratch:.2g}% of that.",
        f"Grown ×{factor:.3g} in one step, the narrow model's loss is what the target reaches by itself "
        f"after {share:.1%} of its tokens: that is the head start. [law]",
        "Published gains can be larger, since a grown model may also learn faster: 35 % fewer tokens with "
        "layers stacked ×4. They can be smaller, too. [stack, when]",
    ]
    verdict, way = "train from scratch", (narrow, wide)
    if factor <= LARGEST_FACTOR:
        verdict = "grow"
        reasons += [
            f"×{factor:.3g} is near the factor that was found most reliable, 2. [when]",
            f"If the narrow model has to be trained for this alone, {own / scratch:.0%} of the cost from "
            f"scratch has to be set against the {share:.0%}.",
        ]
    elif stages <= MOST_STAGES and wide <= LARGEST_PUBLISHED:
        verdict, way = "grow in stages", sizes
        reasons += [
            f"×{factor:.3g} at once is beyond the factor that was found reliable; {stages} stages of "
            f"×{factor ** (1 / stages):.3g} each stay at it, as was done from 5M to 70M. [when, warmstart]",
            f"With every size on the way trained at {ratio:.3g} tokens per parameter from its own head "
            f"start, all stages together cost {1 - saved:.0%} of training the target from scratch; you get "
            "the models in between besides. [law]",
        ]
    else:
        too_large = " and no target that large" if wide > LARGEST_PUBLISHED else ""
        reasons.append(
            f"×{factor:.3g} would take {stages} stages of about 2, each of them a training run of its own; "
            f"no chain that long{too_large} has been published. A model of {count(wide / 2)} to "
            f"{count(wide / 4)} parameters would be worth growing from, if you have one. "
            "[when, warmstart, stack]"
        )
    if ratio > SATURATED:
        less = f"expect less than that: gains shrink beyond {SATURATED:g}. [when]"
        reasons.append(f"At {ratio:.3g} tokens per parameter {less}")
    if ratio > 10 * SATURATED and verdict != "train from scratch":
        verdict, way = "train from scratch", (narrow, wide)
        reasons.append("So far beyond it, nothing published says that a gain is left.")
    assumed = (
        f"How long the narrow model was trained: {count(seen)} tokens are assumed, as many a parameter as "
        "the target gets (--narrow-tokens says otherwise)."
    )
    return Advice(
        verdict=verdict,
        sizes=way,
        head_start=share,
        saved_in_stages=saved,
        scratch_flops=scratch,
        narrow_flops=own,
        reasons=tuple(reasons),
        unknown=UNKNOWN if narrow_tokens else (*UNKNOWN, assumed),
        measured=_measured(comparison, ratio) if comparison else (),
    )


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
