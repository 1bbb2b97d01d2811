"""Clipping and noise: its deviation, and the privacy that it buys."""

from dataclasses import replace
from math import inf, sqrt

import pytest
import torch

from fl_lightning.aggregators import Mean, Median
from fl_lightning.defenses import Cdp, Ldp, applied, clip, epsilon, epsilon_rdp
from fl_lightning.defenses._noise import noise
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator
from fl_lightning.testing.defenses import honest, server


def test_clip_golden():
    rows = torch.tensor([[1.0, 10], [2, -1], [3, 4], [4, 100]])
    expected = torch.tensor([[0.4975186, 4.9751863], [2, -1], [3, 4], [0.1998402, 4.9960046]])
    torch.testing.assert_close(clip(rows, 5.0), expected)


@pytest.mark.parametrize("distribution", ["laplace", "gaussian"])
def test_noise_has_the_stated_deviation(distribution):
    drawn = noise(torch.Size([200_000]), 0.4, distribution, generator(0, "noise"))
    assert abs(float(drawn.std()) - 0.4) < 0.005
    assert abs(float(drawn.mean())) < 0.005
    kurtosis = float((drawn / drawn.std()).pow(4).mean())
    assert abs(kurtosis - {"laplace": 6, "gaussian": 3}[distribution]) < 0.4


def test_cdp_adds_noise_once_to_the_model_and_ldp_to_each_row():
    rows, context = 0.01 * honest(), server(Mean())
    cdp = Cdp(std=0.2, rate=0.5)
    assert torch.equal(applied(cdp.apply(rows, context, {}), rows), rows)
    moved = cdp.after_step(context.global_D, context, {})[0] - context.global_D
    assert abs(float(moved.std()) - 0.1) < 0.02
    moved = applied(Ldp(std=0.2).apply(rows, context, {}), rows) - rows
    assert abs(float(moved.std()) - 0.2) < 0.02
    assert float(torch.corrcoef(moved).fill_diagonal_(0).abs().max()) < 0.3
    assert Ldp.at_clients
    assert not Cdp.at_clients


def test_epsilon():
    # Gaussian: delta(epsilon) by direct integration of the privacy loss N(mu^2/2, mu^2)
    for sensitivity, std, rounds in ((1, 1, 1), (2, 5, 10)):
        eps = epsilon(sensitivity, std, rounds, 10, "gaussian", 1e-5)
        mu = sensitivity * sqrt(rounds) / std
        z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
        density = torch.exp(-z.square() / 2) / sqrt(2 * torch.pi)
        loss = mu**2 / 2 + mu * z
        delta = torch.trapezoid(density * (1 - torch.exp(eps - loss)).clamp(min=0), z)
        assert float(delta) == pytest.approx(1e-5, rel=1e-3)
    assert epsilon(1, sqrt(2), 3, 4, "laplace", 1e-5) == pytest.approx(6)
    assert epsilon(1, 0, 1, 1, "gaussian", 1e-5) == inf
    assert epsilon(100, 0.1, 50, 10, "gaussian", 1e-5) < inf


def test_epsilon_is_reported_for_the_mean_only():
    assert Cdp().apply(honest(), server(Mean()), {}).metrics["epsilon"] > 0
    assert not Cdp().apply(honest(), server(Median()), {}).metrics


def test_rdp_accountant():
    pytest.importorskip("opacus")
    exact = epsilon(1, 2, 10, 1, "gaussian", 1e-5)
    bound = epsilon_rdp(1, 2, 10, 1e-5)
    assert exact < bound < 1.2 * exact
    assert epsilon_rdp(1, 2, 10, 1e-5, sample_rate=0.1) < bound / 3
    assert epsilon_rdp(1, 0, 1, 1e-5) == inf
    context = replace(server(Mean()), sample_rate=0.1)
    private = {r: Cdp(std=0.5, distribution="gaussian", accountant=r) for r in ("exact", "rdp")}
    spent = {r: defense.apply(honest(), context, {}).metrics["epsilon"] for r, defense in private.items()}
    assert 0 < spent["rdp"] < spent["exact"]
    # the same neighbours and everybody in every round: the closed form is a lower bound
    whole = private["rdp"].apply(honest(), server(Mean()), {}).metrics["epsilon"]
    assert epsilon(5.0 / 11, 0.5, 1, 1, "gaussian", 1e-5) < whole
    with pytest.raises(ConfigError, match="needs distribution gaussian, got 'laplace'"):
        Cdp(accountant="rdp").check(Mean(), validation=False)
