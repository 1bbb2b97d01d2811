import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregators import Krum, Mean, Median, TrimmedMean, krum_scores
from fl_lightning.defenses import Pdrr, bloc, pdrr_krum
from fl_lightning.defenses._pdrr_evidence import (
    distances_to,
    near_copies,
    printed_survival,
    sign_correlation,
    survival,
)
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator

KRUM_ROWS = torch.tensor(
    [
        [-0.5, -0.5, 0.5, 0.5, 0],
        [-0.5, -0.5, 0.5, 0.5, 0],
        [1, 1, -2, 1, 0],
        [3, 1, -1, -3, 0],
        [3, 2, -1, 1, 0],
        [1, 1, -1, -2, 0],
    ]
)
TRIM_ROWS = torch.tensor(
    [
        [1.5, 0.5, -0.5, 1.5, 0],
        [1.75, 0.75, -0.75, 1.75, 0],
        [4, 1, -3, 4, 0],
        [2, 4, -2, 6, 0],
        [5, 3, -6, 3, 0],
        [6, 5, -1, 2, 0],
    ]
)
CLEAN = torch.tensor([[1.0, 2, -1, 1, 0], [2, 2, -2, -1, 0]])
RULES = [Krum(n_byzantine=20), TrimmedMean(n_byzantine=20), TrimmedMean(n_byzantine=10), Median()]


def test_krum_golden():
    assert krum_scores(KRUM_ROWS, 1).argmin() == 0
    rho = sign_correlation(KRUM_ROWS, 0, negligible=0)
    torch.testing.assert_close(rho, torch.tensor([1, 1, -0.559017, -1, -0.559017, -1]).double(), atol=1e-6, rtol=0)
    flagged = Pdrr(q=0.5, faithful=True).detect(KRUM_ROWS, Krum(n_byzantine=1)).flagged
    assert flagged.tolist() == [True, True, False, False, False, False]


def test_pearson_of_sign_vectors_is_not_the_cosine():
    rows = torch.tensor([[1.0, 1, -1, 0], [1, -1, -1, 0], [2, 2, 2, 2]])
    rho = sign_correlation(rows, 0)
    torch.testing.assert_close(rho[:2], torch.tensor([1, 0.454545]).double(), atol=1e-6, rtol=0)
    assert rho[2] == 0
    assert sign_correlation(torch.ones(2, 3), 0).tolist() == [1, 1]


def test_trimmed_mean_and_median_golden():
    counts = 4 * (1 - printed_survival(TRIM_ROWS, 2, 3))
    assert counts.tolist() == [4, 4, 2, 2, 2, 2]
    assert (4 * (1 - printed_survival(TRIM_ROWS, 1, 4))).tolist() == [4, 0, 0, 1, 1, 2]
    assert (4 * printed_survival(TRIM_ROWS, 2, 3)).tolist() == [0, 0, 2, 2, 2, 2]
    both = [True, True, False, False, False, False]
    assert Pdrr(q=0.6, faithful=True).detect(TRIM_ROWS, TrimmedMean(n_byzantine=2)).flagged.tolist() == both
    assert Pdrr(q=0.8, faithful=True).detect(TRIM_ROWS, Median()).flagged.tolist() == both
    for rule in (TrimmedMean(n_byzantine=1), TrimmedMean(n_byzantine=2), Median()):
        # the depth of the count does not follow a rule that cuts too little
        flagged = Pdrr(depth=0.4).detect(TRIM_ROWS, rule).flagged
        assert flagged.tolist() == both


def test_printed_rules_flag_the_innocent():
    rows = torch.cat([CLEAN, KRUM_ROWS[2:]])
    assert Pdrr(q=0.5, faithful=True).detect(rows, Krum(n_byzantine=1)).flagged.all()
    rows = torch.cat([CLEAN, TRIM_ROWS[2:]])
    assert (4 * (1 - printed_survival(rows, 2, 3))).tolist() == [4, 2, 3, 2, 2, 3]
    first = [True, False, False, False, False, False]
    assert Pdrr(q=0.8, faithful=True).detect(rows, TrimmedMean(n_byzantine=2)).flagged.tolist() == first
    assert Pdrr(q=0.8, faithful=True).detect(rows, Median()).flagged.tolist() == first


