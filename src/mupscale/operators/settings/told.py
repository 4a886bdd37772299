"""What values and functions are, as what compares by content, however often they were made."""

from __future__ import annotations

import inspect
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.models.copying import content

# Whose hooks, functions and kinds of modules leave what a module computes as it is.
_LIBRARIES = (
    *("accelerate", "bitsandbytes", "deepspeed", "kernels", "lightning", "liger_kernel", "peft", "trl"),
    *("pytorch_lightning", "torchao", "transformers.utils", "transformers.integrations", "unsloth"),
    *("transformers.modeling_utils", "wandb", "torch._dynamo", "torch._functorch", "torch.ao", "torch.fx"),
    *("torch.distributed", "torch.nn.parallel", "torch.nn.utils", "torch.profiler", "torch.utils"),
)
# Whose objects are not read: configs and caches, which are seen to elsewhere, and devices.
_NOT_READ = {"accelerate", "datasets", "peft", "tokenizers", "torch", "transformers"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)
UNKNOWN = object()


def static(module: nn.Module, key: str) -> Any:
    """An attribute of a module or of its class, as it stands there."""
    if key in vars(module):
        return vars(module)[key]
    found = inspect.getattr_static(type(module), key, UNKNOWN)
    return found.__func__ if isinstance(found, staticmethod | classmethod) else found


class Reader:
    """Tells what values are, as what compares by content; of what it cannot read it knows nothing.

    Args:
        model: what holds the values. Tensors registered in it are not read: they are carried as such.
        plain: read plain values alone, and lists and dicts of such.

    Attributes:
        tensors: those inside of what was read last, in order. They are told by their shapes, as a model that
            is built without memory has no values.
    """

    def __init__(self, model: nn.Module, *, plain: bool = False) -> None:
        self._held = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._plain = plain
        self._left = 0  # how much is still to be read: what refers to each other all over has no end
        self.tensors: list[Tensor] = []

    def told(self, value: object) -> object:
        self.tensors = []
        return self.told_also(value)

    def told_also(self, value: object) -> object:
        before, self._left = len(self.tensors), 1_000_000
        try:
            return self._read(value, ())
        except Exception:  # of any class, which need not let itself be read
            del self.tensors[before:]
            return UNKNOWN

    def _read(self, value: Any, within: tuple[int, ...]) -> object:
        kind, self._left = type(value), self._left - 1
        if kind in _PLAIN:
            return kind, repr(value)  # NaN is itself
        if isinstance(value, Enum):
            return _name(kind), repr(value.value)
        if isinstance(value, type | BuiltinFunctionType):
            return _name(value)
        if kind is Tensor and not (self._plain or value.requires_grad or id(value) in self._held):
            self.tensors.append(value)
            return kind, value.shape, value.dtype
        if value is UNKNOWN or isinstance(value, nn.Module) or self._left < 0:
            raise _Unreadable
        if id(value) in within:  # it refers to itself
            return len(within) - within.index(id(value))
        read = partial(self._read, within=(*within, id(value)))
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return value.__code__, read(value.__defaults__), read(cells)
        if isinstance(value, MethodType):
            return read(value.__func__), read(value.__self__)
        if kind in (set, frozenset):
            return kind, frozenset(map(read, value))
        if kind in (tuple, list, dict, torch.Size):
            return kind, tuple(map(read, value.items() if kind is dict else value))
        if self._plain or any(base.__module__.partition(".")[0] in _NOT_READ for base in kind.__mro__):
            raise _Unreadable
        # All else is what pickle would write of it.
        if isinstance(reduced := value.__reduce_ex__(4), str):
            return reduced
        made_by, args, state, *rest = (*reduced, None)[:5]
        if isinstance(state, dict):  # attributes have no order
            state = dict(sorted(state.items(), key=lambda item: str(item[0])))
        parts = [[*part] for part in rest if part is not None]  # of subclasses of list and of dict
        return _name(kind), read(made_by), read(args), read(state), read(parts)


class _Unreadable(Exception):
    pass


def _name(value: Any) -> tuple[str, str]:
    """By which a class that was made twice is the same."""
    return str(value.__module__), value.__qualname__


def differ(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors of the same shapes hold other values, as far as they have any."""
    pairs = zip(tensors, others, strict=False)
    return len(tensors) != len(others) or any(
        not (one.is_meta or other.is_meta) and not torch.equal(one.cpu(), other.cpu()) for one, other in pairs
    )


def compiled(value: object) -> object:
    """The function itself, of one that torch.compile has wrapped."""
    return vars(value).get("_torchdynamo_orig_callable", value) if isinstance(value, FunctionType) else value


def code(value: object, reader: Reader | None = None, depth: int = 0) -> object:
    """What a function does, so that one that was made twice is the same; of anything else its kind.

    Args:
        reader: tells the objects, too, that it is bound to or holds, and collects the tensors. Not so for
            hooks: what these have gathered is no change.
    """
    value = compiled(value)
    told = Reader(nn.Module(), plain=True).told if reader is None else reader.told_also
    if isinstance(value, MethodType):
        function = code(value.__func__, reader, depth)
        if reader is None or isinstance(value.__self__, nn.Module | type):
            return function
        return function, told(value.__self__)
    if isinstance(value, partial):
        return (
            code(value.func, reader, depth),
            [*map(told, value.args)],
            [(k, told(v)) for k, v in value.keywords.items()],
        )
    if isinstance(value, FunctionType):
        cells = [content(cell) for cell in value.__closure__ or ()] if depth < 4 else []
        inside = [code(c, reader, depth + 1) if callable(c) else told(c) for c in cells]
        return value.__code__, [*map(told, value.__defaults__ or ())], inside
    if isinstance(value, BuiltinFunctionType | type):
        return value
    return type(value), None if reader is None else told(value)


def is_made_by(kind: type, value: object) -> bool:
    """Whether a method of the class itself has made a function, as it does in the wide model, too."""
    place = getattr(value, "__qualname__", "")
    return any(place.startswith(f"{each.__qualname__}.") and "<locals>" in place for each in kind.__mro__)


def home(value: object) -> str:
    """The module that the code of a function is in."""
    value = compiled(value)
    if isinstance(value, MethodType):
        return home(value.__func__)
    if isinstance(value, partial):
        return home(value.func)
    if isinstance(value, FunctionType):
        return str(value.__globals__.get("__name__"))
    return str((value if isinstance(value, BuiltinFunctionType | type) else type(value)).__module__)


def is_of_library(home: str) -> bool:
    return any(f"{home}.".startswith(f"{library}.") for library in _LIBRARIES)
