"""The notation, and what growing does to a tensor."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mupscale import GrowthError
from mupscale.notation.axes import Axes, duplicate, pad, subtract_copy_mean_, sum_copies
from mupscale.notation.dims import Dim

NAMES = "abcd"


@st.composite
def grown_tensors(draw):
    """Axes of one to three dims with composed axes, their sizes, and a growth of some of them."""
    name = st.sampled_from(NAMES)  # the same may come again, in another dim or in the same one
    dims = []
    for _ in range(draw(st.integers(1, 3))):
        words = [draw(name) if draw(st.booleans()) or not i else "2" for i in range(draw(st.integers(1, 2)))]
        dims.append(f"[{' '.join(words)}]" if draw(st.booleans()) else f"({' '.join(words)})")
    axes = Axes.parse(" ".join(dims))
    sizes = {n: draw(st.integers(1, 4)) for n in axes.names}
    growth = {n: draw(st.integers(1, 3)) for n in axes.names}
    return axes, sizes, growth


def index_map(axes, sizes, growth):
    """For every wide index, the narrow one that it copies: written out, one axis at a time."""
    maps = []
    for dim in axes.dims:
        rows = [0]
        for axis in dim.axes:
            size = axis if isinstance(axis, int) else sizes[axis]
            factor = 1 if isinstance(axis, int) else growth[axis]
            rows = [r * size + i for r in rows for i in range(size) for _ in range(factor)]
        maps.append(torch.tensor(rows))
    return maps


@given(grown_tensors())
def test_duplicate_repeats_every_index_inside_its_axis(case):
    axes, sizes, growth = case
    theta = torch.randn(axes.shape(sizes))
    wide = duplicate(theta, axes, sizes, growth)
    assert wide.is_contiguous()
    assert torch.equal(wide, theta[torch.meshgrid(*index_map(*case), indexing="ij")])


@given(grown_tensors())
def test_duplicating_in_steps_is_duplicating_at_once(case):
    axes, sizes, growth = case
    theta = torch.randn(axes.shape(sizes))
    once = duplicate(
        duplicate(theta, axes, sizes, growth), axes, {n: sizes[n] * growth[n] for n in sizes}, growth
    )
    assert torch.equal(once, duplicate(theta, axes, sizes, {n: g * g for n, g in growth.items()}))


@given(grown_tensors())
def test_copies_and_fan_in_count_the_wide_entries(case):
    axes, sizes, growth = case
    wide = duplicate(torch.ones(axes.shape(sizes)), axes, sizes, growth)
    assert wide.numel() == axes.copies(growth) * math.prod(axes.shape(sizes))
    summed = sum_copies(wide, axes.expand_copies(sizes, growth))
    assert (summed == float(axes.fan_in(growth))).all()


@given(grown_tensors())
def test_projected_tensors_vanish_on_duplicated_inputs(case):
    axes, sizes, growth = case
    copies = axes.expand_copies(sizes, growth)
    wide = torch.randn(
        [int(n * d.growth(growth)) for n, d in zip(axes.shape(sizes), axes.dims, strict=True)]
    ).double()
    if copies.summed:
        subtract_copy_mean_(wide, copies)
        assert sum_copies(wide, copies).abs().max() < 1e-12


def test_a_number_is_refitted_where_it_is_a_size_and_not_where_it_counts_segments():
    """A layer with another (2 d_ff) has another d_ff, and not more than a gate and an up projection."""
    sizes = {"heads": 8, "d_ff": 16}
    assert Dim(("heads", 24), contracted=True).refit(8 * 192, sizes) == Dim(("heads", 192), contracted=True)
    assert Dim((16,)).refit(5, sizes) == Dim((5,))
    assert Dim(("heads", 24)).refit(8 * 24, sizes) == Dim(("heads", 24))
    for dim, size in ((Dim(("heads", 24)), 9), (Dim((2, "d_ff")), 64), (Dim(("kv_heads", 24)), 48)):
        assert dim.refit(size, sizes) is None


@pytest.mark.parametrize("text", ["a (b", "a b]", "()", "a-b", "[a [b]]"])
def test_unreadable_notation_is_refused(text):
    with pytest.raises(GrowthError, match="axes"):
        Axes.parse(text)


@given(grown_tensors())
def test_notation_prints_back(case):
    assert Axes.parse(str(case[0])) == case[0]


@pytest.mark.parametrize("text", ["(heads head_dim + heads head_dim + heads head_dim)", "(3 heads head_dim)"])
def test_where_an_axis_shrinks_every_segment_is_padded_by_itself(text):
    narrow = torch.tensor([1] * 6 + [2] * 6 + [3] * 6)  # query, key and value of 2 heads of 3; then 6 of 2
    growth = {"heads": Fraction(3), "head_dim": Fraction(2, 3)}
    wide = pad(narrow, Axes.parse(text), {"heads": 2, "head_dim": 3}, growth)
    assert wide.view(3, 12).tolist() == [[n] * 6 + [0] * 6 for n in (1, 2, 3)]


def test_a_segment_without_room_is_refused():
    axes, growth = Axes.parse("(heads (head_dim + head_dim))"), {"heads": 3, "head_dim": Fraction(2, 3)}
    with pytest.raises(GrowthError, match="^axes 'head_dim': have no room.*head_dim 3 → 2"):
        pad(torch.arange(12), axes, {"heads": 2, "head_dim": 3}, growth)
