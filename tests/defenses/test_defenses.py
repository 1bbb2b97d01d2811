from dataclasses import replace
from math import inf, sqrt
from typing import ClassVar

import pytest
import torch

from fl_lightning.aggregators import Krum, Mean, Median
from fl_lightning.data import Samples
from fl_lightning.defenses import (
    AccuracyCheck,
    AdaptiveClip,
    Afa,
    Alignins,
    Anp,
    Auror,
    BackdoorIndicator,
    Cdp,
    ClientMomentum,
    ClippedClustering,
    Crfl,
    CrossRound,
    Dagmm,
    Deepsight,
    Defense,
    Err,
    ErrLfr,
    FinePrune,
    Flame,
    Flanders,
    Flare,
    Fldetector,
    Fltrust,
    Foolsgold,
    Freqfed,
    Ldp,
    Lfr,
    MultiMetrics,
    NormBound,
    Pdrr,
    Pyod,
    ResidualReweighting,
    Rflbat,
    Sageflow,
    Signguard,
    Snowball,
    Sparsefed,
    StatisticalCheck,
    ThreeSigma,
    Vae,
    Verdict,
    Zeno,
    Zenopp,
    applied,
    clip,
    dagmm_scores,
    epsilon,
    epsilon_rdp,
    vae_scores,
)
from fl_lightning.defenses._dagmm import Mixture, energy
from fl_lightning.defenses._noise import noise
from fl_lightning.defenses._rejection import largest
from fl_lightning.errors import ConfigError
from fl_lightning.metrics import detection
from fl_lightning.paths import CONFIGS
from fl_lightning.randomness import generator
from fl_lightning.registry import registry
from fl_lightning.testing.defenses import DEFENSE_CHECKS, FILTER_CHECKS, check_defense, honest, server

SETTINGS: dict[str, list[Defense]] = {
    "adaptive_clip": [AdaptiveClip(), AdaptiveClip(bound=1.0, noise_multiplier=0.05)],
    "afa": [Afa(), Afa(of="updates")],
    "alignins": [Alignins(), Alignins(lambda_c=2.0, lambda_s=2.0)],
    "anp": [Anp(steps=5)],
    "auror": [Auror(calibration=2), Auror(columns="all", threshold=0.1, beta=1.0)],
    "backdoor_indicator": [BackdoorIndicator(samples=40, epochs=2), BackdoorIndicator(samples=40, start=3)],
    "client_momentum": [ClientMomentum()],
    "clipped_clustering": [
        ClippedClustering(),
        ClippedClustering(clip=False),
        ClippedClustering(window=2, max_tau=1.0),
    ],
    "crfl": [Crfl()],
    "cross_round": [CrossRound(), CrossRound(min_cosine=0.5)],
    "deepsight": [Deepsight(inputs=50)],
    "fine_prune": [FinePrune(epochs=1)],
    "flame": [Flame(), Flame(of="updates", lam=0.0)],
    "flanders": [Flanders(n_byzantine=2, columns=50)],
    "flare": [Flare(samples_per_class=3), Flare(label=1, samples_per_class=2)],
    "fldetector": [Fldetector(window=2), Fldetector(window=2, restart=True)],
    "fltrust": [Fltrust(root_samples=20), Fltrust(root_bias=(0, 0.5))],
    "foolsgold": [Foolsgold(), Foolsgold(features="all", normalise=False)],
    "freqfed": [Freqfed(), Freqfed(of="updates", shape="flat", low=1.0)],
    "multi_metrics": [MultiMetrics(), MultiMetrics(form="program", keep_share=0.5)],
    "residual_reweighting": [ResidualReweighting()],
    "rflbat": [Rflbat()],
    "sageflow": [Sageflow()],
    "signguard": [Signguard(), Signguard(block=True, reference="cosine"), Signguard(reference="distance")],
    "snowball": [
        Snowball(epochs=1, epochs_more=0, hidden=4, latent=2, share=0.3, step=0.2),
        Snowball(form="minus", layers="all", far=2),
    ],
    "sparsefed": [Sparsefed(max_norm=1.0)],
    "three_sigma": [ThreeSigma(), ThreeSigma(features="all", lam=1.0)],
    "zeno": [Zeno(n_byzantine=3), Zeno(n_byzantine=0)],
    "zenopp": [Zenopp(root_samples=20), Zenopp(stale=2, eps=0.1)],
    "accuracy_check": [AccuracyCheck(gamma=0.05), AccuracyCheck(gamma=0)],
    "cdp": [Cdp(std=0.1), Cdp(std=0.0), Cdp(distribution="gaussian")],
    "dagmm": [Dagmm(n_byzantine=3, epochs=5, references=5, steps=2)],
    "err": [Err(n_byzantine=3), Err(n_byzantine=0), Err(n_byzantine=99)],
    "err_lfr": [ErrLfr(n_byzantine=3)],
    "ldp": [Ldp(std=0.1), Ldp(distribution="gaussian", rate=0.05)],
    "lfr": [Lfr(n_byzantine=3)],
    "norm_bound": [NormBound(max_norm=1.0), NormBound(noise_std=0.01)],
    "pdrr": [Pdrr(), Pdrr(faithful=True), Pdrr(q=0.1, faithful=True)],
    "pyod": [
        Pyod(n_byzantine=3),
        Pyod(n_byzantine=3, detector="iforest", options={"n_estimators": 5}),
        Pyod(n_byzantine=0, detector="pca"),
    ],
    "statistical_check": [StatisticalCheck(), StatisticalCheck(max_distance=1e-3, min_cosine=None)],
    "vae": [Vae(n_byzantine=3, epochs=5, references=5, steps=2, hidden=16, latent=4)],
}
CASES = [defense for several in SETTINGS.values() for defense in several]


