"""Text in: a file, a folder, or the Python sources of a machine, split into training and held-out text.

Knows files; nothing of tokens or models.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mupscale.errors import GrowthError, one_line

TEXT_SUFFIXES = frozenset(
    {".txt", ".md", ".rst", ".py", ".tex", ".html", ".csv", ".json", ".c", ".h", ".cpp", ".js"}
)
_PACKAGES = frozenset({"site-packages", "dist-packages"})  # not the standard library, but in its folder
# Tests repeat each other and hold files in odd encodings on purpose.
_TESTS = frozenset({"test", "tests", "idle_test", "lib2to3"})
_BY_HAND = 1_000_000  # bytes; larger sources are generated
_FILE_BYTES = 4_000_000  # of text from the hub in a file: enough files for a split by files


@dataclass(frozen=True)
class Document:
    """One text and the name of the file that it came from."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents split into a training and a held-out part that share no text position.

    Attributes:
        about: one sentence for people: what was read, how it was split, and how the digest begins.
        digest: of the names and texts of both parts.
    """

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    about: str
    digest: str


def _stdlib() -> tuple[str, dict[str, Path]]:
    """The sources of Python's standard library, which every machine has."""
    about = f"the standard library of Python {sysconfig.get_python_version()} (without its tests)"
    return about, _sources("stdlib", _PACKAGES | _TESTS)


def _site_packages() -> tuple[str, dict[str, Path]]:
    """The standard library with its tests, and the installed packages, but for what is large or mupscale's.

    (mupscale changes as one works on it, and of an editable install nothing would be there.)
    """
    about = f"the standard library of Python {sysconfig.get_python_version()} and the installed packages"
    found = {f"stdlib/{name}": file for name, file in _sources("stdlib", _PACKAGES).items()}
    for folder in ("platlib", "purelib"):  # mostly the same one
        for name, file in _sources(folder).items():
            if not name.startswith("mupscale/"):
                found[f"site-packages/{name}"] = file
    return about, {name: found[name] for name in sorted(found) if found[name].stat().st_size <= _BY_HAND}


# What has a name: what it is, in words, and its files by their names.
NAMED = {"stdlib": _stdlib, "site-packages": _site_packages}


def read_documents(source: str | Path, max_bytes: int | None = None) -> tuple[list[Document], str]:
    """Read a file, a folder, or what has a name in `NAMED`; say what was read.

    Of ``site-packages``, where packages bring copies of each other, equal texts are read once.

    Returns:
        The documents that hold any text, sorted by name, and a phrase that names the source.

    Raises:
        GrowthError: the path is missing, holds no text file, or a file is not UTF-8.
    """
    path = Path(source)
    if source in NAMED:
        about, files = NAMED[str(source)]()
    elif path.is_file():
        about, files = str(path), {path.name: path}
    elif path.is_dir():
        about, files = str(path), _walk(path, TEXT_SUFFIXES)
    else:
        raise GrowthError(
            f"{path}: no such file or folder; give a text file, a folder of them, or one of "
            f"{', '.join(NAMED)}"
        )
    if not files:
        suffixes = " ".join(sorted(TEXT_SUFFIXES))
        raise GrowthError(f"{path}: no text file found; expected files ending in {suffixes}")
    documents = []
    seen: set[str] = set()
    for name, file in _thin(files, max_bytes).items():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            if source in NAMED:
                continue
            raise GrowthError(
                f"{file}: not UTF-8 text (byte {error.start}); convert it to UTF-8 or take it out of the "
                "folder"
            ) from None
        if text.strip() and text not in seen:
            documents.append(Document(name, text))
        if source == "site-packages":
            seen.add(text)
    if not documents:
        raise GrowthError(f"{path}: every text file is empty; give a file with some text in it")
    return documents, about


def _sources(folder: str, without: Container[str] = ()) -> dict[str, Path]:
    """The Python files of a folder that sysconfig knows, but for those in or under some names."""
    return _walk(Path(sysconfig.get_path(folder)), {".py"}, without=without)