@settings(max_examples=40, deadline=None)
@given(c=st.integers(2, 12), d=st.integers(1, 60), seed=st.integers(0, 9999), ties=st.booleans())
def test_survival_against_sorting(c, d, seed, ties):
    rows = torch.randn(c, d, generator=generator(seed, "rows"))
    rows = rows.round() if ties else rows
    cut = (c - 1) // 2
    shares = survival(rows, cut, c - 1 - cut)
    order = torch.randperm(c, generator=generator(seed, "order"))
    torch.testing.assert_close(survival(rows[order], cut, c - 1 - cut), shares[order])
    if not ties:
        torch.testing.assert_close(shares, printed_survival(rows, cut, c - 1 - cut))
    moved = (rows.sort(0).values[cut : c - cut] != 0).any(0).any()
    torch.testing.assert_close(float(shares.sum()), float(c - 2 * cut))
    assert moved or shares.unique().numel() == 1


def honest(seed: int, d: int = 20_000) -> torch.Tensor:
    """50 clients that agree weakly; a fifth of the coordinates moves for nobody."""
    random = generator(seed, "honest")
    common = torch.randn(d, generator=random)
    rows = 1e-3 * (0.7 * common + torch.randn(50, d, generator=random) * (0.5 + torch.rand(50, 1, generator=random)))
    rows[:, : d // 5] = 0
    return rows


def fang(rows: torch.Tensor, rule, noise: float = 0.0) -> torch.Tensor:
    direction = rule(rows).update.sign()
    benign, random = rows[20:], generator(0, "fang")
    if isinstance(rule, Krum):
        strength = 1e-3
        while True:
            bad = (-strength * direction).repeat(20, 1)
            bad += noise * torch.randn(bad.shape, generator=random)
            if rule(torch.cat([bad, benign])).kept[:20].any():
                break
            strength /= 2
    else:
        reach = 1 + 0.05 * torch.rand(20, rows.shape[1], generator=random)
        bad = torch.where(direction < 0, benign.max(0).values, benign.min(0).values) * reach
        bad[:, direction == 0] = 0
    return torch.cat([bad, benign])


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_tells_attack_from_no_attack(rule):
    detector = Pdrr()
    for seed in range(3):
        rows = honest(seed)
        assert not detector.detect(rows, rule).flagged.any()
        flagged, scores = detector.detect(fang(rows, rule), rule)
        assert flagged[:20].all()
        assert not flagged[20:].any()
        assert scores[:20].min() > scores[20:].max()


def test_a_weakened_honest_model_is_a_bloc():
    # where iid clients agree, Fang's attack on Krum finds no direction to oppose and sends a part of the honest step
    # and copies with so much noise are not near ones
    random = generator(0, "iid")
    common = torch.randn(20_000, generator=random)
    rows = 1e-3 * (2.2 * common + torch.randn(50, 20_000, generator=random))
    rule, detector = RULES[0], Pdrr()
    assert not detector.detect(rows, rule).flagged.any()
    rows[:20] = 0.9 * rows[20:].mean(0) + 1e-4 * torch.randn(20, 20_000, generator=random)
    flagged, scores = detector.detect(rows, rule)
    assert scores[20:].max() > 0.7
    assert flagged[:20].all()
    assert not flagged[20:].any()


def test_clients_of_the_same_class_are_no_bloc():
    # five clients that hold one class and no other move as one, the others elsewhere
    random = generator(0, "classes")
    classes = 1e-3 * torch.randn(10, 20_000, generator=random)
    rows = classes.repeat_interleave(5, 0) + 5e-5 * torch.randn(50, 20_000, generator=random)
    rows[:5] *= 0.3  # nearest to everybody: Krum's choice
    rule = RULES[0]
    assert rule(rows).kept[:5].any()
    assert not Pdrr().detect(rows, rule).flagged.any()
    small = Pdrr(crowd=0.05).detect(rows, rule)
    assert small.flagged.tolist() == [True] * 5 + [False] * 45
    assert small.scores[:5].min() > 0.9
    # as many that send copies are found whatever their number
    rows[:5] = rows[0]
    assert Pdrr().detect(rows, rule).flagged.tolist() == [True] * 5 + [False] * 45


def test_honest_rows_that_hardly_move_are_no_copies():
    # as short as the crafted rows, and so nearer to them than 2 % of what lies beyond
    rows = honest(0)
    rows[20:23] *= 1e-3
    noise = torch.randn(20, rows.shape[1], generator=generator(0, "copies"))
    rows[:20] = -5e-4 * rows[30:].mean(0) * (1 + 1e-3 * noise)
    assert near_copies(distances_to(rows, 0), 0.02).tolist() == [True] * 23 + [False] * 27
    assert pdrr_krum(rows, 0).flagged.tolist() == [True] * 20 + [False] * 30


def test_noise_in_unmoved_coordinates_does_not_hide_copies():
    rows = fang(honest(0), RULES[0], noise=1e-9)
    assert Pdrr(q=0.95).detect(rows, RULES[0]).flagged[:20].all()
    assert sign_correlation(rows, 0, negligible=0)[1] < 0.97


@pytest.mark.parametrize("share", [0.9, 0.03, 0.001])
def test_copies_are_found_however_weak_the_model_that_they_send(share):
    # at a share of 0.001 the noise on the copies is larger than what they have in common, and no sign agrees
    random = generator(0, "retreat")
    rows = 1e-3 * (1.5 * torch.randn(20_000, generator=random) + torch.randn(50, 20_000, generator=random))
    noise = torch.randn(20, 20_000, generator=random)
    rows[:20] = share * rows[20:].mean(0) + 1e-3 * noise / noise.norm(dim=1, keepdim=True)
    rule = RULES[0]
    assert rule(rows).kept[:20].any()
    flagged, scores = Pdrr().detect(rows, rule)
    assert flagged.tolist() == [True] * 20 + [False] * 30
    assert scores[:20].min() > scores[20:].max()
    assert share > 0.01 or not bloc(sign_correlation(rows, 0), 0.85, 0.1).any()


def test_near_copies_golden():
    assert near_copies(torch.tensor([0.3, 0.0, 0.006, 0.9, 1.0, 0.8]), 0.02).tolist() == [
        False,
        True,
        True,
        *[False] * 3,
    ]
    # two copies, four near-copies: the larger group, and no group of more than half
    nested = torch.tensor([0.0, 0.0, 0.001, 0.001, 1.0, 1.0, 1.0, 1.0])
    assert near_copies(nested, 0.02).tolist() == [True] * 4 + [False] * 4
    assert near_copies(nested[:6], 0.02).tolist() == [True] * 2 + [False] * 4
    assert near_copies(torch.tensor([0.0, 0.0, 1.0, 1.0]), 0).tolist() == [True, True, False, False]
    for nobody in ([0.0] * 6, [0.0], [0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.3, 0.8, 0.6, 0.7, 0.9]):
        assert not near_copies(torch.tensor(nobody), 0.02).any()


@settings(max_examples=40, deadline=None)
@given(c=st.integers(4, 30), seed=st.integers(0, 9999), scale=st.floats(1e-12, 1e12))
def test_near_copies_need_a_void_around_them(c, seed, scale):
    random = generator(seed, "void")
    rows = torch.randn(c, 50, generator=random)
    assert not near_copies(distances_to(rows, 0), 0.02).any()  # honest: nothing to see
    copies = int(torch.randint(2, c // 2 + 1, (1,), generator=random))
    rows[:copies] = rows[0] + 1e-4 * rows[:copies]
    order = torch.randperm(c, generator=random)
    distances = scale * distances_to(rows[order], int(order.argmin()))
    assert near_copies(distances, 0.02).tolist() == (order < copies).tolist()


def test_distances_to_a_row():
    rows = torch.randn(7, 70_000, generator=generator(0, "distances"))
    rows[4] = rows[2]
    expected = torch.cdist(rows.double(), rows[2:3].double())[:, 0]
    torch.testing.assert_close(distances_to(rows, 2), expected, rtol=1e-5, atol=0)
    assert distances_to(rows, 2)[4] == 0


def test_bloc_needs_company_and_a_majority_of_others():
    assert not bloc(torch.tensor([1.0, 0.1, 0.0, 0.0]), 0.9, 0.2).any()
    assert not bloc(torch.tensor([1.0, 1.0, 1.0, 0.0]), 0.9, 0.2).any()
    two = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert bloc(two, 0.9, 0.2).tolist() == [True, True, False, False]
    assert not bloc(two, 0.9, 0.2, least=2.1).any()


def test_other_rules_are_refused():
    with pytest.raises(ConfigError, match=r"krum, trimmed_mean or median, got 'mean'"):
        Pdrr().check(Mean(), validation=True)


def test_rule_adapts_when_rows_were_removed_before():
    assert not Pdrr().detect(honest(0)[:30], Krum(n_byzantine=20)).flagged.any()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_sample_of_the_coordinates_suffices(rule):
    rows, some = fang(honest(1), rule), generator(0, "coordinates")
    few, every = (Pdrr(coordinates=n).detect(rows, rule, some) for n in (5_000, None))
    assert torch.equal(few.flagged, every.flagged)
    assert few.flagged[:20].all()
    assert float((few.scores - every.scores).abs().max()) < 0.1
