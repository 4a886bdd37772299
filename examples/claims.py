"""What papers claim, figure by figure, and which answer of which study here tells whether it holds.

They are the rows of docs/results.md, which `evidence.py` writes. Whether a study agrees is computed from its
answers alone; what a paper says is told in our own words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mupscale.study.page import Answer

MA = "Ma et al. 2026, *μpscaling small models* (arXiv 2602.10545)"
MALLIK = "Mallik et al. 2024, *Warmstarting for Scaling Language Models* (arXiv 2411.07340)"
MLODOZENIEC = "Mlodozeniec et al. 2025, *Completed Hyperparameter Transfer* (arXiv 2512.22382)"
DEY = "Dey et al. 2025, *Don't be lazy: CompleteP …* (arXiv 2505.01618)"
MOST_CHANGE = 2.0  # of activations, over 4 times the width, that still counts as level
Verdict = tuple[str, bool | None]  # what was measured, and whether it agrees; None: that is not known
Question = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row.

    Attributes:
        paper: `MA`, `MALLIK`, `MLODOZENIEC` or `DEY`.
        title: the claim or figure.
        says: what the paper says, in our words.
        study: the name of its study in `evidence.STUDIES`.
        asks: questions of that study, each by some of its keys.
        judge: takes their answers.
        picture: the name of a picture in these answers.
    """

    paper: str
    title: str
    says: str
    study: str
    asks: tuple[Question, ...]
    judge: Callable[..., Verdict]
    picture: str


# ---- verdicts ----------------------------------------------------------------------------------------------


def stays_equal(answer: Answer) -> Verdict:
    """Of `equality`."""
    drifts = [one["drift"] for one in answer.data.values() if "drift" in one]
    said = f"The losses of the two never differ by more than {max(drifts):.1g}" if drifts else "Not compared"
    start = max((one["max_abs_diff"] for one in answer.data.values()), default=float("nan"))
    return f"{said}; the outputs at the start by {start:.1g}.", answer.passed if drifts else None


def transfers(answer: Answer) -> Verdict:
    """Of `transfer`: not known where an optimum stands at the edge of what was tried, but for none at all."""
    rows = [row for found in answer.data.values() for row in found["rows"]]
    at_edge = any(row["point"][knob] != 0 for row in rows for knob in row["at_edge"])
    return answer.headline, None if at_edge else answer.passed


def saves(answer: Answer) -> Verdict:
    """Of `saving`, with the values taken over from the small models, as the paper does."""
    found = answer.data.get("transferred") or answer.data.get("tuned")
    if not found:
        return answer.headline, None
    said = f"{found['sign']}{found['ratio']:.0%} of the FLOPs from scratch to the same loss"
    if found.get("with_before"):
        said += f", {found['sign']}{found['with_before']:.0%} with the base model's training counted in"
    return f"{said}.", below_one(found["ratio"], found["sign"])


def begins_and_ends_lower(start: str) -> Callable[[Answer], Verdict]:
    """Of `starts`: a start is ahead of training from scratch before the first step, and after the last."""

    def judge(answer: Answer) -> Verdict:
        rows = {(row["start"], row["width"]): row for row in answer.data["starts"]}
        pairs = [
            (width, row, rows["scratch", width])
            for (name, width), row in rows.items()
            if name == start and ("scratch", width) in rows
        ]
        said = [
            f"d_model {width}: {ours['initial']:.2f} before training and {ours['cooldown']:.3f} after, "
            f"from scratch {theirs['initial']:.2f} and {theirs['cooldown']:.3f}"
            for width, ours, theirs in pairs
        ]
        lower = [a[key] < b[key] for _, a, b in pairs for key in ("initial", "cooldown")]
        return f"{'; '.join(said)}.", all(lower) if lower else None

    return judge


def pays(start: str, ratio: float, share: str = "share") -> Callable[..., Verdict]:
    """Of `map`, one or more: at a budget a start takes fewer FLOPs than from scratch to the same loss.

    Args:
        ratio: tokens per parameter of the wide model.
        share: or ``with_narrow``: the base model's training counted in.
    """

    def judge(*answers: Answer) -> Verdict:
        found = [cell for answer in answers if (cell := cell_of(answer, start, ratio))]
        said = [
            f"× {cell['factor']:.2g} in parameters: "
            + (
                "not known"
                if cell[share] is None
                else f"{cell['sign']}{cell[share]:.0%}"
                + (f" ± {cell['share_spread']:.0%}" if cell["share_spread"] is not None else "")
            )
            for cell in found
        ]
        pay = [None if cell[share] is None else below_one(cell[share], cell["sign"]) for cell in found]
        agrees = None if None in pay or len(found) < len(answers) else all(pay)
        return f"Of the FLOPs from scratch to the same loss it takes, {'; '.join(said)}.", agrees

    return judge


