"""Detectors that learn or try out: they find rows that harm, and say what they need."""

from dataclasses import replace

import pytest
import torch

from fl_lightning.aggregators import Krum, Mean, Median
from fl_lightning.data import Samples
from fl_lightning.defenses import (
    AccuracyCheck,
    Cdp,
    Dagmm,
    Err,
    ErrLfr,
    Lfr,
    Pyod,
    StatisticalCheck,
    Vae,
    dagmm_scores,
    vae_scores,
)
from fl_lightning.defenses._dagmm import Mixture, energy
from fl_lightning.defenses._rejection import largest
from fl_lightning.defenses._spectral import models_on_the_way
from fl_lightning.errors import ConfigError
from fl_lightning.metrics import detection
from fl_lightning.randomness import generator
from fl_lightning.testing.defenses import honest, server


def poisoned():
    """The server's samples are labelled by its direction; rows 0 to 2 move the other way."""
    context = server(Mean())
    truth = torch.randn(context.global_D.shape, generator=generator(5, "truth"))
    samples = Samples(context.validation.x, context.predict(truth, context.validation.x).argmax(1))
    rows = 0.3 * truth + 0.05 * honest()
    rows[:3] *= -1.5
    return rows, replace(context, validation=samples)


@pytest.mark.parametrize(
    "defense",
    [
        Err(n_byzantine=3),
        Lfr(n_byzantine=3),
        AccuracyCheck(gamma=0.2),
        StatisticalCheck(),
        Vae(n_byzantine=3),
        Pyod(n_byzantine=3),
        Pyod(n_byzantine=3, detector="knn"),
    ],
    ids=str,
)
def test_detectors_find_rows_that_harm(defense):
    rows, context = poisoned()
    verdict = defense.apply(rows, context, {})
    assert verdict.keep_C.tolist() == [False] * 3 + [True] * 8
    assert verdict.scores_C[:3].min() > verdict.scores_C[3:].max()


def test_union_removes_what_either_would():
    rows, context = poisoned()
    context = replace(context, aggregator=Median())
    either = ~Err(n_byzantine=2).apply(rows, context, {}).keep_C | ~Lfr(n_byzantine=2).apply(rows, context, {}).keep_C
    assert torch.equal(~ErrLfr(n_byzantine=2).apply(rows, context, {}).keep_C, either)


def test_ties_are_broken_at_random():
    picks = [largest(torch.zeros(10), 3, generator(seed, "ties")) for seed in range(200)]
    counts = torch.stack(picks).sum(0)
    assert int(counts.sum()) == 600
    assert int(counts.min()) > 30


def test_krum_copies_leave_err_without_a_clue():
    rows, context = poisoned()
    rows[:7] = rows[0]
    context = replace(context, aggregator=Krum(n_byzantine=3))
    assert Krum(n_byzantine=3)(rows).kept[:7].any()
    assert Err(n_byzantine=3).apply(rows, context, {}).scores_C.unique().numel() <= 2


def test_statistical_check_survives_one_outlier():
    rows = honest()
    rows[4] *= 100
    verdict = StatisticalCheck(max_distance=10.0, min_cosine=None).apply(rows, server(Mean()), {})
    assert (~verdict.keep_C).nonzero().flatten().tolist() == [4]
    with pytest.raises(Exception, match="max_distance or min_cosine"):
        StatisticalCheck(min_cosine=None)


