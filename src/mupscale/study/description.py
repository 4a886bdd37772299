"""The parties of a comparison as plain data, for `results.json`: the models, the runs, the text each saw.

Knows checkpoints and histories; compares nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import mupscale
from mupscale.errors import GrowthError
from mupscale.study.data.tokens import Tokens
from mupscale.study.runs.history import History
from mupscale.study.runs.progress import quiet
from mupscale.study.spec.recipe import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """The checkpoint that is grown: where it lies, its model, and its history where it has one."""

    path: Path
    model: PreTrainedModel
    history: History | None

    @classmethod
    def load(cls, path: Path) -> Narrow:
        """Read a checkpoint directory.

        Raises:
            GrowthError: there is none, or transformers cannot read it.
        """
        return cls(path=path, model=load_model(path), history=History.load(path))


def load_model(path: Path) -> PreTrainedModel:
    """A causal language model from a checkpoint directory, in float32.

    Raises:
        GrowthError: no checkpoint there, or transformers cannot read it.
    """
    if not (path / "config.json").is_file():
        raise GrowthError(f"{path}: no config.json; expected a Hugging Face checkpoint directory")
    try:
        with quiet():
            return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except Exception as error:  # whatever a broken file makes the reader raise
        raise GrowthError(f"{path}: transformers cannot load it ({' '.join(str(error).split())})") from None


def describe_run(history: History, *, kind: str, name: str, label: str, lr_factor: float) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "label": label,
        "lr_factor": lr_factor,
        "lr": history.settings["config"]["lr"],
        "steps": history.steps,
        "flops": history.flops,
        "tokens": history.steps * history.tokens_per_step,
        "final_loss": history.final_loss,
        "length": 0,
        "best": True,
        "settings": history.settings,
        "curve": history.rows(),
    }


def describe_narrow(narrow: Narrow) -> dict[str, Any]:
    history = narrow.history
    return {
        "parameters": sum(p.numel() for p in narrow.model.parameters()),
        **_sizes(narrow.model.config),
        "steps": history and history.steps,
        "flops": history and history.flops,
        "flops_per_step": history and history.flops_per_step,
        "final_loss": history and history.final_loss,
        "settings": history and history.settings,
        "curve": history.rows() if history else [],
    }


def describe_wide(plan: mupscale.Plan, run: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the wide model."""
    return {"parameters": _count(plan), "flops_per_step": run["flops"] // run["steps"], **_sizes(plan.config)}


def _sizes(config: Any) -> dict[str, Any]:
    fields = (
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    return {field: getattr(config, field) for field in fields if hasattr(config, field)}


def _count(plan: mupscale.Plan) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(plan.config).parameters())


def describe_data(narrow: Narrow, tokens: Tokens, training: TrainConfig, longest: int) -> dict[str, Any]:
    """Which blocks of the stream each side saw. Grown and from scratch see the same ones."""
    blocks = len(tokens.train_ids) // training.block_size
    seen = None
    if narrow.history and narrow.history.settings["data"] == tokens.about:
        theirs = narrow.history.settings["config"]
        seen = [theirs["skip_blocks"], theirs["skip_blocks"] + theirs["steps"] * theirs["batch_size"]]
    return {
        "about": tokens.about,
        "blocks_in_training_text": blocks,
        "block_size": training.block_size,
        "narrow_saw_blocks": seen,
        "grown_sees_blocks": [
            training.skip_blocks,
            training.skip_blocks + training.steps * training.batch_size,
        ],
        "longest_scratch_sees_blocks": [
            training.skip_blocks,
            training.skip_blocks + longest * training.batch_size,
        ],
        "fresh": seen is not None
        and seen[1] <= training.skip_blocks
        and training.skip_blocks + longest * training.batch_size <= blocks,
    }


def checksum(source: Path) -> str:
    """Of the weights that were grown: another narrow model makes another comparison."""
    digest = hashlib.sha256()
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