def best_together(both: str, apart: tuple[str, ...], ratio: float) -> Callable[[Answer], Verdict]:
    """Of `map`: at a budget one start ends lower than each of the others, by more than a deviation."""

    def judge(answer: Answer) -> Verdict:
        found = {name: cell_of(answer, name, ratio) for name in (both, *apart)}
        known = {name: (cell["loss"], cell["loss_spread"] or 0.0) for name, cell in found.items() if cell}
        said = ", ".join(f"{name} {loss:.3f} ± {spread:.3f}" for name, (loss, spread) in known.items())
        said = f"Losses after {ratio:g} tokens per parameter: {said}."
        if len(known) < len(found):
            return said, None
        loss, spread = known.pop(both)
        ahead = [other - loss for other, _ in known.values()]
        level = [abs(by) <= max(spread, its) for by, (_, its) in zip(ahead, known.values(), strict=True)]
        return said, None if any(level) else min(ahead) > 0

    return judge


def stays_level(shrink: str) -> Callable[[Answer], Verdict]:
    """Of `norms`: activations hardly go with the width, and over time no more than those from scratch."""

    def judge(answer: Answer) -> Verdict:
        change, over_time = (
            answer.data.get("change", {}),
            answer.data.get("over_time", {}).get("activation", {}),
        )
        if not {shrink, "λ = 0"} <= change.keys() & over_time.keys():
            return answer.headline, None
        most = max(change.values())
        said = (
            f"Over the widths activations change by at most × {most:.2g} for any λ; over time by × "
            f"{over_time[shrink]:.2g} with {shrink}, × {over_time['λ = 0']:.2g} from scratch."
        )
        return said, most <= MOST_CHANGE and over_time[shrink] <= over_time["λ = 0"]

    return judge


def weights_stay_level(shrink: str) -> Callable[[Answer], Verdict]:
    """Of `norms`: weights change over time no more than those from scratch."""

    def judge(answer: Answer) -> Verdict:
        over_time = answer.data.get("over_time", {}).get("weight", {})
        if not {shrink, "λ = 0"} <= over_time.keys():
            return answer.headline, None
        ours, scratch = over_time[shrink], over_time["λ = 0"]
        said = (
            f"Over time weights change by at most × {ours:.2g} with {shrink}, × {scratch:.2g} from scratch."
        )
        return said, ours <= scratch

    return judge


def goes_by_rule(base: str, factors: Mapping[str, float]) -> Callable[[Answer], Verdict]:
    """Of `tuned`: in each sweep the rate of the base, times a factor, is the best, or within its spread."""

    def judge(answer: Answer) -> Verdict:
        found = answer.data
        if not {base, *factors} <= found.keys():
            return answer.headline, None
        rates = {name: found[name]["point"]["lr"] for name in (base, *factors)}
        said, agrees = [], True
        for name, factor in factors.items():
            rule = rates[base] * factor
            level = any(math.isclose(point["lr"], rule) for point in found[name]["level"])
            agrees = agrees and level
            how = "" if math.isclose(rates[name], rule) else ", as good" if level else ", worse"
            said.append(f"{name} {rates[name]:g} (by the rule {rule:g}{how})")
        at_edge = any(found[name]["at_edge"] for name in rates)
        return f"Best rate, {base} {rates[base]:g}: {', '.join(said)}.", None if at_edge else agrees

    return judge


def below_one(number: float, sign: str) -> bool | None:
    """Whether a number is, of which a sign may say that it is but a bound; None: that is not known.

    >>> below_one(0.8, ""), below_one(0.8, "> "), below_one(1.2, "≥ ")
    (True, None, False)
    """
    below = number < 1
    lower_bound = sign in ("> ", "≥ ")
    return None if sign and lower_bound == below else below


def cell_of(answer: Answer, start: str, ratio: float) -> Mapping[str, Any] | None:
    """The cell of a map; None where it has none."""
    for cell in answer.data.get("cells", ()):
        if cell["start"] == start and cell["tokens_per_parameter"] == ratio:
            return dict(cell)
    return None


# ---- the rows ----------------------------------------------------------------------------------------------

_EQUALITY = ({"ask": "equality", "of": ["grown"]},)
_TRANSFER = ({"ask": "transfer"},)
_SAVING = ({"ask": "saving"},)
_STARTS = {"ask": "starts"}
_MAPS = tuple({"ask": "map", "against": f"scratch-{width}"} for width in (32, 64))
_NORMS = ({"ask": "norms"},)
_EQUIVALENT = "Without noise the upscaled model computes what the base model does, throughout training."
_TRANSFERS = "Rate and noise that are best when a narrow model is upscaled stay so for wider ones."
_SAVES = (
    "Upscaled, with what was tuned on a small pair of widths, it reaches a loss sooner than from scratch."
)

