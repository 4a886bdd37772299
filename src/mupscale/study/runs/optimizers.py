"""The optimizer of a run: a fresh one by its settings, or the one that a checkpoint holds.

Knows the optimizer side of the core; nothing of data or of the training loop.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

import mupscale
from mupscale.errors import GrowthError
from mupscale.models.skeletons import transformers_config
from mupscale.optim import Together
from mupscale.study.spec.recipe import TrainConfig

_KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "muon": torch.optim.Muon,
}


def build_optimizer(
    model: nn.Module, config: TrainConfig, plan: mupscale.Plan | None = None
) -> torch.optim.Optimizer:
    """The optimizer that the config names, scaled by the plan if any; norms and biases do not decay.

    Raises:
        GrowthError: Muon for a plain module without a plan, which would tell hidden matrices from readouts,
            or for a model that has no hidden matrices.

    Example:
        >>> optimizer = build_optimizer(torch.nn.Linear(2, 2), TrainConfig(weight_decay=0.3))
        >>> [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        [(0.3, 1), (0.0, 1)]
    """
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if config.optimizer == "muon":
        matrices = trained & _hidden_matrices(model, plan)
        parts = {"muon": matrices, "adamw": trained - matrices}
        optimizer: torch.optim.Optimizer = Together(
            [_optimizer_of(model, config, plan, kind, names) for kind, names in parts.items() if names]
        )
    else:
        optimizer = _optimizer_of(model, config, plan, config.optimizer, trained)
    return mupscale.load_by_name(optimizer) if plan is not None else optimizer


def decaying(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay applies to: those of the Trainer, less other vectors.

    The Trainer goes by names, and would have a batch norm decay that is not called ``norm``.
    """
    vectors = {name for name, p in model.named_parameters() if p.ndim < 2}
    return set(Trainer.get_decay_parameter_names(None, model)) - vectors


def _hidden_matrices(model: nn.Module, plan: mupscale.Plan | None) -> set[str]:
    if plan is None:
        if transformers_config(model) is None:
            raise GrowthError(
                "optimizer muon: only a plan tells hidden matrices from readouts in a plain module; give one"
            )
        plan = mupscale.plan(model, width=2)  # for the names alone
    names = set(mupscale.hidden_matrices(plan))
    if not names:
        raise GrowthError("optimizer muon: the model has no hidden matrices; train it with adamw or sgd")
    return names


def _optimizer_of(
    model: nn.Module, config: TrainConfig, plan: mupscale.Plan | None, kind: str, names: Collection[str]
) -> torch.optim.Optimizer:
    """One optimizer for some of the parameters, in the Trainer's split into decaying and other ones."""
    values: dict[str, dict[str, Any]] = {
        "adamw": {"betas": config.betas, "eps": config.eps},
        "sgd": {"momentum": config.momentum},
        "muon": {"momentum": config.momentum, "adjust_lr_fn": "match_rms_adamw"},
    }
    hyper = {"lr": config.lr, **values[kind]}
    decay, weight_decay = decaying(model), config.weight_decay
    if plan is not None:
        groups = mupscale.param_groups(
            model, plan, _KINDS[kind], weight_decay=weight_decay, decay=decay, only=names, **hyper
        )
    else:
        named = [(name, p) for name, p in model.named_parameters() if name in names]
        parts = [x for x in named if x[0] in decay], [x for x in named if x[0] not in decay]
        split = zip(parts, (weight_decay, 0.0), strict=True)
        groups = [{"params": mine, "weight_decay": value} for mine, value in split if mine]
    return _KINDS[kind](groups, **hyper)


def carried_optimizer(
    model: nn.Module, config: TrainConfig, plan: mupscale.Plan | None, checkpoint: Path
) -> torch.optim.Optimizer:
    """The optimizer that a checkpoint holds, made ready for a fresh phase at `config.lr`.

    Raises:
        GrowthError: the checkpoint holds no optimizer, or one that does not fit the model.
    """
    path = checkpoint / "optimizer.pt"
    if not path.is_file():
        raise GrowthError(
            f"{path}: not there; grow the checkpoint with its optimizer, or start with a fresh one"
        )
    optimizer, params = build_optimizer(model, config, plan), dict(model.named_parameters())
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        groups = saved["param_groups"]
        if not all("param_names" in group for group in groups):  # as torch does: by position
            ours = [group["param_names"] for group in optimizer.param_groups]
            groups = [{**group, "param_names": names} for group, names in zip(groups, ours, strict=True)]
        for group in groups:
            for index, name in zip(group["params"], group["param_names"], strict=True):
                if index in saved["state"]:  # learning rate, weight decay and the rest are this run's
                    optimizer.state[params[name]] = saved["state"][index]
    except (ValueError, KeyError, RuntimeError) as error:
        raise GrowthError(f"{path}: does not fit the model ({error}); start with a fresh optimizer") from None
    return optimizer
