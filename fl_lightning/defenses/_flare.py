"""FLARE: models whose inner representations of the server's samples are near those of many others weigh more.

References:
    Wang, Xiao, Chen, Hu, Lou, Hou, "FLARE: Defending Federated Learning against Model Poisoning Attacks via Latent Space
    Representations", AsiaCCS 2022, algorithm 1.
    Gretton, Borgwardt, Rasch, Schölkopf, Smola, "A Kernel Two-Sample Test", JMLR 2012, equation 3.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._root import per_class
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Tunable


def mmd2(features_CnH: Tensor, gamma: float | None = None) -> Tensor:
    r"""`[C, C]` float64, unbiased squared maximum mean discrepancies of sets of features, not below 0.

    $\overline{k(x, x')} + \overline{k(y, y')} - 2 \overline{k(x, y)}$ with $k = \exp(-\gamma |x - y|^2)$; a set's own means
    leave the diagonal out.

    Args:
        features_CnH: `[C, n, H]`, n at least 2.
        gamma: of the kernel; None: 1 / H.
    """
    n_sets, n, width = features_CnH.shape
    flat = features_CnH.double().reshape(n_sets * n, width)
    gamma = 1 / width if gamma is None else gamma
    kernel = (-gamma * torch.cdist(flat, flat).square()).exp().view(n_sets, n, n_sets, n)
    sums_CC = kernel.sum((1, 3))
    within_C = (sums_CC.diagonal() - n) / (n * (n - 1))
    mmd2_CC = (within_C[:, None] + within_C - 2 * sums_CC / n**2).clamp(min=0)
    return mmd2_CC.fill_diagonal_(0)


def votes(distances_CC: Tensor) -> Tensor:
    """`[C]` float64, how many others count a row among their floor(C / 2) nearest; ties: the lower index.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 3.0, 9.0])
        >>> votes((x[:, None] - x).abs())
        tensor([2., 3., 3., 0.], dtype=torch.float64)
    """
    n_rows = len(distances_CC)
    others_CC = distances_CC.double().clone().fill_diagonal_(torch.inf)
    nearest = others_CC.sort(dim=1, stable=True).indices[:, : n_rows // 2]
    counts_C = torch.zeros(n_rows, dtype=torch.float64, device=distances_CC.device)
    return counts_C.index_add_(0, nearest.flatten(), torch.ones(nearest.numel()).to(counts_C))


def flare(distances_CC: Tensor, tau: float = 1.0) -> Tensor:
    """`[C]` float64 weights, softmax of votes / (tau mean of the votes); equal for fewer than four rows.

    Args:
        distances_CC: `[C, C]` between the rows' representations.
        tau: temperature, > 0. A row without a vote keeps at least exp(-max / (tau mean)) of the largest weight.
    """
    if len(distances_CC) < 4:
        return torch.full((len(distances_CC),), 1 / len(distances_CC), dtype=torch.float64)
    counts_C = votes(distances_CC)
    return (counts_C / (tau * counts_C.mean())).softmax(0)


class Flare(Defense):
    """Weighs rows by how many others have a similar inner representation of the server's samples.

    The weights replace sample counts, and are never 0.

    Attributes:
        samples_per_class: validation samples of each class that are represented.
        label: only samples of this class; None: of all.
        gamma: of the kernel exp(-gamma |x - y|^2); None: 1 / H.
        tau: temperature of the softmax.
    """

    name: ClassVar[str] = "flare"
    cites: ClassVar[tuple[str, ...]] = ("wang2022flare",)
    needs_samples: ClassVar[bool] = True
    needs_classifier: ClassVar[bool] = True

    samples_per_class: int = Field(default=10, ge=2)
    label: int | None = Field(default=None, ge=0)
    gamma: float | None = Field(default=None, gt=0)
    tau: Annotated[float, Tunable(0.05, 5, log=True)] = Field(default=1.0, gt=0)

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has samples."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay; the score is minus the weight, in units of an equal one."""
        samples = need_validation(self.name, context.validation)
        samples = per_class(samples, self.samples_per_class, self.label)
        if len(samples) < 2:
            raise ConfigError(f"class {self.label} has {len(samples)} of the server's samples, 2 are needed", "label")
        if context.features is None:
            raise ConfigError("flare needs a model whose last layer is linear")
        features_CnH = torch.stack([context.features(context.global_D + row_D, samples.x) for row_D in updates_CD])
        distances_CC = mmd2(features_CnH.nan_to_num(nan=0.0, posinf=1e12, neginf=-1e12).cpu(), self.gamma)
        weights_C = flare(distances_CC, self.tau)
        verdict = filtered(
            updates_CD,
            context,
            torch.ones(len(updates_CD), dtype=torch.bool),
            scores_C=-weights_C * len(weights_C),
            metrics={"largest_weight": float(weights_C.max())},
        )
        return verdict._replace(weights_C=weights_C.to(context.weights_C))
