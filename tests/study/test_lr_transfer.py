"""The learning-rate sweep: what it runs, what it keeps, and how it reads the optimum."""

from dataclasses import replace

import pytest

from mupscale import GrowthError
from mupscale.study.lr_transfer import TransferConfig, Trial, mean_losses, optima, shift, sweep, verdict
from mupscale.study.lr_transfer_plot import save_picture


def losses_of(curves, lrs=(1e-3, 2e-3, 4e-3, 8e-3)):
    return {
        Trial(parametrization=p, width=w, lr=lr, seed=seed): loss + 0.01 * seed
        for (p, w), losses in curves.items()
        for lr, loss in zip(lrs, losses, strict=True)
        for seed in range(2)
    }


@pytest.fixture
def losses():
    return losses_of(
        {
            ("standard", 1): [3.0, 2.8, 2.5, 2.9],
            ("standard", 4): [2.1, 2.4, 2.9, float("inf")],
            ("mup", 1): [3.0, 2.8, 2.5, 2.9],
            ("mup", 4): [2.6, 2.2, 2.3, 2.7],
        }
    )


def test_optimum_is_the_lowest_mean_over_seeds(losses):
    assert mean_losses(losses)["mup", 4][4e-3] == pytest.approx(2.305)
    assert {(b.parametrization, b.width): b.lr for b in optima(losses)} == {
        ("standard", 1): 4e-3,
        ("standard", 4): 1e-3,
        ("mup", 1): 4e-3,
        ("mup", 4): 2e-3,
    }


def test_shift_is_a_factor_whichever_way_it_goes(losses):
    assert shift(optima(losses), "standard") == pytest.approx(4)
    assert shift(optima(losses), "mup") == pytest.approx(2)
    rising = losses_of({("mup", 1): [1, 2, 2, 2], ("mup", 2): [2, 2, 1, 2]})
    assert shift(optima(rising), "mup") == pytest.approx(4)


def test_verdict_says_where_the_grid_ended(losses):
    found = optima(losses)
    assert "from 0.004 to 0.001 at 4 times the width, a factor of 4" in verdict(found, "standard")
    assert "edge" in verdict(found, "standard")
    assert "edge" not in verdict(found, "mup")


def test_picture(losses, tmp_path):
    save_picture(losses, 32, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_sweep_trains_each_trial_once_and_keeps_no_weights(tmp_path, tokens, model_config, training):
    config = TransferConfig(widths=(1, 2), lrs=(1e-2, 2e-2), seeds=1, training=replace(training, steps=6))
    losses = sweep(model_config, tokens, tmp_path, config)
    assert len(losses) == 8
    assert all(loss < 6 for loss in losses.values())  # below ln 300 and some
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("optimizer.pt"))
    histories = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("history.json")}
    assert sweep(model_config, tokens, tmp_path, config) == losses
    assert {path: path.stat().st_mtime_ns for path in histories} == histories
    with pytest.raises(GrowthError, match="steps was 6, now 7"):
        sweep(model_config, tokens, tmp_path, replace(config, training=replace(training, steps=7)))


def test_processes_side_by_side_give_the_same_losses(tmp_path, tokens, model_config, training):
    config = TransferConfig(widths=(1, 2), lrs=(1e-2, 2e-2), seeds=1, training=replace(training, steps=4))
    alone = sweep(model_config, tokens, tmp_path / "one", config)
    assert sweep(model_config, tokens, tmp_path / "two", config, jobs=2) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widths": (1,)}, "at least two different factors"),
        ({"lrs": (2e-3, 1e-3)}, "ascending"),
        ({"seeds": 0}, "at least 1"),
    ],
)
def test_bad_settings(wrong, message):
    with pytest.raises(GrowthError, match=message):
        TransferConfig(**wrong)
