"""Text as models read it: the tokenizer, and the encoded corpus in blocks.

Knows tokenizers, and of models only what text asks of them; nothing of growth.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from mupscale.errors import GrowthError
from mupscale.models.skeletons import transformers_config
from mupscale.study.data.corpus import Document, appearing, digest, read_corpus
from mupscale.study.data.stream import Batch, Data
from mupscale.study.spec.recipe import TrainConfig

END_OF_TEXT = "<|endoftext|>"
_DOCUMENTS = 64  # encoded at a time
_SAMPLE = 200_000_000  # characters that a tokenizer is trained on, about
TokenArray = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Tokens(Data):
    """An encoded corpus: `Data` for causal language models, in blocks of ``{"input_ids", "labels"}``.

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
                f"block_size is {config.block_size}, expected at most the model's {longest} positions"
            )
        if len(self.tokenizer) > known.vocab_size:
            raise GrowthError(
                f"the tokenizer has {len(self.tokenizer)} entries, but the model's vocab_size is "
                f"{known.vocab_size}; train with the model's own tokenizer"
            )

    def columns(self, config: TrainConfig, *, held_out: bool = False) -> Batch:
        """The whole blocks of the text, in its order.

        Raises:
            GrowthError: fewer tokens than one block.
        """
        name, ids = ("held-out", self.held_out_ids) if held_out else ("training", self.train_ids)
        count, size = len(ids) // config.block_size, config.block_size
        if count == 0:
            raise GrowthError(
                f"{name} text ({self.about}): {len(ids)} tokens are too few for one block of {size}; give "
                "more text, a smaller block size or a larger held-out share"
            )
        blocks_BT = torch.from_numpy(ids[: count * size].reshape(count, size))
        return {"input_ids": blocks_BT, "labels": blocks_BT}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; any text can be encoded with it and decoded back exactly.

    Args:
        vocab_size: entries, at least 257: 256 bytes and the end mark.

    Raises:
        GrowthError: too few entries.

    Example:
        >>> tokenizer = train_tokenizer(["to grow is to keep"] * 3, 300)
        >>> tokenizer.decode(tokenizer("keep growing")["input_ids"])
        'keep growing'
    """
    if vocab_size < 257:
        raise GrowthError(f"vocab_size is {vocab_size}, but a byte-level vocabulary needs at least 257")
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
    source: str | Path = "stdlib",
    *,
    vocab_size: int = 1024,
    held_out: float = 0.05,
    max_bytes: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    cache: Path | None = None,
) -> Tokens:
    """Read, split and encode a corpus; train the tokenizer on the training part unless one is given.

    Args:
        source, held_out, max_bytes: what to read, as `read_corpus` takes it.
        vocab_size: entries of the tokenizer to train.
        tokenizer: an existing one, for instance of the checkpoint that is trained on.
        cache: a folder to keep the encoded tokens in; a second call with the same text and settings reads
            them.

    Raises:
        GrowthError: as `read_corpus` and `train_tokenizer`.

    Example:
        >>> tokens = load_tokens(max_bytes=200_000, vocab_size=512)
        >>> bool(tokens.train_ids.max() < 512)
        True
    """
    corpus = read_corpus(source, held_out=held_out, max_bytes=max_bytes)
    known = tokenizer.backend_tokenizer.to_str() if tokenizer is not None else str(vocab_size)
    key = digest(known, corpus.digest)[:16]
    stored = cache / f"tokens-{key}" if cache is not None else None
    if stored is not None and (stored / "about.json").is_file():
        found = PreTrainedTokenizerFast.from_pretrained(stored) if tokenizer is None else tokenizer
        return Tokens(np.load(stored / "train.npy"), np.load(stored / "held_out.npy"), found, corpus.about)
    if tokenizer is None:
        sample = corpus.train[:: max(1, sum(len(d.text) for d in corpus.train) // _SAMPLE)]
        tokenizer = train_tokenizer((d.text for d in sample), vocab_size)
    train_ids, held_out_ids = (_encode(part, tokenizer) for part in (corpus.train, corpus.held_out))
    if stored is not None:
        with appearing(stored) as folder:
            tokenizer.save_pretrained(folder)
            np.save(folder / "train.npy", train_ids)
            np.save(folder / "held_out.npy", held_out_ids)
            (folder / "about.json").write_text(json.dumps({"about": corpus.about}) + "\n")
    return Tokens(train_ids, held_out_ids, tokenizer, corpus.about)


def _encode(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast) -> TokenArray:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows = [np.empty(0, dtype=np.uint32)]
    for first in range(0, len(documents), _DOCUMENTS):  # an encoding takes far more memory than its ids
        texts = [d.text for d in documents[first : first + _DOCUMENTS]]
        encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        rows += [np.array([*e.ids, *end], dtype=np.uint32) for e in encoded]
    return np.concatenate(rows)
