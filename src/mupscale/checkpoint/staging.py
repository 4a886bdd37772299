"""Output directories that appear whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mupscale.errors import GrowthError

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
# Whose a half-made directory is: other machines may write to the same file system.
_HOST = socket.gethostname()
_TRAINING_STATE = ("trainer_state.json", "training_args.bin")


@contextmanager
def staged(destination: Path, *, source: Path, overwrite: bool) -> Iterator[Path]:
    """A directory to write into, which takes the name ``destination`` when the block ends without error.

    Raises:
        GrowthError: the destination exists and may not be replaced, or lies around the source.
    """
    destination, source = Path(destination).absolute(), source.absolute()
    _sweep(destination)
    if source.resolve().is_relative_to(destination.resolve()):
        raise GrowthError(f"{destination}: is or contains the source {source}; choose another destination")
    if destination.exists():
        if not overwrite:
            raise GrowthError(f"{destination}: exists; choose another destination or add --overwrite")
        replaceable = destination.is_dir() and (
            (destination / "config.json").is_file() or not any(destination.iterdir())
        )
        if not replaceable:
            raise GrowthError(f"{destination}: not a checkpoint directory, so --overwrite will not remove it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    mine = f"{_HOST}-{os.getpid()}"
    partial = destination.with_name(f".{destination.name}.partial-{mine}")
    old = destination.with_name(f".{destination.name}.old-{mine}")
    partial.mkdir()
    try:
        yield partial
        if destination.exists():
            destination.rename(old)
            try:
                partial.rename(destination)
            except OSError:
                old.rename(destination)
                raise
            shutil.rmtree(old)
        else:
            partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(destination: Path) -> None:
    """Remove what runs that were killed left of this destination; put back what one had just set aside."""
    for path in destination.parent.glob(glob.escape(f".{destination.name}.") + f"*-{_HOST}-*"):
        kind, _, pid = path.name.removeprefix(f".{destination.name}.").rpartition(f"-{_HOST}-")
        if kind not in ("partial", "old") or not pid.isdecimal() or _is_another(int(pid)):
            continue
        if kind == "old" and not destination.exists():
            path.rename(destination)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_another(pid: int) -> bool:
    """Whether another process runs under this number; in a container it may be ours again every time."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


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
        written = name in ("config.json", "mupscale.json")
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
                f"{folder}: weights behind the model, which are not grown; grow a copy of the checkpoint "
                "without this folder and modules.json"
            )
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.get("word_embedding_dimension") == narrow:
            fields["word_embedding_dimension"] = wide
        (destination / folder.name).mkdir()
        (destination / folder.name / path.name).write_text(json.dumps(fields, indent=2))
