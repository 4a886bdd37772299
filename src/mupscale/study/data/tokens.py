"""What a run trains on, and text as such: the tokenizer, the encoded corpus, and the order of training.

Knows tokenizers, and of models only what text asks of them; nothing of growth.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, default_data_collator

from mupscale.errors import GrowthError
from mupscale.models.skeletons import transformers_config
from mupscale.study.data.corpus import DataConfig, Document, digest, read_corpus
from mupscale.study.data.flops import training_flops
from mupscale.study.spec.recipe import TrainConfig

END_OF_TEXT = "<|endoftext|>"
_DOCUMENTS = 64  # encoded at a time
_SAMPLE = 200_000_000  # characters that a tokenizer is trained on, about
TokenArray = npt.NDArray[np.uint32]
Batch = dict[str, torch.Tensor]


class Data(Protocol):
    """What `train` trains on: items that a model's ``forward(**batch)`` takes, with ``labels`` among them.

    A data set may have ``__getitems__(places)`` return one whole batch instead of a list of items: `collate`.
    """

    @property
    def about(self) -> str:
        """What it is, for people; part of what must match for a run to be resumed."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """Saved beside every checkpoint; None where there is none."""

    def check(self, model: nn.Module, config: TrainConfig) -> None:
        """Raise `GrowthError` where the model cannot be trained on it."""

    def training(self, config: TrainConfig) -> Dataset[Batch]:
        """The ``steps · batch_size`` items of the run, in its order."""

    def held_out(self, config: TrainConfig) -> Dataset[Batch]:
        """What to evaluate on."""

    def size(self, config: TrainConfig) -> int:
        """Items of one pass over the training data."""

    def step_flops(self, model: nn.Module, config: TrainConfig) -> int:
        """Floating point operations of one training step, forward and backward."""


def collate(items: Sequence[Batch] | Batch) -> Batch:
    """A batch of items, which are of one size, or one that was fetched as a whole."""
    return items if isinstance(items, dict) else dict(default_data_collator(list(items)))


@dataclass(frozen=True)
class Tokens:
    """An encoded corpus: `Data` for causal language models.

    Attributes:
        train_ids: token ids of the training text, in one row.
        held_out_ids: token ids of the held-out text.
        tokenizer: what encoded them; saved beside every checkpoint.
        about: what was read, for the report.
    """

    train_ids: TokenArray
    held_out_ids: TokenArray
    tokenizer: PreTrainedTokenizerFast
    about: str

    def check(self, model: nn.Module, config: TrainConfig) -> None:
        """See that the model reads text, in blocks of this size and with this vocabulary.

        Raises:
            GrowthError: it does not.
        """
        known = transformers_config(model)
        if known is None:
            raise GrowthError(
                f"a {type(model).__name__} does not train on text; give a causal language model"
            )
        longest = getattr(known, "max_position_embeddings", config.block_size)
        if config.block_size > longest:
            raise GrowthError(
                f"block_size is {config.block_size}, but the model has only {longest} positions"
            )
        if len(self.tokenizer) > known.vocab_size:
            raise GrowthError(
                f"the tokenizer has {len(self.tokenizer)} entries, but the model's vocab_size is "
                f"{known.vocab_size}; train with the model's own tokenizer"
            )

    def training(self, config: TrainConfig) -> Blocks:
        """The blocks of the run."""
        count = config.steps * config.batch_size
        return training_blocks(
            self, config.block_size, start=config.skip_blocks, count=count, seed=config.seed
        )

    def held_out(self, config: TrainConfig) -> Blocks:
        """The blocks to evaluate on."""
        return held_out_blocks(self, config.block_size, config.eval_blocks)

    def size(self, config: TrainConfig) -> int:
        """Whole blocks in the training text."""
        return len(self.train_ids) // config.block_size

    def step_flops(self, model: nn.Module, config: TrainConfig) -> int:
        """By `training_flops`."""
        known = transformers_config(model)
        assert known is not None  # checked
        return training_flops(known, batch_size=config.batch_size, block_size=config.block_size)


# ---- tokens ------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; any text can be encoded with it and decoded back exactly.

    Example:
        >>> tokenizer = train_tokenizer(["to grow is to keep"] * 3, 300)
        >>> tokenizer.decode(tokenizer("keep growing")["input_ids"])
        'keep growing'
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokens(
    config: DataConfig, *, tokenizer: PreTrainedTokenizerFast | None = None, cache: Path | None = None
) -> Tokens:
    """Read, split and encode a corpus; train the tokenizer on the training part unless one is given.

    Args:
        config: what to read.
        tokenizer: an existing one, for instance of the checkpoint that is trained on.
        cache: a folder to keep the encoded tokens in; a second call with the same text and settings reads
            them.

    Raises:
        GrowthError: as `read_documents`.

    Example:
        >>> tokens = load_tokens(DataConfig(max_bytes=200_000, vocab_size=512))
        >>> bool(tokens.train_ids.max() < 512)
        True
    """
    corpus = read_corpus(config)
    known = tokenizer.backend_tokenizer.to_str() if tokenizer is not None else str(config.vocab_size)
    key = digest(known, *(part for d in (*corpus.train, *corpus.held_out) for part in (d.name, d.text)))[:16]
    stored = cache / f"tokens-{key}" if cache is not None else None
    if stored is not None and (stored / "about.json").is_file():
        found = PreTrainedTokenizerFast.from_pretrained(stored) if tokenizer is None else tokenizer
        return Tokens(np.load(stored / "train.npy"), np.load(stored / "held_out.npy"), found, corpus.about)
    if tokenizer is None:
        sample = corpus.train[:: max(1, sum(len(d.text) for d in corpus.train) // _SAMPLE)]
        tokenizer = train_tokenizer((d.text for d in sample), config.vocab_size)
    tokens = Tokens(
        _encode(corpus.train, tokenizer), _encode(corpus.held_out, tokenizer), tokenizer, corpus.about
    )
    if stored is not None:
        unfinished = stored.with_name(f".{stored.name}-{os.getpid()}")
        unfinished.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(unfinished)
        np.save(unfinished / "train.npy", tokens.train_ids)
        np.save(unfinished / "held_out.npy", tokens.held_out_ids)
        (unfinished / "about.json").write_text(json.dumps({"about": corpus.about}) + "\n")
        try:
            os.replace(unfinished, stored)
        except OSError:  # another process was faster, with the same
            shutil.rmtree(unfinished)
    return tokens


def _encode(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast) -> TokenArray:
    end = tokenizer.eos_token_id
    rows = []
    for first in range(0, len(documents), _DOCUMENTS):  # an encoding takes far more memory than its ids
        texts = [d.text for d in documents[first : first + _DOCUMENTS]]
        encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        rows += [np.array([*e.ids, *([] if end is None else [end])], dtype=np.uint32) for e in encoded]
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.uint32)


# ---- blocks ------------------------------------------------------------------------------------------------


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Tokens packed into blocks, in a fixed order: `{"input_ids", "labels"}`, both int64 of block_size.

    Args:
        tokens: token ids in one row.
        block_size: tokens in a block.
        order: which block stands at which place; None keeps the order of the text.
        name: what to call the text in an error.

    Raises:
        GrowthError: fewer tokens than one block.
    """

    def __init__(
        self,
        tokens: TokenArray,
        block_size: int,
        order: npt.NDArray[np.int64] | None = None,
        *,
        name: str = "the text",
    ) -> None:
        count = len(tokens) // block_size
        if count == 0:
            raise GrowthError(
                f"{name}: {len(tokens)} tokens are too few for one block of {block_size}; "
                "give more text, a smaller block size or a larger held-out share"
            )
        self.tokens_BT = tokens[: count * block_size].reshape(count, block_size)
        self.order = np.arange(count) if order is None else order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        block_T = torch.from_numpy(self.tokens_BT[self.order[place]].astype(np.int64))
        return {"input_ids": block_T, "labels": block_T}

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        return [self[place] for place in places]


