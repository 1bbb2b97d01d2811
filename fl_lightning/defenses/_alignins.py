"""AlignIns: rows whose direction, as a whole and in the signs of their largest entries, is unusual among the rows.

References:
    Xu, Zhang, Hu, "Detecting Backdoor Attacks in Federated Learning via Direction Alignment Inspection", CVPR 2025, algorithm 1.
    Corrected here: a criterion that is equal for all rows passes them (the authors' program divides 0 by 0 and rejects all);
    coordinates without a majority do not count.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of, trained_of
from fl_lightning.defenses._clusters import TOO_FEW
from fl_lightning.defenses._spread import count, median, mz_scores, shortening
from fl_lightning.defenses._verdicts import filtered, trained_model
from fl_lightning.registry import Tunable


def direction(norms_C: Tensor, along_C: Tensor, length: float) -> Tensor:
    """`[C]` float64, cos(x_i, theta); 0 with a zero vector (then the criterion passes everybody).

    Args:
        norms_C: `[C]` norms of the updates.
        along_C: `[C]` products <x_i, theta>.
        length: |theta|.
    """
    known_C = (norms_C > 0) & (norms_C.new_tensor(length) > 0)
    return torch.where(known_C, along_C.double() / (norms_C.double() * length).clamp(min=1e-300), 0.0).clamp(-1, 1)


def principal_signs(updates_CD: Tensor, top: float = 0.3) -> Tensor:
    """`[C]` float64, share of a row's `top` largest entries whose sign is the majority's.

    p = sign(sum_i sign(x_i)); entries without a majority, p = 0, do not count; 1 where no large entry has a majority.

    Example:
        >>> principal_signs(torch.tensor([[3.0, 1.0], [2.0, 1.0], [-4.0, 1.0]]), top=0.5)
        tensor([1., 1., 0.], dtype=torch.float64)
    """
    signs_CD = updates_CD.sign()
    majority_D = signs_CD.sum(0).sign()
    columns_CF = updates_CD.abs().topk(count(top, updates_CD.shape[1]), dim=1, sorted=False).indices
    wanted_CF = majority_D[columns_CF]
    decided_CF = wanted_CF != 0
    agree_CF = decided_CF & (signs_CD.gather(1, columns_CF) == wanted_CF)
    decided_C = decided_CF.sum(1)
    return torch.where(decided_C > 0, agree_CF.sum(1).double() / decided_C.clamp(min=1), 1.0)


def alignins(direction_C: Tensor, signs_C: Tensor, lambda_c: float = 1.0, lambda_s: float = 1.0) -> Tensor:
    """`[C]` bool, MZ(direction) <= lambda_c and MZ(signs) <= lambda_s with MZ(v)_i = |v_i - median| / std.

    Args:
        direction_C: `[C]` cosines with the global model.
        signs_C: `[C]` shares of principal signs.
        lambda_c: bound for the direction.
        lambda_s: bound for the signs.
    """
    return (mz_scores(direction_C) <= lambda_c) & (mz_scores(signs_C) <= lambda_s)


class Alignins(Defense):
    """Keeps rows whose direction and principal signs are usual, clipped to the median norm of the kept.

    With both bounds at 1 a third of normally scattered honest rows fails each criterion, also without an attack.

    Attributes:
        top: share of the largest entries whose signs count.
        lambda_c: bound for the direction, in standard deviations from the median.
        lambda_s: bound for the principal signs.
    """

    name: ClassVar[str] = "alignins"
    cites: ClassVar[tuple[str, ...]] = ("xu2025alignins",)
    on_empty: ClassVar[Literal["keep_all", "skip"]] = "skip"

    top: Annotated[float, Tunable(0.05, 1)] = Field(default=0.3, gt=0, le=1)
    lambda_c: Annotated[float, Tunable(0.5, 4)] = Field(default=1.0, gt=0)
    lambda_s: Annotated[float, Tunable(0.5, 4)] = Field(default=1.0, gt=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Unusual rows go; the round is skipped when all are. The score is the larger ratio to its bound."""
        geometry, theta_D = geometry_of(updates_CD, context).trained, trained_model(context)
        norms_C = geometry.norms
        direction_C = direction(norms_C, geometry.products(theta_D), float(theta_D.double().norm()))
        signs_C = principal_signs(trained_of(updates_CD, context), self.top).cpu()
        keep_C = alignins(direction_C, signs_C, self.lambda_c, self.lambda_s)
        if len(keep_C) < TOO_FEW:
            keep_C = torch.ones_like(keep_C)
        ratios = torch.stack([mz_scores(direction_C) / self.lambda_c, mz_scores(signs_C) / self.lambda_s])
        bound = float(median(norms_C[keep_C])) if bool(keep_C.any()) else 0.0
        return filtered(
            updates_CD,
            context,
            keep_C,
            scale_C=shortening(norms_C, bound),
            scores_C=ratios.amax(0),
            metrics={"bound": bound},
            skip=True,
        )
