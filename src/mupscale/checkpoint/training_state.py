"""The optimizer and scheduler files that transformers.Trainer leaves beside the weights, grown."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mupscale.checkpoint.journal import Journal
from mupscale.checkpoint.outgoing import Outgoing
from mupscale.checkpoint.sound import check_entries, check_groups, check_scheduler, check_values, own_state
from mupscale.checkpoint.stored import loaded, stored, torch_file
from mupscale.errors import GrowthError, one_line
from mupscale.models.skeletons import skeleton
from mupscale.optim.carry import Way, grow_state_rows, grow_state_value, state_axes
from mupscale.optim.groups import merge_groups
from mupscale.theory.manifest import Plan
from mupscale.theory.registry import class_of_state, rule_for
from mupscale.theory.rules import Rule

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
UNREAD = ("optimizer.bin", "global_step*")  # a Trainer's under FSDP 1, and under DeepSpeed


@dataclass(frozen=True)
class WideTrainingState:
    """What ``optimizer.pt`` and ``scheduler.pt`` grow into, so that a Trainer goes on from them.

    The groups become those of `mupscale.param_groups` with the same weight decay split.

    Attributes:
        optimizer: what the file holds, with `Lazy` tensors in its state.
        scheduler: what the other one does; None where there is none.
        nbytes: of the state, to be.
    """

    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None

    @classmethod
    def of(cls, source: Path, plan: Plan, way: Way = Way.COPIED) -> WideTrainingState | None:
        """That of the directory ``source``; None if it holds no optimizer.

        Args:
            way: copy the state, or pad it with zeros.

        Raises:
            GrowthError: a file cannot be read, or does not fit the weights, or holds the optimizer in a form
                that is not read.
        """
        path = source / OPTIMIZER
        if not path.is_file():
            _refuse_unread(source)
            return None
        assert plan.narrow_config is not None
        assert plan.config is not None
        narrow, wide = skeleton(plan.narrow_config), skeleton(plan.config)
        saved = load_state(path)
        with naming(path):
            groups = check_groups(saved)
            _refuse_averages(saved)
            names = _names(groups, narrow, plan)
            rules: dict[int, Rule] = {}
            pairs = []
            for number, group in enumerate(groups):
                rule = rule_for(class_of_state(group), group)
                rules |= dict.fromkeys(group["params"], rule)
                own = cache(partial(own_state, group, number))  # by the number of dims
                for index in group["params"]:
                    name, state = names[index], saved["state"].get(index, {})
                    scaling = plan.of_narrow(name)
                    if state != {}:
                        check_entries(name, state, own(len(scaling.shape)))
                    rule.check(name, state, group, scaling.shape)
                    values = rule.group(name, scaling, group)
                    pairs += [(other, index, values) for other in plan.becomes[name]]
        pairs.sort(key=_place(saved["param_groups"], names, narrow, wide))
        wide_groups = merge_groups(pairs)
        order = [index for group in wide_groups for index in group["params"]]
        state = {
            i: {
                key: _grown(path, names[index], key, value, plan, rules[index], way)
                for key, value in saved["state"][index].items()
            }
            for i, index in enumerate(order)
            if index in saved["state"]
        }
        scheduler = None
        if (source / SCHEDULER).is_file():
            scheduler = _grow_scheduler(source / SCHEDULER, groups, wide_groups)
        start = 0
        for group in wide_groups:
            group["params"] = list(range(start, start + len(group["params"])))
            start += len(group["params"])
        return cls({**saved, "state": state, "param_groups": wide_groups}, scheduler)

    @property
    def nbytes(self) -> int:
        return sum(math.prod(t.shape) * t.dtype.itemsize for t in _tensors(self.optimizer).values())

    def write(self, directory: Path, journal: Journal, on_bytes: Callable[[int], None]) -> None:
        """Write both files, a tensor at a time, but for those that ``journal`` has.

        Args:
            on_bytes: told the bytes of every tensor that is in its place.
        """
        _save_streamed(self.optimizer, directory / OPTIMIZER, journal, on_bytes)
        if self.scheduler is not None:
            torch.save(self.scheduler, directory / SCHEDULER)

    def beside(self, directory: Path) -> Iterator[tuple[str, Any, Any]]:
        """Everything that the two files in a directory are to hold: where, what that is, and what is there.

        Raises:
            GrowthError: a file cannot be read.
        """
        path, found = directory / OPTIMIZER, load_state(directory / OPTIMIZER)
        ours, there = (
            leaves({key: value for key, value in saved.items() if key != "state"})
            for saved in (self.optimizer, found)
        )
        for name in dict.fromkeys((*ours, *there)):
            mine, theirs = ours.get(name, "nothing"), loaded(path, there.get(name, "nothing"))
            yield f"{directory}/{name}", mine.make() if isinstance(mine, Lazy) else mine, theirs
        states = found.get("state")
        yield (
            f"{path}: parameters",
            [*self.optimizer["state"]],
            [*states] if isinstance(states, dict) else None,
        )
        names = [name for group in self.optimizer["param_groups"] for name in group["param_names"]]
        for index, entries in self.optimizer["state"].items():
            theirs = states.get(index) if isinstance(states, dict) else None
            theirs = theirs if isinstance(theirs, dict) else {}
            yield f"{path}: what it holds for {names[index]}", sorted(entries), sorted(map(str, theirs))
            for key, value in entries.items():
                mine = value.make() if isinstance(value, Lazy) else value
                yield f"{path}: {key} of {names[index]}", mine, loaded(path, theirs.get(key))
        if self.scheduler is not None:
            yield f"{directory / SCHEDULER}", self.scheduler, load_state(directory / SCHEDULER)


@dataclass(frozen=True)
class Lazy:
    """A tensor that is made when it is written, as a whole or in blocks of its rows."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]
    rows: Callable[[], Iterable[Tensor]] | None = None

    def blocks(self) -> Iterable[Tensor]:
        return self.rows() if self.rows is not None else [self.make()]


