"""What a fresh parameter is: the law by which a model's own code initializes it, and its μP value from that.

The law is read off where possible: the initialization runs on the ``meta`` device, where filling a tensor
costs nothing, and each fill that it asks for is recorded with its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mupscale.errors import GrowthError
from mupscale.models.copying import copied
from mupscale.models.skeletons import transformers_config
from mupscale.operators.noise import blocks_with, drawn_rows, normal, row_blocks, rows_of
from mupscale.theory.manifest import Plan
from mupscale.theory.scaling import Scaling


@dataclass(frozen=True)
class Law:
    """Mean and standard deviation of a fresh parameter; a constant has std 0.

    Attributes:
        silent: the row that is zero all the same, an embedding's of padding.
        table: it is always the same and no constant, so that a wide one is what its own code makes.
    """

    mean: float
    std: float
    silent: int | None = None
    table: bool = False


class _RecordFills(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keep the law of the last fill of every tensor that an initializer writes to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.laws: dict[int, Law] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.endswith("_") and args and isinstance(args[0], Tensor):
            self._record(name, id(args[0]), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _record(self, name: str, key: int, a: Any = None, b: Any = None, **_: Any) -> None:
        last = self.laws.get(key)
        if name == "normal_":
            self.laws[key] = Law(0.0 if a is None else a, 1.0 if b is None else b)
        elif name == "uniform_":
            low, high = 0.0 if a is None else a, 1.0 if b is None else b
            self.laws[key] = Law((low + high) / 2, (high - low) / math.sqrt(12))
        elif name == "zero_":
            self.laws[key] = Law(0.0, 0.0)
        elif name == "fill_" and isinstance(a, int | float):
            self.laws[key] = Law(float(a), 0.0)
        elif last and name == "mul_" and isinstance(a, int | float):
            self.laws[key] = Law(last.mean * a, last.std * abs(a))
        elif last and name == "add_" and isinstance(a, int | float):
            self.laws[key] = Law(last.mean + a, last.std)
        elif name not in ("clamp_", "copy_", "requires_grad_", "detach_"):
            self.laws.pop(key, None)

    @contextmanager
    def with_truncated(self) -> Iterator[None]:
        """Record ``trunc_normal_`` too, which on the meta device fills nothing and calls no operator.

        What it calls is replaced, so that it does not matter where it was imported to.
        """
        fill = nn.init._no_grad_trunc_normal_

        def noted(tensor: Tensor, mean: float, std: float, a: float, b: float, *more: Any, **how: Any) -> Any:
            self.laws[id(tensor)] = truncated_normal(mean, std, a, b)
            return fill(tensor, mean, std, a, b, *more, **how)

        nn.init._no_grad_trunc_normal_ = noted
        try:
            yield
        finally:
            nn.init._no_grad_trunc_normal_ = fill


def truncated_normal(mean: float, std: float, low: float, high: float) -> Law:
    """Mean and standard deviation of a normal law of which no number is outside of low and high.

    >>> round(truncated_normal(0, 1, -2, 2).std, 6)
    0.879626
    """
    unit, a, b = NormalDist(), (low - mean) / std, (high - mean) / std
    share = unit.cdf(b) - unit.cdf(a)
    shift = (unit.pdf(a) - unit.pdf(b)) / share
    variance = 1 + (a * unit.pdf(a) - b * unit.pdf(b)) / share - shift**2
    return Law(mean + std * shift, std * math.sqrt(variance))


def fresh_laws(plan: Plan) -> dict[str, Law]:
    """The law of the parameters of a fresh narrow model, by name, and of buffers, as far as they show one.

    Transformers models allocate no weights. Of a plain module that was built, what its constructor has filled
    counts, where that is not what ``reset_parameters`` says. Of what shows no law see `own_values`.

    Raises:
        GrowthError: the plan cannot build the model.
    """
    if plan.build_narrow is None:
        raise GrowthError(
            "a fresh init needs the module's own code: make the plan here with mupscale.plan(...), "
            "not from a file (plans of transformers models can be loaded)"
        )
    fresh, again = plan.build_narrow(), plan.build_narrow()
    model = copied(fresh).to("meta")
    with torch.device("meta"), _RecordFills() as record, record.with_truncated():
        _initialize_(model)
    laws, silent = {}, _silent_rows(fresh)
    # By all names: on the meta device, tied parameters are two.
    values, others = (dict(m.named_parameters(remove_duplicate=False)) for m in (fresh, again))
    draws = any(not v.is_meta and not torch.equal(v, others[n]) for n, v in values.items())
    for name, param in model.named_parameters():
        law = record.laws.get(id(param))
        if not values[name].is_meta:
            law = _constructed(law, values[name], others[name], draws=draws)
        if law is not None:
            laws[name] = replace(law, silent=silent.get(name))
    for name, buffer in model.named_buffers():
        value, other = fresh.get_buffer(name), again.get_buffer(name)
        if (law := record.laws.get(id(buffer))) is not None:
            laws[name] = law
        elif value.is_floating_point() and not value.is_meta and not torch.equal(value, other):
            laws[name] = Law(value.mean().item(), value.std().item())
    return laws


def law_of(laws: Mapping[str, Law], name: str, plan: Plan) -> Law:
    """The law of a parameter or buffer.

    Raises:
        GrowthError: it shows none.
    """
    if (law := laws.get(name)) is None:
        mend = (
            "choose the operator duplicate, which needs no fresh values"
            if plan.config is not None
            else "plan from a function make(width) that fills all of it by one law, in reset_parameters() of "
            "the module that owns it, or grow by the operator duplicate"
        )
        raise GrowthError(f"{name}: cannot tell how a fresh one is initialized; {mend}")
    return law


def _initialize_(model: nn.Module) -> None:
    """Let a model's own code fill it."""
    if transformers_config(model) is not None:
        model.initialize_weights()  # type: ignore[operator]
        return
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _silent_rows(fresh: nn.Module) -> dict[str, int]:
    """The row of padding of every embedding where a fresh one is zero, by the name of the parameter."""
    rows, weights = dict[str, int](), dict[str, Tensor]()
    for name, module in fresh.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            rows[name], weights[name] = module.padding_idx, module.weight
    if any(weight.is_meta for weight in weights.values()):
        tried = copied(fresh)
        for name, weight in weights.items():  # a real one, of a single column
            weights[name] = real = nn.Parameter(torch.ones(len(weight), 1, device="cpu"))
            tried.get_submodule(name).weight = real
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            _initialize_(tried)
    return {f"{name}.weight".lstrip("."): row for name, row in rows.items() if not weights[name][row].any()}


