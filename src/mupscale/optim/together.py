"""Several optimizers as one, for what takes only one: a Trainer, a learning-rate scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class Together(torch.optim.Optimizer):
    """Optimizers of different parameters that step together: Muon for some, AdamW for the rest.

    The groups and the state of all of them are in ``param_groups`` and ``state``, the very same objects.

    >>> first, second = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    >>> both = Together([torch.optim.Muon([first], lr=0.1), torch.optim.AdamW([second], lr=0.1)])
    >>> (first + second).sum().backward()
    >>> both.step()
    >>> len(both.param_groups), sorted(key for entries in both.state.values() for key in entries)
    (2, ['exp_avg', 'exp_avg_sq', 'momentum_buffer', 'step'])
    """

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            self.state.update(part.state)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}  # for copying and pickling

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # what `load_state_dict` ends with, after making new groups and state
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Any = None) -> Any:
        """A step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
