"""The rules and pre-aggregators on the two golden inputs: an easy attack and a hard one."""

import math

import pytest
import torch
from torch.testing import assert_close

from fl_lightning.aggregators import (
    Geometry,
    arc,
    bucketing,
    caf,
    centered_clipping,
    cge,
    dnc,
    foundation,
    mda,
    meamed,
    mean,
    monna,
    nnm,
    rlr,
    sign_vote,
    smea,
)
from fl_lightning.aggregators._arc import arc_threshold
from fl_lightning.aggregators._caf import caf_shares
from fl_lightning.aggregators._cge import lowest
from fl_lightning.aggregators._dnc import dnc_rows
from fl_lightning.aggregators._foundation import foundation_matrix, foundation_scores
from fl_lightning.aggregators._mda import mda_rows
from fl_lightning.aggregators._signs import sign_sums
from fl_lightning.aggregators._smea import smea_rows

C, F, D = 9, 2, 12
HONEST = [1.511232, 1.257123, 0.805397, 0.49198]


def golden(scale):
    """x_id = base_d + 0.3 cos(1.7 i + 2.3 d + 0.9 i d) with base_d = 1 + cos(d) / 2; two rows are scale * base_d + ..."""

    def value(i, d):
        base = 1 + 0.5 * math.cos(d)
        return scale * base + 0.1 * math.cos(i + d) if i < F else base + 0.3 * math.cos(1.7 * i + 2.3 * d + 0.9 * i * d)

    return torch.tensor([[value(i, d) for d in range(D)] for i in range(C)], dtype=torch.float64)


EASY, HARD = golden(-1.5), golden(0.7)
REFERENCE = 0.5 * EASY[F:].mean(0) + 0.1 * torch.tensor([math.sin(d) for d in range(D)], dtype=torch.float64)
EVEN = torch.arange(0, D, 2)
BOTH = {"easy": EASY, "hard": HARD}


def close(found, expected):
    assert_close(
        torch.as_tensor(found)[..., : len(expected)],
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-6,
        atol=1e-6,
        check_dtype=False,
    )


def test_the_inputs():
    close(EASY[0], [-2.15, -1.851196, -1.229505, -0.856505])
    close(HARD[0], [1.15, 0.943136, 0.512734, 0.254503])
    close(EASY[2], [1.209961, 1.374142, 0.962413, 0.205013])
    close(REFERENCE, [0.755616, 0.712709, 0.493628, 0.260102])


@pytest.mark.parametrize(
    ("rule", "easy", "hard"),
    [
        (
            lambda x: centered_clipping(x, tau=1.0),
            [0.228184, 0.18552, 0.117064, 0.068571],
            [0.41452, 0.340652, 0.21049, 0.126519],
        ),
        (
            lambda x: centered_clipping(x, tau=1.0, steps=3, reference_D=REFERENCE),
            [1.317998, 1.091053, 0.701343, 0.419926],
            [1.42585, 1.176721, 0.733985, 0.442944],
        ),
        (lambda x: mda(x, F), HONEST, [1.396776, 1.192776, 0.789093, 0.417095]),
        (lambda x: monna(x, F, x[4]), HONEST, [1.487032, 1.249747, 0.808116, 0.490933]),
        (lambda x: meamed(x, F), HONEST, [1.333716, 1.082607, 0.637637, 0.347796]),
        (lambda x: cge(x, F), HONEST, [1.401587, 1.128492, 0.708227, 0.395564]),
        (lambda x: smea(x, F), HONEST, HONEST),
        (lambda x: caf(x, F), [1.511097, 1.256477, 0.804799, 0.491587], [1.50214, 1.242169, 0.791716, 0.480825]),
        (lambda x: dnc(x, F, [EVEN]), HONEST, HONEST),
        (
            lambda x: rlr(x, mean(x), 6),
            [-0.692517, -0.555758, -0.346821, -0.196054],
            [1.42585, 1.176721, 0.733985, 0.442944],
        ),
        (lambda x: sign_vote(x, 1.0), [1.0] * 4, [1.0] * 4),
        (lambda x: nnm(x, F)[0], [0.45873, 0.330111, 0.210444, 0.078133], [1.401587, 1.128492, 0.708227, 0.395564]),
        (lambda x: nnm(x, F)[2], HONEST, [1.427543, 1.213817, 0.794572, 0.413337]),
        (lambda x: mean(nnm(x, F)), [1.277342, 1.05112, 0.673185, 0.400014], [1.453595, 1.190103, 0.748759, 0.44814]),
        (
            lambda x: bucketing(x, 2, order=torch.arange(C))[0],
            [-2.172985, -1.899019, -1.258197, -0.839687],
            [1.127015, 0.895314, 0.484042, 0.271321],
        ),
        (lambda x: bucketing(x, 2, order=torch.arange(C))[-1], *[[1.653511, 1.136444, 0.905073, 0.413057]] * 2),
        (
            lambda x: nnm(arc(x, F), F)[0],
            [0.640769, 0.489223, 0.315861, 0.148454],
            [1.382195, 1.137, 0.712395, 0.420985],
        ),
    ],
)
def test_updates(rule, easy, hard):
    close(rule(EASY), easy)
    close(rule(HARD), hard)


