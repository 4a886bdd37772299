"""What was changed on a module after its constructor had run: a grown one is like it there, too."""

import torch
from torch import nn
from torch.nn import functional as F

import mupscale

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Scaled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)
        self.norm, self.drop = nn.BatchNorm1d(8 * width), nn.Dropout(0.1)
        self.temperature, self.act, self.shifted = 1.0, "gelu", False
        self.scale = (8 * width) ** -0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(getattr(F, self.act)(self.norm(self.first(x)) * self.temperature))
        return self.last(h + 1 if self.shifted else h) * self.scale


def test_settings_that_go_by_no_width_are_kept():
    torch.manual_seed(0)
    narrow = Scaled(1).double().eval()
    plan = mupscale.plan(Scaled, width=2, inputs=X)
    narrow.temperature, narrow.act, narrow.shifted = 0.5, "relu", True
    narrow.drop.p, narrow.norm.momentum, narrow.norm.eps = 0.3, 0.02, 1e-3
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert (wide.drop.p, wide.norm.momentum, wide.norm.eps) == (0.3, 0.02, 1e-3)
    assert mupscale.verify(narrow, wide, plan, X)
    assert (wide(X) - narrow(X)).abs().max() < 1e-12
    assert wide.scale == 16**-0.5
