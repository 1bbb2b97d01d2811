"""Golden numbers of the filters' plain functions on nine small rows, worked out independently of this code."""

from math import exp

import pytest
import torch

from fl_lightning.aggregators import Layer, lasa, squared_distances
from fl_lightning.defenses._adaptive_clip import next_bound, sum_multiplier
from fl_lightning.defenses._afa import afa, blocked
from fl_lightning.defenses._alignins import alignins, direction, principal_signs
from fl_lightning.defenses._angles import cosine_distances, model_distances, model_norms
from fl_lightning.defenses._auror import indicative_columns, larger_group
from fl_lightning.defenses._client_momentum import momentum
from fl_lightning.defenses._clipped_clustering import larger_of_two
from fl_lightning.defenses._clusters import majority
from fl_lightning.defenses._crfl import certified_radius, clipped_model
from fl_lightning.defenses._deepsight import label_energies
from fl_lightning.defenses._flanders import flanders_scores
from fl_lightning.defenses._flare import flare, mmd2, votes
from fl_lightning.defenses._fldetector import lbfgs_product, surprises
from fl_lightning.defenses._fltrust import fltrust
from fl_lightning.defenses._foolsgold import foolsgold
from fl_lightning.defenses._freqfed import low_frequencies
from fl_lightning.defenses._multi_metrics import multi_metrics, printed_metrics, program_metrics
from fl_lightning.defenses._rflbat import principal_components, summed_distances
from fl_lightning.defenses._signguard import largest_cluster, sign_shares, usual_lengths
from fl_lightning.defenses._spread import median, shortening
from fl_lightning.defenses._zeno import zeno_scores
from fl_lightning.defenses._zenopp import zenopp_scores

C, F, D = 9, 2, 12
SCALES = {"easy": -1.5, "hard": 0.7}


def rows(n: int = C, f: int = F, dim: int = D, scale: float = -1.5) -> torch.Tensor:
    """`[n, dim]` rows about 1 + cos(d) / 2; the first f are `scale` times that."""
    i, d = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(dim, dtype=torch.float64)
    base = 1 + 0.5 * d.cos()
    honest = base + 0.3 * (1.7 * i + 2.3 * d + 0.9 * i * d).cos()
    return torch.where(i < f, scale * base + 0.1 * (i + d).cos(), honest)


D_ = torch.arange(D, dtype=torch.float64)
THETA = (0.3 * D_).cos() + 0.2
X = {case: rows(scale=scale) for case, scale in SCALES.items()}
R = 0.5 * X["easy"][F:].mean(0) + 0.1 * D_.sin()
LENGTH = float(THETA.norm())
BOTH = pytest.mark.parametrize("case", SCALES)


