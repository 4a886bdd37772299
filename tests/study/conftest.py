"""A tiny text, a tiny model and a short training, shared by the tests of the study side."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from mupscale.study.data.tokens import Tokens, load_tokens
from mupscale.study.runs.models import fresh_model
from mupscale.study.runs.training import train
from mupscale.study.spec.recipe import TrainConfig

torch.set_num_threads(1)  # tiny models: threads only wait for each other

SENTENCES = "the small model grows. it keeps what it knows, and learns {} more things from {} words.\n"
TRAINING = TrainConfig(
    steps=20, batch_size=4, block_size=16, lr=1e-2, warmup_steps=2, eval_every=5, eval_blocks=8, log_every=1
)


def tiny_llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("".join(SENTENCES.format(i, i * i) for i in range(600)))
    return path


@pytest.fixture(scope="session")
def tokens(text_file: Path) -> Tokens:
    return load_tokens(text_file, vocab_size=300, held_out=0.1)


@pytest.fixture
def model_config() -> LlamaConfig:
    return tiny_llama()


@pytest.fixture
def training() -> TrainConfig:
    return TRAINING


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory, tokens: Tokens) -> Path:
    """A checkpoint of a trained narrow model."""
    folder = tmp_path_factory.mktemp("checkpoints") / "narrow"
    train(fresh_model(tiny_llama(), 0), tokens, folder, replace(TRAINING, steps=40, save_every=1000))
    return folder
