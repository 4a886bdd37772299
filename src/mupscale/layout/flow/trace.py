"""Run a model once and read from its operators which dims are one and the same axis.

`trace` calls the model on the CPU with small real inputs, under a mode that sees every operator of torch; the
rules say what each means for the dims (see `dispatch` and `units`). Weights matter only where they steer the
control flow, as a router does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from mupscale.layout.flow import rules_sums, rules_views  # noqa: F401  (they fill RULES)
from mupscale.layout.flow.dispatch import RULES, Call, Dims, fresh, pointwise
from mupscale.layout.flow.units import Conflict, Unit, Units, size_of
from mupscale.models.calls import Call as Arguments
from mupscale.models.calls import every_tensor, result_tensors
from mupscale.models.contents import state_tensors

Root = tuple[str, int]  # a parameter and one of its dims


@dataclass(frozen=True)
class Step:
    """One operator of the run, for those who follow values rather than dims.

    Attributes:
        place: the module that called it.
        dims: the units of the dims of every output.
        summed: the units that it sums over.
        is_view: whether the output goes over the memory of the input.
    """

    name: str
    place: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    inputs: list[Tensor]
    outs: list[Tensor]
    dims: list[Dims]
    summed: Units
    is_view: bool


ITEM = "_local_scalar_dense"  # numbers taken out of a tensor: what Python does with them is not seen


@dataclass
class Trace:
    """What one run showed.

    Attributes:
        tensors: every parameter and persistent buffer, by name.
        parameters: the names of those that are parameters.
        dims: the units of every dim of every tensor, by name.
        contracted: the dims that are summed over, as (name, dim).
        partly: those of which only some units are, with these units.
        lookups: parameters whose rows are looked up by index.
        seen: the names of the tensors that the run has used.
        steps: every operator, in order.
        input_dims: the units of the dims of hidden states that the model was called with, by name.
        outputs: the tensors that the model returned as its result.
        output_dims: the units of their dims.
        ends: the units of the dims of everything that it returned.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)
    dims: dict[str, Dims] = field(default_factory=dict)
    contracted: set[Root] = field(default_factory=set)
    partly: dict[Root, Units] = field(default_factory=dict)
    lookups: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    input_dims: dict[str, Dims] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    output_dims: list[Dims] = field(default_factory=list)
    ends: list[Dims] = field(default_factory=list)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.place = "the model"
        self.known: Any = WeakIdKeyDictionary()
        # For what is made of parameters alone: which of their dims each of its dims comes from.
        self.roots: Any = WeakIdKeyDictionary()
        self.names: dict[int, str] = {}
        self.pending: Any = WeakIdKeyDictionary()
        self.gradients: Any = WeakIdKeyDictionary()

    def give(self, tensor: Tensor, dims: Dims, roots: list[frozenset[Root]] | None = None) -> None:
        self.known[tensor] = dims
        if roots is not None:
            self.roots[tensor] = roots

    def dims_of(self, tensor: Tensor) -> Dims:
        if tensor not in self.known:
            # Made outside of what we see: a constant. Where they are not alike, entries tell indices apart.
            value, why = tensor.detach(), f"constants in {self.place} differ along it"
            self.known[tensor] = [
                (Unit(n, None if _alike_along(value, at) else why),) if n != 1 else ()
                for at, n in enumerate(tensor.shape)
            ]
        return list(self.known[tensor])

    def fix(self, tensor: Tensor, why: str) -> None:
        for units in self.dims_of(tensor):
            for unit in units:
                unit.fix(why)

    def mark(self, where: tuple[Tensor, int], part: Units | None) -> None:
        if _in_backward():  # sums over outputs are of gradients; what a weight reads, it reads going forward
            return
        tensor, dim = where
        for root in self.roots.get(tensor, ())[dim : dim + 1]:
            self.trace.contracted |= root
            if part is not None:
                self.trace.partly |= dict.fromkeys(root, part)

    def take_out(self, tensor: Tensor) -> None:
        self.trace.steps.append(Step(ITEM, self.place, (tensor,), {}, [tensor], [], [], (), False))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        call = Call(name, args, kwargs or {}, out, self.dims_of, self.mark, self.place)
        outs = [o for o in (out if isinstance(out, tuple | list) else [out]) if isinstance(o, Tensor)]
        inputs = call.tensors
        if not outs:
            if name == ITEM and inputs[0].dtype != torch.bool:
                self.take_out(inputs[0])
            return out
        for tensor in inputs:
            if id(tensor) in self.names:
                self.trace.seen.add(self.names[id(tensor)])
            for units, why in self.pending.pop(tensor, ()):
                for unit in units:
                    unit.fix(why)
            if tensor in self.gradients and not _in_backward():  # those of copies are smaller than one's
                self.fix(tensor, f"gradients with respect to it are used in {self.place}")
        found: Any = None
        known = (
            RULES.get(name)
            or RULES.get(name.removesuffix("_"))
            or (pointwise if torch.Tag.pointwise in func.tags else None)
        )
        try:
            if known is not None:
                found = known(call)
        except Conflict:
            for tensor in inputs:
                self.fix(tensor, f"{name} cuts or regroups it in {self.place}")
        if name in ("embedding", "_embedding_bag") and id(args[0]) in self.names:
            self.trace.lookups.add(self.names[id(args[0])])
        is_view = bool(inputs) and all(
            o.untyped_storage()._cdata == inputs[0].untyped_storage()._cdata for o in outs
        )
        is_view = is_view and not func._schema.is_mutable
        each = found if found and isinstance(found[0], list) else [found] * len(outs)
        for tensor, dims in zip(outs, [*each, *[None] * len(outs)], strict=False):
            if any(tensor is t for t in inputs) and torch.Tag.inplace_view not in func.tags:
                continue  # changed in place: its dims stay
            if (
                dims is None
                or len(dims) != tensor.ndim
                or any(size_of(d) != n for d, n in zip(dims, tensor.shape, strict=True))
            ):
                dims = fresh(tensor)
            if call.pending:
                self.pending[tensor] = call.pending
            self.give(tensor, dims, self._roots(func, inputs, tensor))
        dims_of = [self.dims_of(tensor) for tensor in outs]
        if _in_backward():
            self.gradients.update((tensor, True) for tensor in outs)
        else:
            self.trace.steps.append(
                Step(name, self.place, args, kwargs or {}, inputs, outs, dims_of, tuple(call.summed), is_view)
            )
        return out

    def _roots(self, func: Any, inputs: list[Tensor], out: Tensor) -> list[frozenset[Root]] | None:
        """Of an operator on parameters alone: whose dims the dims of the output are.

        A view goes over the memory of what it views, so that its strides tell; elementwise operators keep
        dims.
        """
        sources = [t for t in inputs if t.ndim]
        if not sources or any(t not in self.roots for t in sources):
            return None
        source = sources[0]
        if source.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
            own = [
                (s, n, r) for s, n, r in zip(source.stride(), source.shape, self.roots[source], strict=True)
            ]
            return [
                frozenset().union(*(r for s, n, r in own if s < stride * size and stride < s * n))
                for stride, size in zip(out.stride(), out.shape, strict=True)
            ]
        if torch.Tag.pointwise in func.tags or out.shape == source.shape:
            alike = [t for t in sources if t.shape == out.shape]
            return [frozenset().union(*(self.roots[t][i] for t in alike)) for i in range(out.ndim)]
        return None


