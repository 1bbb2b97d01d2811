"""Groups among few rows, always the same for the same rows: HDBSCAN's majority, exact splits of numbers, the gap statistic."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

STARTS, ITERATIONS = 10, 15  # of k-means
TOO_FEW = 4
"""Below this number of rows nothing is clustered: all are kept."""


def hdbscan(distances_CC: Tensor, smallest: int) -> Tensor:
    """`[C]` int64 labels on the CPU, -1 for noise: HDBSCAN on given distances with min_samples 1, a single cluster allowed.

    Args:
        distances_CC: `[C, C]` symmetric, clipped at 0 here.
        smallest: fewest rows of a cluster, at least 2.
    """
    from sklearn.cluster import HDBSCAN

    distances = distances_CC.detach().cpu().double().clamp(min=0).fill_diagonal_(0).numpy()
    if distances.max() <= 1e-12:  # nothing tells the rows apart; HDBSCAN would call them noise
        return torch.zeros(len(distances), dtype=torch.int64)
    model = HDBSCAN(
        metric="precomputed", min_samples=1, min_cluster_size=max(2, smallest), allow_single_cluster=True, copy=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it divides by distances of 0
        return torch.from_numpy(model.fit_predict(distances).astype(np.int64))


def majority(distances_CC: Tensor) -> Tensor | None:
    """`[C]` bool on the CPU, the cluster of more than half of the rows; None when there is none: undecided.

    Args:
        distances_CC: `[C, C]` symmetric.

    Returns:
        All rows for fewer than four, which are not clustered.
    """
    n_rows = len(distances_CC)
    if n_rows < TOO_FEW:
        return torch.ones(n_rows, dtype=torch.bool)
    labels_C = hdbscan(distances_CC, n_rows // 2 + 1)
    return labels_C >= 0 if bool((labels_C >= 0).any()) else None


class Split(NamedTuple):
    """Two groups of numbers.

    Attributes:
        upper_C: `[C, ...]` bool, who is in the group of the larger numbers.
        gap: `[...]` distance of the two means; 0 where all numbers are equal, and then nobody is `upper`.
    """

    upper_C: Tensor
    gap: Tensor


def two_means(values_C: Tensor) -> Split:
    """The split of numbers into two groups with the least squared error: exact 2-means, no random starts.

    With centred numbers in order and S_k the sum of the first k, the error is least where S_k^2 n / (k (n - k)) is largest.

    Args:
        values_C: `[C]` or `[C, F]`, split in every column.

    Example:
        >>> two_means(torch.tensor([5.0, 0.0, 1.0, 6.0]))
        Split(upper_C=tensor([ True, False, False,  True]), gap=tensor(5., dtype=torch.float64))
    """
    centred_C = values_C.double() - values_C.double().mean(0)
    n = len(centred_C)
    if n < 2:
        return Split(torch.zeros_like(centred_C, dtype=torch.bool), torch.zeros_like(centred_C[0]))
    ordered_C, order_C = centred_C.sort(dim=0, stable=True)
    k = torch.arange(1, n, device=centred_C.device).view(-1, *[1] * (centred_C.ndim - 1))
    below = ordered_C.cumsum(0)[:-1]
    split = (below.square() * n / (k * (n - k))).argmax(0, keepdim=True)
    first = below.gather(0, split)[0]
    size = split[0] + 1
    gap = -first * n / (size * (n - size))
    rank_C = order_C.argsort(dim=0)
    apart = gap > 1e-12 * values_C.double().abs().amax(0)
    return Split((rank_C > split) & apart, torch.where(apart, gap, 0.0))


def k_means(points_CF: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """`[C]` int64 labels, named by size and then by lowest member.

    Args:
        points_CF: `[C, F]`.
        k: number of groups, fewer where there are fewer distinct points.
        generator: of the starts, on the CPU.
    """
    points_CF = points_CF.double().cpu()
    k = min(k, len(points_CF.unique(dim=0)))  # type: ignore[no-untyped-call]
    labels = lloyd(points_CF[None], k, generator)[0][0].tolist()
    order = sorted(set(labels), key=lambda label: (-labels.count(label), labels.index(label)))
    return torch.tensor([order.index(label) for label in labels])


def errors_of_groups(points_BCF: Tensor, k_max: int, generator: torch.Generator) -> Tensor:
    """`[B, k_max]` squared errors of k-means in 1, ..., k_max groups, for each of B sets of points."""
    return torch.stack([lloyd(points_BCF, k, generator)[1] for k in range(1, k_max + 1)], dim=1)


def lloyd(points_BCF: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`[B, C]` labels and `[B]` squared errors: the best of ten k-means++ starts, for many small sets at once.

    A library's k-means, called a thousand times by one gap statistic, takes seconds for its calls alone.

    References:
        Arthur, Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.
    """
    points = points_BCF.repeat_interleave(STARTS, dim=0)
    several = torch.arange(len(points))

    def squared_to(centres: Tensor) -> Tensor:
        return (points[:, :, None] - centres[:, None]).square().sum(3)

    centres = points[several, torch.randint(points.shape[1], (len(points),), generator=generator)][:, None]
    while centres.shape[1] < k:
        near = squared_to(centres).amin(2)
        chance = near + 1e-12 * near.amax(1, keepdim=True) + 1e-300
        drawn = torch.multinomial(chance / chance.sum(1, keepdim=True), 1, generator=generator)[:, 0]
        centres = torch.cat([centres, points[several, drawn][:, None]], dim=1)
    for _ in range(ITERATIONS):
        member = torch.nn.functional.one_hot(squared_to(centres).argmin(2), k).to(points)
        sizes = member.sum(1)[:, :, None]
        centres = torch.where(sizes > 0, member.mT @ points / sizes.clamp(min=1), centres)
    squared = squared_to(centres)
    errors = squared.amin(2).sum(1).view(-1, STARTS)
    best = errors.argmin(1)
    labels = squared.argmin(2).view(len(points_BCF), STARTS, -1)[torch.arange(len(points_BCF)), best]
    return labels, errors.amin(1)


