"""Growing modules in memory and checkpoints on disk: plan and operators, put together.

Both go through `Grower`, a tensor at a time.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from operator import index
from pathlib import Path

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.models.contents import state_tensors, unwrapped
from mupscale.models.surroundings import plain_surroundings, torch_threads
from mupscale.operators.any_tensor import Grower
from mupscale.operators.catalogue import mark_
from mupscale.operators.expand import with_eps_of
from mupscale.operators.filling import built, check_given, check_memory, fill_
from mupscale.operators.noise import Noise
from mupscale.operators.settings import as_planned, check_as_planned, keep_settings_
from mupscale.operators.zero_pad import ShrinkLike
from mupscale.optim.carry import way_of
from mupscale.planner import plan as make_plan
from mupscale.planner import prove_operator
from mupscale.theory.manifest import MANIFEST, Manifest, Plan

Progress = Callable[[int, int], None]
STORED_AS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # what weights can be made into


def grow(
    model: nn.Module,
    plan: Plan,
    *,
    operator: str = "default",
    noise: str | Noise | None = "default",
    shrink: ShrinkLike | None = None,
    seed: int = 0,
    from_first: Plan | None = None,
) -> nn.Module:
    """Grow a model in memory; the narrow one is left as it is.

    Args:
        model: the narrow model that ``plan`` was made from (or one of the same names and shapes).
        operator: ``"duplicate"``: θ↑ = s · dup(θ), the same function. ``"expand"``: θ beside new units that
            nothing sees yet, the same function at any size. ``"zero_pad"``: λ · pad(θ) plus a fresh μP
            initialization, another function. The others are rivals to compare with (see
            `mupscale.operators.catalogue.OPERATORS`). By default ``DEFAULT`` there: expand, shrunk by 0.7,
            from which training was measured to go on best (docs/growing-pays.md); another function. Where
            layers grow it is duplicate: each repeated, and what writes to the residual stream smaller by
            as much; nearly the same function.
        noise: with duplicate, ``"balanced:1"`` by default: it keeps the function and makes the copies differ,
            so that the new width gets used; ``"gaussian:σ"`` and ``"relative:σ"`` change it; None makes pure
            copies (see `mupscale.operators.noise`). With zero_pad and expand, ``"fresh:1"``, or None for a
            plain pad.
        shrink: λ of zero_pad, where nothing is said 0.4, and of expand, where it is named 1, which keeps the
            function: a number, or one for each pattern of parameter names.
        seed: of the noise.
        from_first: of a model that was itself grown, or made under μP from a narrower one: the plan from that
            one to the wide model. What is fresh, in zero_pad and in gaussian noise, then has the size that μP
            gives it from there.

    Returns:
        The wide model, with the narrow one's ties, dtypes, devices, frozen parts and training modes; what
        torch.compile has wrapped is wrapped again, what DDP or DataParallel has wrapped is not.

    Raises:
        GrowthError: the model does not fit the plan, the operator cannot grow an axis, or the operator or
            noise is unknown.

    >>> from torch import nn
    >>> import mupscale
    >>> make = lambda width: nn.Sequential(nn.Linear(8, 16 * width), nn.ReLU(), nn.Linear(16 * width, 4))
    >>> narrow, x = make(1).double(), torch.randn(2, 8, dtype=torch.float64)
    >>> wide = grow(narrow, mupscale.plan(make, width=3), operator="duplicate")
    >>> bool((narrow(x) - wide(x)).abs().max() < 1e-12)
    True
    """
    check_given(plan, model=model)
    seed = _whole(seed)
    inner = unwrapped(model)
    tensors = state_tensors(inner)
    grower = Grower(
        plan,
        tensors.__getitem__,
        operator=operator,
        noise=noise,
        shrink=shrink,
        seed=seed,
        from_first=from_first,
    )
    if name := next((n for n, t in tensors.items() if t.is_meta), None):
        raise GrowthError(
            f"{name}: is on the meta device, so that there are no values to grow; load the weights first"
        )
    if differing := tensors.keys() ^ {*plan.layout.params, *plan.layout.buffers}:
        name = min(differing)
        raise GrowthError(
            f"{name}: not in the {'plan' if name in tensors else 'model'}; make the plan from this model"
        )
    check_memory(inner)
    with plain_surroundings(), torch.no_grad():
        check_as_planned(inner, made := as_planned(plan))
        if grower.keeps_function_if_proved:
            with torch.enable_grad():
                prove_operator(plan, grower.operator.name)
        plan = grower.plan
        if plan.config is None:
            wide = built(inner, plan)
            keep_settings_(wide, inner, made, plan)
            fill_(wide, inner, plan, grower)
        else:
            state = {name: grower(name) for name in plan.wide_names}
            wide = _loaded(inner, plan, state)
            keep_settings_(wide, inner, made, plan)
            fill_(wide, inner, plan, state.__getitem__)
    mark_(wide, grower.operator.name)
    if isinstance(model, torch._dynamo.OptimizedModule):  # wrapped again, with the same options
        return type(model)(wide, model.dynamo_ctx)
    return wide


def grow_checkpoint(
    source: str | Path,
    destination: str | Path,
    plan: Plan | None = None,
    *,
    width: int | None = None,
    axes: Mapping[str, int] | None = None,
    operator: str = "default",
    noise: str | Noise | None = "default",
    shrink: ShrinkLike | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    workers: int | None = None,
    optimizer: bool | None = None,
    state: str = "carried",
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Grow a Hugging Face checkpoint directory into another, one tensor in memory at a time.

    The weights, the config, and a Trainer's ``optimizer.pt`` and ``scheduler.pt`` are grown; tokenizer,
    generation config and step count are copied; ``mupscale.json`` records how it was made. ``destination``
    appears whole or not at all.

    A checkpoint whose experts are stored one by one is held in memory as a whole, and its experts are written
    as transformers holds them: fused.

    Args:
        plan: how to grow; or give ``width`` and ``axes``, as to `mupscale.plan`.
        dtype: to store weights in; None keeps each tensor's own.
        operator, noise, shrink, seed: as in `grow`.
        workers: how many threads make the blocks of a tensor; None for as many as torch uses. The result does
            not depend on it.
        optimizer: grow the training state too, where there is one. By default an operator that makes even
            copies does; zero_pad and expand do when asked, padding the state with zeros; the others cannot.
        state: what becomes of the optimizer's, as in `mupscale.carry_optimizer`.
        allow_nonfinite: let NaN and infinity in the weights through.
        progress: called with (bytes done, bytes in all).

    Returns:
        The plan, with the wide config.

    Raises:
        GrowthError: the source, its files or the growth asked for are not as they should be.
    """
    from mupscale.checkpoint.differences import kind_of_machine
    from mupscale.checkpoint.grown import GrownCheckpoint
    from mupscale.checkpoint.reader import Checkpoint
    from mupscale.checkpoint.staging import copy_companions, copy_pooling, staged
    from mupscale.checkpoint.training_state import WideTrainingState
    from mupscale.checkpoint.writer import TensorSpec, parse_size, write_weights

    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise GrowthError(f"workers {workers!r}: expected a whole number, at least 1")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in STORED_AS):
        raise GrowthError(f"dtype {dtype!r}: expected one of {', '.join(map(str, STORED_AS))}")
    seed, shard_bytes = _whole(seed), parse_size(max_shard_size)
    checkpoint = Checkpoint(source)
    checkpoint.check_layers()
    plan = plan or make_plan(checkpoint.config, width=width, axes=axes)
    first = from_first(checkpoint.path, plan)
    grown = GrownCheckpoint(
        checkpoint,
        plan,
        operator=operator,
        noise=noise,
        shrink=shrink,
        seed=seed,
        from_first=first,
        allow_nonfinite=allow_nonfinite,
    )
    plan, grower = grown.plan, grown.grower
    assert plan.narrow_config is not None
    assert plan.config is not None
    if grower.keeps_function_if_proved:
        prove_operator(plan, grower.operator.name)
    wanted = grower.operator.copies_evenly if optimizer is None else optimizer
    # Asked for by name it has to go with the operator, also where that leaves the optimizer behind.
    way = way_of(grower.operator.name, state, plan) if wanted or state != "carried" else None
    training = WideTrainingState.of(checkpoint.path, plan, way) if wanted and way else None

    def spec(name: str) -> TensorSpec:
        kept = grown.dtype(name)
        return TensorSpec(name, dtype if dtype and kept.is_floating_point else kept, plan.wide_shape(name))

    specs = {name: spec(name) for name in plan.wide_names}
    done, total = 0, sum(s.nbytes for s in specs.values()) + (training.nbytes if training else 0)

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    how = {
        "mupscale": version("mupscale"),
        "machine": kind_of_machine(),
        "operator": grower.operator.name,
        "noise": str(grower.noise or "none"),
        **({"shrink": str(grower.shrink)} if grower.operator.shrink is not None else {}),
        "seed": seed,
        "optimizer": training is not None,
        **({"optimizer_state": state} if training else {}),
    }
    # All that the bytes depend on, so that a run goes on from what the same run has written before.
    making = {
        "growth": plan.describe(),
        "plan": hashlib.sha256(plan.to_json().encode()).hexdigest(),
        **{key: str(value) for key, value in how.items()},
        "dtype": str(dtype),
        "allow_nonfinite": str(allow_nonfinite),
        "max_shard_size": max_shard_size,
        "source": checkpoint.identity(),
    }
    with (
        staged(Path(destination), source=checkpoint.path, overwrite=overwrite, making=making) as stage,
        ThreadPoolExecutor(max_workers=1) as pool,
        torch.no_grad(),
        torch_threads(workers),
    ):
        partial, journal = stage
        if (checkpoint.path / "modules.json").is_file():
            copy_pooling(checkpoint.path, partial, plan.narrow_config.hidden_size, plan.config.hidden_size)
        checksums = pool.submit(checkpoint.checksums)
        if training is not None:
            training.write(partial, journal, advance)
        write_weights(
            partial,
            list(specs.values()),
            lambda name: grown.blocks(name, specs[name].dtype),
            journal,
            advance,
            max_shard_size=shard_bytes,
        )
        copy_companions(checkpoint.path, partial, training_state=training is not None)
        grown.config(dtype).save_pretrained(partial)
        recipe = {
            **how,
            "source": {"path": str(checkpoint.path.absolute()), "sha256": checksums.result()},
            "sha256": journal.sums,
        }
        Manifest(plan=plan, from_first=first, recipe=recipe).write(partial)
        if checkpoint.identity() != making["source"]:
            raise GrowthError(f"{checkpoint.path}: was changed while it was read; grow again")
    return plan