def test_every_defense_has_settings_and_a_configuration():
    for name in SETTINGS:
        assert registry("defense").build(name) is not None
        assert (CONFIGS / "defense" / f"{name}.yaml").is_file()
    ours = {c.name for c in registry("defense") if c.__module__.startswith("fl_lightning.defenses")}
    assert ours == set(SETTINGS)


@pytest.mark.parametrize("check", DEFENSE_CHECKS.values(), ids=DEFENSE_CHECKS)
@pytest.mark.parametrize("defense", CASES, ids=str)
def test_conformance(defense, check):
    check(defense)


class Sound(Defense):
    """Keeps everybody; what each broken defense spoils."""

    def apply(self, updates_CD, context, state):
        return Verdict(torch.ones(len(updates_CD), dtype=torch.bool), context.weights_C, updates_CD)


class Meddling(Sound):
    name: ClassVar[str] = "meddling"

    def apply(self, updates_CD, context, state):
        return super().apply(updates_CD.zero_(), context, state)


class Paranoid(Sound):
    name: ClassVar[str] = "paranoid"

    def apply(self, updates_CD, context, state):
        return super().apply(updates_CD, context, state)._replace(keep_C=torch.zeros(len(updates_CD), dtype=torch.bool))


class DividesByZero(Sound):
    name: ClassVar[str] = "divides_by_zero"

    def apply(self, updates_CD, context, state):
        spread_C = (updates_CD - updates_CD[0]).norm(dim=1)
        return super().apply(updates_CD, context, state)._replace(scores_C=spread_C / spread_C.max())


class Loose(Sound):
    name: ClassVar[str] = "loose"

    def apply(self, updates_CD, context, state):
        return super().apply(updates_CD.double(), context, state)


class Moody(Sound):
    name: ClassVar[str] = "moody"

    def apply(self, updates_CD, context, state):
        return super().apply(updates_CD + 1e-3 * torch.randn(updates_CD.shape), context, state)


class Moodier(Sound):
    """Remembers outside of its state."""

    name: ClassVar[str] = "moodier"
    calls: ClassVar[list[int]] = []

    def apply(self, updates_CD, context, state):
        self.calls.append(1)
        keep_C = torch.arange(len(updates_CD)) != len(self.calls) % len(updates_CD)
        return super().apply(updates_CD, context, state)._replace(keep_C=keep_C)


class Gossip(Sound):
    """Changes what it remembers of those who are away."""

    name: ClassVar[str] = "gossip"

    def apply(self, updates_CD, context, state):
        count_N = state["count"] + 1 if state else torch.zeros(context.population)
        return super().apply(updates_CD, context, state)._replace(state={"count": count_N})


class FirstCome(Sound):
    name: ClassVar[str] = "first_come"

    def apply(self, updates_CD, context, state):
        keep_C = torch.arange(len(updates_CD)) < 5
        return super().apply(updates_CD, context, state)._replace(keep_C=keep_C)


class Rounding(Sound):
    """Takes cosine distances as one minus a cosine."""

    name: ClassVar[str] = "rounding"

    def apply(self, updates_CD, context, state):
        unit_CD = updates_CD / updates_CD.norm(dim=1, keepdim=True)
        away_C = (1 - unit_CD @ unit_CD.T).sum(1)
        return super().apply(updates_CD, context, state)._replace(keep_C=away_C < away_C.median())


class Untaught(Sound):
    name: ClassVar[str] = "untaught"

    def check(self, aggregator, validation):
        if not validation:
            raise ConfigError("something is missing")


class Secretive(Sound):
    name: ClassVar[str] = "secretive"
    strength: float = 1.0

    def to_dict(self):
        return {"name": self.name}


BROKEN = {
    "configuration_round_trips": Secretive(),
    "shapes_kept": Loose(),
    "input_untouched": Meddling(),
    "deterministic": Moody(),
    "somebody_stays": Paranoid(),
    "missing_validation_taught": Untaught(),
    "state_is_explicit": Moodier(),
    "memory_of_the_absent": Gossip(),
}
LEARNT = {"accuracy_check", "cdp", "dagmm", "err", "err_lfr", "ldp", "lfr", "pdrr", "pyod", "vae"}
"""Those that train on the rows, add noise, or break ties at random."""
FILTERS = [defense for defense in CASES if defense.name not in LEARNT]


@pytest.mark.parametrize("check", FILTER_CHECKS.values(), ids=FILTER_CHECKS)
@pytest.mark.parametrize("defense", FILTERS, ids=str)
def test_filters_measure_rows_only(defense, check):
    check(defense)


@pytest.mark.parametrize(
    ("check", "broken"), [("positions_do_not_matter", FirstCome()), ("near_copies_told_apart", Rounding())]
)
def test_a_broken_filter_fails_its_check(check, broken):
    with pytest.raises(AssertionError):
        FILTER_CHECKS[check](broken)


@pytest.mark.parametrize("check", DEFENSE_CHECKS)
def test_a_broken_defense_fails_its_check(check):
    with pytest.raises(AssertionError):
        DEFENSE_CHECKS[check](BROKEN[check])
    with pytest.raises(AssertionError, match=f"{type(BROKEN[check]).__name__}.* fails the check"):
        check_defense(BROKEN[check])


def test_scores_of_equal_rows_must_be_numbers():
    with pytest.raises(AssertionError, match="NaN"):
        DEFENSE_CHECKS["somebody_stays"](DividesByZero())


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