def test_a_pyod_detector_that_cannot_be_fitted_leaves_rows_and_weights_as_they_are(monkeypatch):
    class Refuses:
        def fit(self, table):
            raise ValueError("too few rows")

    monkeypatch.setattr("fl_lightning.defenses._pyod.build", lambda *settings: Refuses())
    updates, context = honest(), server(Mean())
    verdict = Pyod(n_byzantine=1).apply(updates, context, {})
    assert verdict.keep_C.all()
    assert torch.equal(verdict.updates_CD, updates)
    assert torch.equal(verdict.weights_C, context.weights_C)
    assert verdict.metrics == {"unfitted": 1.0}


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install fl-lightning\[pyod\]"):
        Pyod(n_byzantine=1).check(Mean(), validation=False)
    with pytest.raises(ConfigError, match=r"pip install fl-lightning\[privacy\]"):
        Cdp(accountant="rdp", distribution="gaussian").check(Mean(), validation=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detector": "iforrest"}, "did you mean 'iforest'"),
        ({"detector": "lof", "options": {"neighbors": 3}}, "did you mean 'n_neighbors'"),
        ({"detector": "base"}, "PyOD has no detector 'base'"),
    ],
)
def test_a_wrong_pyod_detector_is_taught(settings, message):
    with pytest.raises(ConfigError, match=message):
        Pyod(n_byzantine=1, **settings).check(Mean(), validation=False)


def test_vae_and_dagmm_know_strange_rows():
    random = generator(3, "rows")
    loadings = torch.randn(2, 30, generator=random)

    def rows(n):
        return torch.randn(n, 2, generator=random) @ loadings + 0.1 * torch.randn(n, 30, generator=random)

    known, fresh = rows(60), rows(20)
    strange = 2 * torch.randn(10, 30, generator=random)
    judged = torch.cat([strange, fresh])
    malicious = torch.arange(30) < 10
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # DAGMM's energy sees two dimensions of code and two of error: it ranks strange rows less surely
        for scores, least in ((vae_scores(known, judged), 0.99), (dagmm_scores(known, judged), 0.7)):
            assert detection(~malicious, malicious, scores, "x")["x/roc_auc"] > least


@pytest.mark.parametrize("kind", [Vae, Dagmm])
def test_a_pretrained_detector_is_fitted_once(kind):
    rows, context = poisoned()
    defense = kind(n_byzantine=3, pretrained=True, epochs=20, references=20, steps=2)
    first = defense.apply(rows, context, {})
    asked = []

    def gradient(theta_D, samples):
        asked.append(theta_D)
        return context.gradient(theta_D, samples)

    later = replace(context, gradient=gradient, round=1, global_D=context.global_D + 0.1)
    second = defense.apply(rows, later, first.state)
    assert not asked
    for key, value in first.state.items():
        assert torch.equal(value, second.state[key])
    # whole models are judged: from elsewhere the same updates lead to others
    assert not torch.equal(first.scores_C, second.scores_C)
    # the server trains towards its own samples, on which the first three rows turn their back
    far = defense.apply(torch.cat([rows[:3] * 10, rows[3:]]), later, first.state)
    assert far.keep_C.tolist() == [False] * 3 + [True] * 8


def test_a_trajectory_is_plain_sgd():
    _, context = poisoned()
    everything = torch.arange(len(context.global_D))
    asked = []

    def gradient(theta_D, samples):
        asked.append(len(samples))
        return torch.ones_like(theta_D)

    rows = models_on_the_way(
        replace(context, gradient=gradient), context.validation, everything, count=3, steps=2, batch_size=4, lr=0.5
    )
    torch.testing.assert_close(rows, torch.stack([context.global_D - step for step in (1.0, 2.0, 3.0)]))
    assert asked == [4] * 6


def test_energy_of_a_mixture_against_torch():
    shares, means = torch.tensor([0.3, 0.7]), torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    spread = torch.tensor([[[1.0, 0.3], [0.3, 0.5]], [[0.2, 0.0], [0.0, 2.0]]])
    points = torch.randn(7, 2, generator=generator(0, "points"))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(shares), torch.distributions.MultivariateNormal(means, spread)
    )
    torch.testing.assert_close(energy(points, Mixture(shares, means, spread)), -mixture.log_prob(points))


def test_missing_validation_is_taught():
    with pytest.raises(ConfigError, match=r"set data\.validation"):
        Err(n_byzantine=1).check(Mean(), validation=False)
