"""Parameter groups of a wide model: the fewest that give every parameter its own lr, eps and weight decay."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Hashable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError, said_as
from mupscale.operators.filling import check_given
from mupscale.theory.horizon import STEPS_RATIO, rescaled, steps_ratio
from mupscale.theory.manifest import Plan, bare
from mupscale.theory.registry import rule_for


def param_groups(
    wide: nn.Module,
    plan: Plan,
    optimizer_class: type[torch.optim.Optimizer],
    *,
    lr: float,
    decay: Collection[str] | None = None,
    only: Collection[str] | None = None,
    embedding_lr: float | None = None,
    embedding_weight_decay: float | None = None,
    batch_size: tuple[float, float] | None = None,
    tokens: tuple[float, float] | None = None,
    **values: Any,
) -> list[dict[str, Any]]:
    """Groups for ``optimizer_class`` under which the wide model trains as the narrow one did at ``lr``.

    Args:
        wide: the wide model.
        lr: the narrow model's learning rate.
        decay: names of the parameters that ``weight_decay`` applies to, with or without what wrappers put
            before them; None for all. As ``transformers.Trainer`` splits them:
            ``Trainer.get_decay_parameter_names(None, wide)``.
        embedding_lr, embedding_weight_decay: of the lookup tables, tied ones too; None for the same as all.
        only: names of the parameters to take; None for all. For Muon: `hidden_matrices`, and AdamW for the
            rest.
        batch_size, tokens: (the narrow model's, the wide one's), in any unit that is the same for both: by
            these AdamW's and Adam's lr, weight decay, betas and eps are scaled, besides what width does to
            them (`mupscale.theory.horizon`). Without them they are taken to be as for the narrow model.
        values: the narrow optimizer's other values: ``weight_decay``, ``betas``, ``momentum``, ... A value
            that is scaled (``eps``) takes the class's default when not given.

    Returns:
        Groups with ``lr``, the scaled values, ``param_names``, and ``lr_scale`` = lr of the group / lr of the
        narrow model. No two have the same values. Decaying parameters come first, in the order of
        ``wide.named_parameters()``. RAdam's first steps (5 at β₂ = 0.999) are of plain momentum, which scales
        otherwise: these are not the narrow model's.

    Raises:
        GrowthError: the optimizer has no rule, or none for batch size and tokens, or does not take a value;
            or a parameter is not in the plan, or has another shape there; or a name is of no parameter.

    >>> from torch import nn
    >>> import mupscale
    >>> make = lambda width: nn.Sequential(nn.Linear(8, 16 * width), nn.ReLU(), nn.Linear(16 * width, 4))
    >>> wide_plan = mupscale.plan(make, width=4)
    >>> groups = param_groups(make(4), wide_plan, torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    >>> sorted((g["lr_scale"], g["weight_decay"]) for g in groups)
    [(0.25, 0.4), (1.0, 0.1), (1.0, 0.1)]
    >>> optimizer = torch.optim.AdamW(groups)
    >>> groups = param_groups(make(4), wide_plan, torch.optim.AdamW, lr=1e-2, batch_size=(64, 256))
    >>> sorted((g["lr"], g["lr_scale"]) for g in groups)
    [(0.005, 0.5), (0.02, 2.0), (0.02, 2.0)]
    """
    check_given(plan, wide=wide)
    if not isinstance(optimizer_class, type):
        raise GrowthError(f"optimizer {optimizer_class!r}: expected its class, such as torch.optim.AdamW")
    plan.check_depth()
    for key, value in (
        ("lr", lr),
        ("weight_decay", values.get("weight_decay", 0.0)),
        ("embedding_lr", 0.0 if embedding_lr is None else embedding_lr),
        ("embedding_weight_decay", 0.0 if embedding_weight_decay is None else embedding_weight_decay),
    ):
        _check_number(key, value)
    if embedding_lr is not None and not lr:
        raise GrowthError(
            "lr: 0 has no ratio to embedding_lr; give lr above 0, and set_lr(optimizer, 0) after"
        )
    decaying = None if decay is None else _own_names("decay", decay, wide, plan)
    taken = None if only is None else _own_names("only", only, wide, plan)
    ratio = steps_ratio(batch_size, tokens)
    defaults = _defaults(optimizer_class, {"lr": lr})
    rule = rule_for(optimizer_class, {**defaults, **values})
    if ratio is not None and not rule.horizon:
        raise GrowthError(
            f"{optimizer_class.__name__}: no rule is published for both batch size and tokens, as there is "
            "for AdamW and Adam; leave batch_size and tokens out, and tune"
        )
    if values.get("initial_accumulator_value"):
        raise GrowthError("initial_accumulator_value: torch's Adagrad takes it for all groups alike; give 0")
    for key, value in (*values.items(), ("weight_decay", embedding_weight_decay)):
        if value and key not in defaults:  # torch would keep it in the group and never look at it
            raise GrowthError(f"{key}: {optimizer_class.__name__} has no such value; leave it out")
    given = {k: v for k, v in values.items() if k in defaults}
    accepted = inspect.signature(optimizer_class).parameters
    _defaults(optimizer_class, {"lr": lr, **{k: v for k, v in given.items() if k in accepted}})
    by_horizon = () if ratio is None else ("betas",)
    scaled = {"lr", "eps", "weight_decay", *rule.values, *by_horizon} & defaults.keys()
    narrow = {**{k: defaults[k] for k in sorted(scaled)}, **given, "lr": lr}

    def base(name: str) -> dict[str, Any]:
        """The narrow optimizer's values for one parameter, at the wide model's batch size and tokens."""
        mine = dict(narrow)
        if plan[name].is_embedding and embedding_lr is not None:
            mine |= {"lr": embedding_lr, "lr_scale": embedding_lr / lr}
        if plan[name].is_embedding and embedding_weight_decay is not None:
            mine["weight_decay"] = embedding_weight_decay
        if "weight_decay" in mine and decaying is not None and plan.own_name(name) not in decaying:
            mine["weight_decay"] = 0.0
        return mine if ratio is None else rescaled(mine, ratio, decoupled=rule.decoupled)

    named = [(n, p) for n, p in wide.named_parameters() if taken is None or plan.own_name(n) in taken]
    for name, param in named:
        plan.check_shape(name, param)
    if decaying is not None:  # decaying ones first, and all else as it is
        named.sort(key=lambda pair: plan.own_name(pair[0]) not in decaying)
    return merge_groups((name, param, rule.group(name, plan[name], base(name))) for name, param in named)


def hidden_matrices(plan: Plan) -> list[str]:
    """Names of the matrices between hidden layers, which Muon is for; the rest goes to AdamW as a rule.

    That is every weight of two dims that contracts one of them and is not a readout.

    >>> from transformers import LlamaConfig
    >>> import mupscale
    >>> names = hidden_matrices(mupscale.plan(LlamaConfig(num_hidden_layers=1), width=2))
    >>> len(names), "lm_head.weight" in names
    (7, False)
    """
    check_given(plan)
    matrices = {name for name, p in plan.params.items() if p.has_noise and len(p.shape) == 2}
    return [wide for wide, name in plan.wide_names.items() if name in matrices]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the narrow-equivalent learning rate: every group's lr becomes ``lr`` times its ``lr_scale``.

    Keeps a scheduler's ``initial_lr`` in step, so that one made afterwards starts from ``lr``.

    Raises:
        GrowthError: it is no number from 0 on; or the groups have several rates besides their ``lr_scale``,
            as what is carried from an optimizer of several, which one rate would make equal.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise GrowthError(f"set_lr: expected an optimizer, found {type(optimizer).__name__}")
    _check_number("set_lr", lr)
    key = "initial_lr" if all("initial_lr" in group for group in optimizer.param_groups) else "lr"
    scaled = [group for group in optimizer.param_groups if group.get("lr_scale", 1.0)]
    rates = [float(group[key] / group.get("lr_scale", 1.0)) for group in scaled]
    if rates and not math.isclose(min(rates), max(rates), rel_tol=1e-5):
        raise GrowthError(
            f"set_lr: the groups have several rates, {key} / lr_scale from {min(rates):g} to {max(rates):g}, "
            "which one would make equal; multiply every group's lr, or put its share of one into its lr_scale"
        )
    for group in optimizer.param_groups:
        value = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value
        if "initial_lr" in group:
            group["initial_lr"] = value


def load_by_name(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let an optimizer with our groups load saved state by the names in the groups, in whatever order.

    torch goes by position alone. A model that was grown twice may have the same groups in another order. What
    torch.compile, DDP and the like put before names makes no difference.

    Returns:
        The optimizer, whose ``load_state_dict`` now raises GrowthError for state of other parameters, and for
        values that were scaled by another batch size or number of tokens than this one's.
    """

    def by_name(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any] | None:
        if not all("param_names" in group for group in saved["param_groups"]):
            return None
        saved_names = _unwrapped(name for g in saved["param_groups"] for name in g["param_names"])
        saved_groups = {saved_names[name]: g for g in saved["param_groups"] for name in g["param_names"]}
        index = {
            saved_names[n]: i
            for g in saved["param_groups"]
            for n, i in zip(g["param_names"], g["params"], strict=True)
        }
        own_names = _unwrapped(name for group in optimizer.param_groups for name in group["param_names"])
        names = [*own_names.values()]
        if differing := index.keys() ^ set(names):
            raise GrowthError(
                f"{min(differing)}: only in one of the saved optimizer and this one; load one of this model"
            )
        for group in optimizer.param_groups:
            mine = [own_names[name] for name in group["param_names"]]
            values = [
                {k: v for k, v in saved_groups[name].items() if k not in ("params", "param_names")}
                for name in (mine[0], *mine)
            ]
            if other := next((n for n, v in zip(mine, values[1:], strict=True) if v != values[0]), None):
                raise GrowthError(
                    f"{other}: saved with other values than {mine[0]}, but both are in one group here; "
                    "make the groups with the plan that the optimizer was saved under"
                )
            ratio = values[0].get(STEPS_RATIO, 1.0)
            if group.get(STEPS_RATIO, ratio) != ratio:
                raise GrowthError(
                    f"{mine[0]}: saved with values for another batch size or number of tokens, which would "
                    "take the place of this run's; leave both out, or start with a fresh optimizer"
                )
        place = {name: i for i, name in enumerate(names)}
        groups = [
            {
                **saved_groups[own_names[mine[0]]],
                "param_names": mine,
                "params": [place[own_names[name]] for name in mine],
            }
            for mine in (group["param_names"] for group in optimizer.param_groups)
        ]
        state = {place[name]: saved["state"][i] for name, i in index.items() if i in saved["state"]}
        return {**saved, "param_groups": groups, "state": state}

    optimizer.register_load_state_dict_pre_hook(by_name)
    return optimizer


def merge_groups(params: Iterable[tuple[str, Any, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Collect (name, parameter, values) into groups of equal values, in order of first appearance."""
    groups: dict[Hashable, dict[str, Any]] = {}
    for name, param, values in params:
        key = tuple((k, _hashable(v)) for k, v in sorted(values.items()))
        group = groups.setdefault(key, {"params": [], "param_names": [], **values})
        group["params"].append(param)
        group["param_names"].append(name)
    return list(groups.values())


def _hashable(value: Any) -> Hashable:
    """What is equal where the value is: numbers, lists and dicts of them; anything else equals itself."""
    if isinstance(value, Tensor):
        return _hashable(value.tolist())
    if isinstance(value, Mapping):
        return tuple((key, _hashable(own)) for key, own in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return value if isinstance(value, Hashable) else id(value)


def _own_names(what: str, given: Collection[str], wide: nn.Module, plan: Plan) -> set[str]:
    """The names of parameters as the plan has them, of tied ones the first.

    A part of the model, as in a pipeline, may be told the names of the whole.

    Raises:
        GrowthError: they are no names, or one of them is of no parameter.
    """
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise GrowthError(f"{what}: expected names of parameters, as ['0.weight'], found {given!r:.100}")
    first = {id(p): plan.own_name(name) for name, p in wide.named_parameters()}
    every = {  # with those that a module has room for but lacks, which the Trainer names, too
        plan.own_name(f"{prefix}.{key}".lstrip(".")): p
        for prefix, module in wide.named_modules(remove_duplicate=False)
        for key, p in module._parameters.items()
    }
    own = {name: first.get(id(p), name) for name, p in every.items()}
    own = {name: name for name, of in plan.wide_names.items() if of in plan.params} | own
    names = [plan.own_name(name) for name in given]
    if odd := [name for name in names if name not in own]:
        raise GrowthError(
            f"{what}: {odd[0]!r} is no parameter of the model; give names of named_parameters()"
        )
    return {own[name] for name in names}


def _check_number(name: str, value: Any) -> None:
    number = isinstance(value, Real | Tensor) and not isinstance(value, bool)
    if not number or not 0 <= float(value) < math.inf:
        raise GrowthError(f"{name}: expected a number from 0 on, found {value!r}")


def _defaults(optimizer_class: type[torch.optim.Optimizer], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that an optimizer of the class has when it is given some of them.

    Raises:
        GrowthError: it does not take these.
    """
    param = nn.Parameter(torch.empty(1, 1, device="cpu"))
    said = ", ".join(f"{key}={value!r}" for key, value in values.items())
    with said_as(f"{optimizer_class.__name__}: does not take {said}", "; give values that it takes"):
        return optimizer_class([param], **values).defaults


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names without what torch.compile, DDP and the like put before them."""
    own = {name: bare(name) for name in names}
    while own and all(name.startswith("module.") for name in own.values()):
        own = {name: short.removeprefix("module.") for name, short in own.items()}
    return own
