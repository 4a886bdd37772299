"""torch.nn's own layers, each between linear ones that grow with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from foreign_cases import NEIGHBOURS, Case, Make, draw, images, tokens


class Apply(nn.Module):
    """A function of tensors and modules, written where it is used."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(modules)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, **self.parts)


def features(*layers: Callable[[int], nn.Module], into: int = 8, out: int = 8) -> Make:
    """Between two linear layers, into 8·width features and out of ``out`` for every one of ``into``."""
    return lambda w: nn.Sequential(nn.Linear(6, into * w), *(f(w) for f in layers), nn.Linear(out * w, 5))


def pixels(*layers: Callable[[int], nn.Module], into: int = 8, out: int = 8, rank: int = 2) -> Make:
    """Between two 1×1 convolutions, the same for sequences, pictures or volumes."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    return lambda w: nn.Sequential(conv(3, into * w, 1), *(f(w) for f in layers), conv(out * w, 5, 1))


def recurrent(kind: type[nn.RNNBase], out: int = 1, **options: Any) -> Make:
    """Over a sequence of grown inputs."""
    return lambda w: Apply(
        lambda x, into, rnn, head: head(rnn(into(x))[0]),
        into=nn.Linear(6, 4 * w),
        rnn=kind(
            4 * w, 8 * w, batch_first=True, **{k: v(w) if callable(v) else v for k, v in options.items()}
        ),
        head=nn.Linear(8 * out * w if "proj_size" not in options else options["proj_size"](w), 5),
    )


def attention(head_dim: Callable[[int], int], heads: Callable[[int], int], **options: Any) -> Make:
    def make(w: int) -> nn.Module:
        size = heads(w) * head_dim(w)
        kinds = {key: value * w for key, value in options.items() if key in ("kdim", "vdim")}
        rest = {key: value for key, value in options.items() if key not in kinds}

        def forward(x: Tensor, into: Any, attend: Any, other: Any, head: Any) -> Tensor:
            query = into(x)
            keys = [other[name](x) if name in other else query for name in ("kdim", "vdim")]
            return head(attend(query, *keys)[0])

        return Apply(
            forward,
            into=nn.Linear(6, size),
            attend=nn.MultiheadAttention(size, heads(w), batch_first=True, **rest, **kinds),
            other=nn.ModuleDict({key: nn.Linear(6, value) for key, value in kinds.items()}),
            head=nn.Linear(size, 5),
        )

    return make


def encoder(**options: Any) -> Make:
    return lambda w: nn.Sequential(
        nn.Linear(6, 16 * w),
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16 * w, 2 * w, 32 * w, batch_first=True, **options),
            2,
            norm=nn.LayerNorm(16 * w),
        ),
        nn.Linear(16 * w, 5),
    )


class Decoder(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.into = nn.Linear(6, 16 * w)
        layer = nn.TransformerDecoderLayer(16 * w, 2 * w, 32 * w, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.head = nn.Linear(16 * w, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.decoder(x, x.flip(1), tgt_mask=mask.to(x.dtype), tgt_is_causal=True))


class Whole(nn.Module):
    """nn.Transformer between an embedding and a readout that are one."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(64, 16 * w)
        self.body = nn.Transformer(16 * w, 2 * w, 1, 1, 32 * w, batch_first=True)
        self.norm = nn.LayerNorm(16 * w)
        self.head = nn.Linear(16 * w, 64, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.emb(ids), self.emb(ids.flip(1)))))


