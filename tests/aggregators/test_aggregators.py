"""What every aggregator promises: the conformance suite, weights, rows that are not finite, memory."""

from typing import ClassVar

import pytest
import torch
from random_rows import normal
from torch.testing import assert_close

from fl_lightning.aggregators import (
    Aggregate,
    Aggregator,
    Bulyan,
    Byzfl,
    Caf,
    CenteredClipping,
    Cge,
    Dnc,
    GeometricMedian,
    Krum,
    Lasa,
    Mda,
    Meamed,
    Mean,
    Median,
    Monna,
    MultiKrum,
    Rlr,
    SignVote,
    Smea,
    TrimmedMean,
    bulyan,
    geometric_median,
    krum,
    krum_scores,
    mean,
    median,
    multi_krum,
    trimmed_mean,
)
from fl_lightning.randomness import generator
from fl_lightning.registry import registry
from fl_lightning.testing.aggregators import AGGREGATOR_CHECKS, called, check_aggregator

# Every registered aggregator takes its cases from here.
CANONICAL = {
    "mean": [Mean()],
    "krum": [Krum(n_byzantine=2), Krum(n_byzantine=0), Krum(n_byzantine=2, squared=False)],
    "multi_krum": [MultiKrum(n_byzantine=2), MultiKrum(n_byzantine=2, m=3)],
    "trimmed_mean": [TrimmedMean(n_byzantine=2), TrimmedMean(n_byzantine=0), TrimmedMean(fraction=0.2)],
    "median": [Median(), Median(lower=True)],
    "bulyan": [Bulyan(n_byzantine=2), Bulyan(n_byzantine=1, squared=False)],
    "geometric_median": [GeometricMedian()],
    "byzfl": [Byzfl(rule="Median"), Byzfl(pre=("NNM",), n_byzantine=2), Byzfl(rule="MDA", n_byzantine=2)],
    "caf": [Caf(n_byzantine=2)],
    "centered_clipping": [CenteredClipping(), CenteredClipping(tau=1.0, steps=3)],
    "cge": [Cge(n_byzantine=2)],
    "dnc": [Dnc(n_byzantine=2), Dnc(n_byzantine=2, iterations=3, columns=500, filter_share=1.5)],
    "lasa": [Lasa(), Lasa(average="dense", lambda_n=1.0)],
    "mda": [Mda(n_byzantine=2)],
    "meamed": [Meamed(n_byzantine=2)],
    "monna": [Monna(n_byzantine=2, index=4), Monna(n_byzantine=2)],
    "rlr": [Rlr(theta=4), Rlr(share=0.5, inner=TrimmedMean(n_byzantine=2))],
    "sign_vote": [SignVote(lr=0.02), SignVote(scale="median")],
    "smea": [Smea(n_byzantine=2)],
}
CASES = [case for cases in CANONICAL.values() for case in cases]


# --- conformance -------------------------------------------------------------------------------------------------------


def test_every_registered_aggregator_has_a_canonical_case():
    assert set(CANONICAL) == set(registry("aggregator").names())
    for name, cases in CANONICAL.items():
        assert all(type(case) is registry("aggregator")[name] for case in cases)


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("check", AGGREGATOR_CHECKS.values(), ids=AGGREGATOR_CHECKS)
def test_conformance(check, case):
    check(case, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_conformance_on_the_gpu(case):
    check_aggregator(case, "cuda")
    updates_CD = normal(23, 5000)
    assert_close(case(updates_CD.cuda()).update.cpu(), case(updates_CD).update, rtol=1e-5, atol=1e-6)


def everybody(updates_CD):
    return torch.ones(len(updates_CD), dtype=torch.bool)


class FirstRow(Aggregator):
    name: ClassVar[str] = "first_row"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(updates_CD[0].clone(), everybody(updates_CD))


class InPlace(Aggregator):
    name: ClassVar[str] = "in_place"
    robust: ClassVar[bool] = False

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(updates_CD.div_(len(updates_CD)).sum(0), everybody(updates_CD))


class NotRobust(Aggregator):
    name: ClassVar[str] = "not_robust"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(mean(updates_CD, weights_C), everybody(updates_CD))


class FalselyModest(Aggregator):
    name: ClassVar[str] = "falsely_modest"
    robust: ClassVar[bool] = False

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD), everybody(updates_CD))