def _whole(seed: int) -> int:
    """A seed as a number of Python's, which its file can hold.

    Raises:
        GrowthError: it is no whole number.
    """
    try:
        return int(index(seed))
    except TypeError:
        raise GrowthError(f"seed {seed!r}: expected a whole number") from None


def _loaded(model: nn.Module, plan: Plan, state: dict[str, Tensor]) -> nn.Module:
    """A wide transformers model to fill; loading ``state`` computes the tables that no checkpoint holds."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        wide: nn.Module = type(model).from_pretrained(  # type: ignore[attr-defined]
            None, config=copy.deepcopy(plan.config), state_dict=state, dtype=model.dtype
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    if hasattr(model, "generation_config"):
        wide.generation_config = copy.deepcopy(model.generation_config)
    return wide


def from_first(source: Path, growth: Plan) -> Plan:
    """The plan from the first model of the line that ``source`` is in: hyperparameters are relative to it.

    Args:
        source: the checkpoint that grows; its ``mupscale.json`` says where it comes from.
        growth: how it grows now.
    """
    if not (source / MANIFEST).is_file():
        return growth
    first = Plan.load(source).narrow_config
    if first is None or growth.config is None:
        return growth
    # Expanding makes the eps of norms smaller, which no plan between sizes knows of.
    return replace(make_plan(first, to=with_eps_of(growth.config, first)), config=growth.config)
