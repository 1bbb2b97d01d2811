"""How much malicious updates stand out from the benign ones of their round."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
