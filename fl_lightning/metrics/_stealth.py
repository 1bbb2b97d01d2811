"""How much malicious updates stand out from the benign ones of their round."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_lightning.data import Samples
from fl_lightning.flat import FlatNetwork


def stealth(updates_CD: Tensor, malicious_C: Tensor) -> dict[str, float]:
    """Cosine and distance of malicious updates.

    `stealth/cosine`: mean over malicious m of cos(delta_m, sum of the other updates); `stealth/l2_max`: largest
    ||delta_m - delta_n|| over malicious m and benign n; `stealth/norm_ratio`: largest malicious norm over the median
    benign norm.

    Args:
        updates_CD: `[C, D]` submitted updates.
        malicious_C: `[C]` bool.

    Returns:
        Nothing for figures that have no denominator (no malicious or no benign row, zero norms).

    References:
        Multi-party targeted poisoning, tables 2 and 3: the contrast objective is the aggregate of all others.
    """
    bad_MD, good_BD = updates_CD[malicious_C], updates_CD[~malicious_C]
    if not len(bad_MD) or not len(good_BD):
        return {}
    others_MD = updates_CD.sum(0) - bad_MD
    figures = {
        "stealth/cosine": float(F.cosine_similarity(bad_MD, others_MD, dim=1).mean()),
        "stealth/l2_max": float(torch.cdist(bad_MD.double(), good_BD.double()).max()),
    }
    usual = float(good_BD.norm(dim=1).median())
    if usual > 0:
        figures["stealth/norm_ratio"] = float(bad_MD.norm(dim=1).max()) / usual
    return figures


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
