"""Reading a Hugging Face checkpoint directory: its config, and its weights one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from mupscale.checkpoint.stored import Stored, stored_pickle, stored_safetensors
from mupscale.errors import GrowthError, one_line, said_as
from mupscale.layout.base import Layout
from mupscale.layout.known import family_of
from mupscale.models.contents import state_tensors
from mupscale.models.skeletons import skeleton

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Those that say where weights are, in the order of transformers: of several it reads the first.
FILES = (WEIGHTS, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
MOST_LAYERS = 1000  # that are built unasked; no published model has as many


def weight_transforms(model: nn.Module) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """What transformers does with names in a checkpoint of this model, and with tensors that it merges."""
    if not isinstance(model, PreTrainedModel):
        return [], []
    transforms = get_model_conversion_mapping(model)
    return (
        [t for t in transforms if isinstance(t, WeightRenaming)],
        [t for t in transforms if isinstance(t, WeightConverter)],
    )


def today_names(model: nn.Module) -> Callable[[str], str]:
    """Stored name → the model's, where transformers has renamed it since."""
    renamings, _ = weight_transforms(model)
    return lambda stored: rename_source_key(stored, renamings, [])[0]


class Checkpoint:
    """One checkpoint directory. Opening reads headers only; tensors are read one by one.

    Raises:
        GrowthError: the directory, its config or its weights are missing or cannot be read.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory)
        if not self.path.is_dir():
            raise GrowthError(f"{self.path}: no such directory; expected a Hugging Face checkpoint directory")
        if not (self.path / "config.json").exists() and (kind := _sharded_kind(self.path)) is not None:
            raise GrowthError(f"{self.path}: {kind}")
        self.config = self.read_config(self.path / "config.json")

    @staticmethod
    def read_config(path: Path) -> PreTrainedConfig:
        """A transformers config, from its JSON file or the directory that holds it.

        Raises:
            GrowthError: the file is missing, not a config, or of an unknown ``model_type``.
        """
        path = path / "config.json" if path.is_dir() else path
        data = read_json(path, "expected a config.json, or a Hugging Face checkpoint directory")
        model_type = data.get("model_type")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise GrowthError(
                f"{path}: model_type {model_type!r} is unknown to transformers {version('transformers')}; "
                "expected one such as llama: correct it, or install a transformers that has it"
            )
        with said_as(f"{path}: not a valid {model_type} config", "; correct it"):
            return CONFIG_MAPPING[model_type].from_dict(data)

    def check_layers(self) -> None:
        """Refuse a config of very many layers and few tensors: a model of it takes hours to build.

        Some more layers than tensors there may be: ALBERT's share theirs. A directory without weights is let
        through: of that there is nothing to grow.
        """
        layers = getattr(self.config, "num_hidden_layers", None)
        has_weights = any((self.path / name).is_file() for name in FILES)
        if has_weights and isinstance(layers, int) and layers > max(MOST_LAYERS, len(self._files)):
            raise GrowthError(
                f"{self.path / 'config.json'}: num_hidden_layers is {layers}, but the weights are "
                f"{len(self._files)} tensors; correct it, or copy all files of the weights there"
            )

    @cached_property
    def weight_files(self) -> list[Path]:
        """The files of weights, in name order: safetensors, or where there are none the pickles of torch."""
        if named := getattr(self.config, "transformers_weights", None):
            raise GrowthError(
                f"{self.path / 'config.json'}: transformers_weights is {named!r}, which is not read; call "
                f"that file {WEIGHTS}, and remove the field"
            )
        path = next((self.path / name for name in FILES if (self.path / name).is_file()), None)
        if path is None:
            raise GrowthError(
                f"{self.path / WEIGHTS}: not found; expected the weights here, or in pytorch_model.bin: "
                "copy them there"
            )
        if path.suffix != ".json":
            return [path]
        index = read_json(path, "it lists the shards")
        if not isinstance(index.get("weight_map"), dict) or not index["weight_map"]:
            raise GrowthError(f"{path}: no weight_map in it; save the checkpoint again")
        names = index["weight_map"].values()
        if odd := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise GrowthError(
                f"{path}: expected names of files beside it in weight_map, found {odd[0]!r}; "
                "save the checkpoint again"
            )
        for name in names:
            if not (self.path / name).is_file():
                raise GrowthError(f"{self.path / name}: not found, but {path.name} lists it; copy it there")
        return [self.path / name for name in sorted({*names})]

    @cached_property
    def _files(self) -> dict[str, Stored]:
        """Where every stored tensor lies, by name."""
        found: dict[str, Stored] = {}
        for path in self.weight_files:
            try:
                found |= stored_safetensors(path) if path.suffix == ".safetensors" else stored_pickle(path)
            except GrowthError:
                raise
            except Exception as error:  # of many kinds, for files that are not what they say
                reason = one_line(error, limit=160)
                raise GrowthError(
                    f"{path}: truncated or corrupt ({reason}); copy or download the file again"
                ) from None
        return found

    def spec(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Stored dtype and shape, from the header."""
        return self._files[name].dtype, self._files[name].shape

    def tensor(self, name: str) -> Tensor:
        """Its values.

        Raises:
            GrowthError: the file has been cut short.
        """
        return self._files[name].read()

    def resolve(self, layout: Layout, model: nn.Module) -> dict[str, str]:
        """Match stored names with the layout's: layout name → stored name.

        Checkpoints may store a tied tensor under another of its names or twice, have names of their own, hold
        tables that today's models compute, or lack the base model's prefix.

        Args:
            model: of the config, for what transformers knows of the names in its checkpoints.

        Raises:
            GrowthError: a tensor is unknown to the layout or missing from the files, or has a wrong shape or
                kind of numbers.
        """
        known = {*layout.params, *layout.buffers}
        prefix, renamed = getattr(model, "base_model_prefix", ""), today_names(model)
        found: dict[str, str] = {}
        for stored in self._files:
            candidates = (layout.stored_as.get(stored, stored), f"{prefix}.{stored}", renamed(stored))
            name = next((n for n in candidates if n in known or n in layout.ties), None)
            if name is None:
                if any(re.search(pattern, stored) for pattern in layout.ignored):
                    continue
                raise GrowthError(
                    f"{self.file_of(stored)}: tensor {stored!r} is not in the model of config.json; "
                    "remove it, or correct the config"
                )
            canonical = layout.ties.get(name, name)
            if canonical in found and not torch.equal(self.tensor(found[canonical]), self.tensor(stored)):
                raise GrowthError(
                    f"{self.file_of(stored)}: {found[canonical]!r} and {stored!r} differ, but the config "
                    "ties them; set tie_word_embeddings to false in config.json or remove one"
                )
            found.setdefault(canonical, stored)
        if missing := sorted(known - found.keys()):
            raise GrowthError(
                f"{self.path}: tensor {missing[0]!r} is missing"
                + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
                + ", which the model in config.json has; copy all of the weights there, or correct the config"
            )
        own = state_tensors(model)
        for name, stored in found.items():
            expected, (dtype, shape) = layout.axes_of(name).shape(layout.sizes), self.spec(stored)
            if not dtype.is_floating_point and name in own and own[name].is_floating_point():
                raise GrowthError(
                    f"{self.file_of(stored)}: {stored!r} holds {dtype}; expected floating point numbers: "
                    "grow the checkpoint that is not quantized"
                )
            if shape != expected:
                raise GrowthError(
                    f"{self.file_of(stored)}: {stored!r} has shape {shape}, config.json says {expected}; "
                    "correct the config, or take the weights that belong to it"
                )
        return {name: found[name] for name in (*layout.params, *layout.buffers)}

    def is_merged(self, model: nn.Module) -> bool:
        """Whether tensors of the model are made of several stored ones, as fused experts of single ones."""
        _, converters = weight_transforms(model)
        return bool(converters) and any(rename_source_key(n, [], converters)[1] for n in self._files)

    def file_of(self, stored: str) -> Path:
        """The file that holds a stored tensor."""
        return self._files[stored].path

    def load(self) -> nn.Module:
        """The whole model in memory, in its stored dtypes.

        Raises:
            GrowthError: the weights do not fit the config.
        """
        narrow = skeleton(self.config)
        if not self.is_merged(narrow):
            self.resolve(family_of(self.config).layout(narrow, self.config), narrow)
        with said_as(f"{self.path}: transformers cannot load it"):
            return type(narrow).from_pretrained(self.path, dtype="auto", local_files_only=True)  # type: ignore[attr-defined, no-any-return]

    def identity(self) -> str:
        """What tells the files from others of the same names, and from what they were before."""
        suffixes = (".safetensors", ".json", ".pt", ".bin")
        paths = sorted(p for p in self.path.iterdir() if p.suffix in suffixes and p.is_file())
        return " ".join(f"{p.name}:{s.st_size}:{s.st_mtime_ns}" for p in paths for s in [p.stat()])

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every weight file, by file name."""
        sums = {}
        for path in self.weight_files:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
            sums[path.name] = digest.hexdigest()
        return sums


def _sharded_kind(path: Path) -> str | None:
    """How to grow what distributed training has saved and Hugging Face has not; None for anything else."""
    if (path / "common.pt").exists() and (path / "metadata.json").exists():
        return (
            "a checkpoint of Megatron's; let it export a Hugging Face one, grow that, and import it, with a "
            "fresh optimizer"
        )
    if any((folder / ".metadata").exists() for folder in (path, *path.iterdir())):
        return (
            "saved by torch.distributed.checkpoint; load it with what saved it and grow in place, "
            "mupscale.distributed.grow_, as examples/frameworks do with those of accelerate, torchtitan and "
            "OLMo-core"
        )
    return None


class ModelTensors:
    """The tensors of a checkpoint under the names that its model has for them, read one by one.

    Where transformers makes one tensor of several stored ones (a layer's experts), only a model that it has
    loaded holds them: then all are in memory.

    Raises:
        GrowthError: the files do not hold what the layout says.
    """

    def __init__(self, checkpoint: Checkpoint, layout: Layout, model: nn.Module) -> None:
        self._checkpoint = checkpoint
        merged = checkpoint.is_merged(model)
        self._loaded = state_tensors(checkpoint.load()) if merged else None
        self._stored = {} if merged else checkpoint.resolve(layout, model)

    def __call__(self, name: str) -> Tensor:
        if self._loaded is not None:
            return self._loaded[name].detach()
        return self._checkpoint.tensor(self._stored[name])

    def __contains__(self, name: str) -> bool:
        return name in (self._stored if self._loaded is None else self._loaded)

    def dtype(self, name: str) -> torch.dtype:
        """That it is stored in."""
        return self(name).dtype if self._loaded is not None else self._checkpoint.spec(self._stored[name])[0]

    def place(self, name: str) -> str:
        """Where it lies, for messages."""
        if self._loaded is not None:
            return name
        return f"{self._checkpoint.file_of(self._stored[name])}: {self._stored[name]!r}"


def read_json(path: Path, role: str) -> dict[str, Any]:
    """What a file of JSON holds.

    Args:
        role: what the file is for, for messages.

    Raises:
        GrowthError: it is missing, or holds something else than an object.
    """
    try:
        data = json.loads(path.read_text())
    except OSError:
        raise GrowthError(f"{path}: not found; {role}") from None
    except (ValueError, RecursionError) as error:
        raise GrowthError(f"{path}: not valid JSON ({error}); save it again") from None
    if not isinstance(data, dict):
        raise GrowthError(f"{path}: expected a JSON object, with names and values; save it again")
    return data
