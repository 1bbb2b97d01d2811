from math import sqrt

import pytest
import torch

from fl_lightning.aggregators import squared_distances
from fl_lightning.defenses._angles import model_distances
from fl_lightning.defenses._clusters import errors_within, exact_errors, gap_statistic, two_means


def test_numbers_in_two_groups_against_all_splits():
    random = torch.Generator().manual_seed(0)
    for n in (2, 5, 12):
        values = torch.randn(n, 6, generator=random, dtype=torch.float64)
        upper, gap = two_means(values)
        for column in range(6):
            x = values[:, column].sort().values
            least, where = min(
                (float(x[:k].var(correction=0) * k + x[k:].var(correction=0) * (n - k)), k) for k in range(1, n)
            )
            assert int(upper[:, column].sum()) == n - where
            assert float(gap[column]) == pytest.approx(float(x[where:].mean() - x[:where].mean()))
            assert errors_within(values[:, column], 2)[1] == pytest.approx(least)
    assert two_means(torch.full((4,), 3.0)).upper_C.tolist() == [False] * 4


def test_gap_statistic_counts_groups():
    random = torch.Generator().manual_seed(0)
    crowd = torch.randn(20, 1, generator=random)

    assert gap_statistic(crowd, 7, exact_errors, random) == 1
    assert gap_statistic(torch.cat([crowd, crowd[:6] + 20]), 7, exact_errors, random) == 2
    assert gap_statistic(torch.ones(5, 1), 7, exact_errors, random) == 1


def test_angles_keep_their_digits():
    random = torch.Generator().manual_seed(0)
    theta = 35 * torch.nn.functional.normalize(torch.randn(5000, generator=random, dtype=torch.float64), dim=0)
    x = 1e-4 * torch.randn(6, 5000, generator=random, dtype=torch.float64)
    models = theta + x
    unit = models / models.norm(dim=1, keepdim=True)
    exact = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
    x32 = x.float()
    got = model_distances(squared_distances(x32), x32.double().norm(dim=1), x32.double() @ theta, float(theta.norm()))
    off = ~torch.eye(6, dtype=torch.bool)
    assert float(((got - exact).abs()[off] / exact[off]).max()) < 1e-5
    naive = 1 - torch.nn.functional.cosine_similarity(models.float()[:, None], models.float(), dim=2).double()
    assert float(((naive - exact).abs()[off] / exact[off]).max()) > 1e-3
    assert sqrt(float(exact.max())) < 1e-3
