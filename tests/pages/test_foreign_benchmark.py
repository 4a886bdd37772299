"""benchmarks/foreign.py: what it calls proved is, and what is wrong it calls wrong."""

import dataclasses
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import mupscale
from mupscale.layout.base import Fold

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def foreign(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import foreign

    yield foreign
    for name in [name for name in sys.modules if name.partition(".")[0] in ("foreign", "foreign_cases")]:
        del sys.modules[name]


@pytest.fixture
def case(foreign):
    cases, missing = foreign.collected(["torch_nn/mlp"])
    assert not missing
    return cases[0][1]


def test_proves_what_grows(foreign, case):
    row = foreign.attempt(case, 3)
    assert row["status"] == "proved"
    assert max(row["difference"], row["loss_difference"]) < 1e-12
    assert torch.get_default_dtype() == torch.float32


def test_says_what_is_refused(foreign):
    _, inexact = foreign.collected(["torch_nn/LogSoftmax"])[0][0]
    assert foreign.attempt(inexact, 2)["status"] == "refused"
    assert inexact.inexact


def test_sees_outputs_that_differ(foreign, case, monkeypatch):
    right = mupscale.plan

    def scaled(*args, **kwargs):
        plan = right(*args, **kwargs)
        folds = {"2.weight": (Fold(next(iter(plan.growth)), Fraction(1, 2), 0.0),)}
        return dataclasses.replace(plan, layout=dataclasses.replace(plan.layout, folds=folds))

    monkeypatch.setattr(mupscale, "plan", scaled)
    row = foreign.attempt(case, 2)
    assert row["status"] == "WRONG"
    assert row["difference"] > 1e-3


def test_sees_a_learning_rate_left_as_it_was(foreign, case, monkeypatch):
    right = mupscale.carry_optimizer

    def careless(*args, **kwargs):
        carried = right(*args, **kwargs)
        for group in carried.param_groups:
            group["lr"] = 1e-3
        return carried

    monkeypatch.setattr(mupscale, "carry_optimizer", careless)
    row = foreign.attempt(case, 2)
    assert row["status"] == "WRONG"
    assert row["difference"] < 1e-12
    assert row["loss_difference"] > 1e-9


def test_counts_the_share_of_what_is_exact(foreign):
    statuses = [("proved", ""), ("refused", "no copies can"), ("refused", ""), ("not built", "")]
    rows = [{"status": status, "inexact": why} for status, why in statuses]
    count = foreign.counted(rows)
    assert (count["proved"], count["refused"], count["exact"], count["share"]) == (1, 2, 2, 0.5)
