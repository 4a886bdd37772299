"""Text in, blocks of tokens out: the corpus, its tokenizer, the held-out split and the order of training.

Knows files and tokenizers; nothing of models or growth.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from mupscale.errors import GrowthError

END_OF_TEXT = "<|endoftext|>"
TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".py", ".tex", ".html", ".csv", ".json", ".c", ".h", ".cpp", ".js"})
# Tests repeat each other and hold files in odd encodings on purpose; site-packages is not the standard library.
_NOT_STDLIB = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"})

TokenArray = npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to read and how to cut it.

    Attributes:
        path: a text file or a folder of them (read recursively, by suffix); None reads the source of Python's
            own standard library, which every machine has.
        vocab_size: entries of the byte-level BPE vocabulary to train, at least 257 (256 bytes and the end mark).
            Not used when a tokenizer is given.
        held_out: share of the text kept for evaluation, as a fraction in (0, 0.5].
        max_bytes: read at most about this many bytes (whole files, spread evenly); None reads all.
    """

    path: Path | None = None
    vocab_size: int = 1024
    held_out: float = 0.05
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < 257:
            raise GrowthError(f"vocab_size is {self.vocab_size}, but a byte-level vocabulary needs at least 257")
        if not 0 < self.held_out <= 0.5:
            raise GrowthError(f"held_out is {self.held_out}, expected a fraction above 0 and at most 0.5")


@dataclass(frozen=True)
class Document:
    """One text and the name of the file that it came from."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents split into a training and a held-out part that share no text position.

    Attributes:
        about: one sentence for people: what was read and how it was split.
    """

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    about: str


@dataclass(frozen=True)
class Tokens:
    """An encoded corpus.

    Attributes:
        train: token ids of the training text, in one row.
        held_out: token ids of the held-out text.
        tokenizer: what encoded them; saved beside every checkpoint.
        about: what was read, for the report.
    """

    train: TokenArray
    held_out: TokenArray
    tokenizer: PreTrainedTokenizerFast
    about: str


# ---- reading ---------------------------------------------------------------------------------------------------


def read_documents(path: Path | None, max_bytes: int | None = None) -> tuple[list[Document], str]:
    """Read a file, a folder, or (None) the standard library; say what was read.

    Returns:
        The documents that hold any text, sorted by name, and a phrase that names the source.

    Raises:
        GrowthError: the path is missing, holds no text file, or a file is not UTF-8.
    """
    if path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        source = f"the standard library of Python {sysconfig.get_python_version()} (without its tests)"
        files = [f for f in _walk(root, {".py"}) if not _NOT_STDLIB & set(f.relative_to(root).parts)]
    elif path.is_dir():
        root, source = path, str(path)
        files = _walk(root, TEXT_SUFFIXES)
        if not files:
            raise GrowthError(f"{path}: no text file found; expected files ending in {' '.join(sorted(TEXT_SUFFIXES))}")
    elif path.is_file():
        root, source, files = path.parent, str(path), [path]
    else:
        raise GrowthError(f"{path}: no such file or folder; give a text file, a folder of them, or none at all")
    documents = []
    for file in _thin(files, max_bytes):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            if path is None:
                continue
            raise GrowthError(
                f"{file}: not UTF-8 text (byte {error.start}); convert it to UTF-8 or take it out of the folder"
            ) from None
        if text.strip():
            documents.append(Document(file.relative_to(root).as_posix(), text))
    if not documents:
        raise GrowthError(f"{path}: every text file is empty; give a file with some text in it")
    return documents, source


def _walk(root: Path, suffixes: Iterable[str]) -> list[Path]:
    return sorted((f for f in root.rglob("*") if f.suffix.lower() in suffixes and f.is_file()), key=Path.as_posix)


def _thin(files: Sequence[Path], max_bytes: int | None) -> list[Path]:
    """Drop whole files, evenly over the list, until about max_bytes are left."""
    sizes = np.array([f.stat().st_size for f in files], dtype=np.int64)
    total = int(sizes.sum())
    if max_bytes is None or total <= max_bytes:
        return list(files)
    chosen = sorted(range(len(files)), key=lambda i: _digest(files[i].name, str(i)))
    kept = np.cumsum(sizes[chosen]) <= max_bytes
    keep = {i for i, wanted in zip(chosen, kept, strict=True) if wanted} or {chosen[0]}
    return [f for i, f in enumerate(files) if i in keep]