def exact_errors(values_BC1: Tensor, k_max: int) -> Tensor:
    """`[B, k_max]` `errors_within` of sets of numbers `[B, C, 1]`."""
    return torch.tensor([errors_within(values_C1[:, 0], k_max) for values_C1 in values_BC1], dtype=torch.float64)


def errors_within(values_C: Tensor, k_max: int) -> list[float]:
    """Least squared errors of numbers in 1, ..., k_max groups, exact (dynamic programming over the ordered numbers).

    Example:
        >>> errors_within(torch.tensor([0.0, 1.0, 5.0, 6.0]), 3)
        [26.0, 1.0, 0.5]
    """
    x = np.sort(values_C.double().cpu().numpy())
    x = x - x.mean()
    n = len(x)
    sums, squares = np.concatenate([[0], x.cumsum()]), np.concatenate([[0], (x * x).cumsum()])
    i, j = np.triu_indices(n + 1, 1)
    cost = np.full((n + 1, n + 1), np.inf)  # of the numbers i, ..., j - 1 in one group
    cost[i, j] = np.maximum(squares[j] - squares[i] - (sums[j] - sums[i]) ** 2 / (j - i), 0)
    best = cost[0]
    errors = [float(best[n])]
    for _ in range(1, k_max):
        best = np.minimum(best, (best[:, None] + cost).min(0))
        errors.append(float(best[n]))
    return errors


def gap_statistic(
    points_CF: Tensor,
    k_max: int,
    errors: Callable[[Tensor, int], Tensor],
    generator: torch.Generator,
    references: int = 10,
) -> int:
    """How many groups: the smallest k with gap_k >= gap_(k+1) - sqrt(1.1) std of the references' ln W_(k+1).

    gap_k = ln(mean error of uniform references in k groups) - ln(error of the points).

    Args:
        points_CF: `[C, F]`, scaled to [0, 1] here.
        k_max: largest number of groups, at most C - 1.
        errors: squared errors `[B, k]` in 1, ..., k groups, of B sets of points `[B, C, F]`.
        generator: of the references, on the CPU.
        references: how many.

    References:
        Tibshirani, Walther, Hastie, "Estimating the number of clusters in a data set via the gap statistic", JRSS B 2001; the
        mean before the logarithm as in the program of Zhang et al., KDD 2022.
    """
    points_CF = points_CF.double().cpu()
    low, high = points_CF.amin(0), points_CF.amax(0)
    scaled_CF = (points_CF - low) / (high - low).clamp(min=1e-300)
    k_max = min(k_max, len(points_CF) - 1)
    if k_max < 2 or not bool((high > low).any()):
        return 1
    drawn = torch.rand((references, *scaled_CF.shape), dtype=torch.float64, generator=generator)
    within = errors(scaled_CF[None], k_max)[0].clamp(min=1e-300)  # no error left: a gap beyond all others
    uniform = errors(drawn, k_max).clamp(min=1e-300)
    gaps = (uniform.mean(0).log() - within.log()).tolist()
    tolerance = (1.1**0.5 * uniform.log().std(0, correction=0)).tolist()
    for k in range(1, k_max):
        if gaps[k - 1] >= gaps[k] - tolerance[k]:
            return k
    return k_max
