"""What A Little Is Enough, inner product manipulation, Gaussian noise and sign flipping can be set to."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fl_lightning.attacks import Alie, Gaussian, Ipm, MinMax, SignFlip, alie, largest_z
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.registry import registry
from fl_lightning.testing.attacks import play


@pytest.mark.parametrize(
    ("clients", "malicious", "z"),
    [(50, 10, 0.2533), (50, 12, 0.3360), (25, 5, 0.2533), (20, 9, 0.9085), (10, 1, 0.0), (10, 6, 0.6745)],
)
def test_the_deviation_of_a_little_is_enough(clients, malicious, z):
    assert largest_z(clients, malicious) == pytest.approx(z, abs=5e-5)


def test_both_signs_of_a_little_is_enough():
    known = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    assert alie(known, 1.5).tolist() == [0.5, 2.0]
    assert alie(known, 1.5, sign="plus").tolist() == [3.5, 2.0]
    minus, plus, both = (
        play(Alie(knowledge="full", z=1.5, **fields)) for fields in ({}, {"sign": "plus"}, {"flip_half": True})
    )
    rows = [played.submitted_CD[played.malicious_C][0] for played in (minus, plus, both)]
    mean_D = minus.honest_CD.mean(0)
    assert_close(rows[0] + rows[1], 2 * mean_D)
    close = (rows[2] - rows[0]).abs() < (rows[2] - rows[1]).abs()
    spread_out = (rows[0] - rows[1]).abs() > 1e-5
    assert 0.4 < float(close[spread_out].double().mean()) < 0.6


def test_a_spread_hides_the_copies_and_keeps_their_mean():
    for attack in (Alie(knowledge="full", z=1.5), Ipm(knowledge="full"), MinMax(knowledge="full")):
        exact, spread = play(attack), play(replace(attack, spread=0.2))
        bad_C = exact.malicious_C
        assert len(torch.unique(exact.submitted_CD[bad_C], dim=0)) == 1
        assert len(torch.unique(spread.submitted_CD[bad_C], dim=0)) == 3
        assert_close(spread.submitted_CD[bad_C].mean(0), exact.submitted_CD[bad_C][0], atol=1e-6, rtol=1e-4)


def test_noise_alone_and_the_mean_reversed():
    noise = play(Gaussian(std=0.5, mean=3.0, replace=True))
    sent = noise.submitted_CD[noise.malicious_C]
    assert float(sent.mean()) == pytest.approx(3.0, abs=0.05)
    assert float(sent.std()) == pytest.approx(0.5, abs=0.05)
    around = play(Gaussian(std=0.5, mean=3.0))
    assert_close(around.submitted_CD - around.honest_CD, noise.submitted_CD * noise.malicious_C[:, None])
    flipped = play(SignFlip(of="mean", knowledge="full", scale=2.0))
    expected_D = -2 * flipped.honest_CD[~flipped.malicious_C].mean(0)
    assert_close(flipped.submitted_CD[flipped.malicious_C], expected_D.expand(3, -1))
    with pytest.raises(ConfigError, match="mean and replace need std"):
        registry("attack").build({"name": "gaussian", "replace": True})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["attack=alie"], "z is 0 for C=10, M=2"),
        (["attack=alie", "participation.malicious=4"], ""),
        (["attack={name: alie, z: 0}", "participation.malicious=4"], "z is 0:"),
        (["attack=alie", "participation={name: k_of_n, k: 5}"], ""),  # what a round comes to is told by attack/idle
        (["attack=model_replacement", "server.optimizer=momentum"], "momentum then repeats the boosted update"),
    ],
)
def test_what_makes_an_attack_idle_is_said_before_it_runs(changes: list[str], said: str):
    experiment = load("digits", changes)
    assert experiment.attack
    cautions = experiment.attack.cautions(experiment)
    assert (said in cautions[0]) if said else not cautions
