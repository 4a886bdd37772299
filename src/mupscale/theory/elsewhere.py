"""The rules of optimizers that other packages bring, by package and name: none of them is imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mupscale.errors import GrowthError
from mupscale.theory.rules import Power, Rule

# A rule, or what makes one from the flags of a parameter group.
RuleOf = Rule | Callable[[Mapping[str, Any]], Rule]

_ADAM = Rule(degree=0, state={"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2})
_ADAMW = replace(_ADAM, decoupled=True)
_SIGN = Rule(degree=0, state={"exp_avg": 1}, decoupled=True)
_STEPPING_SIGN = replace(_SIGN, copied=frozenset({"step_factor"}))


def _flagged(rule: Rule) -> Callable[[Mapping[str, Any]], Rule]:
    """pytorch_optimizer's: a group says whether its decay is decoupled, and whether it has the rate in it."""

    def of(group: Mapping[str, Any]) -> Rule:
        if group.get("cautious"):
            raise GrowthError(
                "cautious: depends on the number of entries of a parameter, which grows; set it to False"
            )
        if group.get("weight_decouple") and group.get("fixed_decay"):
            return replace(rule, decoupled=True, values={**rule.values, "weight_decay": Power()})
        return replace(rule, decoupled=bool(group.get("weight_decouple")))

    return of


def _schedule_free(rule: Rule) -> Callable[[Mapping[str, Any]], Rule]:
    """Defazio et al. 2024, arXiv 2405.15682: z is a second copy of the parameters; groups sum up rates."""

    def of(group: Mapping[str, Any]) -> Rule:
        power = group.get("weight_lr_power", 2.0)
        rates = {"lr_max": rule.lr_scale, "scheduled_lr": rule.lr_scale}
        return replace(
            rule,
            state={"z": Power(weight=1), **rule.state},
            values={**rates, "weight_sum": lambda p: rule.lr_scale(p) ** power},
            looks_at_values=True,
        )

    return of


ELSEWHERE: dict[tuple[str, str], RuleOf] = {
    ("lion_pytorch", "Lion"): _SIGN,
    ("pytorch_optimizer", "Lion"): _flagged(_SIGN),
    ("pytorch_optimizer", "AdEMAMix"): _flagged(
        Rule(degree=0, state={"exp_avg": 1, "exp_avg_slow": 1, "exp_avg_sq": 2})
    ),
    ("schedulefree", "AdamWScheduleFree"): _schedule_free(
        Rule(degree=0, state={"exp_avg_sq": 2}, decoupled=True)
    ),
    ("schedulefree", "SGDScheduleFree"): _schedule_free(Rule(degree=1, state={})),
    ("olmo_core", "SkipStepAdamW"): _ADAMW,
    ("olmo_core", "SkipStepLion"): _STEPPING_SIGN,
    ("olmo_core", "Lion"): _STEPPING_SIGN,
    **{("torchao", f"Adam{bits}"): _ADAM for bits in ("8bit", "4bit", "Fp8")},
    **{("torchao", f"AdamW{bits}"): _ADAMW for bits in ("8bit", "4bit", "Fp8")},
    ("torchao", "_AdamW"): _ADAMW,
    **{
        ("bitsandbytes", f"{paged}{kind}{bits}"): Rule(degree=0, state=state, decoupled=True)
        for kind, state in (
            ("Adam", {"state1": 1, "state2": 2}),
            ("AdamW", {"state1": 1, "state2": 2}),
            ("Lion", {"state1": 1}),
        )
        for paged in ("", "Paged")
        for bits in ("", "8bit", "32bit")
    },
}

_PRECONDITIONED = "its preconditioners over a whole dim lose full rank where entries are copies"
REFUSED_ELSEWHERE: dict[tuple[str, str], str] = {
    ("pytorch_optimizer", name): _PRECONDITIONED for name in ("SOAP", "Shampoo", "ScalableShampoo", "Kron")
}