class Shrinking(Aggregator):
    name: ClassVar[str] = "shrinking"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(0.9 * median(updates_CD), everybody(updates_CD))


class Wide(Aggregator):
    name: ClassVar[str] = "wide"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD).double(), everybody(updates_CD))


class Random(Aggregator):
    name: ClassVar[str] = "random"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD) + 1e-9 * torch.randn(updates_CD.shape[1]), everybody(updates_CD))


class Unchecked(Aggregator):
    name: ClassVar[str] = "unchecked"
    n_byzantine: int = 2

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD), everybody(updates_CD))


class LetsNanIn(Aggregator):
    name: ClassVar[str] = "lets_nan_in"

    def __call__(self, updates_CD, weights_C=None, *, past=None):
        return self.aggregate(updates_CD, weights_C)

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD), everybody(updates_CD))


class SumsWeights(Aggregator):
    name: ClassVar[str] = "sums_weights"
    robust: ClassVar[bool] = False

    def aggregate(self, updates_CD, weights_C):
        weights_C = torch.full(everybody(updates_CD).shape, 1 / len(updates_CD)) if weights_C is None else weights_C
        return Aggregate(weights_C.to(updates_CD.dtype) @ updates_CD, everybody(updates_CD))


class Overcounts(Aggregator):
    name: ClassVar[str] = "overcounts"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD), everybody(updates_CD))

    def shares(self, updates_CD, weights_C, result):
        return torch.ones(len(updates_CD))


BROKEN = {
    "permutation_invariant": FirstRow(),
    "input_untouched": InPlace(),
    "bounded_under_attack": NotRobust(),
    "translation_equivariant": Shrinking(),
    "equal_rows_returned": Shrinking(),
    "shapes_kept": Wide(),
    "deterministic": Random(),
    "too_few_rows_refused": Unchecked(),
    "non_finite_rows_left_out": LetsNanIn(),
    "weights_are_relative": SumsWeights(),
    "influence_is_a_share": Overcounts(),
}


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_aggregator_fails_its_check(check):
    with pytest.raises((AssertionError, RuntimeError)):
        AGGREGATOR_CHECKS[check](BROKEN[check], "cpu")
    with pytest.raises(AssertionError, match=f"{type(BROKEN[check]).__name__}.* fails the check"):
        check_aggregator(BROKEN[check])


def test_a_robust_rule_declared_as_not_robust_fails():
    with pytest.raises(AssertionError, match="declared as not robust"):
        AGGREGATOR_CHECKS["bounded_under_attack"](FalselyModest(), "cpu")


@pytest.mark.parametrize("name", registry("aggregator").names())
def test_shipped_configurations_build_and_run(name):
    aggregator = registry("aggregator").build(name)
    assert aggregator.name == name
    assert called(aggregator.resolved(50), normal(50, 5)).update.isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_non_finite_rows_are_counted_as_malicious(case):
    updates_CD = normal(15, 2000)
    clean = called(case.dropping(torch.arange(15) < 3), updates_CD[3:])
    updates_CD[0] = torch.nan
    updates_CD[1, 5], updates_CD[2, 7] = torch.inf, -torch.inf
    result = called(case, updates_CD, torch.ones(15))
    assert_close(result.update, clean.update)
    assert not result.kept[:3].any()
    assert result.scores is None or (result.scores[:3] == torch.inf).all()


def test_rows_whose_sum_overflows_are_finite():
    updates_CD = torch.full((5, 8), 3e38)
    assert Median()(updates_CD).kept.all()


@pytest.mark.parametrize("case", [Mean(), Median(), GeometricMedian(), TrimmedMean(n_byzantine=0)], ids=repr)
def test_one_client_only(case):
    updates_CD = normal(1, 5)
    assert_close(case(updates_CD).update, updates_CD[0])


