"""The residual stream of a model: what each layer adds to it, and the same model with a factor on each term.

A layer takes the stream in, and gives it back with some terms added. Which additions these are is seen as it
runs: those on the way from its input to its output, on which nothing else happens to the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mupscale.errors import GrowthError
from mupscale.models.calls import result_tensors

Term = tuple[int, int]  # the number of a layer, and of an addition to the stream among those that it calls

_ADDS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
# What gives the stream as it is, in another dtype, layout or place.
_KEEPS = {"to", "float", "double", "type", "type_as", "clone", "contiguous", "view", "reshape", "squeeze"}
_KEEPS |= {"unsqueeze", "dropout", "detach", "requires_grad_"}


def layers_of(model: nn.Module, depth: int) -> tuple[str, nn.ModuleList]:
    """The list of a model's layers, and its name.

    Raises:
        GrowthError: there is no one such list.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and name and not _inside(name)
    ]
    if len(found) != 1:
        raise GrowthError(
            f"{type(model).__name__}: expected its {depth} layers in one ModuleList, found "
            f"{', '.join(name for name, _ in found) or 'none'}"
        )
    return found[0]


def _inside(name: str) -> bool:
    """Whether a module is a part of one in a list."""
    return any(word.isdigit() for word in name.split("."))


class Stream(TorchFunctionMode):
    """Inside this mode the layers of a model are watched, or have what they add multiplied.

    Args:
        layers: called one after the other, each once.
        terms: the additions to multiply what is added of, as another run found them; None to look for them.
        factor: by the number of a layer, what it adds is multiplied by.

    Attributes:
        added: by term, what was added, where they are looked for.
        strange: the number of the first layer whose output is not its input with terms added; None for none.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        terms: Mapping[Term, Any] | None = None,
        factor: Callable[[int], float] = lambda layer: 1.0,
    ) -> None:
        super().__init__()
        self.layers, self.terms, self.factor = list(layers), terms, factor
        self.added: dict[Term, Tensor] = {}
        self.strange: int | None = None
        self._layer: int | None = None
        self._calls = 0
        # By id: the stream's tensors in the layer that runs, each with its terms; kept, so that ids last.
        self._stream: dict[int, tuple[Tensor, list[tuple[Term, Tensor]]]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Stream:
        for number, layer in enumerate(self.layers):
            self._hooks += [
                layer.register_forward_pre_hook(self._before(number), with_kwargs=True),
                layer.register_forward_hook(self._after(number)),
            ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._stream.clear()

    def _before(self, number: int) -> Callable[..., None]:
        def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._layer, self._calls = number, 0
            given = [a for a in (*args[:1], kwargs.get("hidden_states")) if isinstance(a, Tensor)]
            self._stream = {id(t): (t, []) for t in given[:1]}

        return enter

    def _after(self, number: int) -> Callable[..., None]:
        def leave(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            out = next(iter(result_tensors(output)), None)
            found = self._stream.get(id(out)) if out is not None else None
            if found is None or not found[1]:
                self.strange = number if self.strange is None else self.strange
            else:
                again = any(term in self.added for term, _ in found[1])
                self.strange = number if again and self.strange is None else self.strange
                self.added |= dict(found[1])
            self._layer, self._stream = None, {}

        return leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self._layer is None or name not in _ADDS | _KEEPS or not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        if name in _KEEPS:
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and id(args[0]) in self._stream:
                self._stream[id(out)] = (out, self._stream[id(args[0])][1])
            return out
        at = [i for i, a in enumerate(args[:2]) if id(a) in self._stream]
        if len(at) != 1 or len(args) < 2 or kwargs or not isinstance(args[1 - at[0]], Tensor):
            return func(*args, **kwargs)
        term = (self._layer, self._calls)
        self._calls += 1
        stream, more = args[at[0]], args[1 - at[0]]
        before = self._stream[id(stream)][1]
        if self.terms is not None and term in self.terms:
            out = stream + more * self.factor(self._layer)
        else:
            kept = more.clone() if name in ("add_", "__iadd__") else more  # which may be written into
            out = func(*args)
            more = kept
        self._stream[id(out)] = (out, [*before, (term, more.detach())])
        return out


def terms_of(model: nn.Module, depth: int, call: Callable[[nn.Module], Any]) -> dict[Term, Tensor]:
    """What the layers of a model add to its residual stream in one call.

    Raises:
        GrowthError: it has no stack of layers, or one whose output is not its input with terms added.
    """
    where, layers = layers_of(model, depth)
    with torch.no_grad(), Stream(layers) as stream:
        call(model)
    if stream.strange is not None or {layer for layer, _ in stream.added} != {*range(depth)}:
        raise GrowthError(
            f"{where}.{stream.strange or 0}: expected a layer that adds to its input, and it does not "
            "(post-norm layers return a norm of the sum)"
        )
    return stream.added


def with_factors(
    model: nn.Module, depth: int, terms: Mapping[Term, Any], factor: Callable[[int], float]
) -> nn.Module:
    """Let a model, in place, multiply what its layers add to the residual stream: explicit multipliers.

    Args:
        terms: as `terms_of` found them.
        factor: by the number of a layer.
    """
    kind = type(model)

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with Stream(layers_of(self, depth)[1], terms, factor):
            return kind.forward(self, *args, **kwargs)

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return model
