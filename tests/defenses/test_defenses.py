"""What every defense promises: the conformance suite, and that it finds what it looks for."""

from typing import ClassVar

import pytest
import torch

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
)
from fl_lightning.errors import ConfigError
from fl_lightning.paths import CONFIGS
from fl_lightning.registry import registry
from fl_lightning.testing.defenses import DEFENSE_CHECKS, FILTER_CHECKS, check_defense

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
    "dagmm": [Dagmm(n_byzantine=3, epochs=5, references=5, steps=2, pretrained=on) for on in (False, True)],
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
    "vae": [
        Vae(n_byzantine=3, epochs=5, references=5, steps=2, hidden=16, latent=4, pretrained=on) for on in (False, True)
    ],
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