@pytest.mark.parametrize(
    ("rows", "easy", "hard"),
    [
        (lambda x: mda_rows(Geometry(x).squared_distances, F), [2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 6, 8]),
        (lambda x: lowest(Geometry(x).norms, C - F).sort().values, [2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 8]),
        (
            lambda x: lowest(Geometry(x).distances_from(x[4]), C - F).sort().values,
            [2, 3, 4, 5, 6, 7, 8],
            [0, 2, 3, 4, 6, 7, 8],
        ),
        (lambda x: smea_rows(Geometry(x).squared_distances, F)[0], *[[2, 3, 4, 5, 6, 7, 8]] * 2),
        (lambda x: dnc_rows(Geometry(x), F, [EVEN]).rows, *[[2, 3, 4, 5, 6, 7, 8]] * 2),
    ],
)
def test_kept_rows(rows, easy, hard):
    assert rows(EASY).tolist() == easy
    assert rows(HARD).tolist() == hard


def test_smallest_eigenvalue():
    for x in BOTH.values():
        assert abs(smea_rows(Geometry(x).squared_distances, F)[1] - 0.167241) < 1e-6


@pytest.mark.parametrize(
    ("x", "left", "variances"),
    [
        (
            EASY,
            [0.0, 0.0, 0.0, 0.233263, 0.911714, 0.916187, 0.049323, 0.172175, 0.908841],
            [14.049766, 0.189526, 0.167273],
        ),
        (HARD, [0.119134, 0.0, 0.962022, 0.924178, 0.0, 0.212762, 0.728582, 0.794998, 0.899831], [0.205698, 0.166546]),
    ],
    ids=BOTH,
)
def test_caf_turn_by_turn(x, left, variances):
    filtered = caf_shares(Geometry(x).squared_distances, F)
    close(filtered.left, left)
    close(torch.tensor(filtered.variances), variances)
    assert len(filtered.variances) == len(variances)


@pytest.mark.parametrize(
    ("x", "scores"),
    [
        (EASY, [25.130955, 25.535268, 1.56876, 1.923274, 2.242423, 2.003399, 1.992196, 2.429729, 2.383631]),
        (HARD, [0.311623, 0.3829, 0.002799, 0.010879, 0.088139, 0.009645, 0.012717, 0.104427, 0.086797]),
    ],
    ids=BOTH,
)
def test_dnc_scores(x, scores):
    close(dnc_rows(Geometry(x), F, [EVEN]).scores[0], scores)


def test_flipped_share():
    assert float((sign_sums(EASY).abs() < 6).double().mean()) == 1
    assert float((sign_sums(HARD).abs() < 6).double().mean()) == 0


@pytest.mark.parametrize(("x", "threshold"), [(EASY, 3.804814), (HARD, 3.711015)], ids=BOTH)
def test_arc_threshold(x, threshold):
    found, k = arc_threshold(Geometry(x).norms, F)
    assert k == 3
    assert abs(found - threshold) < 1e-6


@pytest.mark.parametrize(("x", "first"), [(EASY, [0.17009, 0.16943]), (HARD, [0.187448, 0.224803])], ids=BOTH)
def test_foundation_copies_row_four(x, first):
    scores = foundation_scores(Geometry(x))
    close(scores, [*first, 1.255472, 1.25796, 1.269354, 1.215387, 1.157856, 1.139022, 0.962018])
    assert torch.equal(foundation(x, 3)[C:], x[4].expand(3, -1))
    assert foundation_matrix(scores, 2)[C:].argmax(1).tolist() == [4, 4]
