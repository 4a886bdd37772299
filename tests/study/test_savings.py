from typing import Any

import pytest

from mupscale.study.savings import savings, steps_to_reach


def run(kind: str, steps: int, loss: float, best: bool = True) -> dict[str, Any]:
    return {"kind": kind, "steps": steps, "flops": steps * 100, "final_loss": loss, "best": best}


RUNS = [
    run("grown", 100, 3.0),
    run("scratch", 100, 4.0),
    run("scratch", 100, 4.5, best=False),
    run("scratch", 150, 3.6),
    run("scratch", 400, 2.6),
]


def test_savings_with_and_without_the_narrow_training() -> None:
    saved = savings(RUNS, narrow_flops=5_000)
    reach = saved["scratch_steps_to_reach_grown"]
    assert reach["bound"] == "interpolated"
    assert reach["steps"] == pytest.approx(150 * (400 / 150) ** 0.6, rel=1e-3)
    assert saved["scratch_final_loss_at_equal_steps"] == 4.0
    assert saved["scratch_steps_at_equal_compute"] == 150
    assert saved["scratch_final_loss_at_equal_compute"] == 3.6
    assert saved["flops_saved"] == pytest.approx(1 - 100 / reach["steps"])
    assert saved["flops_saved_counting_narrow"] == pytest.approx(1 - 150 / reach["steps"])


def test_unknown_narrow_cost_is_not_guessed() -> None:
    saved = savings(RUNS, narrow_flops=None)
    assert saved["flops_saved_counting_narrow"] is None
    assert saved["scratch_final_loss_at_equal_compute"] is None


def test_growing_that_did_not_pay_shows_as_a_loss() -> None:
    saved = savings([run("grown", 100, 3.0), run("scratch", 100, 2.9)], narrow_flops=10_000)
    assert saved["scratch_steps_to_reach_grown"]["bound"] == "at most"
    assert saved["flops_saved_counting_narrow"] == pytest.approx(-1.0)


def test_nothing_is_extrapolated() -> None:
    assert steps_to_reach([(100, 4.0), (200, 3.5)], 3.0) == {"steps": 200.0, "bound": "more than"}
    assert steps_to_reach([(100, 4.0), (200, 3.5)], 3.5) == {"steps": 200.0, "bound": "interpolated"}
