"""Which model to train: a preset, any transformers config of a causal language model, or a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mupscale.checkpoint.reader import Checkpoint
from mupscale.errors import GrowthError, one_line
from mupscale.study.runs.progress import quiet

# Of `small_llama`, by name: d_model and layers, to train on a laptop.
PRESETS = {"llama-tiny": (64, 3), "llama-small": (128, 6), "llama-medium": (256, 8)}


def small_llama(
    d_model: int, layers: int, *, vocab_size: int, positions: int = 256, head_dim: int = 16
) -> LlamaConfig:
    """A Llama with two queries to a key, a gated MLP of 8/3 · d_model, and embeddings that are not tied.

    Example:
        >>> small_llama(*PRESETS["llama-tiny"], vocab_size=1024).num_attention_heads
        4
    """
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
    if not path.exists():
        raise GrowthError(
            f"{path}: no such file; expected a preset ({', '.join(PRESETS)}) or a transformers config.json"
        )
    config = Checkpoint.read_config(path)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise GrowthError(
            f"{path}: model_type {config.model_type!r} is no causal language model, such as llama; give one"
        )
    return config


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
        raise GrowthError(f"{path}: transformers cannot load it ({one_line(error)}); save it again") from None


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer that lies beside a model; None where there is none."""
    return AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None
