"""Pre-aggregators in front of rules: against applying the matrices by hand, against byzfl, and the conformance suite."""

import pickle
import warnings

import pytest
import torch
from torch.testing import assert_close

from fl_lightning.aggregators import (
    Aggregate,
    Arc,
    Bucketing,
    Caf,
    CenteredClipping,
    Cge,
    Clip,
    Foundation,
    GeometricMedian,
    Geometry,
    Krum,
    Mean,
    Median,
    Mixed,
    Monna,
    MultiKrum,
    Nnm,
    Past,
    TrimmedMean,
    _blocks,
    _geometry,
    arc,
    bucketing,
    centered_clipping,
    clipped_rows,
    meamed,
    monna,
    nnm,
)
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator
from fl_lightning.registry import registry
from fl_lightning.testing.aggregators import AGGREGATOR_CHECKS

CASES = [
    Mixed(rule=Krum(n_byzantine=2), pre=(Nnm(),)),
    Mixed(rule=Median(), pre=(Arc(n_byzantine=2), Nnm(n_byzantine=2))),
    Mixed(rule=TrimmedMean(n_byzantine=1), pre=(Bucketing(),)),
    Mixed(rule=Mean(), pre=(Clip(max_norm=1.0),)),
    Mixed(rule=TrimmedMean(n_byzantine=3), pre=(Foundation(copies=1),)),
    Mixed(rule=CenteredClipping(), pre=(Nnm(n_byzantine=2),)),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "mixing"), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("check", AGGREGATOR_CHECKS.values(), ids=AGGREGATOR_CHECKS)
def test_conformance(check, case):
    check(case, "cpu")


@pytest.mark.parametrize(
    "rule",
    [Krum(n_byzantine=2), MultiKrum(n_byzantine=2), GeometricMedian(), Caf(n_byzantine=2), Cge(n_byzantine=2)],
    ids=repr,
)
def test_a_chain_is_its_steps_by_hand(rule):
    """Without ever making the mixed rows, the rule gives what it gives on them."""
    updates_CD, weights_C = normal(11, 300), torch.arange(1, 12)
    by_hand = nnm(arc(updates_CD, 2), 2)
    mixed = Mixed(rule=rule, pre=(Arc(n_byzantine=2), Nnm(n_byzantine=2)))
    result, expected = mixed(updates_CD), rule(by_hand)
    assert_close(result.update, expected.update, rtol=1e-6, atol=1e-6)
    W = mixed.chain(Geometry(updates_CD), None, Past()).matrix
    assert torch.equal(result.kept, (W.T @ expected.kept.double()) > 0)
    assert_close(W @ updates_CD, by_hand, rtol=1e-9, atol=1e-12)
    influence = W.T @ rule.influence(by_hand).double()
    assert_close(mixed.influence(updates_CD), influence / influence.sum(), rtol=1e-4, atol=1e-6)
    weights = mixed.chain(Geometry(updates_CD), weights_C, Past()).weights
    assert weights is not None
    assert_close(weights, (W > 0).double() @ weights_C.double() / (W > 0).sum(1))