def training_order(blocks: int, *, start: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """The blocks at places start … start + count − 1 of the endless shuffled stream that a seed stands for.

    Every pass over the text is a fresh permutation, drawn from (seed, number of the pass) alone: a run that
    is longer, or another model, sees the same blocks in the same order.

    Example:
        >>> long, short = (training_order(10, start=4, count=n, seed=0) for n in (25, 8))
        >>> bool((long[:8] == short).all())
        True
    """
    first, last = start // blocks, (start + max(count, 1) - 1) // blocks
    stream = np.concatenate(
        [np.random.default_rng([seed, p]).permutation(blocks) for p in range(first, last + 1)]
    )
    return stream[start - first * blocks :][:count].astype(np.int64)


def training_blocks(tokens: Tokens, block_size: int, *, start: int, count: int, seed: int) -> Blocks:
    """The training blocks of one run, in its order; `start` skips what an earlier run has seen."""
    available = len(tokens.train_ids) // block_size
    order = training_order(available, start=start, count=count, seed=seed) if available else None
    return Blocks(tokens.train_ids, block_size, order, name=f"training text ({tokens.about})")


def held_out_blocks(tokens: Tokens, block_size: int, limit: int | None = None) -> Blocks:
    """The held-out blocks, spread evenly over the held-out text when `limit` takes only some of them."""
    everything = Blocks(tokens.held_out_ids, block_size, name=f"held-out text ({tokens.about})")
    if limit is None or limit >= len(everything):
        return everything
    order = np.linspace(0, len(everything) - 1, limit).astype(np.int64)
    return Blocks(tokens.held_out_ids, block_size, order)
