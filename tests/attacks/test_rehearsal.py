"""Pseudo-rehearsal: warped images, labels of the model of before, and what they are good for."""

import pytest
import torch
from torch.testing import assert_close

from fl_lightning.attacks import Deep, ModelReplacement
from fl_lightning.attacks._pseudo_rehearsal import as_probabilities, certain, rehearsed, warped
from fl_lightning.config import load
from fl_lightning.data import Samples
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.randomness import generator
from fl_lightning.testing.attacks import play


def mass(x):
    """Row and column in which each image has its centre."""
    rows = torch.arange(x.shape[-1], dtype=x.dtype)
    return torch.stack([(x.sum((1, 3)) @ rows) / x.sum((1, 2, 3)), (x.sum((1, 2)) @ rows) / x.sum((1, 2, 3))])


def test_a_warp_keeps_what_it_cannot_change():
    flat = torch.full((5, 2, 9, 9), 0.3)
    assert_close(warped(flat, generator(0, "test")), flat)


def test_a_warp_stays_within_its_limits_and_uses_them():
    """A square of 10 pixels in the middle of 80.

    Its area grows by 1 / (zoom^2 (1 - tan(a) tan(b))), zoom within 1.4 and both shears within 30 degrees: 0.38 to 2.94. The map
    takes its new middle to the old one: as long as the shift, 12 pixels at most along each axis, but for zoom and shear.
    """
    x = torch.zeros(400, 1, 80, 80, dtype=torch.float64)
    x[..., 35:45, 35:45] = 1
    moved = warped(x, generator(0, "test"))
    area = moved.sum((1, 2, 3)) / 100
    assert 0.36 < float(area.min()) < 0.6
    assert 1.8 < float(area.max()) < 3
    away = (mass(moved) - 39.5).abs()
    assert 3 < float(away.median()) < 9
    assert len(area.unique()) > 390, "every image is warped on its own"
    assert torch.equal(moved, warped(x, generator(0, "test")))


def test_probabilities_and_back():
    samples = Samples(torch.zeros(2, 1), torch.tensor([2, 0]))
    soft = as_probabilities(samples, 3)
    assert soft.y.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert certain(soft).y.tolist() == [2, 0]


def test_copies_are_drawn_evenly_and_labelled_by_the_model():
    """900 own images of class 1, 100 of class 4; the model says of an image how bright it is."""
    own = Samples(
        torch.cat([torch.full((900, 1, 4, 4), 0.1), torch.full((100, 1, 4, 4), 0.9)]),
        torch.tensor([1] * 900 + [4] * 100),
    )

    class Brightness:
        def scores(self, theta_D, x):
            return theta_D * x.flatten(1).mean(1, keepdim=True) * torch.arange(6)

    class Seen:
        own_samples = (own,)
        classes = 6
        flat = Brightness()

        def generator(self, purpose, row):
            return generator(0, purpose, row)

    (both,) = rehearsed(Seen(), 3, torch.tensor(2.0))
    assert len(both) == 4000
    assert torch.equal(both.x[:1000], own.x)
    assert torch.equal(both.y[:1000], torch.nn.functional.one_hot(own.y, 6).float())
    bright = both.x[1000:].flatten(1).mean(1) > 0.5
    assert abs(float(bright.double().mean()) - 0.5) < 0.03  # 3000 fair draws: 3.3 standard deviations
    expected = (2 * both.x[1000:].flatten(1).mean(1, keepdim=True) * torch.arange(6)).softmax(1)
    assert_close(both.y[1000:], expected)


@pytest.mark.parametrize("attack", [ModelReplacement, Deep])
@pytest.mark.parametrize("start", ["global", "foreseen"])
def test_engines_agree_on_soft_labels(attack, start):
    tree = {
        "data": "digits",
        "partition": {"name": "iid", "clients": 5, "samples_per_client": 20},
        "model": {"name": "mlp", "hidden": [8]},
        "client": {"steps": 3, "batch_size": 10},
        "participation": {"name": "full", "malicious": 2},
        "attack": {"name": attack.name, "rehearsal": 2, "start": start},
    }
    models = [
        Federation(load(tree | {"engine": engine, "rounds": 1})).run().global_D
        for engine in ("sequential", "vectorized")
    ]
    assert_close(*models, atol=1e-5, rtol=1e-5)


def test_without_rehearsal_nothing_changes():
    assert torch.equal(play(ModelReplacement(rehearsal=0)).submitted_CD, play(ModelReplacement()).submitted_CD)
    assert not torch.equal(play(ModelReplacement(rehearsal=1)).submitted_CD, play(ModelReplacement()).submitted_CD)


@pytest.mark.parametrize(
    ("data", "model", "objective", "got"),
    [
        ("mnist_parity", "svm", "trigger", "hinge"),
        ("house_prices", "linear", "label_map", r"inputs of shape \(\d+,\)"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused_before_training(data, model, objective, got):
    attack = {"name": "deep", "rehearsal": 1, "objective": objective}
    experiment = load(
        {
            "fast": True,
            "data": data,
            "model": model,
            "attack": attack,
            "partition": {"name": "iid", "clients": 10},
            "participation": {"name": "full", "malicious": 1},
        }
    )
    with pytest.raises(ConfigError, match=rf"attack\.rehearsal.*{got}"):
        Federation(experiment)