def _walk(root: Path, suffixes: Container[str], *, without: Container[str] = ()) -> dict[str, Path]:
    """The files of a folder and those below it, but for folders of some names, which are not entered."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in without]
        files = (Path(folder, name) for name in names)
        found += (file for file in files if file.suffix.lower() in suffixes and file.is_file())
    return {file.relative_to(root).as_posix(): file for file in sorted(found, key=Path.as_posix)}


def _thin(files: dict[str, Path], max_bytes: int | None) -> dict[str, Path]:
    """Drop whole files, evenly over the list, until about max_bytes are left."""
    sizes = np.array([f.stat().st_size for f in files.values()], dtype=np.int64)
    if max_bytes is None or sizes.sum() <= max_bytes:
        return files
    names = list(files)
    chosen = sorted(range(len(names)), key=lambda i: digest(files[names[i]].name, str(i)))
    kept = max(1, int((np.cumsum(sizes[chosen]) <= max_bytes).sum()))
    return {names[i]: files[names[i]] for i in sorted(chosen[:kept])}


def read_corpus(
    source: str | Path = "stdlib", *, held_out: float = 0.05, max_bytes: int | None = None
) -> Corpus:
    """Read the text and split it.

    Twenty files or more are split by whole files, chosen by a hash of their names; fewer are cut once, near
    the end of the text. Either way no held-out position is ever trained on.

    Args:
        source: a text file or a folder of them (read recursively, by suffix); or ``stdlib``, the source of
            Python's own standard library, which every machine has; or ``site-packages``, many times as
            much: that with its tests, and all Python sources of the installed packages (not mupscale's own)
            but for files that are not UTF-8, are larger than 1 MB, or repeat another.
        held_out: share of the text kept for evaluation, as a fraction in (0, 0.5].
        max_bytes: read at most about this many bytes (whole files, spread evenly); None reads all.

    Raises:
        GrowthError: a share that cannot be, or as `read_documents`.

    Example:
        >>> corpus = read_corpus(max_bytes=1_000_000)
        >>> {d.name for d in corpus.train} & {d.name for d in corpus.held_out}
        set()
    """
    if not 0 < held_out <= 0.5:
        raise GrowthError(f"held_out is {held_out}, expected a fraction above 0 and at most 0.5")
    documents, what = read_documents(source, max_bytes)
    total = sum(len(d.text) for d in documents)
    train: list[Document] = []
    kept: list[Document] = []
    if len(documents) >= 20:
        size = 0
        for document in sorted(documents, key=lambda d: digest(d.name)):
            # A file that alone would overshoot the share by half stays in training.
            if size < held_out * total and size + len(document.text) <= 1.25 * held_out * total:
                kept.append(document)
                size += len(document.text)
            else:
                train.append(document)
        how = f"{len(kept)} whole files held out"
    if not kept:
        train, remaining = [], round((1 - held_out) * total)
        for document in documents:
            head, tail = document.text[:remaining], document.text[remaining:]
            train += [Document(document.name, head)] if head else []
            kept += [Document(document.name, tail)] if tail else []
            remaining -= len(head)
        how = f"the last {held_out:.0%} of the text held out"
    files = f"{len(documents)} file{'s' * (len(documents) > 1)}"
    train.sort(key=_name)
    kept.sort(key=_name)
    key = digest(str(len(train)), *(part for d in (*train, *kept) for part in (d.name, d.text)))
    about = f"{what}: {files}, {total / 1e6:.2f} million characters, {how}, sha256 {key[:12]}"
    return Corpus(tuple(train), tuple(kept), about, key)


def _name(document: Document) -> str:
    return document.name


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
    parts = name.split("/", 2)
    try:
        from datasets import load_dataset

        texts = iter(load_dataset("/".join(parts[:2]), *parts[2:], split="train", streaming=True))
        with appearing(done) as unfinished:
            for number, start in enumerate(range(0, max_bytes, _FILE_BYTES)):
                left = min(_FILE_BYTES, max_bytes - start)
                with (unfinished / f"{number:06}.txt").open("w", encoding="utf-8") as file:
                    while left > 0 and (row := next(texts, None)) is not None:
                        left -= file.write(row["text"] + end)
                if left > 0:
                    break
    except Exception as error:  # whatever the hub, the network or the file system raise
        raise GrowthError(
            f"{name}: cannot be read from the Hugging Face hub ({one_line(error)[:200]}); "
            "without a network, give a text file, stdlib or site-packages"
        ) from None
    return done


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when it is full; where another process was faster, its stays."""
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        yield unfinished
        if not folder.is_dir():
            os.replace(unfinished, folder)
    except OSError:
        if not folder.is_dir():  # else another was faster by a hair, with the same
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def digest(*parts: str) -> str:
    """The SHA-256 of some texts, each ended by a zero byte but for the last."""
    hashed, between = hashlib.sha256(), b""
    for part in parts:  # joined, a large corpus would be in memory twice more
        hashed.update(between)
        hashed.update(part.encode())
        between = b"\0"
    return hashed.hexdigest()
