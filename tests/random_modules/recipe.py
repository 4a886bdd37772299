"""What a random module is made of: every choice with its options, the plainest first."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from hypothesis import strategies as st

VOCAB, FEATURES, PLACES, BATCH, CLASSES = 19, 5, 6, 4, 3

_KINDS = ("mlp", "attention", "conv", "places", "excite", "experts", "lstm", "gru", "torch")
BLOCKS = (*((kind,) for kind in _KINDS), *((a, b) for a in _KINDS[:5] for b in _KINDS[:5]))


def options(*values: Any, rare: tuple[Any, ...] = ()) -> Any:
    """A field that takes one of these values; a rare one, which is hard to grow, a third as often."""
    return field(default=values[0], metadata={"options": (*values * 3, *rare)})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a module is made of. Sizes are those of the narrow one."""

    # What goes in, and what becomes of it first.
    inputs: str = options("floats", "tokens", "images")
    d_model: int = options(4, 6, 8)
    positions: str = options(
        "none", "learned", "kept table", "one column", rare=("unkept table", "sinusoids")
    )
    embedding_scale: str = options("none", "sqrt")

    # The blocks, and how each is joined to the stream.
    blocks: tuple[str, ...] = options(*BLOCKS)
    repeated: str = options("none", "first block again", "tied by attribute")
    join: str = options("pre", "post", "none", "concatenate", "normed concatenation", "split")
    norm: str = options(
        "none", "layer", "rms", "own rms", "one plus", "own layer", "group", "batch", "length"
    )

    # The MLP.
    mlp: str = options("plain", "gated", "fused chunk", "fused strided", "list", "dict")
    d_ff: int = options(6, 8)
    activation: str = options("relu", "gelu", "tanh", "silu")

    groups: str = options("one", "two", "pairs", "depthwise")  # of a convolution over places

    # The attention.
    qkv: str = options("separate", "split", "chunk", "interleaved")
    heads: tuple[int, int] = options((2, 2), (4, 2), (6, 3), rare=((2, 1), (1, 1)))
    head_dim: int = options(4, 2)
    grows: str = options("heads", "head_dim", rare=("queries",))
    scores: str = options("sdpa", "matmul", "einsum", "grouped")
    repeat: str = options("interleave", "expand", "enable_gqa", "tile")
    mask: str = options("none", "causal", "buffer", "made")
    scale: str = options("default", "float", "buffer", "unscaled")
    rotary: bool = options(False, rare=(True,))
    query_norm: bool = options(False, True)

    bias: bool = options(True, False)
    dropout: str = options("none", "module", "functional")

    # What comes out.
    last_norm: bool = options(False, True)
    head: str = options("linear", "tied", "functional", "list", "dict", "pooled", "query", "hidden")
    logit_scale: str = options("none", "width")

    # What is done to it before it grows.
    frozen: str = options("none", "stem", "first block", "vectors", "all but the head")
    thawed: bool = options(False, True)  # after planning
    double: str = options("after", "before")

    # How it grows.
    width: int = options(2, 3)
    planned_from: str = options("make", "modules")
    planned_on: str = options("random", "constant")
    optimizer: str = options("AdamW", "Adam", "SGD")


def recipes() -> st.SearchStrategy[Recipe]:
    """Any recipe."""
    return st.builds(Recipe, **{f.name: st.sampled_from(f.metadata["options"]) for f in fields(Recipe)})
