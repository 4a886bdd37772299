"""`transformers.Trainer` with a plan: parameter groups and clipping that are the narrow model's.

    trainer = mupscale.integrations.PlanTrainer(model, args, train_dataset=data, plan=plan)

Needs accelerate, as the Trainer does. Knows the Trainer's public hooks and the core; nothing of files.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mupscale.errors import GrowthError
from mupscale.optim import clip_grad_norm_, load_by_name, param_groups
from mupscale.theory.manifest import Plan


class ClipGradNorm(TrainerCallback):  # type: ignore[misc]
    """Clip by the narrow model's norm where there is a plan, by the plain one where there is none.

    For a Trainer with ``max_grad_norm=0``, which leaves clipping to this callback.

    Raises:
        GrowthError: in fp16, where gradients are still multiplied by the loss scale at this point.
    """

    def __init__(self, plan: Plan | None, max_norm: float) -> None:
        self.plan = plan
        self.max_norm = max_norm

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.fp16:
            raise GrowthError("fp16: gradients cannot be clipped before they are unscaled; train in bf16")

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        if self.plan is not None:
            clip_grad_norm_(model, self.plan, self.max_norm)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)


class PlanTrainer(Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` for a wide model, with arguments that are said as the narrow model's.

    ``learning_rate``, ``weight_decay``, ``adam_epsilon`` and ``max_grad_norm`` of the training arguments are
    the narrow model's; ``optim`` may be any that has a scaling rule. All else is the Trainer.

    Args:
        plan: of `mupscale.plan` or `Plan.load`.
        batch_size, tokens: (the narrow model's, this one's), where they differ, as `mupscale.param_groups`
            takes them. The training arguments are still the narrow model's, but for these two.
        kwargs: the Trainer's other arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        *,
        plan: Plan,
        batch_size: tuple[float, float] | None = None,
        tokens: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        args = copy.copy(args) if args is not None else TrainingArguments("tmp_trainer")
        max_norm, args.max_grad_norm = args.max_grad_norm, 0.0
        super().__init__(model, args, **kwargs)
        self.plan, self.batch_size, self.tokens = plan, batch_size, tokens
        self.optimizer: torch.optim.Optimizer | None
        self._max_norm = max_norm
        if max_norm is not None and max_norm > 0:
            self.add_callback(ClipGradNorm(plan, max_norm))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.args.max_grad_norm = self._max_norm  # as it was said, for whoever reads the saved arguments
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.max_grad_norm = 0.0
        self.plan.save(output_dir or self.args.output_dir)  # where this model stands, if it is to grow again

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with the plan's groups.

        Raises:
            GrowthError: the optimizer has no scaling rule, or none for batch size and tokens.
        """
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, values = self.get_optimizer_cls_and_kwargs(self.args, model)
            frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
            groups = param_groups(
                model,
                self.plan,
                optimizer_class,
                only=[n for n, _ in model.named_parameters() if n not in frozen],
                decay=self.get_decay_parameter_names(model),
                batch_size=self.batch_size,
                tokens=self.tokens,
                **{"weight_decay": self.args.weight_decay, **values},  # some take it from there themselves
            )
            self.optimizer = load_by_name(optimizer_class(groups, **values))
        assert self.optimizer is not None
        return self.optimizer
