"""Hybrid sparse: strong on few sensitive coordinates, inconspicuous on all others.

References:
    Ozfatura, Ozfatura, Küpçü, Gündüz, "Aggressive or Imperceptible, or Both: Network Pruning Assisted Hybrid Byzantines in
    Federated Learning", 2024 (arXiv 2404.06230), section 4.
    Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019, eq. 6 (which coordinates
    are sensitive).
"""

from math import ceil, sqrt
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fl_lightning.attacks._alie import largest_z
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._perturbation import wide
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.models import BATCH_NORMS, FlatNetwork

INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMALISATION = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm)


def sensitive(flat: FlatNetwork, theta_D: Tensor, samples: Samples, share: float) -> Tensor:
    """`[P]` bool: in every layer the share of parameters with the largest |theta dL/dtheta|.

    A layer is the weight and bias of one module; normalisation layers have no sensitive parameters.

    Args:
        flat: the architecture and its loss.
        theta_D: `[D]` where the sensitivity is measured.
        samples: on which.
        share: in (0, 1]; at least one coordinate a layer.
    """
    saliency_P = (wide(theta_D) * wide(flat.gradient(theta_D, samples))).abs()[: flat.trained]
    skipped = {name for name, module in flat.network.named_modules() if isinstance(module, NORMALISATION)}
    layers: dict[str, list[slice]] = {}
    start = 0
    for name, size in zip(flat.names, flat.sizes, strict=True):
        layer = name.rpartition(".")[0]
        if start < flat.trained and layer not in skipped:
            layers.setdefault(layer, []).append(slice(start, start + size))
        start += size
    mask_P = torch.zeros(flat.trained, dtype=torch.bool, device=theta_D.device)
    for parts in layers.values():
        places = torch.cat([torch.arange(part.start, part.stop) for part in parts]).to(theta_D.device)
        mask_P[places[saliency_P[places].topk(ceil(share * len(places))).indices]] = True
    return mask_P


def hybrid_sparse(
    known_HD: Tensor,
    mask_D: Tensor,
    *,
    z_large: float = 3.0,
    z_small: float | None = None,
    fence: bool = True,
    against_mean: bool = True,
) -> tuple[Tensor, float]:
    r"""The crafted update $\mu - w \odot \sigma \odot \operatorname{sign}(\mu)$, w large on a mask and small elsewhere.

    Args:
        known_HD: `[H, D]` updates that the attackers know.
        mask_D: `[D]` bool, the sensitive coordinates.
        z_large: w on the mask.
        z_small: w elsewhere; None: as large as leaves the crafted update no farther from the mean than the farthest known one
            (Min-Sum's bound), in closed form; 0 where the large part alone is as far.
        fence: cap sigma on the mask at its upper quartile plus 1.5 interquartile ranges.
        against_mean: with sign(mu); otherwise every coordinate is lowered.

    Returns:
        `[D]` what all malicious clients send, and the small w.
    """
    known_HD = wide(known_HD)
    mean_D = known_HD.mean(0)
    sigma_D = known_HD.std(0, correction=0)
    if fence and bool(mask_D.any()):
        low, high = np.quantile(sigma_D[mask_D].cpu().numpy(), (0.25, 0.75)).tolist()
        sigma_D = torch.where(mask_D, sigma_D.clamp(max=high + 1.5 * (high - low)), sigma_D)
    if against_mean:
        sigma_D = sigma_D * mean_D.sign()
    if z_small is None:
        farthest = float(torch.linalg.vector_norm(known_HD - mean_D, dim=1).max())
        large = z_large * float(torch.linalg.vector_norm(sigma_D[mask_D]))
        small = float(torch.linalg.vector_norm(sigma_D[~mask_D]))
        z_small = sqrt(max(0.0, farthest**2 - large**2)) / small if small > 0 else 0.0
    return torch.where(mask_D, mean_D - z_large * sigma_D, mean_D - z_small * sigma_D), z_small


class HybridSparse(Crafted):
    """Hybrid sparse: all malicious clients move few sensitive coordinates far and all others within the honest spread.

    The sensitive ones are found on the attackers' own data, at the broadcast model.

    Attributes:
        share: of the coordinates of every layer that are sensitive.
        z_large: deviation on these, in standard deviations of the honest updates.
        z_small: deviation elsewhere; `alie`: what hides by A Little Is Enough; None: what leaves the crafted update as far from
            the mean as the farthest honest one.
        fence: cap outlying standard deviations on the sensitive coordinates.
        sign: `mean`: every coordinate moves against the sign of the honest mean; `none`: all are lowered.
    """

    name: ClassVar[str] = "hybrid_sparse"
    cites: ClassVar[tuple[str, ...]] = ("ozfatura2024aggressive", "lee2019snip")
    serves: ClassVar[tuple[str, ...]] = ("any",)

    share: Annotated[float, Tunable(0.001, 0.1, log=True)] = Field(default=0.01, gt=0, le=1)
    z_large: Annotated[float, Tunable(1, 20, log=True)] = Field(default=3.0, ge=0)
    z_small: float | Literal["alie"] | None = None
    fence: bool = True
    sign: Annotated[Literal["mean", "none"], Choice(("mean", "none"))] = "mean"

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of the hybrid update."""
        known_HP = known_parameters(view)
        mask_P = sensitive(view.flat, view.global_D, Samples.cat(view.own_samples), self.share)
        z_small = largest_z(view.n_clients, view.n_malicious) if self.z_small == "alie" else self.z_small
        crafted_P, small = hybrid_sparse(
            known_HP,
            mask_P,
            z_large=self.z_large,
            z_small=z_small,
            fence=self.fence,
            against_mean=self.sign == "mean",
        )
        metrics = {"z_small": small, "sensitive": float(mask_P.sum())}
        return Poisoned(self.rows(view, crafted_P, known_HP.mean(0)), metrics=metrics)
