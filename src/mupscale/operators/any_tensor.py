"""`Grower`: any tensor of the wide model by name, from the plan and one of the operators.

Knows plans, operators and fresh laws; nothing of modules or files.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from mupscale.errors import GrowthError
from mupscale.layout.base import DEPTH
from mupscale.layout.depth import renumbered
from mupscale.notation.axes import Copies
from mupscale.operators.catalogue import DEFAULT, operator_named
from mupscale.operators.duplicate import duplicate_rows, duplicate_scaled
from mupscale.operators.expand import Norms, expand, needs_all_rows, with_smaller_eps
from mupscale.operators.fresh import Law, fresh_laws, fresh_rows, fresh_value, law_of
from mupscale.operators.net2net import random_copies
from mupscale.operators.noise import (
    Noise,
    add_noise_,
    blocks_with,
    each_of,
    generator_of,
    local_noise,
    noise_between,
    pieces,
    row_blocks,
    rows_of,
)
from mupscale.operators.own import own_values
from mupscale.operators.zero_pad import Shrink, ShrinkLike, zero_pad
from mupscale.theory.manifest import Plan

MadeByRows = tuple[list[slice], Callable[[int], Tensor]]


class Grower:
    """Grows any tensor of a model by name, as a plan, an operator, a noise and a seed say.

    The result for one name depends on nothing else: tensors can be grown in any order, process or place.

    Args:
        plan: how to grow.
        read: gives a tensor of the narrow model by name.
        operator: one of `mupscale.operators.catalogue.OPERATORS`; ``"default"`` for ``DEFAULT`` there, which
            has a λ of its own.
        noise: ``"default"`` for the operator's own, None for none.
        shrink: λ of zero_pad and expand, by pattern too (see `mupscale.operators.zero_pad.Shrink`); None for
            the operator's own.
        from_first: the plan from the first model of the line, where this one has itself been grown: what is
            fresh has the size that μP gives it from there.

    Raises:
        GrowthError: an unknown operator or noise, or one that does not go with the plan or each other; or
            ``from_first`` ends at another wide model than the plan.
    """

    def __init__(
        self,
        plan: Plan,
        read: Callable[[str], Tensor],
        *,
        operator: str,
        noise: str | Noise | None = "default",
        shrink: ShrinkLike | None = None,
        seed: int = 0,
        from_first: Plan | None = None,
    ) -> None:
        self.from_first = plan if from_first is None else _checked_first(from_first, plan)
        own = None
        if operator == "default":
            operator, own = DEFAULT if DEPTH not in plan.growth else ("duplicate", None)
        self.operator = operator_named(operator)
        self.operator.check(plan)
        self.noise = self.operator.noise(noise)
        if self.noise is not None and self.noise.kind == "between" and DEPTH not in plan.growth:
            raise GrowthError(f"noise {self.noise}: is of layers, which do not grow; choose balanced:1")
        own = self.operator.shrink if own is None else own
        if shrink is not None and own is None:
            raise GrowthError(f"shrink {shrink} is for zero_pad and expand, not for {operator}; leave it out")
        self.shrink = Shrink.parse(shrink if shrink is not None else own or 0.0, own or 0.0)
        self.shrink.check_patterns(tuple(plan.layout.params))
        # With λ below 1 expand changes the function, as zero_pad does, and asks nothing of the norms.
        keeps = all(self.shrink.of(name) == 1 for name in (*plan.layout.params, *plan.layout.buffers))
        expands = self.operator.expands and keeps
        self.keeps_function_if_proved = self.operator.adds_identity or expands
        self.plan = with_smaller_eps(plan) if expands else self.operator.own_plan(plan)
        self.seed = seed
        self._read = read
        # Asked where something fresh is added only, and then once.
        self._fresh: Callable[[], Mapping[str, Law]] = cache(self._laws)
        self._own = cache(lambda: own_values(self.plan, self._fresh(), seed=seed))
        self._norms: Callable[[], Norms] = cache(lambda: Norms.of(self.plan, self._fresh()))

    @property
    def keeps_function(self) -> bool:
        """Whether the wide model is to compute what the narrow one does."""
        evenly = self.operator.copies_evenly and self.plan.keeps_function
        return self.keeps_function_if_proved or (evenly and (self.noise is None or self.noise.keeps_function))

    def __call__(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The grown tensor, in ``dtype`` or else the narrow one's; computed in float32 or better.

        Raises:
            GrowthError: the name or shape is not the plan's.
        """
        wide, end, shape = None, 0, self.plan.wide_shape(name)
        for block in self.blocks(name, dtype):
            if tuple(block.shape) == shape:
                return block
            if wide is None:
                wide = block.new_empty(shape)
            end += len(block)
            wide[end - len(block) : end] = block
        if wide is None:  # of no rows
            narrow = self._narrow(name)
            wide = narrow.new_empty(shape, dtype=dtype or narrow.dtype)
        return wide

    def blocks(
        self,
        name: str,
        dtype: torch.dtype | None = None,
        rows: slice | None = None,
        *,
        check: Callable[[Tensor], None] = lambda block: None,
    ) -> Iterator[Tensor]:
        """The same tensor in blocks of its rows, in order: of a large one a few are in memory at a time.

        It comes whole where the operator or the noise looks at all of it at once.

        Args:
            rows: those to give, with a start and a stop; None for all. They are the same whichever are asked.
            check: called with every block, by the thread that has made it.
        """
        name = self.plan.own_name(name)  # by which random numbers go
        if (made := self._makes_rows(name, dtype)) is None:
            whole = self._whole(name, dtype)
            check(whole)
            yield whole if rows is None else whole[rows]
            return
        blocks, make = made
        asked = blocks_with(blocks, rows or slice(0, blocks[-1].stop if blocks else 0))

        def made_part(i: int, part: slice) -> Tensor:
            block = make(i)[part]
            check(block)
            return block

        if len(asked) == 1:
            yield made_part(*asked[0])
            return
        threads, ahead = torch.get_num_threads(), deque[Future[Tensor]]()
        try:
            with ThreadPoolExecutor(max_workers=threads, initializer=_work_alone) as pool:
                for block in asked:
                    ahead.append(pool.submit(made_part, *block))
                    if len(ahead) > threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
        finally:
            torch.set_num_threads(threads)  # of threads to come, which take over what was set last

    def _whole(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """A tensor that is not made of blocks."""
        narrow = self._narrow(name)
        if self.operator.deepens:
            is_new = self.operator.adds_identity and self.plan.canonical(name) != name
            silent = is_new and self._writes_residual(self.plan.canonical(name))
            wide = torch.zeros_like(narrow) if silent else narrow.clone()
        elif self.operator.shrink is not None:
            wide = self._beside_fresh(name, narrow)
        else:
            wide = self._copies(name, narrow)
            if self.noise is not None and self._is_param(name):
                self._add_noise_(wide, narrow, name, self.noise)
        return wide.to(dtype or narrow.dtype)

    def _makes_rows(self, name: str, dtype: torch.dtype | None) -> MadeByRows | None:
        """The blocks of rows, and what makes one of them; None where they cannot be made apart."""
        noise = self.noise if self._is_param(name) else None
        if not self.plan[name].shape:
            return None
        if self.operator.copies_evenly and (noise is None or noise.is_local):
            return self._copied_rows(name, dtype, noise)
        if self.operator.shrink is not None and self._is_param(name) and self._shows_law(name):
            narrow = self._narrow(name)
            return self._rows_beside_fresh(name, narrow, dtype) if narrow.is_floating_point() else None
        return None

    def _copied_rows(self, name: str, dtype: torch.dtype | None, noise: Noise | None) -> MadeByRows:
        scaling, sizes, growth = self.plan[name], self.plan.layout.sizes, self.plan.growth
        narrow, shape = self._narrow(name), torch.Size(scaling.wide_shape)
        copies = scaling.axes.expand_copies(sizes, growth)
        blocks, add = row_blocks(shape, copies.unit), None
        runs = pieces(blocks)
        if noise is not None:
            add = self._noise_by_block(name, narrow, copies, noise)

        def make(run: int) -> Tensor:
            rows, scale, offset = rows_of(blocks, runs[run]), scaling.weight_scale, scaling.offset
            cast = dtype or narrow.dtype if add is None else None
            wide = duplicate_rows(narrow, scaling.axes, sizes, growth, scale, rows, offset=offset, dtype=cast)
            if add is not None:
                for i, place in each_of(blocks, runs[run]):
                    add(wide[place], i)
            return wide.to(dtype or narrow.dtype)

        return [rows_of(blocks, run) for run in runs], make

    def _noise_by_block(
        self, name: str, narrow: Tensor, copies: Copies, noise: Noise
    ) -> Callable[[Tensor, int], None] | None:
        """What adds local noise to a block of rows in place, by its number; None where nothing is added."""
        seed, scaling = self.seed, self.plan[name]
        if noise.kind == "between":
            repeats = self.plan.becomes[self.plan.canonical(name)]
            return noise_between(narrow, scaling, noise, seed=seed, name=name, repeats=repeats)
        add = local_noise(narrow, scaling, copies, noise, fresh_std=self._fresh_std(name))
        return None if add is None else lambda rows, i: add(rows, generator_of(seed, name, i))

    def _rows_beside_fresh(self, name: str, narrow: Tensor, dtype: torch.dtype | None) -> MadeByRows | None:
        first, law = self.from_first[name], self._fresh()[name]
        if self.operator.expands:
            norms, axes = self._norms(), self.plan[name].axes
            if needs_all_rows(axes, self.plan.growth, norms.silent, means=norms.centres(name)):
                return None
        blocks = row_blocks(torch.Size(self.plan[name].wide_shape), 1)
        runs = pieces(blocks)

        def make(run: int) -> Tensor:
            seed, strength = self.seed, self._strength
            fresh = fresh_rows(
                first, law, blocks, runs[run], seed=seed, name=name, dtype=narrow.dtype, strength=strength
            )
            rows = rows_of(blocks, runs[run])
            wide = self._joined(name, narrow, fresh.to(narrow.device), law.mean, rows)
            return wide.to(dtype or narrow.dtype)

        return [rows_of(blocks, run) for run in runs], make

    def _writes_residual(self, name: str) -> bool:
        """Whether a parameter belongs to a projection whose output is added to the residual stream."""
        params, weight = self.plan.layout.params, name.rpartition(".")[0] + ".weight"
        axes = params.get(weight)
        return (
            axes is not None
            and any(dim.contracted for dim in axes.dims)
            and [axis for dim in axes.dims if not dim.contracted for axis in dim.names] == ["d_model"]
        )

    def _is_param(self, name: str) -> bool:
        """Whether a tensor of the wide model is a parameter, and no buffer."""
        return self.plan.canonical(name) in self.plan.layout.params

    def _laws(self) -> dict[str, Law]:
        """By names of the wide model, the laws that fresh ones of the first model of the line show."""
        laws, first = fresh_laws(self.from_first), self.from_first
        return {n: laws[first.canonical(n)] for n in self.plan.wide_names if first.canonical(n) in laws}

    def _shows_law(self, name: str) -> bool:
        """Whether a fresh one is drawn by a law, and not what the model's own code makes."""
        return name in self._fresh() and not self._fresh()[name].table

    def _narrow(self, name: str) -> Tensor:
        """What a tensor of the wide model comes from."""
        narrow, scaling = self._read(self.plan.canonical(name)), self.plan[name]
        if tuple(narrow.shape) != scaling.shape:
            raise GrowthError(
                f"{name}: expected shape {scaling.shape} for axes '{scaling.axes}', "
                f"found {tuple(narrow.shape)}; make the plan from this model"
            )
        if narrow.is_floating_point() and narrow.dtype.itemsize == 1:
            raise GrowthError(
                f"{name}: is {narrow.dtype}, in which nothing can be computed; convert the model first, "
                "model.to(torch.bfloat16)"
            )
        return narrow

    def _copies(self, name: str, narrow: Tensor) -> Tensor:
        scaling, layout, growth = self.plan[name], self.plan.layout, self.plan.growth
        if self.operator.copies_evenly:
            return duplicate_scaled(
                narrow, scaling.axes, layout.sizes, growth, scaling.weight_scale, offset=scaling.offset
            )
        # AKI takes units of the layer above, where that is one of the same kind.
        name = self.plan.canonical(name)
        above = renumbered(name, 1)[0] if self.operator.name == "aki" else name
        has_above = above != name and above in layout.params and layout.params[above] == layout.params[name]
        return random_copies(
            narrow,
            scaling.axes,
            layout.sizes,
            growth,
            seed=self.seed,
            folds=layout.folds.get(name, ()),
            above=self._narrow(above) if has_above else None,
        )

    def _add_noise_(self, wide: Tensor, narrow: Tensor, name: str, noise: Noise) -> None:
        layout, growth, scaling = self.plan.layout, self.plan.growth, self.plan[name]
        evenly = self.operator.copies_evenly
        add_noise_(
            wide,
            narrow,
            scaling,
            scaling.axes.expand_copies(layout.sizes, growth) if evenly else None,
            noise,
            seed=self.seed,
            name=name,
            fresh_std=self._fresh_std(name),
        )

    def _fresh_std(self, name: str) -> Callable[[], float]:
        """The standard deviation of a fresh narrow parameter, as μP gives it from the first of the line."""
        fan_in, first = self.plan[name].fan_in, self.from_first
        return lambda: law_of(self._fresh(), name, self.plan).std * math.sqrt(fan_in / first[name].fan_in)

    @property
    def _strength(self) -> float:
        """Of what is random in what is fresh."""
        return self.noise.strength if self.noise is not None else 0.0

    def _fresh_wide(self, name: str, narrow: Tensor) -> tuple[Tensor, float | Tensor]:
        """A fresh wide tensor, and what a fresh narrow one is: its mean, or all of it where that is known."""
        if not self._shows_law(name) or name in self.plan.layout.buffers:
            exact = torch.promote_types(narrow.dtype, torch.float32)
            if (own := self._own().get(name)) is not None:
                fresh = own.fresh(self._strength).to(narrow.device, exact, copy=True)
                return fresh, own.narrow.to(narrow.device, exact)
            if name not in self._fresh() and self.plan.wide_shape(name) == tuple(narrow.shape):
                return narrow.clone(), narrow  # no width changes it
        law = law_of(self._fresh(), name, self.plan)
        fresh = fresh_value(
            self.from_first[name], law, seed=self.seed, name=name, dtype=narrow.dtype, strength=self._strength
        )
        return fresh.to(narrow.device), law.mean

    def _beside_fresh(self, name: str, narrow: Tensor) -> Tensor:
        """What is padded or expanded, with a fresh wide one in it or beside it."""
        fresh, mean = self._fresh_wide(name, narrow)
        changes = not self.keeps_function_if_proved
        if changes and isinstance(mean, Tensor) and torch.equal(narrow, mean.to(narrow.dtype)):
            return fresh  # a table, as constructors make it
        return self._joined(name, narrow, fresh, mean)

    def _joined(
        self, name: str, narrow: Tensor, fresh: Tensor, mean: float | Tensor, rows: slice | None = None
    ) -> Tensor:
        """Both together; of some rows where ``fresh`` has them alone."""
        scaling, λ = self.plan[name], self.shrink.of(name)
        sizes, growth = self.plan.layout.sizes, self.plan.growth
        if self.operator.expands:
            norms = self._norms()
            return expand(
                narrow,
                scaling.axes,
                sizes,
                growth,
                fresh=fresh,
                silent=norms.silent,
                means=norms.centres(name),
                gain_offset=norms.gains.get(name),
                shrink=λ,
                rows=rows,
            )
        return zero_pad(narrow, scaling, sizes, growth, shrink=λ, fresh=fresh, fresh_mean=mean, rows=rows)


def _checked_first(first: Plan, plan: Plan) -> Plan:
    """The plan from the first model of the line, which ends where this one ends.

    Raises:
        GrowthError: names a tensor that is of another shape there, or is not there.
    """
    for name in plan.wide_names:
        found = first.wide_shape(name) if first.layout.knows(first.canonical(name)) else "none"
        if found != plan.wide_shape(name):
            raise GrowthError(
                f"from_first: {name} has shape {plan.wide_shape(name)} by the plan, {found} by from_first; "
                "give the plan from the first model of the line to this wide one"
            )
    return first


def _work_alone() -> None:
    """Of a thread: no gradients, which it does not inherit, and none beside it for a part of its work."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