def read_corpus(config: DataConfig) -> Corpus:
    """Read the text and split it.

    Twenty files or more are split by whole files, chosen by a hash of their names; fewer are cut once, near the
    end of the text. Either way no held-out position is ever trained on.

    Example:
        >>> corpus = read_corpus(DataConfig(max_bytes=200_000))
        >>> {d.name for d in corpus.train} & {d.name for d in corpus.held_out}
        set()
    """
    documents, source = read_documents(config.path, config.max_bytes)
    total = sum(len(d.text) for d in documents)
    train: list[Document] = []
    held_out: list[Document] = []
    if len(documents) >= 20:
        held = 0
        for document in sorted(documents, key=lambda d: _digest(d.name)):
            # A file that alone would overshoot the share by half stays in training.
            if held + len(document.text) <= 1.25 * config.held_out * total and held < config.held_out * total:
                held_out.append(document)
                held += len(document.text)
            else:
                train.append(document)
        how = f"{len(held_out)} whole files held out"
    if not held_out:
        train, remaining = [], round((1 - config.held_out) * total)
        for document in documents:
            head, tail = document.text[:remaining], document.text[remaining:]
            train += [Document(document.name, head)] if head else []
            held_out += [Document(document.name, tail)] if tail else []
            remaining -= len(head)
        how = f"the last {config.held_out:.0%} of the text held out"
    by_name = sorted(train, key=lambda d: d.name), sorted(held_out, key=lambda d: d.name)
    about = f"{source}: {len(documents)} files, {total / 1e6:.2f} million characters, {how}"
    return Corpus(tuple(by_name[0]), tuple(by_name[1]), about)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# ---- tokens ----------------------------------------------------------------------------------------------------


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
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def load_tokens(
    config: DataConfig, *, tokenizer: PreTrainedTokenizerFast | None = None, cache: Path | None = None
) -> Tokens:
    """Read, split and encode a corpus; train the tokenizer on the training part unless one is given.

    Args:
        config: what to read.
        tokenizer: an existing one, for instance of the checkpoint that is trained on.
        cache: a folder to keep the encoded tokens in; a second call with the same text and settings reads them.

    Raises:
        GrowthError: as `read_documents`.

    Example:
        >>> tokens = load_tokens(DataConfig(max_bytes=200_000, vocab_size=512))
        >>> bool(tokens.train.max() < 512)
        True
    """
    corpus = read_corpus(config)
    known = tokenizer.backend_tokenizer.to_str() if tokenizer is not None else str(config.vocab_size)
    key = _digest(known, *(part for d in (*corpus.train, *corpus.held_out) for part in (d.name, d.text)))[:16]
    stored = cache / f"tokens-{key}" if cache is not None else None
    if stored is not None and (stored / "about.json").is_file():
        found = PreTrainedTokenizerFast.from_pretrained(stored) if tokenizer is None else tokenizer
        return Tokens(np.load(stored / "train.npy"), np.load(stored / "held_out.npy"), found, corpus.about)
    tokenizer = tokenizer or train_tokenizer((d.text for d in corpus.train), config.vocab_size)
    tokens = Tokens(_encode(corpus.train, tokenizer), _encode(corpus.held_out, tokenizer), tokenizer, corpus.about)
    if stored is not None:
        stored.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(stored)
        np.save(stored / "train.npy", tokens.train)
        np.save(stored / "held_out.npy", tokens.held_out)
        # Written last: its presence says that the rest is whole.
        (stored / "about.json").write_text(json.dumps({"about": corpus.about}) + "\n")
    return tokens


def _encode(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast) -> TokenArray:
    end = tokenizer.eos_token_id
    encoded = tokenizer.backend_tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False)
    rows = [np.array([*e.ids, *([] if end is None else [end])], dtype=np.uint32) for e in encoded]
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.uint32)


# ---- blocks ----------------------------------------------------------------------------------------------------


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
        self, tokens: TokenArray, block_size: int, order: npt.NDArray[np.int64] | None = None, *, name: str = "the text"
    ) -> None:
        count = len(tokens) // block_size
        if count == 0:
            raise GrowthError(
                f"{name}: {len(tokens)} tokens are too few for one block of {block_size}; "
                "give more text, a smaller block size or a larger held-out share"
            )
        self.tokens_BT = torch.from_numpy(tokens[: count * block_size].astype(np.int64)).view(count, block_size)
        self.order = np.arange(count) if order is None else order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        block_T = self.tokens_BT[self.order[place]]
        return {"input_ids": block_T, "labels": block_T}

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        return [self[place] for place in places]


def training_order(blocks: int, *, start: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """The blocks at places start … start + count − 1 of the endless shuffled stream that a seed stands for.

    Every pass over the text is a fresh permutation, drawn from (seed, number of the pass) alone: a run that is
    longer, or another model, sees the same blocks in the same order.

    Example:
        >>> long, short = (training_order(10, start=4, count=n, seed=0) for n in (25, 8))
        >>> bool((long[:8] == short).all())
        True
    """
    first, last = start // blocks, (start + max(count, 1) - 1) // blocks
    stream = np.concatenate([np.random.default_rng([seed, p]).permutation(blocks) for p in range(first, last + 1)])
    return stream[start - first * blocks :][:count].astype(np.int64)


def training_blocks(tokens: Tokens, block_size: int, *, start: int, count: int, seed: int) -> Blocks:
    """The training blocks of one run, in its order; `start` skips what an earlier run has seen."""
    available = len(tokens.train) // block_size
    order = training_order(available, start=start, count=count, seed=seed) if available else None
    return Blocks(tokens.train, block_size, order, name=f"training text ({tokens.about})")


def held_out_blocks(tokens: Tokens, block_size: int, limit: int | None = None) -> Blocks:
    """The held-out blocks, spread evenly over the held-out text when `limit` takes only some of them."""
    everything = Blocks(tokens.held_out, block_size, name=f"held-out text ({tokens.about})")
    if limit is None or limit >= len(everything):
        return everything
    order = np.linspace(0, len(everything) - 1, limit).astype(np.int64)
    return Blocks(tokens.held_out, block_size, order)