class _Leaving(TorchFunctionMode):
    """What leaves torch through no operator."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "numpy", "__array__", "__dlpack__"):
            self.watch.take_out(args[0])
        return func(*args, **(kwargs or {}))


def _in_backward() -> bool:
    """Whether autograd is at work: a model may return gradients, as forces are those of an energy."""
    return torch._C._current_graph_task_id() != -1


def _alike_along(value: Tensor, dim: int) -> bool:
    """Whether a tensor is made of one slice along a dim, again and again."""
    return value.numel() == 0 or bool((value == value.narrow(dim, 0, 1)).all())


@contextmanager
def _places(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Keep track of the module that is at work."""
    stack = ["the model"]

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            stack.append(name or "the model")
            watch.place = stack[-1]

        return hook

    def leave(*_: Any) -> None:
        stack.pop()
        watch.place = stack[-1]

    handles = []
    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(enter(name)),
            module.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    hidden: Set[str] = frozenset(),
) -> Trace:
    """Run ``model(*args, **kwargs)`` and read the structure of its parameters' dims.

    The model should be small and on the CPU; it runs in evaluation mode.

    Args:
        hidden: the names of inputs that are hidden states of another model: their last dim grows.
    """
    result = Trace()
    watch = _Watch(result)
    stored = state_tensors(model)
    computed = getattr(model, "_keys_to_ignore_on_save", None) or ()
    for name, tensor in stored.items():
        if tensor.is_floating_point() or tensor.is_complex():
            dims = fresh(tensor)
            result.dims[name] = dims
            result.tensors[name] = tensor
            if isinstance(tensor, nn.Parameter):
                result.parameters.add(name)
            if any(re.search(pattern, name) for pattern in computed):
                dims = fresh(tensor, f"{name} is not learned but computed, and differs along it")
                result.dims[name] = dims
            watch.names[id(tensor)] = name
            is_param = isinstance(tensor, nn.Parameter)
            watch.give(
                tensor, dims, [frozenset([(name, i)]) for i in range(tensor.ndim)] if is_param else None
            )
    for tensor in Arguments(tuple(args), kwargs or {}).tensors:
        watch.give(tensor, fresh(tensor, "it is a dim of the inputs"))
    for name in hidden & (kwargs or {}).keys():
        tensor = (kwargs or {})[name]
        result.input_dims[name] = [*watch.dims_of(tensor)[:-1], fresh(tensor)[-1]]
        watch.give(tensor, result.input_dims[name])
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    training = model.training
    try:
        with torch.no_grad(), _places(model.eval(), watch), watch, _Leaving(watch):
            output = model(*args, **(kwargs or {}))
        result.outputs = result_tensors(output)
        result.output_dims = [watch.dims_of(tensor) for tensor in result.outputs]
        result.ends = [watch.dims_of(tensor) for tensor in every_tensor(output)]
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        model.train(training)
    return result


def paired(narrow: Sequence[Step], wide: Sequence[Step]) -> Iterator[tuple[Step, Step]]:
    """Every step with that of the other side; with itself in modules that took other ones, as routers may.

    What only lays values out anew is no step here: one head needs no copy where several do.
    """
    own, others = _by_place(narrow), _by_place(wide)
    alike = {
        place: [s.name for s in steps] == [s.name for s in others.get(place, ())]
        for place, steps in own.items()
    }
    following = {place: iter(steps) for place, steps in others.items()}
    for step in narrow:
        yield (
            step,
            next(following[step.place]) if step.name not in _LAYING_OUT and alike[step.place] else step,
        )


def _by_place(steps: Sequence[Step]) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in steps:
        places = found.setdefault(step.place, [])
        if step.name not in _LAYING_OUT:
            places.append(step)
    return found


_LAYING_OUT = {"clone", "view", "_unsafe_view", "_reshape_alias", "alias", "contiguous", "expand"}