def leaves(saved: Mapping[str, Any]) -> dict[str, Any]:
    """All values that an optimizer's file holds, by the names that its checksums have: where each one is.

    Raises:
        GrowthError: two have the same name.

    >>> leaves({"state": {0: {"step": 1.0}}, "param_groups": [{"lr": 0.1}]})
    {'optimizer.pt 0 step': 1.0, 'optimizer.pt: param_groups 0 lr': 0.1}
    """

    def within(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, dict | list | tuple) or not value:
            yield name, value
            return
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from within(f"{name} {key}", entry)

    found: dict[str, Any] = {}
    for key, value in saved.items():
        for name, leaf in within(OPTIMIZER if key == "state" else f"{OPTIMIZER}: {key}", value):
            if name in found:
                raise GrowthError(f"{name}: two values of {OPTIMIZER} go by this name; rename one")
            found[name] = leaf
    return found


def _tensors(saved: Mapping[str, Any]) -> dict[str, Tensor | Lazy]:
    return {name: value for name, value in leaves(saved).items() if isinstance(value, Tensor | Lazy)}


def _save_streamed(
    saved: dict[str, Any], path: Path, journal: Journal, on_bytes: Callable[[int], None]
) -> None:
    """`torch.save` without ever holding all of it: lay the file out first, then fill its tensors in place."""
    tensors = _tensors(saved)
    if not any(map(journal.has_begun, tensors)):
        _lay_out(saved, path)
    written = leaves(torch_file(path, read_small=False))
    with Outgoing(path) as file:
        for name, value in tensors.items():
            place = stored(path, written[name])
            if not (journal.has_begun(name) and journal.is_done(name, place.read())):
                file.seek(place.offset)
                journal.put(name, value.blocks() if isinstance(value, Lazy) else [value], file)
            on_bytes(place.nbytes)


def _lay_out(saved: dict[str, Any], path: Path) -> None:
    """The file with all but its tensors, and with room for every one of them, also where two were one."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import

    with FakeTensorMode():
        layout = tree_map_only((Tensor, Lazy), lambda t: torch.empty(tuple(t.shape), dtype=t.dtype), saved)
    _take_room(path, sum(math.prod(t.shape) * t.dtype.itemsize for t in _tensors(saved).values()))
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(layout, path)
    _take_room(path, path.stat().st_size)  # it has holes, and a full disk ends the process that fills one


def _take_room(path: Path, nbytes: int) -> None:
    """Let a file have so many bytes on the disk; raises OSError where there is no room, with the reason."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, nbytes))


def _refuse_unread(source: Path) -> None:
    if found := next((path for pattern in UNREAD for path in sorted(source.glob(pattern))), None):
        raise GrowthError(
            f"{found}: holds the optimizer in a form that is not read; save the whole of its state_dict as "
            f"{OPTIMIZER}, or leave it behind (--no-optimizer)"
        )


def _refuse_averages(saved: Mapping[str, Any]) -> None:
    """Tensors beside the state, as of averaged weights: nothing says how they become the wide model's."""
    beside = {key: value for key, value in saved.items() if key not in ("state", "param_groups")}
    for name, value in leaves(beside).items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise GrowthError(
                f"{name.removeprefix(f'{OPTIMIZER}: ')}: holds a tensor of shape {tuple(value.shape)} beside "
                "the state, and nothing says how that grows; save it elsewhere"
            )


