"""Two models side by side, module by module: where outputs of the wide one stop being duplicates.

Or layer by layer, where the wide one is deeper, too: how far its residual stream is from the narrow one's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from mupscale.errors import GrowthError
from mupscale.layout.base import DEPTH
from mupscale.layout.flow.stream import layers_of
from mupscale.layout.inference.residual import STREAM
from mupscale.models.calls import Call, result_tensors
from mupscale.notation.axes import Axes, duplicate
from mupscale.notation.dims import Dim
from mupscale.theory.manifest import Plan


def spread(tensor: Tensor) -> float:
    """The standard deviation of the entries; 0 of a single one."""
    return tensor.std().item() if tensor.numel() > 1 else 0.0


def size(output: Tensor) -> float:
    """What differences of an output are judged by, in whatever unit it comes.

    The standard deviation of its entries; where they are nearly one number, of which rounding takes its
    share, a little of that number, and the number itself where they are one. What is `filled` does not count.
    """
    output = output.detach()
    finite = output[~filled(output)]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    if not largest:
        return 0.0
    own = spread(finite / largest)  # whose squares neither vanish nor overflow
    return largest * (max(own, 1e-4) if own else 1.0)


def filled(output: Tensor) -> Tensor:
    """The entries that say that there is no result: infinite ones, or such as -1e9 beside small ones."""
    sizes = output.abs()
    infinite = sizes.isinf()
    if not output.numel():
        return infinite
    sizes = sizes.masked_fill(infinite, 0.0)
    large = sizes > sizes.max() / 2
    rest = sizes.masked_fill(large, 0.0).max()
    return infinite | large if 0 < 1e4 * rest < sizes.max() else infinite


def apart(expected: Tensor, found: Tensor) -> float:
    """The largest difference of two tensors' entries; infinite where one is no number."""
    if not expected.numel():
        return 0.0
    difference = (expected - found).abs()
    if not difference.max().isfinite():  # two infinities may be equal
        difference = difference.masked_fill(expected == found, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
    return difference.max().item()


@dataclass(frozen=True)
class Judged:
    """How far one output is off, what is allowed, and the `spread` of the narrow one."""

    difference: float
    tolerance: float
    spread: float

    @property
    def excess(self) -> float:
        """The difference in units of what is allowed: more than 1 is too much."""
        if not self.difference:
            return 0.0
        return self.difference / self.tolerance if self.tolerance else math.inf


def judged(
    outputs: Sequence[Tensor],
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    noise: Callable[[], Sequence[float]],
    *,
    bound: float,
    most: float | None = None,
) -> list[Judged]:
    """Judge each output by its own `size`, of which ``bound`` is allowed.

    An output may be the little that is left where large numbers cancel. What rounding does to it is measured
    then, and allowed, up to ``most`` of its standard deviation, or of one.

    Args:
        outputs: the narrow model's; ``expected`` are these, grown.
        noise: measures what rounding does to each output; called where that may matter.
    """
    most = most or bound
    differences = [apart(e, _alike_filled(e, f, bound)) for e, f in zip(expected, found, strict=True)]
    spreads = [spread(output[~filled(output)]) for output in outputs]
    allowed = [bound * size(output) for output in outputs]
    limits = [most * max(1.0, own) for own in spreads]
    if any(a < d <= limit for a, d, limit in zip(allowed, differences, limits, strict=True)):
        explained = [min(4 * n, limit) for n, limit in zip(noise(), limits, strict=True)]
        allowed = [max(*pair) for pair in zip(allowed, explained, strict=True)]
    return [Judged(*each) for each in zip(differences, allowed, spreads, strict=True)]


def _alike_filled(expected: Tensor, found: Tensor, bound: float) -> Tensor:
    """``found``, with the entries that are `filled` as expected, up to the rounding of numbers so large."""
    if not (fill := filled(expected)).any():
        return found
    return torch.where(fill & ((found - expected).abs() <= bound * expected.abs()), expected, found)


def rounding(
    model: nn.Module,
    run: Callable[[nn.Module], Sequence[Tensor]],
    digit: Callable[[str], float] = lambda _: torch.finfo(torch.float64).eps,
) -> list[float]:
    """By how much each output differs when the weights are moved in the last digit, as they are, in place.

    Args:
        digit: of a parameter, how large that is beside it.
    """
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = run(model)
        worst = [0.0] * len(before)
        for _ in range(3):
            for name, param in model.named_parameters():
                if param.is_floating_point() or param.is_complex():
                    noise = torch.randn(param.shape, generator=draw, dtype=torch.float64).to(param.device)
                    param.mul_(1 + digit(name) * noise)
            model.train().eval()  # drops what some keep of their weights
            worst = [max(w, apart(a, b)) for w, a, b in zip(worst, before, run(model), strict=True)]
    return worst


def deviation(narrow: Tensor, wide: Tensor, module: str, plan: Plan) -> float | None:
    """How far ``wide`` is from duplicates of ``narrow``, in standard deviations; None where unknown."""
    if narrow.ndim != wide.ndim or not narrow.numel():
        return None
    changed = [i for i, (n, w) in enumerate(zip(narrow.shape, wide.shape, strict=True)) if n != w]
    expected = narrow
    if changed:
        weights = [plan.of_narrow(n).axes for n in plan.layout.params if n.rpartition(".")[0] == module]
        dims = [d for axes in weights for d in axes.dims if not d.contracted and d.growth(plan.growth) != 1]
        fits = [d for d in dims if d.size(plan.layout.sizes) == narrow.shape[changed[0]]]
        if len(changed) > 1 or not fits:
            return None
        axes = Axes(tuple(fits[0] if i in changed else Dim((n,)) for i, n in enumerate(narrow.shape)))
        expected = duplicate(narrow, axes, plan.layout.sizes, plan.growth)
        if expected.shape != wide.shape:
            return None
    # A fold may scale what lies between the parameters that share it.
    folds = {1.0, *(plan.of_narrow(name).fold for name in plan.layout.folds)}
    return min(
        (wide - fold * expected).abs().max().item() / (fold * expected.std().item() + 1e-30) for fold in folds
    )


@dataclass(frozen=True, kw_only=True)
class LayerDeviation:
    """How far a deeper model is from the narrow one behind the last of the layers that one became.

    Attributes:
        layer, deeper_layer: after which the residual streams are compared, counted from 1.
        deviation: root mean square of their difference, in standard deviations of the narrow one's.
    """

    layer: int
    deeper_layer: int
    deviation: float


def layer_deviations(narrow: nn.Module, deeper: nn.Module, plan: Plan, call: Call) -> list[LayerDeviation]:
    """How far the residual stream of a deeper model is from the narrow one's, wherever a turn of layers ends.

    empty where no stream can be seen, as there is no one list of layers.
    """
    depth = plan.layout.sizes[DEPTH]
    factor, period = plan.growth[DEPTH], plan.period
    try:
        own = _streams(narrow, depth, call)
        theirs = _streams(deeper, int(depth * factor), grown_call(call, plan))
    except GrowthError:
        return []
    found = []
    for layer in range(period, depth + 1, period):
        place = layer * factor
        if place.denominator != 1 or layer not in own or int(place) not in theirs:
            continue
        stream = own[layer]
        if stream.shape[-1] != plan.layout.sizes.get(STREAM):
            return []
        axes = Axes((*(Dim((n,)) for n in stream.shape[:-1]), Dim((STREAM,))))
        error = theirs[int(place)] - duplicate(stream, axes, plan.layout.sizes, plan.growth)
        found.append(
            LayerDeviation(
                layer=layer,
                deeper_layer=int(place),
                deviation=error.square().mean().sqrt().item() / (spread(stream) + 1e-30),
            )
        )
    return found


def _streams(model: nn.Module, depth: int, call: Call) -> dict[int, Tensor]:
    """The first output of every layer of a model, by its number from 1."""
    found: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            if tensors := result_tensors(output):
                found[number] = tensors[0].detach().clone()

        return after

    with ExitStack() as hooks, torch.no_grad():
        for number, layer in enumerate(layers_of(model, depth)[1], 1):
            hooks.enter_context(layer.register_forward_hook(keep(number)))
        call(model)
    return found


def grown_outputs(outputs: list[Tensor], plan: Plan) -> list[Tensor]:
    """What a wide model should return where a narrow one returns ``outputs``: hidden states have grown."""
    layout = plan.layout
    if len(outputs) != len(layout.outputs):
        return outputs
    return [_grown(output, axes, plan) for output, axes in zip(outputs, layout.outputs, strict=True)]


def grown_call(call: Call, plan: Plan) -> Call:
    """How to call the wide model: hidden states of another model, which cross-attention reads, have grown."""
    inputs = {name: axes for name, axes in plan.layout.inputs.items() if name in call.kwargs}
    return Call(call.args, {**call.kwargs, **{n: _grown(call.kwargs[n], a, plan) for n, a in inputs.items()}})


def _grown(tensor: Tensor, axes: Axes, plan: Plan) -> Tensor:
    """Duplicate what grows; of the other dims, the sizes are those of one call."""
    dims = zip(axes.dims, tensor.shape, strict=True)
    axes = Axes(tuple(dim if dim.growth(plan.growth) != 1 else Dim((n,)) for dim, n in dims))
    return duplicate(tensor, axes, plan.layout.sizes, plan.growth)


@contextmanager
def watch(model: nn.Module, see: Any) -> Iterator[None]:
    """Call ``see(name, output)`` for every module that owns parameters, in the order of execution."""
    calls: dict[str, int] = {}

    def hook(name: str) -> Any:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not is_batchedtensor(output):
                calls[name] = calls.get(name, 0) + 1
                see(f"{name}#{calls[name]}", output.detach().clone())  # some models write into it later

        return after

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