def _constructed(law: Law | None, value: Tensor, other: Tensor, *, draws: bool) -> Law | None:
    """The law of what a constructor has filled: another than ``reset_parameters`` has, as nanoGPT's does.

    Args:
        law: what ``reset_parameters`` says.
        value, other: of two models that were built one after the other. A parameter that is the same in both,
            and no constant, is a table; or one that has been trained, of a model that was there before.
        draws: whether anything differs between the two, as where a constructor draws.
    """
    frozen, value, other = not value.requires_grad, value.detach(), other.detach()
    if not value.numel():
        return law or Law(0.0, 0.0)
    constant = value.flatten()[0]
    if (value == constant).all():
        told = law is not None and (value.numel() == 1 or law == Law(constant.item(), 0.0))
        return law if told else Law(constant.item(), 0.0)
    if torch.equal(value, other):
        if draws or (frozen and law is None):
            return replace(_measured(value), table=True)
        return law or _measured(value)
    if value.is_complex() or _has_parts(value, other):
        return None
    if law is None:
        return _measured(value)
    n, std = value.numel(), value.std().item()
    far = abs(std - law.std) > (0.1 + 4 / math.sqrt(2 * n)) * law.std
    return _measured(value) if far or abs(value.mean().item() - law.mean) > 5 * std / math.sqrt(n) else law


def _measured(value: Tensor) -> Law:
    value = value if value.is_floating_point() else (value.real if value.is_complex() else value).double()
    return Law(value.mean().item(), value.std().item())


def _has_parts(value: Tensor, other: Tensor) -> bool:
    """Whether two draws show parts: they agree where they are large, or are zero for the most part."""
    if (value == 0).double().mean() > 0.5:
        return True
    one, two = (draw.double().flatten() - draw.double().mean() for draw in (value, other))
    return bool(one @ two > (0.1 + 5 / math.sqrt(len(one))) * one.norm() * two.norm())


def fresh_value(
    scaling: Scaling, law: Law, *, seed: int, name: str, dtype: torch.dtype, strength: float = 1.0
) -> Tensor:
    """A wide parameter as μP initializes it, in ``dtype`` or at least float32.

    ``strength`` multiplies the random part, which is drawn in float32.
    """
    shape = torch.Size(scaling.wide_shape)
    draw = partial(normal, shape, seed=seed, name=name)
    return _of_law(scaling, law, shape, draw, dtype=dtype, strength=strength)


def fresh_blocks(
    scaling: Scaling, law: Law, rows: slice | None, *, seed: int, name: str, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Some rows of what `fresh_value` gives, block by block; None for a single number."""
    if rows is None:
        yield fresh_value(scaling, law, seed=seed, name=name, dtype=dtype)
        return
    blocks = row_blocks(torch.Size(scaling.wide_shape), 1)
    for i, part in blocks_with(blocks, rows):
        yield fresh_rows(scaling, law, blocks, range(i, i + 1), seed=seed, name=name, dtype=dtype)[part]


def fresh_rows(
    scaling: Scaling,
    law: Law,
    blocks: list[slice],
    numbers: range,
    *,
    seed: int,
    name: str,
    dtype: torch.dtype,
    strength: float = 1.0,
) -> Tensor:
    """Some of the ``row_blocks``, of single rows, of what `fresh_value` gives, that follow one another."""
    whole, rows = torch.Size(scaling.wide_shape), rows_of(blocks, numbers)
    draw = partial(drawn_rows, whole, blocks, numbers, seed, name)
    shape = (rows.stop - rows.start, *whole[1:])
    return _of_law(scaling, law, shape, draw, dtype=dtype, strength=strength, start=rows.start)


def _of_law(
    scaling: Scaling,
    law: Law,
    shape: tuple[int, ...],
    draw: Callable[[], Tensor],
    *,
    dtype: torch.dtype,
    strength: float,
    start: int = 0,
) -> Tensor:
    exact = torch.promote_types(dtype, torch.float32)
    mean = (law.mean + scaling.offset) * scaling.weight_scale - scaling.offset
    if not law.std or not strength:
        return torch.full(shape, mean, dtype=exact)
    fresh = draw().mul_(strength * law.std * scaling.init_scale).to(exact).add_(mean)
    if law.silent is not None and scaling.wide_shape[0] == scaling.shape[0]:
        fresh[max(0, law.silent - start) : max(0, law.silent - start + 1)] = 0
    return fresh
