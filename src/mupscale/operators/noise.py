"""Random terms that make the copies of a unit differ, so that the new width is used.

Duplicates alone receive equal gradients for ever. With k_in the growth of the contracted axes, RMS(θ) the
root mean square of the narrow parameter and ε standard normal, the term added to s·dup(θ) is

    gaussian:σ   σ · (std of a fresh narrow init) / √k_in · ε    (Ma et al. 2026, arXiv 2602.10545)
    relative:σ   σ · RMS(θ) / √k_in · ε
    balanced:σ   relative, projected to sum to zero over the copies of the contracted axes taken together
    spectral:t   t · ε · ‖s·dup(θ)‖₂ / ‖ε‖₂, in spectral norms, at every position of a kernel (Ma et al. 2026)
    hadamard:t   t · ε ⊙ |s·dup(θ)|                                                           (Ma et al. 2026)
    uneven:t     hadamard, projected as balanced is: the copies of a weight share it unevenly
    interpolate:t   spectral:√t, added to √(1 − t) · s·dup(θ)                                 (Ma et al. 2026)
    between:σ    relative, on what writes to the residual stream alone, projected to sum to zero over the
                 layers that one becomes: together they add what they did, as long as they see the same
    paired:d     RMS(s·θ) · 10^(−d/20) · ±ε, opposite in every pair of copies of the contracted axis, none in
                 an odd last one: a signal-to-noise ratio of d dB (Samragh et al. 2024, arXiv 2409.12903)

Gaussian and relative noise times the parameter's fold. Balanced, uneven and paired noise leave the function
exactly as it was; with ``balanced:1`` the wide matrix has the size that a μP-consistent one has
(RMS · √fan_in kept). Spectral norms cost a singular value decomposition each. (``fresh:σ``, σ times the
random part of `mupscale.init_`, belongs to zero_pad and expand and is made there.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mupscale.errors import GrowthError
from mupscale.notation.axes import Copies, oppose_copies_, subtract_copy_mean_
from mupscale.theory.scaling import Scaling

# Entries in one block of random numbers, before it is rounded up to whole groups of copies. Part of the
# format: another value draws other noise from the same seed.
BLOCK_ENTRIES = 1 << 18
PIECE = 4  # blocks that one thread makes at a time
SUMMED = 1 << 12  # entries that are summed by one thread; part of the format likewise


@dataclass(frozen=True)
class Noise:
    """A kind of noise and its strength, written ``kind:strength``."""

    kind: str
    strength: float

    KINDS: ClassVar[tuple[str, ...]] = (
        *("gaussian", "relative", "balanced", "uneven", "spectral", "hadamard", "interpolate", "paired"),
        *("between", "fresh"),
    )

    @classmethod
    def parse(cls, text: str | Noise | None) -> Noise | None:
        """Read ``"balanced:1"``; ``None`` and ``"none"`` mean no noise.

        Raises:
            GrowthError: the kind is unknown or the strength is not a number of at least 0.

        >>> Noise.parse("balanced:1")
        Noise(kind='balanced', strength=1.0)
        """
        if text is None or text == "none":
            return None
        if isinstance(text, Noise):
            return text
        kind, _, strength = text.partition(":") if isinstance(text, str) else ("", "", "")
        try:
            value = float(strength)
        except ValueError:
            value = math.nan
        if kind not in cls.KINDS or not 0 <= value < math.inf:
            raise GrowthError(
                f"noise {text!r}: expected none or KIND:STRENGTH with a kind of {', '.join(cls.KINDS)} "
                "and a strength of at least 0, such as balanced:1"
            )
        if kind == "interpolate" and value > 1:
            raise GrowthError(f"noise {text!r}: expected a share from 0 to 1, such as interpolate:0.1")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}:{exact_text(self.strength)}"

    @property
    def is_local(self) -> bool:
        """Whether it can be added to some rows of a parameter, apart from the others."""
        return self.kind not in ("spectral", "interpolate", "fresh")

    @property
    def keeps_function(self) -> bool:
        return self.kind in ("balanced", "uneven", "paired") or self.strength == 0


def exact_text(number: float) -> str:
    """A number in few digits where these are all of it, else in as many as give it back to the last bit.

    >>> exact_text(1.0), exact_text(0.7), exact_text(1 / 3)
    ('1', '0.7', '0.3333333333333333')
    """
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def add_noise_(
    wide: Tensor,
    narrow: Tensor,
    scaling: Scaling,
    copies: Copies | None,
    noise: Noise,
    *,
    seed: int,
    name: str,
    fresh_std: Callable[[], float],
) -> Tensor:
    """Add ``noise`` in place to ``wide`` = s·dup(``narrow``), in the dtype of ``wide`` (float32 or better).

    Complex weights get none, nor do whole numbers.

    Args:
        copies: ``scaling.axes.expand_copies(...)`` of the growth; asked by noise that cancels only.
        seed, name: decide the random numbers, together with the shape.
        fresh_std: standard deviation of a fresh narrow init of this parameter; asked by gaussian noise only.
    """
    if not noise.is_local:
        if not scaling.has_noise or noise.strength == 0 or wide.is_complex():
            return wide
        return _add_spectral_(wide, narrow, scaling, noise, normal(wide.shape, seed=seed, name=name))
    add = local_noise(narrow, scaling, copies, noise, fresh_std=fresh_std)
    if add is not None:
        blocks = row_blocks(wide.shape, copies.unit if copies is not None else 1)
        _in_parallel(len(blocks), lambda i: add(wide[blocks[i]], generator_of(seed, name, i)))
    return wide


def local_noise(
    narrow: Tensor,
    scaling: Scaling,
    copies: Copies | None,
    noise: Noise,
    *,
    fresh_std: Callable[[], float],
) -> Callable[[Tensor, torch.Generator], None] | None:
    """What adds local noise to one of the ``row_blocks`` of ``wide`` in place, of the block's own generator.

    Args: as of `add_noise_`. Rows come in whole units of ``copies``.

    Returns:
        None where nothing is to be added.
    """
    if not scaling.has_noise or noise.strength == 0 or not narrow.is_floating_point():
        return None
    cancel = {
        "balanced": subtract_copy_mean_,
        "uneven": subtract_copy_mean_,  # copies are of one size: it may come before that is multiplied in
        "paired": oppose_copies_,
    }.get(noise.kind)
    if cancel is not None:
        assert copies is not None, "noise that cancels needs copies"
        if not copies.summed:
            return None
    by_entry = noise.kind in ("hadamard", "uneven")
    if by_entry:
        std = noise.strength
    elif noise.kind == "paired":
        std = 10 ** (-noise.strength / 20) * _rms(narrow) * scaling.weight_scale
    else:
        size = fresh_std() if noise.kind == "gaussian" else _rms(narrow)
        std = noise.strength * size * scaling.fold / math.sqrt(scaling.fan_in)

    if noise.kind == "balanced" and copies is not None and copies.are_pairs:
        return lambda rows, generator: _add_opposite_(rows, copies, std / math.sqrt(2), generator)

    def add(rows: Tensor, generator: torch.Generator) -> None:
        term = torch.randn(rows.shape, generator=generator).to(rows)
        if cancel is not None:
            assert copies is not None
            cancel(term, copies)
        if by_entry:
            term *= rows.abs()
        rows.add_(term, alpha=std)

    return add


def noise_between(
    narrow: Tensor, scaling: Scaling, noise: Noise, *, seed: int, name: str, repeats: Sequence[str]
) -> Callable[[Tensor, int], None] | None:
    """What adds the noise ``between`` to one of the ``row_blocks`` of a tensor in place, by its number.

    Args:
        name, repeats: of the tensor, and of all that come from the same one as it, itself among them.

    Returns:
        None where nothing is to be added.
    """
    if not scaling.has_noise or not scaling.writes or noise.strength == 0 or not narrow.is_floating_point():
        return None
    std = noise.strength * _rms(narrow) * scaling.fold / math.sqrt(scaling.fan_in)

    def add(rows: Tensor, block: int) -> None:
        drawn = {n: torch.randn(rows.shape, generator=generator_of(seed, n, block)) for n in repeats}
        rows.add_((drawn[name] - torch.stack([*drawn.values()]).mean(0)).to(rows), alpha=std)

    return add


def _add_opposite_(rows: Tensor, copies: Copies, std: float, generator: torch.Generator) -> None:
    """What two normal numbers are less their mean, ±ε/√2, from half as many numbers."""
    opened = copies.open(rows)
    first, second = opened.unbind(copies.summed[0])
    epsilon = torch.randn(first.shape, generator=generator).to(rows)
    first.add_(epsilon, alpha=std)
    second.sub_(epsilon, alpha=std)
    copies.close_(rows, opened)


def _add_spectral_(wide: Tensor, narrow: Tensor, scaling: Scaling, noise: Noise, epsilon: Tensor) -> Tensor:
    # dup repeats rows and columns, and with them every singular value times √m.
    size = spectral_norms(narrow, scaling) * (scaling.weight_scale * math.sqrt(scaling.own_copies))
    epsilon = epsilon.to(wide) * (size / spectral_norms(epsilon, scaling)).to(wide)
    if noise.kind == "spectral":
        return wide.add_(epsilon, alpha=noise.strength)
    return wide.mul_(math.sqrt(1 - noise.strength)).add_(epsilon, alpha=math.sqrt(noise.strength))


def spectral_norms(weight: Tensor, scaling: Scaling) -> Tensor:
    """Largest singular value of the matrix (outputs × inputs) at each position of a kernel, or each expert.

    Returns:
        As many dims as ``weight``; those of the matrices have size 1.
    """
    contracted = [index for index, dim in enumerate(scaling.axes.dims) if dim.contracted]
    exact = weight.double()  # rounded at last, so that the order of sums, which threads decide, does not show
    others = [index for index in range(weight.ndim) if index not in contracted]
    if not others:  # a vector that is contracted, such as a learned query
        norm: Tensor = torch.linalg.vector_norm(exact)
        return norm.float().reshape([1] * weight.ndim)
    outputs = next((i for i in others if scaling.wide_shape[i] != scaling.shape[i]), others[0])
    positions = [i for i in others if i != outputs]
    matrices = exact.permute(*positions, outputs, *contracted).flatten(len(positions) + 1)
    norms: Tensor = torch.linalg.matrix_norm(matrices, ord=2).float()
    return norms.reshape([weight.shape[i] if i in positions else 1 for i in range(weight.ndim)])


def _in_parallel(count: int, visit: Callable[[int], object]) -> None:
    if count == 1:
        visit(0)
        return
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        for _ in pool.map(visit, range(count)):
            pass


def row_blocks(shape: torch.Size, unit: int) -> list[slice]:
    """The rows of a tensor in blocks of some ``BLOCK_ENTRIES``, and of whole ``unit`` rows."""
    row = math.prod(shape[1:])
    rows = unit * max(1, math.ceil(BLOCK_ENTRIES / max(1, unit * row)))
    return [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def blocks_with(blocks: list[slice], rows: slice) -> list[tuple[int, slice]]:
    """The blocks that hold some of ``rows``, by number, each with the part of it that these are.

    >>> blocks_with([slice(0, 4), slice(4, 8), slice(8, 10)], slice(6, 9))
    [(1, slice(2, 4, None)), (2, slice(0, 1, None))]
    """
    return [
        (i, slice(max(0, rows.start - block.start), min(rows.stop, block.stop) - block.start))
        for i, block in enumerate(blocks)
        if block.start < rows.stop and rows.start < block.stop
    ]


def pieces(blocks: list[slice]) -> list[range]:
    """The blocks, by number, in runs of a few: what one thread makes at a time.

    >>> pieces([slice(i, i + 1) for i in range(5)])
    [range(0, 4), range(4, 5)]
    """
    return [range(i, min(i + PIECE, len(blocks))) for i in range(0, len(blocks), PIECE)]


def rows_of(blocks: list[slice], numbers: range) -> slice:
    """The rows of some blocks that follow one another."""
    return slice(blocks[numbers[0]].start, blocks[numbers[-1]].stop)


def each_of(blocks: list[slice], numbers: range) -> list[tuple[int, slice]]:
    """These blocks, by number, each with its place among their rows.

    >>> each_of([slice(0, 4), slice(4, 8), slice(8, 10)], range(1, 3))
    [(1, slice(0, 4, None)), (2, slice(4, 6, None))]
    """
    start = blocks[numbers[0]].start
    return [(i, slice(blocks[i].start - start, blocks[i].stop - start)) for i in numbers]


def drawn_rows(shape: torch.Size, blocks: list[slice], numbers: range, seed: int, name: str) -> Tensor:
    """Standard normal numbers for some of the ``row_blocks`` of a tensor that follow one another.

    Every block has a CPU generator of its own, seeded by (seed, name, block number), and is drawn in
    float32: the numbers do not depend on order, threads, sharding or dtype, and one block can be had alone.
    """
    rows = rows_of(blocks, numbers)
    out = torch.empty(rows.stop - rows.start, *shape[1:])
    for i, place in each_of(blocks, numbers):
        out[place].normal_(generator=generator_of(seed, name, i))
    return out


def generator_of(*key: object) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone, in whatever order, process or place it is asked for."""
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def normal(shape: torch.Size, *, seed: int, name: str) -> Tensor:
    """A float32 tensor of standard normal numbers that depend on (seed, name, shape) alone."""
    out, blocks = torch.empty(shape), row_blocks(shape, 1)
    _in_parallel(len(blocks), lambda i: out[blocks[i]].normal_(generator=generator_of(seed, name, i)))
    return out


def _rms(tensor: Tensor) -> float:
    """Root mean square, from sums in a fixed order: with any number of threads the same to the last bit."""
    flat = tensor.detach().reshape(-1)
    whole = len(flat) // SUMMED * SUMMED
    rows = [flat[:whole].view(-1, SUMMED), flat[None, whole:]]
    sums = [row.to(torch.promote_types(row.dtype, torch.float32)).square().sum(1).tolist() for row in rows]
    return math.sqrt(math.fsum(sums[0] + sums[1]) / max(1, len(flat)))