def test_weights():
    updates_CD, weights_C = normal(9, 40, dtype=torch.float64), torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 0])
    shares_C = weights_C.double() / weights_C.sum()
    assert_close(mean(updates_CD, weights_C), shares_C @ updates_CD)
    assert Mean()(updates_CD, weights_C).kept.tolist() == [True] * 8 + [False]
    repeated = updates_CD.repeat_interleave(weights_C, 0)
    assert_close(geometric_median(updates_CD, weights_C=weights_C), geometric_median(repeated), rtol=1e-5, atol=1e-5)
    best = krum_scores(updates_CD, 2).argsort()[:4]
    chosen = weights_C[best].double() / weights_C[best].sum()
    assert_close(multi_krum(updates_CD, 2, m=4, weights_C=weights_C), chosen @ updates_CD[best])
    for rule in (Krum(n_byzantine=2), TrimmedMean(n_byzantine=2), Median(), Bulyan(n_byzantine=1)):
        assert torch.equal(rule(updates_CD, weights_C).update, rule(updates_CD).update)


def test_sixteen_bits_are_summed_in_more():
    updates_CD = torch.full((301, 1100), 1.0, dtype=torch.bfloat16)  # 256 + 1 = 256 in bfloat16
    for value in (mean(updates_CD, torch.ones(301)), trimmed_mean(updates_CD, 3), mean(updates_CD)):
        assert value.dtype == torch.bfloat16
        assert_close(value, updates_CD[0])


@pytest.mark.parametrize("size", [1e3, 1e8, 1e20, 1e30])
def test_geometric_median_stands_against_any_size(size):
    updates_CD = normal(25, 300)
    updates_CD[:12] = size
    assert (geometric_median(updates_CD) - updates_CD[12:].mean(0)).norm() < 40 * 300**0.5 / 5


@pytest.mark.parametrize("function", [trimmed_mean, krum, bulyan])
def test_extra_memory_is_bounded(function):
    """Peak of what torch allocates beside the input, at a size where blocks are small against it."""
    updates_CD = torch.randn(50, 600_000, generator=generator(0, "memory"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function(updates_CD, 10)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert 0 < peak <= 0.3 * updates_CD.nbytes


@pytest.mark.parametrize("rule", [Krum(n_byzantine=1), MultiKrum(n_byzantine=1)], ids=["krum", "multi_krum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_tell_whether_rows_are_finite(rule: Aggregator, dtype: torch.dtype):
    """Without a pass that looks for them, rows with NaN or Inf are still left out, and huge rows are not."""
    updates_CD = torch.randn(7, 5000, generator=generator(0, "rows")).to(dtype)
    for value in (float("nan"), float("inf"), -float("inf")):
        spoiled_CD = updates_CD.clone()
        spoiled_CD[2, 4999] = value
        assert not rule.aggregate(spoiled_CD, None).scores.isfinite().all()
        expected = rule.without(1)(updates_CD[[0, 1, 3, 4, 5, 6]])
        torch.testing.assert_close(rule(spoiled_CD).update, expected.update, rtol=0, atol=0)
    huge_CD = updates_CD * torch.finfo(dtype).max ** 0.6
    assert rule(huge_CD).kept.any()
    assert bool(rule(huge_CD).update.isfinite().all())


def test_the_mean_looks_for_rows_that_are_not_finite_only_where_it_is_not_finite_itself(
    monkeypatch: pytest.MonkeyPatch,
):
    updates_CD = normal(5, 40)
    huge_CD, spoiled_CD = updates_CD * torch.finfo(updates_CD.dtype).max ** 0.99, updates_CD.clone()
    spoiled_CD[1, 3] = torch.inf
    torch.testing.assert_close(Mean()(spoiled_CD).update, updates_CD[[0, 2, 3, 4]].mean(0))
    assert Mean()(spoiled_CD).kept.tolist() == [True, False, True, True, True]
    assert bool(Mean()(huge_CD).update.isfinite().all())
    monkeypatch.setattr("fl_lightning.aggregators._base.finite_rows", lambda rows: pytest.fail("a second pass"))
    assert Mean()(updates_CD).kept.all()


def test_a_row_that_is_not_finite_may_make_room():
    """Four rows are too few for f = 1; three of which none is arbitrary are enough for f = 0."""
    updates_CD = torch.tensor([[0.0], [1.0], [torch.nan], [5.0]])
    assert Krum(n_byzantine=1)(updates_CD).update.tolist() in ([0.0], [1.0])