CLAIMS = (
    *(
        Claim(
            paper=MA,
            title=f"Equivalence, {model}",
            says=_EQUIVALENT,
            study=f"equivalence_{name}",
            asks=_EQUALITY,
            judge=stays_equal,
            picture="grown_and_continued",
        )
        for name, model in (("mlp", "MLP"), ("resnet", "ResNet, ten steps"), ("gpt2", "GPT-2"))
    ),
    *(
        Claim(
            paper=MA,
            title=f"Transfer of rate and noise, {model}",
            says=_TRANSFERS,
            study=f"{name}/transfer",
            asks=_TRANSFER,
            judge=transfers,
            picture="loss_over_lr_and_noise",
        )
        for name, model in (
            ("mlp_adamw_cpu", "MLP with AdamW"),
            ("mlp_sgd_cpu", "MLP with SGD"),
            ("resnet_cpu", "ResNet"),
            ("gpt2_cpu", "GPT-2"),
            ("gpt2_paper", "GPT-2 at the paper's size"),
        )
    ),
    *(
        Claim(
            paper=MA,
            title=f"Upscaled against from scratch, {model}",
            says=_SAVES,
            study=name,
            asks=_SAVING,
            judge=saves,
            picture="final_loss_over_flops",
        )
        for name, model in (("mlp_adamw_cpu", "MLP"), ("resnet_cpu", "ResNet"), ("gpt2_cpu", "GPT-2"))
    ),
    Claim(
        paper=MALLIK,
        title="Figure 1: loss over compute",
        says="Warmstarted at the small model's rate, a model needs less compute to a loss than from scratch.",
        study="warmstart",
        asks=(*_MAPS, _STARTS),
        judge=lambda *answers: pays("warm", 20)(*answers[:2]),
        picture="starts",
    ),
    Claim(
        paper=MALLIK,
        title="Figure 2: initial and final loss over scales",
        says="At every scale a warmstarted model begins and ends with a lower loss.",
        study="warmstart",
        asks=(_STARTS,),
        judge=begins_and_ends_lower("warm"),
        picture="starts",
    ),
    Claim(
        paper=MALLIK,
        title="Figures 3, 7 and 8: activations over width and time",
        says="Shrunk and perturbed, a model's activations do not go with the width, and stay stable.",
        study="dynamics",
        asks=_NORMS,
        judge=stays_level("λ = 0.4"),
        picture="activations_over_width",
    ),
    Claim(
        paper=MALLIK,
        title="Figure 4: 30 tokens per parameter",
        says="The lead lasts when training goes on to 30 tokens per parameter.",
        study="warmstart",
        asks=_MAPS,
        judge=pays("warm", 30),
        picture="loss_above_scratch",
    ),
    Claim(
        paper=MALLIK,
        title="Figure 5: other bases",
        says="It works from another, larger base model, too.",
        study="warmstart",
        asks=_MAPS[1:],
        judge=pays("from_32", 20),
        picture="loss_above_scratch_2",
    ),
    Claim(
        paper=MALLIK,
        title="Figure 6: the base model's training included",
        says="It still pays with the compute of the base model counted in.",
        study="warmstart",
        asks=_MAPS,
        judge=pays("warm", 20, "with_narrow"),
        picture="growing_pays",
    ),
    Claim(
        paper=MALLIK,
        title="Figure 9: shrinking and perturbing apart",
        says="Shrinking and perturbing together do better than either alone.",
        study="warmstart",
        asks=_MAPS[:1],
        judge=best_together("warm", ("shrunk", "perturbed", "padded"), 20),
        picture="loss_above_scratch",
    ),
    Claim(
        paper=MALLIK,
        title="Figure 10: norms of weights",
        says="The weights of warmstarted models stay as stable over time as those from scratch.",
        study="dynamics",
        asks=_NORMS,
        judge=weights_stay_level("λ = 0.4"),
        picture="weights_over_time",
    ),
    Claim(
        paper=MALLIK,
        title="Figure 11: successive warmstarting",
        says="A model that was warmstarted can be the base of the next, larger one.",
        study="warmstart",
        asks=_MAPS[1:],
        judge=pays("successive", 20),
        picture="loss_above_scratch_2",
    ),
    Claim(
        paper=MLODOZENIEC,
        title="Rates over batch size and tokens",
        says="The best rate goes as √(growth of the batch / growth of the tokens).",
        study="budget",
        asks=({"ask": "tuned"},),
        judge=goes_by_rule("narrow", {"4B by rule": 2.0, "4D by rule": 0.5, "4B and 4D": 1.0}),
        picture="loss_over_lr",
    ),
    Claim(
        paper=DEY,
        title="Rates over depth",
        says="With 1/L before each residual branch the best rate stays from 2 to 128 layers; under μP for "
        "widths alone it does not.",
        study="depth_transfer",
        asks=_TRANSFER,
        judge=transfers,
        picture="loss_over_lr",
    ),
)
