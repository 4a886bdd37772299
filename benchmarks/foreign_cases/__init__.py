"""The table behind `foreign.py`: models of other libraries, each built small at any width factor.

One module a library, with a function ``cases`` that imports it and yields its `Case`s.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LIBRARIES = (
    "torch_nn",
    "timm",
    "torchvision",
    "diffusers",
    "x_transformers",
    "litgpt",
    "peft",
    "transformers",
)

Make = Callable[[int], nn.Module]

# Why even copies cannot express a growth.
ROTARY = "head_dim grows, whose places rotary frequencies tell apart"
PLACES = "the sinusoidal table of positions is as wide as the model, and computed anew"
NEIGHBOURS = "it sums over neighbouring channels, which copies move apart"
MIXED = "one weight reads values that need a scale of their own beside others that need none"
UNEQUAL = "one weight makes parts that grow and parts that stay: no one learning rate fits it"


@dataclass(frozen=True)
class Case:
    """A model to grow.

    Attributes:
        make: builds it at a width factor.
        inputs: what to call it with: a tensor, a tuple of arguments, or a dict of named ones.
        inexact: why no even copies can express this growth, where none can; such a case is to be refused.
    """

    name: str
    make: Make
    inputs: Any
    inexact: str = ""


def images(side: int = 32, channels: int = 3, batch: int = 4) -> Tensor:
    return draw(batch, channels, side, side)


def tokens(length: int = 12, vocabulary: int = 64, batch: int = 3) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(3))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def of(table: Mapping[str, Make], inputs: Any, inexact: Mapping[str, str] | None = None) -> list[Case]:
    """The cases of a table whose models all take the same inputs."""
    why = inexact or {}
    assert why.keys() <= table.keys()
    return [Case(name, make, inputs, why.get(name, "")) for name, make in table.items()]


def _declared_for_torchvision() -> torch.library.Library | None:
    """What lets torchvision, and transformers beside it, be imported where its compiled operators find no CUDA.

    Its models use none of them, but it asks for their names.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    try:
        torch.ops.load_library(Path(found.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


_LIBRARY = _declared_for_torchvision()  # what it declares lasts as long as it does
