"""Plain networks for studies, at any width: a multilayer perceptron and a ResNet.

Each takes ``forward(inputs, labels=None)`` and returns ``{"loss", "logits"}``, the loss a mean cross entropy.
Every parameter belongs to a module that draws it in ``reset_parameters``, where `mupscale.init_` finds its
law. Knows nothing of growth or data.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mupscale.errors import GrowthError

STAGES = (1, 2, 4, 8)  # widths of a ResNet's stages, over that of the first


class Classifier(nn.Module):
    """A body that makes features, and a linear readout of them; the loss where there are labels."""

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.readout = nn.Linear(features, classes)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits_BC = self.readout(self.body(inputs))
        if labels is None:
            return {"logits": logits_BC}
        return {"loss": F.cross_entropy(logits_BC, labels), "logits": logits_BC}


def mlp(width: int, *, inputs: int, classes: int, layers: int = 4) -> Classifier:
    """A perceptron of `layers` linear layers with ReLU between them.

    Args:
        width: hidden units in a layer.
        inputs: features of an item; images are flattened.
        classes: of the readout.
        layers: linear layers, the first and the readout among them.

    Raises:
        GrowthError: fewer than two layers.

    >>> import mupscale
    >>> plan = mupscale.plan(lambda factor: mlp(16 * factor, inputs=8, classes=3), width=4)
    >>> [float(p.copies) for name, p in plan.params.items() if name.endswith("weight")]
    [4.0, 16.0, 16.0, 4.0]
    """
    if layers < 2:
        raise GrowthError(f"layers is {layers}, expected at least 2: one that can be wide, and the readout")
    body: list[nn.Module] = [nn.Flatten()]
    for fan_in in [inputs] + [width] * (layers - 2):
        body += [_HeLinear(fan_in, width), nn.ReLU()]
    return Classifier(nn.Sequential(*body), width, classes)


def resnet18(width: int, *, channels: int, classes: int) -> Classifier:
    """A ResNet-18 as for CIFAR: a 3×3 stem without stride or pooling, four stages of two basic blocks.

    He et al. 2015, arXiv 1512.03385; 64 wide it is the usual one.

    Args:
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        channels: of the images.
        classes: of the readout.

    >>> import torch
    >>> network = resnet18(4, channels=1, classes=10)
    >>> network(torch.zeros(2, 1, 8, 8))["logits"].shape
    torch.Size([2, 10])
    """
    widths = [width * factor for factor in STAGES]
    body: list[nn.Module] = [*_convolution(channels, width, 3), nn.ReLU()]
    for number, (before, after) in enumerate(zip([width, *widths], widths, strict=False)):
        body += [_BasicBlock(before, after, stride=2 if number else 1), _BasicBlock(after, after)]
    return Classifier(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1], classes)


class _HeLinear(nn.Linear):
    """Before a ReLU: torch's own init leaves a fifteenth of the signal after three such layers."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        convolutions = _convolution(before, after, 3, stride), _convolution(after, after, 3)
        self.branch = nn.Sequential(*convolutions[0], nn.ReLU(), *convolutions[1])
        changes = stride != 1 or before != after
        self.shortcut = nn.Sequential(*_convolution(before, after, 1, stride)) if changes else nn.Identity()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return F.relu(self.branch(images_BCHW) + self.shortcut(images_BCHW))


def _convolution(before: int, after: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution without a bias, and the norm behind it, which has one."""
    convolution = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(after)
