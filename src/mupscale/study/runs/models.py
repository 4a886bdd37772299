"""Which model to train: a preset, or any transformers config of a causal language model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mupscale.errors import GrowthError
from mupscale.study.runs.progress import quiet

# Llama-style, grouped-query attention, untied. Sizes by name: d_model, layers.
PRESETS = {"llama-tiny": (64, 3), "llama-small": (128, 6), "llama-medium": (256, 8)}
_HEAD_DIM = 16


def preset(name: str, *, vocab_size: int, positions: int = 256) -> LlamaConfig:
    """A Llama-style config that trains on a laptop.

    Args:
        name: one of `PRESETS`.
        vocab_size: entries of the tokenizer.
        positions: longest sequence, in tokens.

    Example:
        >>> preset("llama-tiny", vocab_size=1024).hidden_size
        64
    """
    d_model, layers = PRESETS[name]
    return small_llama(d_model, layers, vocab_size=vocab_size, positions=positions)


def small_llama(
    d_model: int, layers: int, *, vocab_size: int, positions: int, head_dim: int = _HEAD_DIM
) -> LlamaConfig:
    """A Llama with two queries to a key, a gated MLP of 8/3 · d_model, and embeddings that are not tied."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        intermediate_size=8 * d_model // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=d_model // head_dim,
        num_key_value_heads=d_model // head_dim // 2,
        head_dim=head_dim,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def read_config(path: Path) -> PretrainedConfig:
    """A transformers config from a `config.json` or a directory that holds one.

    Raises:
        GrowthError: no such file, or not the config of a causal language model.
    """
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise GrowthError(
            f"{file}: no such file; expected a preset ({', '.join(PRESETS)}) or a transformers config.json"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        kind = data["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise GrowthError(
            f"{file}: not a transformers config ({error!r}); it needs at least a model_type"
        ) from None
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise GrowthError(
            f"{file}: model_type {kind!r} is not a causal language model that transformers knows"
        )
    return AutoConfig.for_model(**data)


def fresh_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A model with the weights that its own code draws, from this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def load_checkpoint(path: Path) -> PreTrainedModel:
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


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer that lies beside a model; None where there is none."""
    return AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None
