"""Text in: a file, a folder, or Python's own source, split into a training and a held-out part.

Knows files; nothing of tokens or models.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mupscale.errors import GrowthError

TEXT_SUFFIXES = frozenset(
    {".txt", ".md", ".rst", ".py", ".tex", ".html", ".csv", ".json", ".c", ".h", ".cpp", ".js"}
)
# Tests repeat each other and hold files in odd encodings on purpose; site-packages is not the standard
# library.
_NOT_STDLIB = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
)

_FILE_BYTES = 4_000_000  # of text from the hub in a file: enough files for a split by files


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to read and how to cut it.

    Attributes:
        path: a text file or a folder of them (read recursively, by suffix); None reads the source of Python's
            own standard library, which every machine has.
        vocab_size: entries of the byte-level BPE vocabulary to train, at least 257 (256 bytes and the end
            mark). Not used when a tokenizer is given.
        held_out: share of the text kept for evaluation, as a fraction in (0, 0.5].
        max_bytes: read at most about this many bytes (whole files, spread evenly); None reads all.
    """

    path: Path | None = None
    vocab_size: int = 1024
    held_out: float = 0.05
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < 257:
            raise GrowthError(
                f"vocab_size is {self.vocab_size}, but a byte-level vocabulary needs at least 257"
            )
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
            raise GrowthError(
                f"{path}: no text file found; expected files ending in {' '.join(sorted(TEXT_SUFFIXES))}"
            )
    elif path.is_file():
        root, source, files = path.parent, str(path), [path]
    else:
        raise GrowthError(
            f"{path}: no such file or folder; give a text file, a folder of them, or none at all"
        )
    documents = []
    for file in _thin(files, max_bytes):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            if path is None:
                continue
            raise GrowthError(
                f"{file}: not UTF-8 text (byte {error.start}); convert it to UTF-8 or take it out of the "
                "folder"
            ) from None
        if text.strip():
            documents.append(Document(file.relative_to(root).as_posix(), text))
    if not documents:
        raise GrowthError(f"{path}: every text file is empty; give a file with some text in it")
    return documents, source


def text_from_hub(name: str, max_bytes: int | None, folder: Path | None, *, end: str = "\n\n") -> Path:
    """The first texts of a data set on the Hugging Face hub, as files, which are fetched only once.

    Args:
        name: ``OWNER/NAME`` or ``OWNER/NAME/SUBSET``; its training split needs a column ``text``.
        max_bytes: how much to read; such sets are larger than any disk.
        folder: where the files are kept, in a folder of their own; None: a temporary one.
        end: what stands between two texts of a file.

    Raises:
        GrowthError: no size is given, or the hub or the data set cannot be reached.
    """
    if max_bytes is None:
        raise GrowthError(f"{name}: say how much of it to read, as max_bytes")
    folder = folder or Path(tempfile.mkdtemp(prefix="mupscale-"))
    done = folder / f"{name.replace('/', '--')}-{max_bytes}"
    if done.is_dir():
        return done
    owner_and_name, subset = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:]) or None
    unfinished = done.with_name(f".{done.name}-{os.getpid()}")
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        from datasets import load_dataset

        rows = iter(load_dataset(owner_and_name, subset, split="train", streaming=True))
        for number in range(-(-max_bytes // _FILE_BYTES)):
            left = min(_FILE_BYTES, max_bytes - number * _FILE_BYTES)
            with (unfinished / f"{number:06}.txt").open("w", encoding="utf-8") as file:
                while left > 0 and (row := next(rows, None)) is not None:
                    left -= file.write(row["text"] + end)
            if left > 0:
                break
        os.replace(unfinished, done)
    except Exception as error:  # whatever the hub, the network or the file system raise
        shutil.rmtree(unfinished, ignore_errors=True)
        if done.is_dir():  # another process was faster
            return done
        raise GrowthError(
            f"{name}: cannot be read from the Hugging Face hub ({' '.join(str(error).split())[:200]}); "
            "without a network, give a text file or stdlib"
        ) from None
    return done


def _walk(root: Path, suffixes: Iterable[str]) -> list[Path]:
    return sorted(
        (f for f in root.rglob("*") if f.suffix.lower() in suffixes and f.is_file()), key=Path.as_posix
    )


def _thin(files: Sequence[Path], max_bytes: int | None) -> list[Path]:
    """Drop whole files, evenly over the list, until about max_bytes are left."""
    sizes = np.array([f.stat().st_size for f in files], dtype=np.int64)
    total = int(sizes.sum())
    if max_bytes is None or total <= max_bytes:
        return list(files)
    chosen = sorted(range(len(files)), key=lambda i: digest(files[i].name, str(i)))
    kept = np.cumsum(sizes[chosen]) <= max_bytes
    keep = {i for i, wanted in zip(chosen, kept, strict=True) if wanted} or {chosen[0]}
    return [f for i, f in enumerate(files) if i in keep]


def read_corpus(config: DataConfig) -> Corpus:
    """Read the text and split it.

    Twenty files or more are split by whole files, chosen by a hash of their names; fewer are cut once, near
    the end of the text. Either way no held-out position is ever trained on.

    Example:
        >>> corpus = read_corpus(DataConfig(max_bytes=1_000_000))
        >>> {d.name for d in corpus.train} & {d.name for d in corpus.held_out}
        set()
    """
    documents, source = read_documents(config.path, config.max_bytes)
    total = sum(len(d.text) for d in documents)
    train: list[Document] = []
    held_out: list[Document] = []
    if len(documents) >= 20:
        held = 0
        for document in sorted(documents, key=lambda d: digest(d.name)):
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
    files = f"{len(documents)} file{'s' * (len(documents) > 1)}"
    about = f"{source}: {files}, {total / 1e6:.2f} million characters, {how}"
    return Corpus(tuple(by_name[0]), tuple(by_name[1]), about)


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