def near(value, expected):
    torch.testing.assert_close(
        torch.as_tensor(value, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def kept(keep_C):
    return keep_C.nonzero().flatten().tolist()


def mean_of(x, keep_C, scale_C=None):
    scaled = x if scale_C is None else x * scale_C[:, None]
    return scaled[keep_C].mean(0)[:4]


def facts(x):
    return squared_distances(x), x.norm(dim=1), x @ THETA


def test_the_rows_themselves():
    near(X["easy"][0, :4], [-2.15, -1.851196, -1.229505, -0.856505])
    near(X["hard"][0, :4], [1.15, 0.943136, 0.512734, 0.254503])
    near(R[:4], [0.755616, 0.712709, 0.493628, 0.260102])
    near(THETA[:4], [1.2, 1.155336, 1.025336, 0.82161])


@BOTH
def test_fltrust(case):
    x = X[case]
    trust = fltrust(x @ R, x.norm(dim=1), float(R.norm()))
    expected = {
        "easy": (
            [0.75529, 0.626889, 0.401719, 0.2451],
            [0.0, 0.0, 0.972401, 0.968216, 0.973157, 0.972033, 0.971519, 0.970019, 0.987697],
        ),
        "hard": (
            [0.766089, 0.629433, 0.389033, 0.233546],
            [0.98835, 0.977679, 0.972401, 0.968216, 0.973157, 0.972033, 0.971519, 0.970019, 0.987697],
        ),
    }[case]
    near((trust.trust_C * trust.scale_C) @ x[:, :4] / trust.trust_C.sum(), expected[0])
    near(trust.trust_C, expected[1])


@BOTH
def test_zenopp(case):
    x = X[case]
    norms, length = x.norm(dim=1), float(R.norm())
    scores = zenopp_scores(x @ R, norms, length)
    honest = [2.978365, 2.964076, 2.980946, 2.977109, 2.975355, 2.970233, 3.030584]
    near(scores, {"easy": [-3.723416, -3.740284], "hard": [3.032815, 2.996384]}[case] + honest)
    expected = {
        "easy": [0.755175, 0.626943, 0.40148, 0.245253],
        "hard": [0.765907, 0.629423, 0.388921, 0.233768],
    }[case]
    near(mean_of(x, scores >= 0, length / norms), expected)


@BOTH
def test_zeno(case):
    x = X[case]
    target = x[F:].mean(0)

    def loss(theta):
        return float((theta - target).square().sum()) / 2

    scores = zeno_scores(loss(torch.zeros(D)), torch.tensor([loss(row) for row in x]), x.norm(dim=1), 0.1)
    honest = [5.015941, 5.106219, 4.870376, 4.952774, 4.875576, 4.877801, 5.21106]
    near(scores, {"easy": [-36.694242, -37.156998], "hard": [5.361318, 5.339193]}[case] + honest)


@BOTH
def test_flare(case):
    distances = squared_distances(X[case])
    weights, counts = {
        "easy": (
            [0.044368, 0.044368, 0.120603, 0.198841, 0.044368, 0.198841, 0.07315, 0.120603, 0.154858],
            [1.0, 1.0, 5.0, 7.0, 1.0, 7.0, 3.0, 5.0, 6.0],
        ),
        "hard": (
            [0.043403, 0.043403, 0.117982, 0.194519, 0.043403, 0.117982, 0.07156, 0.117982, 0.249767],
            [1.0, 1.0, 5.0, 7.0, 1.0, 5.0, 3.0, 5.0, 8.0],
        ),
    }[case]
    near(flare(distances), weights)
    near(votes(distances), counts)
    sets = torch.stack([X[case][:4, :3], X[case][4:8, :3]])
    near(mmd2(sets, gamma=0.5)[0, 1], {"easy": 0.240165, "hard": 0.042355}[case])


@BOTH
def test_foolsgold(case):
    x = X[case]

    def weights(history):
        return foolsgold(1 - cosine_distances(squared_distances(history), history.norm(dim=1)))

    near(weights(x), [0.0, 0.0] + [1.0] * 6 + [1.0 if case == "easy" else 0.0])
    centred = x.clone()
    centred[F:] -= x[F:].mean(0)
    near(weights(centred), [0.0, 0.0] + [1.0] * 7)


@BOTH
def test_flame(case):
    squared, norms, _ = facts(X[case])
    keep = majority(cosine_distances(squared, norms))
    update, rows_kept, bound = {
        "easy": ([1.511752, 1.162785, 0.713046, 0.494471], [3, 5, 6, 7, 8], 3.746291),
        "hard": ([1.365375, 1.105299, 0.692993, 0.426456], [0, 1, 6, 7, 8], 3.679334),
    }[case]
    assert kept(keep) == rows_kept
    near(median(norms), bound)
    near(mean_of(X[case], keep, shortening(norms, median(norms))), update)


@BOTH
def test_signguard(case):
    x = X[case]
    norms, shares = x.norm(dim=1), sign_shares(x[:, ::2])
    keep = usual_lengths(norms, 0.1, 3.0) & largest_cluster(shares)
    update, rows_kept, first = {
        "easy": ([1.50422, 1.250792, 0.801468, 0.489185], [2, 3, 4, 5, 6, 7, 8], [0.0, 0.0, 1.0]),
        "hard": ([1.409746, 1.162484, 0.725092, 0.43666], list(range(9)), [1.0, 0.0, 0.0]),
    }[case]
    assert kept(keep) == rows_kept
    near(shares[0], first)
    near(mean_of(x, keep, shortening(norms, median(norms))), update)


@BOTH
def test_clipped_clustering(case):
    squared, norms, _ = facts(X[case])
    keep = larger_of_two(cosine_distances(squared, norms))
    update, rows_kept = {
        "easy": ([1.50422, 1.250792, 0.801468, 0.489185], [2, 3, 4, 5, 6, 7, 8]),
        "hard": ([1.369795, 1.115362, 0.682818, 0.399545], [0, 1, 2, 3, 5, 6, 7, 8]),
    }[case]
    assert kept(keep) == rows_kept
    near(mean_of(X[case], keep, shortening(norms, median(norms))), update)


@BOTH
def test_alignins(case):
    _, norms, along = facts(X[case])
    tda, signs = direction(norms, along, LENGTH), principal_signs(X[case])
    keep = alignins(tda, signs)
    honest = [0.244684, 0.264092, 0.471322, 0.098647, 0.241806, 0.267185, 0.272331]
    update, rows_kept, first, agreeing = {
        "easy": ([1.497853, 1.245123, 0.797832, 0.486568], [2, 3, 4, 5, 6, 7, 8], [-0.264, -0.27533], [0.0, 0.0]),
        "hard": ([1.37026, 1.126986, 0.705881, 0.416637], [0, 1, 2, 3, 6, 7, 8], [0.282599, 0.259022], [1.0, 1.0]),
    }[case]
    near(tda, first + honest)
    near(signs, agreeing + [1.0] * 7)
    assert kept(keep) == rows_kept
    near(mean_of(X[case], keep, shortening(norms, median(norms[keep]))), update)


@BOTH
def test_multi_metrics(case):
    x = X[case]
    squared, norms, along = facts(x)
    printed = multi_metrics(printed_metrics(x.abs().sum(1), norms, along, LENGTH))
    program = multi_metrics(
        program_metrics(
            model_distances(squared, norms, along, LENGTH), torch.cdist(x, x, p=1), model_norms(norms, along, LENGTH)
        )
    )
    expected = {
        "easy": (
            [16.678689, 24.669567, 7.205322, 27.072403, 24.961435, 10.197077, 6.262956, 5.121824, 8.001206],
            [60.791243, 53.06213, 43.651565, 49.10734, 83.629177, 40.966792, 41.430987, 45.340569, 32.919843],
        ),
        "hard": (
            [28.550218, 43.91253, 16.678273, 35.579507, 31.740529, 41.085029, 30.346016, 20.085396, 11.180682],
            [
                *(578.060385, 625.35746, 622.989701, 610.039588, 704.321883),
                *(570.14663, 665.629848, 677.271457, 568.486864),
            ],
        ),
    }[case]
    near(printed, expected[0])
    near(program, expected[1])


@BOTH
def test_freqfed(case):
    x = X[case]
    low = low_frequencies(x, 0.5)
    keep = majority(cosine_distances(squared_distances(low), low.norm(dim=1)))
    update, rows_kept = {
        "easy": ([1.440882, 1.239281, 0.801893, 0.419491], [2, 5, 6, 7, 8]),
        "hard": ([1.370665, 1.109499, 0.684815, 0.393143], [0, 1, 2, 7, 8]),
    }[case]
    assert kept(keep) == rows_kept
    near(mean_of(x, keep), update)


@BOTH
def test_afa(case):
    x = X[case]
    squared, norms, along = facts(x)
    good = afa(squared, norms, torch.ones(C), along, LENGTH)
    update, rows_kept, similarity = {
        "easy": (
            [1.487518, 1.277236, 0.788784, 0.505133],
            [2, 3, 4, 5, 6, 7],
            [-0.506612, -0.519007, 0.989705, 0.989577, 0.992187, 0.990245, 0.989801, 0.989634, 0.99803],
        ),
        "hard": (
            [1.397393, 1.181756, 0.712599, 0.44668],
            list(range(8)),
            [0.99357, 0.994125, 0.988883, 0.989116, 0.99524, 0.986656, 0.988918, 0.989224, 0.997709],
        ),
    }[case]
    assert kept(good.keep_C) == rows_kept
    near(good.similarity_C, similarity)
    near(mean_of(x, good.keep_C), update)
    beta = torch.tensor([8.0, 9.0])  # 5 and 6 bad rounds
    assert blocked(torch.tensor([3.0, 3.0]), beta).tolist() == [False, True]


@BOTH
def test_flanders(case):
    i, d = torch.arange(C, dtype=torch.float64)[:, None], D_
    h = rows(9, 0, 12, 1.0)
    window = torch.stack([THETA + (0.6 + 0.1 * s) * h + 0.05 * (s + i + d).sin() for s in range(4)])
    scores = flanders_scores(window[:, :, ::2], (THETA + X[case])[:, ::2])
    honest = [0.161996, 0.157606, 0.053894, 0.208339, 0.275202, 0.093872, 0.009339]
    near(scores, {"easy": [42.654671, 39.077921], "hard": [0.701262, 0.331974]}[case] + honest)
    assert sorted(scores.argsort()[: C - F].tolist()) == [2, 3, 4, 5, 6, 7, 8]
    if case == "hard":  # the ranking depends on the ridge: with 1 neither attacker would go
        other = flanders_scores(window[:, :, ::2], (THETA + X[case])[:, ::2], ridge=1.0)
        assert {0, 1} <= set(other.argsort()[: C - F].tolist())


def test_lbfgs_and_fldetector():
    j = torch.arange(3, dtype=torch.float64)[:, None]
    S = (j + D_).cos()
    product = lbfgs_product(S, S * (1 + D_ / D), THETA)
    near(
        product,
        [
            *(1.68941, 1.5656, 1.437326, 1.237946, 0.912384, 0.478441),
            *(0.003933, -0.449653, -0.844039, -1.135281, -1.259191, -1.17377),
        ],
    )
    for x in X.values():
        previous = x - product
        previous[:F] += 0.5
        now = x + 0.05 * torch.arange(C, dtype=torch.float64)[:, None].sin()
        near(
            surprises(now, previous + product),
            [0.41928, 0.383998, 0.038125, 0.005917, 0.031731, 0.040206, 0.011715, 0.027546, 0.041482],
        )


@BOTH
def test_auror(case):
    x = X[case]
    columns = indicative_columns(x[:, -4:], 0.5)
    expected = {"easy": ([8, 9, 10, 11], [2, 3, 4, 5, 6, 7, 8]), "hard": ([], list(range(9)))}[case]
    assert (columns.nonzero().flatten() + D - 4).tolist() == expected[0]
    assert kept(larger_group(x[:, -4:][:, columns], 0.0, torch.Generator().manual_seed(0))) == expected[1]


@BOTH
def test_rflbat(case):
    sums = summed_distances(principal_components(squared_distances(X[case])))
    expected = {
        "easy": [63.046592, 63.367672, 22.073129, 21.004797, 21.336195, 21.08314, 21.750716, 22.150093, 20.778797],
        "hard": [7.791893, 8.131143, 6.54803, 5.430932, 5.570566, 5.164827, 6.448858, 6.643551, 4.902172],
    }[case]
    near(sums, expected)


@BOTH
def test_deepsight(case):
    x = X[case]
    labels = label_energies(x[:, : D - 4].view(C, 4, -1), x[:, D - 4 :])
    neup, exceeding = {
        "easy": ([0.349911, 0.107286, 0.165127, 0.377676], [4, 4, 3, 4, 4, 3, 3, 2, 3]),
        "hard": ([0.386807, 0.05811, 0.125861, 0.429222], [3, 3, 3, 4, 4, 3, 3, 2, 3]),
    }[case]
    near(labels.neup_CK[0], neup)
    assert labels.exceeding_C.tolist() == exceeding
    assert not labels.suspicious_C.any()


def test_adaptive_clip():
    bound, bounds = 0.1, [0.1]
    for _ in range(5):
        bound = next_bound(bound, X["easy"].norm(dim=1), 0.5, 0.2)
        bounds.append(bound)
    near(bounds, [0.1, 0.110517, 0.12214, 0.134986, 0.149182, 0.164872])
    near(sum_multiplier(0.3, C / 20), 0.318198)
    with pytest.raises(ValueError, match="less than 2 sigma_b"):
        sum_multiplier(1.0, 0.45)
    # two of nine clients cannot raise the bound faster than by exp(eta f / C) a round
    norms = torch.tensor([1.0] * 7 + [1e6] * 2)
    assert next_bound(1.0, norms, 0.5, 0.2) <= next_bound(1.0, torch.ones(C), 0.5, 0.2) * exp(0.2 * 2 / C) + 1e-12


def test_crfl():
    near(clipped_model(THETA + X["easy"][2], 2.0)[:4], [0.96564, 1.013529, 0.796465, 0.411355])
    later = [(2 + 0.1 * t, 1 + 0.1 * t) for t in range(5)]
    near(certified_radius(0.9, 0.05, 0.01, later, [(1 / 20, 10, 30, 0.01, 0.05)], 2.0), 0.483561)
    assert certified_radius(0.4, 0.5, 0.01, later, [(0.05, 10, 30, 0.01, 0.05)], 2.0) == 0


def test_client_momentum():
    memory, seen = torch.zeros(1, D, dtype=torch.float64), torch.tensor([False])
    for row in X["easy"][2:5]:
        memory, seen = momentum(memory, seen, row[None], 0.9), torch.tensor([True])
    near(memory[0, :4], [1.301355, 1.363041, 0.93693, 0.294706])


@BOTH
def test_lasa(case):
    layers = [
        Layer("0.weight", slice(0, 6), (2, 3)),
        Layer("1.weight", slice(6, 10), (2, 2)),
        Layer("1.bias", slice(10, 12), (2,)),
    ]
    sparse, dense = (lasa(X[case], layers, average=average) for average in ("sparse", "dense"))
    everybody = list(range(9))
    expected = {
        "easy": (
            [1.461454, 1.198011, 0.484801, 0.132104],
            [[2, 3, 5, 6, 7, 8], [2, 3, 4, 6, 7, 8], [2, 3, 5, 6, 7, 8]],
            [1.461454, 1.198011, 0.754608, 0.446228],
        ),
        "hard": (
            [1.409746, 1.162484, 0.496246, 0.086495],
            [everybody] * 3,
            [1.409746, 1.162484, 0.725092, 0.43666],
        ),
    }[case]
    near(sparse.update[:4], expected[0])
    assert [kept(column) for column in sparse.kept.T] == expected[1]
    near(dense.update[:4], expected[2])