def load_state(path: Path) -> dict[str, Any]:
    """A file of training state, its large tensors left where they are; no code that it holds is run.

    Raises:
        GrowthError: it cannot be read.
    """
    try:
        data = torch_file(path)
    except Exception as error:  # torch raises many kinds for a file that is not what it says
        reason = one_line(error, limit=160)
        raise GrowthError(
            f"{path}: cannot be read ({reason}); save it again, or grow the weights alone with --no-optimizer"
        ) from None
    if not isinstance(data, dict):
        raise GrowthError(f"{path}: expected a state dict; --no-optimizer grows the weights alone")
    return data


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say of which file an error is, and how to go on without it."""
    try:
        yield
    except GrowthError as error:
        raise GrowthError(f"{path}: {error}; --no-optimizer grows the weights alone") from None


def _names(groups: list[dict[str, Any]], skeleton: nn.Module, plan: Plan) -> dict[int, str]:
    """The parameter behind each index: from the names in the groups, else from the order of a Trainer.

    Those of a model that was compiled or wrapped are read as the model's own.
    """
    names = [name for name, _ in skeleton.named_parameters()]
    if all("param_names" in group for group in groups):
        expected = [[plan.own_name(name) for name in group["param_names"]] for group in groups]
        held = Counter(name for group in expected for name in group)
        if unknown := held.keys() - set(names):
            raise GrowthError(f"holds {min(unknown)!r}, which is not a parameter of this model")
        if twice := [name for name, times in held.items() if times > 1]:
            raise GrowthError(f"holds {twice[0]!r} {held[twice[0]]} times; expected every parameter once")
    elif len(groups) == 1:
        expected = [names]
    else:
        decaying = set(transformers.Trainer.get_decay_parameter_names(None, skeleton))
        expected = [[n for n in names if n in decaying], [n for n in names if n not in decaying]]
    if [len(g["params"]) for g in groups] != [len(e) for e in expected]:
        raise GrowthError(
            f"its groups hold {[len(g['params']) for g in groups]} parameters, expected "
            f"{[len(e) for e in expected]} of this model; put the optimizer there that trained it"
        )
    return {i: n for g, e in zip(groups, expected, strict=True) for i, n in zip(g["params"], e, strict=True)}


def _place(
    groups: list[dict[str, Any]],
    names: Mapping[int, str],
    narrow: nn.Module,
    wide: nn.Module,
) -> Callable[[tuple[str, int, Any]], tuple[int, bool, int]]:
    """Where `mupscale.param_groups` has a parameter: decaying ones first, each in the order of the model.

    Of optimizers that step together (`Together`), whose groups differ in their values, one after the other.

    A scheduler goes by that order alone, so it has to be the same however often the model has grown.
    """
    order = {name: i for i, (name, _) in enumerate(wide.named_parameters())}
    members = [{names[i] for i in group["params"]} for group in groups]
    last = {
        name
        for group, mine in zip(groups, members, strict=True)
        if not group.get("weight_decay")
        for name in mine
    }
    if len(last) == len(names):  # nothing decays: as a Trainer splits them, if it was one
        decaying = set(transformers.Trainer.get_decay_parameter_names(None, narrow))
        mixed = any(mine & decaying and mine - decaying for mine in members)
        last = set() if mixed else last - decaying
    kinds = [group.keys() for group in groups]
    part = {name: kinds.index(g.keys()) for g, mine in zip(groups, members, strict=True) for name in mine}
    return lambda pair: (part[names[pair[1]]], names[pair[1]] in last, order[pair[0]])


def _grown(path: Path, name: str, key: str, value: Any, plan: Plan, rule: Rule, way: Way) -> Any:
    """A piece of state as it becomes; what is a tensor is read, and grown, when it is written."""
    copied = rule.takes_over(key, value)

    def read() -> Any:
        tensor = loaded(path, value)
        if not isinstance(tensor, Tensor) or copied:
            return tensor
        with naming(path):
            return check_values(name, key, tensor, rule.state[key])

    def grown() -> Any:
        return grow_state_value(name, key, read(), plan, rule, way)

    if not isinstance(value, Tensor):
        return value if copied else grown()
    if copied:
        return Lazy(tuple(value.shape), value.dtype, read)
    shape = state_axes(plan.of_narrow(name), value).wide_shape(plan.layout.sizes, plan.growth)
    rows = partial(grow_state_rows, name, key, plan=plan, rule=rule, way=way)
    return Lazy(shape, value.dtype, grown, lambda: rows(read()))


def _grow_scheduler(
    path: Path, groups: list[dict[str, Any]], wide_groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a scheduler's file grows into.

    Args:
        groups, wide_groups: of the optimizer, both with the narrow one's indices of parameters.
    """
    group_of = {index: number for number, group in enumerate(groups) for index in group["params"]}
    parents = [group_of[group["params"][0]] for group in wide_groups]
    scales = [
        g["lr_scale"] / groups[p].get("lr_scale", 1.0) for g, p in zip(wide_groups, parents, strict=True)
    ]
    saved = load_state(path)
    with naming(path):
        check_scheduler(saved)
    return _regrouped(saved, len(groups), parents, scales)


def _regrouped(state: dict[str, Any], groups: int, parents: list[int], scales: list[float]) -> dict[str, Any]:
    """Lists with an entry a group follow the groups; learning rates among them are scaled."""
    grown = dict(state)
    for key, value in state.items():
        if key == "_schedulers":
            grown[key] = [_regrouped(s, groups, parents, scales) for s in value]
        elif (
            isinstance(value, list)
            and len(value) == groups
            and (key.endswith("lrs") or key in ("_last_lr", "lr_lambdas"))
        ):
            factors = [1.0] * len(parents) if key == "lr_lambdas" else scales
            grown[key] = [
                value[p] * f if isinstance(value[p], float | int | Tensor) else value[p]
                for p, f in zip(parents, factors, strict=True)
            ]
    return grown
