"""How much malicious updates stand out from the benign ones of their round."""

from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_lightning.aggregators import Layout, finite_rows
from fl_lightning.data import Samples
from fl_lightning.models import FlatNetwork

COORDINATES = 2000
"""How many coordinates the distributions are compared on; a share is known to about 1 %."""


def stealth(updates_CD: Tensor, malicious_C: Tensor) -> dict[str, float]:
    """Direction, length, distance and distribution of malicious updates.

    `stealth/cosine`: mean over malicious m of cos(delta_m, sum of the other updates); `stealth/l2_max`: largest
    ||delta_m - delta_n|| over malicious m and benign n; `stealth/norm_ratio`: largest malicious norm over the median
    benign norm; `stealth/spread`: largest distance of a malicious update from the first one, over the same norm;
    `stealth/opposition`: minus the cosine between the mean malicious and the mean benign update, 1 where they point to
    opposite sides of the global model; `stealth/distribution`: see `distribution`.

    Args:
        updates_CD: `[C, D]` submitted updates.
        malicious_C: `[C]` bool.

    Returns:
        Nothing for figures that have no denominator (no malicious or no benign row, zero norms) or are no number. Rows with NaN
        or Inf, which no server lets through, are left out.

    References:
        Multi-party targeted poisoning, tables 2 and 3: the contrast objective is the aggregate of all others. PDRR, figure 2:
        crafted models lie together beyond the previous global model.
    """
    finite_C = finite_rows(updates_CD)
    if not bool(finite_C.all()):
        updates_CD, malicious_C = updates_CD[finite_C], malicious_C[finite_C]
    bad_MD, good_BD = updates_CD[malicious_C], updates_CD[~malicious_C]
    if not len(bad_MD) or not len(good_BD):
        return {}
    others_MD = updates_CD.sum(0) - bad_MD
    figures = {
        "stealth/cosine": float(F.cosine_similarity(bad_MD, others_MD, dim=1).mean()),
        "stealth/l2_max": float(torch.cdist(bad_MD.double(), good_BD.double()).max()),
        "stealth/opposition": -float(F.cosine_similarity(bad_MD.mean(0), good_BD.mean(0), dim=0)),
        "stealth/distribution": distribution(updates_CD, malicious_C),
    }
    usual = float(good_BD.norm(dim=1).median())
    if usual > 0:
        figures["stealth/norm_ratio"] = float(bad_MD.norm(dim=1).max()) / usual
        figures["stealth/spread"] = float((bad_MD - bad_MD[0]).norm(dim=1).max()) / usual
    return {name: value for name, value in figures.items() if isfinite(value)}


def layer_distributions(updates_CD: Tensor, malicious_C: Tensor, layout: Layout) -> dict[str, float]:
    """`stealth/distribution_layer<n>`: `distribution` of the n-th layer that has parameters, weight and bias together.

    Args:
        updates_CD: `[C, D]` submitted updates.
        malicious_C: `[C]` bool.
        layout: what the columns mean.

    Returns:
        Nothing without malicious or benign rows. Rows with NaN or Inf are left out.

    References:
        Deep model poisoning, figure 7 a-d.
    """
    finite_C = finite_rows(updates_CD)
    updates_CD, malicious_C = updates_CD[finite_C], malicious_C[finite_C]
    if not bool(malicious_C.any()) or bool(malicious_C.all()):
        return {}
    columns: dict[str, list[slice]] = {}
    for layer in layout.layers:
        if layer.trained:
            columns.setdefault(layer.name.rpartition(".")[0], []).append(layer.slice)
    return {
        f"stealth/distribution_layer{number}": distribution(
            torch.cat([updates_CD[:, one] for one in of_layer], dim=1), malicious_C
        )
        for number, of_layer in enumerate(columns.values())
    }


def distribution(updates_CD: Tensor, malicious_C: Tensor) -> float:
    r"""How unlike the benign ones the values of a malicious update are distributed: a Kolmogorov-Smirnov distance.

    $\max_x |F_m(x) - F(x)|$, the mean over malicious m, with $F_m$ the distribution of the values of one update and F that of
    all benign ones together. 0: alike, 1: no value in common. What the papers show as histograms.

    Args:
        updates_CD: `[C, D]` submitted updates; evenly spaced coordinates of them are looked at.
        malicious_C: `[C]` bool, neither none nor all.

    Example:
        >>> distribution(torch.tensor([[1.0, 2.0], [1.0, 2.0], [5.0, 6.0]]), torch.tensor([False, False, True]))
        1.0

    References:
        Deep model poisoning, figure 7; multi-party targeted poisoning, figures 6-9.
    """
    values_CS = updates_CD[:, :: max(1, updates_CD.shape[1] // COORDINATES)]
    usual = values_CS[~malicious_C].flatten().sort().values
    own_MS = values_CS[malicious_C].sort(dim=1).values
    steps_S = torch.arange(own_MS.shape[1] + 1, device=own_MS.device) / own_MS.shape[1]
    reached_MS, before_MS = (torch.searchsorted(usual, own_MS, right=right) / len(usual) for right in (True, False))
    # between two of its values an update's own share stands still: the largest gap opens at one of them
    apart_MS = torch.maximum(steps_S[1:] - reached_MS, before_MS - steps_S[:-1])
    return float(apart_MS.amax(dim=1).mean())


def accuracy_gap(
    flat: FlatNetwork, global_D: Tensor, updates_CD: Tensor, malicious_C: Tensor, clean: Samples, size: int = 500
) -> dict[str, float]:
    """`stealth/accuracy_gap`: how much worse the global model gets by a malicious update than by the benign ones.

    max over malicious m of acc(G + mean of the benign updates) - acc(G + delta_m): what an accuracy check sees. Equal updates
    are evaluated once.

    Args:
        flat: architecture.
        global_D: `[D]` G.
        updates_CD: `[C, D]` submitted updates.
        malicious_C: `[C]` bool.
        clean: clean labelled test samples.
        size: how many of them are used, the first ones.

    Returns:
        Nothing for regression, or without malicious or benign rows.

    References:
        Multi-party targeted poisoning, eq. 3 in terms of accuracies, as its text describes; printed for losses it has the wrong
        sign.
    """
    if clean.y.is_floating_point() or not bool(malicious_C.any()) or bool(malicious_C.all()):
        return {}
    some = clean[torch.arange(min(size, len(clean)), device=clean.y.device)]
    usual = flat.accuracy(global_D + updates_CD[~malicious_C].mean(0), some)
    crafted = torch.unique(updates_CD[malicious_C], dim=0)
    return {"stealth/accuracy_gap": usual - min(flat.accuracy(global_D + row_D, some) for row_D in crafted)}
