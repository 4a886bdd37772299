"""Output directories that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from mupscale.checkpoint.journal import JOURNAL, Journal, begun
from mupscale.checkpoint.reader import read_json
from mupscale.errors import GrowthError
from mupscale.theory.manifest import MANIFEST

# Weights in any format: a narrow copy of them beside the wide ones would be loaded by mistake.
_WEIGHT_SUFFIXES = (
    ".safetensors",
    ".safetensors.index.json",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".ckpt",
    ".pt",
)
_TRAINING_STATE = ("trainer_state.json", "training_args.bin")
REPLACED = ".replaced"  # in an old destination whose place a new one takes
_MARKS = (JOURNAL, REPLACED, MANIFEST)  # what tells a folder of a growth that was stopped
# Files that lie beside the weights in checkpoint directories, as far as their names tell.
_NAMES = (
    *("*config.json", MANIFEST, REPLACED, "history.json", "modules.json", *_TRAINING_STATE, "rng_state*"),
    *("*.bin", "tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.model"),
    *("chat_template*", "README*", "LICENSE*", "NOTICE*", ".gitattributes"),
)


@contextmanager
def staged(
    destination: Path, *, source: Path, overwrite: bool, making: Mapping[str, str]
) -> Iterator[tuple[Path, Journal]]:
    """A directory to write into, which takes the name ``destination`` when the block ends without error.

    It is on the disk before it has the name, and an old ``destination`` stays there until then. One run at a
    time writes to a destination. What a run has written that was stopped or killed, or had no more room,
    stays beside it, and the next one goes on from there by the journal.

    Args:
        making: everything that the bytes depend on; a run that makes something else does not go on.

    Raises:
        GrowthError: the destination exists and may not be replaced, or lies around the source; another run is
            writing to it, or has begun something else there; something appeared there meanwhile; there is no
            room for it.
    """
    destination, source = Path(destination).absolute(), source.absolute()
    if source.resolve().is_relative_to(destination.resolve()):
        raise GrowthError(f"{destination}: is or contains the source {source}; choose another destination")
    partial = destination.with_name(f".{destination.name}.partial")
    with _locked(partial, destination):
        _check_ours(partial)
        try:
            _put_back(destination)
            _check_free(destination, source, overwrite)
            _remove_old(destination)
            if not begun(partial):
                _clear(partial)
            journal = Journal(partial, making)
        except BaseException:
            _forget_unless_begun(partial)
            raise
        try:
            with journal:
                yield partial, journal
            _sync_tree(partial)
            journal.remove()
            if overwrite and destination.exists():
                _check_free(destination, source, overwrite)
                _replace(destination, partial)
            else:
                _rename_new(partial, destination)
        except GrowthError:  # the same command would be refused again
            _remove(partial)
            raise
        except BaseException as error:
            _forget_unless_begun(partial)
            kept = f"what is done stays in {partial}: give the same command again to go on, or remove it"
            note = kept if begun(partial) else "nothing is left of it"
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise GrowthError(f"{destination}: {error.strerror}; {note}") from None
            error.add_note(note)
            raise
        _sync(destination.parent)
        _remove_old(destination)


def _check_ours(partial: Path) -> None:
    """Refuse a folder that is not of a growth that was stopped: such a one has its journal, or is whole."""
    if any(partial.iterdir()) and not any((partial / name).exists() for name in _MARKS):
        raise GrowthError(f"{partial}: is in the way, and of no growth that was stopped; move it elsewhere")


def _forget_unless_begun(partial: Path) -> None:
    if not begun(partial):
        _remove(partial)


def _remove(folder: Path) -> None:
    """Remove one of our folders, as far as it goes."""
    with suppress(OSError):
        _clear(folder)
        folder.rmdir()


def _check_free(destination: Path, source: Path, overwrite: bool) -> None:
    """Refuse a destination that is there: it is replaced by request only, and nothing but a checkpoint is."""
    if not os.path.lexists(destination):
        return
    if not overwrite:
        raise GrowthError(f"{destination}: exists; choose another destination or add --overwrite")
    entries = list(destination.iterdir()) if destination.is_dir() and not destination.is_symlink() else None
    if entries is None or (entries and not (destination / "config.json").is_file()):
        raise GrowthError(
            f"{destination}: not a checkpoint directory, so --overwrite will not remove it; "
            "choose another destination"
        )
    if strange := sorted(path for path in entries if not _is_ours(path, source)):
        raise GrowthError(
            f"{strange[0]}: not part of a checkpoint, and --overwrite would remove it; move it away first"
        )
    if not os.access(destination, os.W_OK):
        raise GrowthError(f"{destination}: cannot be written to, so that --overwrite cannot replace it")
    old = _old(destination)
    if os.path.lexists(old) and not (old / REPLACED).exists():
        raise GrowthError(f"{old}: is in the way of --overwrite, which needs this name; move it elsewhere")


def _is_ours(path: Path, source: Path) -> bool:
    """Whether a growth of the source would write such a file, or training leave it beside the weights."""
    known = any(fnmatch(path.name, pattern) for pattern in _NAMES)
    return (path.is_file() and (known or path.name.endswith(_WEIGHT_SUFFIXES))) or (
        source / path.name
    ).exists()


@contextmanager
def _locked(partial: Path, destination: Path) -> Iterator[None]:
    """A directory that this run alone writes to: by a lock that ends with the process, however it ends."""
    busy = f"{destination}: another run is writing to it ({partial.name}); wait for it, or choose another"
    while True:
        try:
            partial.mkdir(parents=True)
            made = True
        except FileExistsError:
            made = False
        except OSError as error:  # a file where a folder is to be, a file system that is read only
            raise GrowthError(
                f"{destination}: {error.strerror}; choose a destination that can be written to"
            ) from None
        try:
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # the other run has just finished
            continue
        except OSError as error:  # a file, or a link
            raise GrowthError(f"{partial}: is in the way ({error.strerror}); move it elsewhere") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise GrowthError(busy) from None
        except OSError:  # no locks on this file system: what is there may be another's
            if not made:
                os.close(handle)
                raise GrowthError(f"{busy}; if none is, remove {partial}") from None
        if os.path.lexists(partial) and os.path.samestat(os.lstat(partial), os.fstat(handle)):
            break
        os.close(handle)  # of a run that finished between our two calls
    try:
        yield
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    """Remove all that is in one of our folders; last what tells that it is ours."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name in _MARKS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _rename_new(partial: Path, destination: Path) -> None:
    try:
        partial.rename(destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise GrowthError(
            f"{destination}: appeared while this was being written, and is left as it is; "
            "choose another destination or add --overwrite"
        ) from None


def _replace(destination: Path, partial: Path) -> None:
    """Let ``partial`` take the name of an old destination, which gets another.

    Both names are exchanged at once where the system can; else there is a moment without the destination,
    from which `_put_back` returns.
    """
    old = _old(destination)
    (destination / REPLACED).touch()
    _sync(destination)
    try:
        _exchange(partial, destination)
    except OSError:
        destination.rename(old)
        try:
            partial.rename(destination)
        except OSError:
            _put_back(destination)
            raise
    else:
        partial.rename(old)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two names, atomically.

    Raises:
        OSError: this system, or this file system, cannot.
    """
    at_cwd, exchange = -100, 2
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


def _old(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.old")


def _put_back(destination: Path) -> None:
    """Put back the old destination, where a run was killed between two renames."""
    old = _old(destination)
    if (old / REPLACED).exists() and not os.path.lexists(destination):
        old.rename(destination)
        (destination / REPLACED).unlink()


def _remove_old(destination: Path) -> None:
    """Remove the old destination, now that there is a new one."""
    if (_old(destination) / REPLACED).exists():
        _remove(_old(destination))


def _sync_tree(folder: Path) -> None:
    """Let all files of a directory, and their names in it, be on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_companions(source: Path, destination: Path, *, training_state: bool) -> None:
    """Copy what lies beside the weights and does not depend on width: tokenizer, generation config, notes.

    Args:
        training_state: also what lets a Trainer resume (step count, random state).
    """
    for path in sorted(source.iterdir()):
        name = path.name
        is_state = name in _TRAINING_STATE or name.startswith("rng_state")
        is_weights = name.endswith(_WEIGHT_SUFFIXES) or name.startswith(
            ("pytorch_model", "optimizer", "scheduler")
        )
        written = name in ("config.json", *_MARKS)
        if (
            not path.is_file()
            or written
            or (is_state and not training_state)
            or (is_weights and not is_state)
        ):
            continue
        shutil.copyfile(path, destination / name)


def copy_pooling(source: Path, destination: Path, narrow: int, wide: int) -> None:
    """Copy the folders that sentence-transformers has behind a model, with the width of its vectors.

    Args:
        narrow, wide: the hidden size before and after.

    Raises:
        GrowthError: one of them holds weights, which would not fit the wide model.
    """
    for path in sorted(source.glob("[0-9]*_*/config.json")):
        folder = path.parent
        if any(file.name.endswith((*_WEIGHT_SUFFIXES, ".bin")) for file in folder.iterdir()):
            raise GrowthError(
                f"{folder}: holds weights of a module after the model (sentence-transformers), which cannot "
                "grow; grow a copy of the checkpoint without this folder and modules.json"
            )
        fields = read_json(path, "it says how vectors are pooled")
        if fields.get("word_embedding_dimension") == narrow:
            fields["word_embedding_dimension"] = wide
        (destination / folder.name).mkdir(exist_ok=True)
        (destination / folder.name / path.name).write_text(json.dumps(fields, indent=2))
