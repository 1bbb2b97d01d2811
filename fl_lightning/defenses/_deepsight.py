"""DeepSight: the classifier's update and outputs on noise tell of a client's labels; clients alike in that form groups.

References:
    Rieger, Nguyen, Miettinen, Sadeghi, "DeepSight: Mitigating Backdoor Attacks in Federated Learning Through Deep Model
    Inspection", NDSS 2022, algorithms 1 and 2.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Geometry, direct_distances
from fl_lightning.data import random_inputs
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of
from fl_lightning.defenses._clusters import TOO_FEW, hdbscan
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._spread import median, shortening
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Tunable


class Labels(NamedTuple):
    """What an update tells of the labels that a client trained on.

    Attributes:
        neup_CK: `[C, K]` normalised energy of the update for each class, summing to 1.
        exceeding_C: `[C]` int64, how many classes have an energy near the largest (threshold exceedings).
        suspicious_C: `[C]` bool, at most half as many as the median.
    """

    neup_CK: Tensor
    exceeding_C: Tensor
    suspicious_C: Tensor


def label_energies(weights_CKH: Tensor, biases_CK: Tensor | None) -> Labels:
    """E_ik = |db_ik| + sum_h |dW_ikh|; neup = E^2 / sum_k E^2; exceedings of max(0.01, 1 / K) max_k neup.

    Args:
        weights_CKH: `[C, K, H]` updates of the classifier's weights.
        biases_CK: `[C, K]` updates of its biases, or None.
    """
    energy_CK = weights_CKH.double().abs().sum(2)
    if biases_CK is not None:
        energy_CK = energy_CK + biases_CK.double().abs()
    squares_CK = energy_CK.square()
    neup_CK = squares_CK / squares_CK.sum(1, keepdim=True).clamp(min=1e-300)
    bound = max(0.01, 1 / neup_CK.shape[1])
    exceeding_C = (neup_CK > bound * neup_CK.amax(1, keepdim=True)).sum(1)
    return Labels(neup_CK, exceeding_C, exceeding_C <= median(exceeding_C.double()) / 2)


def division_differences(scores_CnK: Sequence[Tensor], before_nK: Tensor) -> Tensor:
    """`[C, K]` mean over the inputs of p_i(k) / p_theta(k), probabilities under the softmax.

    Args:
        scores_CnK: for each client, scores `[n, K]` of its model.
        before_nK: `[n, K]` scores of the model that it started from.
    """
    before_nK = before_nK.double().log_softmax(1)
    return torch.stack([(scores_nK.double().log_softmax(1) - before_nK).exp().mean(0) for scores_nK in scores_CnK])


def apart(distances_CC: Tensor) -> Tensor:
    """`[C, C]` 0 for two rows in one cluster and 1 otherwise; noise is alone."""
    labels_C = hdbscan(distances_CC, 2)
    together_CC = (labels_C[:, None] == labels_C) & (labels_C >= 0)
    return (~together_CC).double().fill_diagonal_(0)


def deepsight(
    angles_CC: Tensor, neup_CK: Tensor, ddif_SCK: Sequence[Tensor], suspicious_C: Tensor, tau: float = 1 / 3
) -> Tensor:
    """`[C]` bool, members of clusters whose suspicious share is below tau.

    Args:
        angles_CC: `[C, C]` 1 - cos of the updates of the biases.
        neup_CK: `[C, K]` normalised energies.
        ddif_SCK: division differences `[C, K]`, for some seeds of the noise; their mean counts as one view of three.
        suspicious_C: `[C]` bool.
        tau: share from which on a cluster is refused.
    """

    def euclidean(rows_CK: Tensor) -> Tensor:
        return direct_distances(rows_CK).cpu()

    by_ddif_CC = torch.stack([apart(euclidean(rows_CK)) for rows_CK in ddif_SCK]).mean(0)
    joint_CC = (apart(angles_CC.cpu()) + apart(euclidean(neup_CK)) + by_ddif_CC) / 3
    labels_C, suspicious_C = hdbscan(joint_CC, 2), suspicious_C.cpu()
    keep_C = ~suspicious_C & (labels_C < 0)
    for label in set(labels_C.tolist()):
        if label >= 0:
            members_C = labels_C == label
            if float(suspicious_C[members_C].double().mean()) < tau:
                keep_C |= members_C
    return keep_C


class Deepsight(Defense):
    """Groups clients by their classifier's updates and their outputs on noise, and removes groups that trained on few labels.

    Attributes:
        inputs: random inputs that the models are compared on, for each of `seeds` draws.
        seeds: draws of the inputs.
        tau: share of suspicious rows from which on a group is removed.
    """

    name: ClassVar[str] = "deepsight"
    cites: ClassVar[tuple[str, ...]] = ("rieger2022deepsight",)
    on_empty: ClassVar[Literal["keep_all", "skip"]] = "skip"
    needs_samples: ClassVar[bool] = True
    needs_classifier: ClassVar[bool] = True

    inputs: int = Field(default=2000, ge=1)
    seeds: int = Field(default=3, ge=1)
    tau: Annotated[float, Tunable(0.1, 0.9)] = Field(default=1 / 3, gt=0, le=1)

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has samples: their shape is that of the noise."""
        need_validation(self.name, validation or None)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Suspicious groups go, the others are clipped to the median norm; the round is skipped when all are suspicious."""
        samples, norms_C = (
            need_validation(self.name, context.validation),
            geometry_of(updates_CD, context).trained.norms,
        )
        if context.layout is None:
            raise ConfigError("needs a model whose layers are known")
        weight, shape, bias = context.layout.classifier
        weights_CKH = updates_CD[:, weight].view(-1, *shape)
        labels = label_energies(weights_CKH, None if bias is None else updates_CD[:, bias])
        random, ddif_SCK = context.generator(self.name), []
        for _ in range(self.seeds):
            noise = random_inputs(samples.x, self.inputs, random)
            scores = [context.predict(context.global_D + row_D, noise) for row_D in updates_CD]
            ddif_SCK.append(division_differences(scores, context.predict(context.global_D, noise)).nan_to_num(nan=1e12))
        angles_CC = Geometry(updates_CD[:, weight if bias is None else bias]).cosine_distances
        keep_C = deepsight(angles_CC, labels.neup_CK, ddif_SCK, labels.suspicious_C, self.tau)
        if len(keep_C) < TOO_FEW:
            keep_C = torch.ones_like(keep_C)
        return filtered(
            updates_CD,
            context,
            keep_C,
            scale_C=shortening(norms_C, median(norms_C)),
            scores_C=-labels.exceeding_C.double(),
            metrics={"suspicious": float(labels.suspicious_C.double().mean())},
            skip=True,
        )