class Cells(nn.Module):
    """A cell that is called in a loop."""

    def __init__(self, kind: type[nn.Module], w: int) -> None:
        super().__init__()
        self.cell, self.head = kind(6, 8 * w), nn.Linear(8 * w, 5)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Listed(nn.Module):
    """Parameters in a list and a dict of torch's."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.into = nn.Linear(6, 8 * w)
        self.gains = nn.ParameterList([nn.Parameter(torch.randn(8 * w)) for _ in range(2)])
        self.maps = nn.ParameterDict(
            {"up": nn.Parameter(torch.randn(8 * w, 12 * w)), "down": nn.Parameter(torch.randn(12 * w, 5))}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for gain in self.gains:
            x = torch.tanh(x * gain)
        return torch.relu(x @ self.maps["up"]) @ self.maps["down"]


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder, transposed."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(6, 8 * w), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.bias)


class Bag(nn.Module):
    def __init__(self, w: int, mode: str) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(64, 8 * w, mode=mode), nn.Linear(8 * w, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bag(ids))


POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign,
    nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink,
    nn.Tanhshrink,
)  # fmt: skip


def cases() -> Iterator[Case]:
    x, pictures, words = draw(16, 6), images(10), tokens()
    series = draw(4, 7, 6)

    def each(inputs: Any, inexact: dict[str, str] | None = None, **table: Make) -> Iterator[Case]:
        for name, make in table.items():
            yield Case(name, make, inputs, (inexact or {}).get(name, ""))

    yield from each(
        x,
        pointwise=features(*[lambda w, kind=kind: kind() for kind in POINTWISE]),
        mlp=features(lambda w: nn.ReLU(), lambda w: nn.Linear(8 * w, 12 * w), lambda w: nn.ReLU(), out=12),
        PReLU=features(lambda w: nn.PReLU(8 * w)),
        PReLU_shared=features(lambda w: nn.PReLU()),
        GLU=features(lambda w: nn.GLU(), into=16),
        Softmax=features(lambda w: nn.Softmax(-1)),
        LogSoftmax=features(lambda w: nn.LogSoftmax(-1)),
        Dropout=features(lambda w: nn.Dropout(0.3), lambda w: nn.ReLU()),
        AlphaDropout=features(lambda w: nn.SELU(), lambda w: nn.AlphaDropout(0.2)),
        LayerNorm=features(lambda w: nn.LayerNorm(8 * w)),
        RMSNorm=features(lambda w: nn.RMSNorm(8 * w)),
        BatchNorm1d=features(lambda w: nn.BatchNorm1d(8 * w)),
        Bilinear=lambda w: Apply(
            lambda x, into, both, head: head(both(into(x), x)),
            into=nn.Linear(6, 8 * w), both=nn.Bilinear(8 * w, 6, 4 * w), head=nn.Linear(4 * w, 5),
        ),
        CosineSimilarity=lambda w: Apply(
            lambda x, a, b: F.cosine_similarity(a(x), b(x)), a=nn.Linear(6, 8 * w), b=nn.Linear(6, 8 * w)
        ),
        PairwiseDistance=lambda w: Apply(
            lambda x, a, b, head: head(F.pairwise_distance(a(x), b(x), keepdim=True)),
            a=nn.Linear(6, 8 * w), b=nn.Linear(6, 8 * w), head=nn.Linear(1, 5),
        ),
        cdist=lambda w: Apply(lambda x, a, b: torch.cdist(a(x), b(x)), a=nn.Linear(6, 8 * w), b=nn.Linear(6, 8 * w)),
        ParameterList=Listed,
        tied_autoencoder=Tied,
        weight_norm=features(lambda w: parametrizations.weight_norm(nn.Linear(8 * w, 8 * w)), lambda w: nn.ReLU()),
        weight_norm_hook=features(lambda w: weight_norm(nn.Linear(8 * w, 8 * w)), lambda w: nn.ReLU()),
        spectral_norm=features(lambda w: parametrizations.spectral_norm(nn.Linear(8 * w, 8 * w)), lambda w: nn.ReLU()),
        orthogonal=features(lambda w: parametrizations.orthogonal(nn.Linear(8 * w, 8 * w)), lambda w: nn.ReLU()),
        one_hidden=lambda w: nn.Sequential(nn.Linear(6, w), nn.Tanh(), nn.Linear(w, 5)),
        inexact={
            "tied_autoencoder": "one weight before and after a nonlinearity: nothing makes up for the sum over copies",
            "LogSoftmax": "it subtracts log g: an offset, and no factor",
            "orthogonal": "a matrix of copies is singular, and not orthogonal",
        },
    )  # fmt: skip
    yield from each(
        pictures,
        Conv2d=pixels(lambda w: nn.Conv2d(8 * w, 8 * w, 3), lambda w: nn.ReLU()),
        Conv2d_circular=pixels(lambda w: nn.Conv2d(8 * w, 8 * w, 3, padding=1, padding_mode="circular")),
        Conv2d_depthwise=pixels(lambda w: nn.Conv2d(8 * w, 8 * w, 3, groups=8 * w)),
        Conv2d_groups_stay=pixels(lambda w: nn.Conv2d(8 * w, 8 * w, 3, groups=2)),
        Conv2d_groups_grow=pixels(lambda w: nn.Conv2d(8 * w, 8 * w, 3, groups=2 * w)),
        ConvTranspose2d=pixels(lambda w: nn.ConvTranspose2d(8 * w, 8 * w, 3, stride=2)),
        ConvTranspose2d_depthwise=pixels(lambda w: nn.ConvTranspose2d(8 * w, 8 * w, 3, groups=8 * w)),
        ConvTranspose2d_groups_grow=pixels(lambda w: nn.ConvTranspose2d(8 * w, 8 * w, 3, groups=2 * w)),
        BatchNorm2d=pixels(lambda w: nn.BatchNorm2d(8 * w), lambda w: nn.ReLU()),
        InstanceNorm2d=pixels(lambda w: nn.InstanceNorm2d(8 * w, affine=True, track_running_stats=True)),
        GroupNorm_all=pixels(lambda w: nn.GroupNorm(1, 8 * w)),
        GroupNorm_groups_stay=pixels(lambda w: nn.GroupNorm(4, 8 * w)),
        GroupNorm_groups_grow=pixels(lambda w: nn.GroupNorm(4 * w, 8 * w)),
        LocalResponseNorm=pixels(lambda w: nn.LocalResponseNorm(3)),
        Softmax2d=pixels(lambda w: nn.Softmax2d()),
        MaxPool2d=pixels(lambda w: nn.MaxPool2d(2)),
        AvgPool2d=pixels(lambda w: nn.AvgPool2d(2)),
        LPPool2d=pixels(lambda w: nn.ReLU(), lambda w: nn.LPPool2d(2, 2)),
        AdaptiveAvgPool2d=pixels(lambda w: nn.AdaptiveAvgPool2d(3)),
        AdaptiveMaxPool2d=pixels(lambda w: nn.AdaptiveMaxPool2d(3)),
        Upsample=pixels(lambda w: nn.Upsample(scale_factor=2, mode="bilinear"), lambda w: nn.ReLU()),
        PixelShuffle=pixels(lambda w: nn.PixelShuffle(2), out=2),
        PixelUnshuffle=pixels(lambda w: nn.PixelUnshuffle(2), out=32),
        ChannelShuffle_channels_grow=pixels(lambda w: nn.ChannelShuffle(2)),
        ChannelShuffle_groups_grow=pixels(lambda w: nn.ChannelShuffle(2 * w)),
        Pad=pixels(lambda w: nn.ReflectionPad2d(1), lambda w: nn.ZeroPad2d(1), lambda w: nn.ReplicationPad2d(1)),
        Unfold=lambda w: nn.Sequential(
            nn.Conv2d(3, 8 * w, 1), nn.Unfold(2, stride=2), nn.Flatten(), nn.Linear(8 * w * 100, 5)
        ),
        Flatten=lambda w: nn.Sequential(nn.Conv2d(3, 8 * w, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * w * 64, 5)),
        Unflatten=lambda w: nn.Sequential(
            nn.Flatten(), nn.Linear(300, 8 * w * 16), nn.Unflatten(1, (8 * w, 4, 4)), nn.Conv2d(8 * w, 5, 3)
        ),
        Dropout2d=pixels(lambda w: nn.Dropout2d(0.3), lambda w: nn.ReLU()),
        inexact={"LocalResponseNorm": NEIGHBOURS},
    )  # fmt: skip
    yield from each(
        draw(4, 3, 12),
        Conv1d=pixels(
            lambda w: nn.Conv1d(8 * w, 8 * w, 3), lambda w: nn.BatchNorm1d(8 * w), lambda w: nn.ReLU(), rank=1
        ),
        ConvTranspose1d=pixels(lambda w: nn.ConvTranspose1d(8 * w, 8 * w, 3, stride=2), rank=1),
        pools_1d=pixels(
            lambda w: nn.MaxPool1d(2), lambda w: nn.AvgPool1d(2), lambda w: nn.AdaptiveAvgPool1d(2), rank=1
        ),
    )
    yield from each(
        draw(3, 3, 4, 6, 6),
        Conv3d=pixels(lambda w: nn.Conv3d(8 * w, 8 * w, 3), lambda w: nn.BatchNorm3d(8 * w), rank=3),
        ConvTranspose3d=pixels(lambda w: nn.ConvTranspose3d(8 * w, 8 * w, 3, stride=2), rank=3),
        pools_3d=pixels(
            lambda w: nn.MaxPool3d(2), lambda w: nn.AvgPool3d(2), lambda w: nn.AdaptiveAvgPool3d(1), rank=3
        ),
    )
    yield from each(
        words,
        Embedding=lambda w: nn.Sequential(nn.Embedding(64, 8 * w), nn.Linear(8 * w, 5)),
        Embedding_max_norm=lambda w: nn.Sequential(
            nn.Embedding(64, 8 * w, max_norm=1.0), nn.Linear(8 * w, 5)
        ),
        EmbeddingBag=lambda w: Bag(w, "mean"),
        EmbeddingBag_max=lambda w: Bag(w, "max"),
        Transformer=Whole,
        inexact={"Embedding_max_norm": "the norm of copies is √g larger, and rows are cut to a fixed one"},
    )
    yield from each(
        series,
        RNN=recurrent(nn.RNN),
        RNN_2_layers=recurrent(nn.RNN, num_layers=2, nonlinearity="relu"),
        LSTM=recurrent(nn.LSTM),
        LSTM_bidirectional=recurrent(nn.LSTM, 2, bidirectional=True, num_layers=2),
        LSTM_projected=recurrent(nn.LSTM, proj_size=lambda w: 4 * w),
        GRU=recurrent(nn.GRU),
        GRU_2_layers=recurrent(nn.GRU, num_layers=2, dropout=0.1),
        RNNCell=lambda w: Cells(nn.RNNCell, w),
        LSTMCell=lambda w: Cells(nn.LSTMCell, w),
        GRUCell=lambda w: Cells(nn.GRUCell, w),
        MultiheadAttention=attention(lambda w: 4, lambda w: 2 * w),
        MultiheadAttention_head_dim=attention(lambda w: 4 * w, lambda w: 2),
        MultiheadAttention_one_head=attention(lambda w: 4, lambda w: w),
        MultiheadAttention_kdim_vdim=attention(lambda w: 4, lambda w: 2 * w, kdim=6, vdim=10),
        MultiheadAttention_bias_kv=attention(
            lambda w: 4, lambda w: 2 * w, add_bias_kv=True, add_zero_attn=True
        ),
        TransformerEncoder=encoder(),
        TransformerEncoder_norm_first=encoder(norm_first=True, activation="gelu", dropout=0.0),
        TransformerDecoder=Decoder,
    )
