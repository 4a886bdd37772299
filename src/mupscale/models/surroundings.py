"""What is found of a model depends on nothing that the caller has switched on around the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch._C import _len_torch_function_stack
from torch.overrides import _pop_mode, _push_mode
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def plain_surroundings() -> Iterator[None]:
    """The CPU, float32, gradients, no autocast and no mode, whatever was set; all of it is put back after.

    The caller's random numbers are left where they were.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        for _ in range(_len_torch_function_stack()):  # modes of functions, as of a device; the first one last
            stack.callback(_push_mode, _pop_mode())  # type: ignore[no-untyped-call]
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in {"cpu", "cuda" if torch.cuda.is_available() else "cpu"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads (None: as it does), and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