def test_a_clipped_row_shrinks_once():
    updates_CD = torch.tensor([[1.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    weights_C = torch.tensor([1.0, 3.0])
    found = Mixed(rule=Mean(), pre=(Clip(max_norm=1.0),))(updates_CD, weights_C).update
    assert_close(found, torch.tensor([0.25, 0.75], dtype=torch.float64))


def test_buckets_weigh_as_many_as_they_hold():
    updates_CD, weights_C = normal(9, 40), torch.arange(1, 10)
    for weights in (None, weights_C):
        found = Mixed(rule=Mean(), pre=(Bucketing(s=2),))(updates_CD, weights)
        order = torch.randperm(9, generator=Past().generator("bucketing"))
        shares = torch.ones(9) if weights is None else weights.double()
        groups = [order[i : i + 2] for i in range(0, 9, 2)]
        by_hand = sum(shares[g].sum() * updates_CD[g].mean(0) for g in groups) / shares.sum()
        assert_close(found.update, by_hand.to(found.update))
        assert found.scores is None


def test_what_is_trusted_stays_unmixed():
    updates_CD = normal(9, 50)
    found = Mixed(rule=Monna(n_byzantine=2, index=4), pre=(Nnm(),))(updates_CD)
    assert_close(found.update, monna(nnm(updates_CD, 2), 2, updates_CD[4]))
    reference_D = 0.3 * updates_CD[0]
    mixed = Mixed(rule=CenteredClipping(tau=0.5, steps=2), pre=(Nnm(n_byzantine=2),))
    expected = centered_clipping(nnm(updates_CD, 2), tau=0.5, steps=2, reference_D=reference_D)
    assert_close(mixed(updates_CD, past=Past(reference_D)).update, expected)


def test_passes_over_the_matrix_are_two(monkeypatch):
    """Counted, not timed: one to measure, one to sum, whatever the chain."""
    counts = {"measured": 0, "summed": 0}

    def counted(name, function):
        def call(*args, **more):
            counts[name] += 1
            return function(*args, **more)

        return call

    for module in (_blocks, _geometry):
        monkeypatch.setattr(module, "gram", counted("measured", module.gram))
        monkeypatch.setattr(module, "weighted_sum", counted("summed", module.weighted_sum))
    made = []
    real = _blocks.Mixtures.rows.func
    monkeypatch.setattr(_blocks.Mixtures, "rows", property(lambda self: made.append(1) or real(self)))
    for rule in (Krum(n_byzantine=3), MultiKrum(n_byzantine=3), Caf(n_byzantine=3), Cge(n_byzantine=3)):
        counts.update(measured=0, summed=0)
        Mixed(rule=rule, pre=(Arc(), Nnm()))(normal(12, 200))
        assert counts == {"measured": 1, "summed": 1}
    assert not made


@pytest.mark.parametrize(("n_rows", "f"), [(9, 2), (12, 3), (20, 6)])
@pytest.mark.parametrize("seed", [0, 1])
def test_agreement_with_byzfl(n_rows, f, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        byzfl = pytest.importorskip("byzfl")
    updates_CD = normal(n_rows, 500, seed=seed)
    updates_CD[:f] = 3 * updates_CD[:f] + 1
    close = {"rtol": 1e-5, "atol": 1e-4, "check_dtype": False}  # byzfl rounds some of them to float32
    assert_close(nnm(updates_CD, f), byzfl.NNM(f=f)(updates_CD), **close)
    assert_close(arc(updates_CD, f), byzfl.ARC(f=f)(updates_CD.clone()), **close)
    assert_close(clipped_rows(updates_CD, 5.0), byzfl.Clipping(c=5.0)(updates_CD.clone()), **close)
    assert_close(meamed(updates_CD, f), byzfl.Meamed(f=f)(updates_CD), **close)
    assert_close(monna(updates_CD, f, updates_CD[4]), byzfl.MoNNA(f=f, idx=4)(updates_CD), **close)
    theirs = byzfl.CenteredClipping(L=3, tau=4.0)
    first = theirs(updates_CD)
    assert_close(centered_clipping(updates_CD, tau=4.0, steps=3), first, **close)
    again = theirs(updates_CD)  # it starts from what it returned before
    assert_close(centered_clipping(updates_CD, tau=4.0, steps=3, reference_D=first), again, **close)
    order = torch.arange(n_rows)
    groups = torch.stack([part.mean(0) for part in updates_CD.split(2)])
    assert_close(bucketing(updates_CD, 2, order=order), groups, **close)


def test_conditions_count_what_comes_out():
    with pytest.raises(ValueError, match=r"Krum needs C > 2f \+ 2, got C=5, f=2"):
        Mixed(rule=Krum(n_byzantine=2), pre=(Bucketing(),)).check(10)
    with pytest.raises(ValueError, match=r"bucketing needs ceil\(C / s\) > 2f, got C=20, s=2, f=6: 10 groups"):
        Mixed(rule=Median(), pre=(Bucketing(n_byzantine=6),)).check(20)
    assert Mixed(rule=Krum(n_byzantine=3), pre=(Arc(), Nnm())).without(1).steps == (
        Arc(n_byzantine=2),
        Nnm(n_byzantine=2),
    )
    rule = Mixed(rule=Median(), pre=(Foundation(n_byzantine=6),))
    assert "10 copies and f=6 of C=20 rows are a majority" in rule.cautions(20)[0]
    assert not Mixed(rule=Median(), pre=(Foundation(n_byzantine=2),)).cautions(10)
    poisoned_C = torch.arange(9) < 2
    assert "copied_malicious" in Mixed(rule=Median(), pre=(Foundation(),)).figures(
        Geometry(normal(9, 30)), None, Past(), poisoned_C
    )


def test_the_key_pre():
    build = registry("aggregator").build
    rule = build({"name": "krum", "n_byzantine": "auto", "pre": ["arc", {"name": "nnm"}]})
    assert isinstance(rule, Mixed)
    assert rule.name == "arc-nnm-krum"
    assert rule.resolved(10) == build({"name": "krum", "n_byzantine": 2, "pre": ["arc", "nnm"]})
    assert build(rule.to_dict()) == rule
    assert build({"name": "mean", "pre": []}) == Mean()
    for value, message in [
        ({"name": "median", "pre": ["nnm"]}, "pre: nnm needs n_byzantine, as median has none"),
        ({"name": "median", "pre": ["nmn"]}, "pre: unknown pre_aggregator 'nmn'; did you mean 'nnm'"),
        ({"name": "median", "pre": [{"name": "clip", "max_norm": 0}]}, "pre.max_norm: .*greater than 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build(value)


def test_a_share_of_the_rows_may_be_malicious():
    build = registry("aggregator").build
    rule = build({"name": "krum", "n_byzantine": 0.3, "pre": ["nnm"]})
    assert (
        rule.to_dict()["rule"]["n_byzantine"] == 0.3
        if "rule" in rule.to_dict()
        else rule.to_dict()["n_byzantine"] == 0.3
    )
    assert build(rule.to_dict()) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert rule != build({"name": "krum", "n_byzantine": 0.2, "pre": ["nnm"]})
    assert rule.resolved(10) == build({"name": "krum", "n_byzantine": 3, "pre": ["nnm"]})
    assert build({"name": "cge", "n_byzantine": 0.3}).resolved(2).n_byzantine == 1, "at least one"
    with pytest.raises(ValueError, match="f=4"):  # what is asked for is not lowered as `auto` is
        build({"name": "krum", "n_byzantine": 0.4}).resolved(10).check(10)
    for value in (1.5, -0.2):
        with pytest.raises(ConfigError, match="n_byzantine"):
            build({"name": "krum", "n_byzantine": value})


def test_a_huge_row_moves_its_neighbours_mean_but_not_the_median_of_it():
    """The claim of mixing: rows become more alike, so that a rule of few rows uses many."""
    updates_CD = 1 + 0.1 * normal(20, 200)
    updates_CD[:6] = -5
    alone, mixed = Krum(n_byzantine=6), Mixed(rule=Krum(n_byzantine=6), pre=(Nnm(),))
    centre_D = updates_CD[6:].mean(0)
    errors = [float((rule(updates_CD).update - centre_D).norm()) for rule in (alone, mixed)]
    assert errors[1] < errors[0] / 3


def test_bucketing_too_coarse_for_its_attackers_fails():
    """The negative control: with s = 2 and 6 of 20, the median of groups is the attackers'."""
    updates_CD = 1 + 0.1 * normal(20, 100)
    updates_CD[:6] = -100
    spoiled = 0
    for seed in range(20):
        past = Past(generator=lambda purpose, seed=seed: generator(seed, purpose))
        result: Aggregate = Mixed(rule=Median(), pre=(Bucketing(s=2),))(updates_CD, past=past)
        spoiled += float(result.update.mean()) < 0
    assert spoiled >= 5
    assert float(Median()(updates_CD).update.mean()) > 0.5
