"""PoisonedFL: fake clients that know nothing push the model the same way in every round.

References:
    Xie, Fang, Gong, "Model Poisoning Attacks to Federated Learning via Multi-Round Consistency", CVPR 2025, section 4.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._perturbation import wide
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State


def poisonedfl(moved_D: Tensor, sent_D: Tensor, signs_D: Tensor, factor: float) -> Tensor:
    r"""The update of magnitude $c \|g\|$ whose coordinates all have the secret signs.

    With the global model's last move g and the vector k sent last, $v = |g - k \|g\| / \|k\||$ coordinate by coordinate is what
    the rest of the federation added (v = |g| for k = 0), and $x = c \|g\| v \odot s / \|v\|$.

    Args:
        moved_D: `[D]` g.
        sent_D: `[D]` k.
        signs_D: `[D]` s, of -1 and 1.
        factor: c > 0.

    Returns:
        `[D]`, zero for g = 0 or v = 0.
    """
    length = torch.linalg.vector_norm(moved_D)
    sent = torch.linalg.vector_norm(sent_D)
    sizes_D = (moved_D - sent_D * (length / sent)).abs() if bool(sent > 0) else moved_D.abs()
    total = torch.linalg.vector_norm(sizes_D)
    return sizes_D * signs_D * (factor * length / total) if bool(total > 0) else torch.zeros_like(moved_D)


def least_agreement(moved: int, level: float = 0.99) -> int:
    """The `level` quantile of Bin(moved, 1/2): fewer agreeing signs are no sign of progress.

    Args:
        moved: coordinates that moved.
        level: in (0, 1).

    Example:
        >>> [least_agreement(moved) for moved in (100, 1000, 139960, 1204682)]
        [62, 537, 70415, 603618]
    """
    from scipy.stats import binom

    return int(binom.ppf(level, moved, 0.5))


class Poisonedfl(Crafted):
    """PoisonedFL: all malicious clients push along secret random signs, the same in every round, without data or knowledge.

    What a defense takes off in one round, the next ones add up again. The factor shrinks where the model has not followed.

    Attributes:
        factor: c, length of the update in units of the global model's last move, at the beginning.
        check_every: rounds after which the attackers look whether the model has moved along their signs.
        decay: factor on c where it has not.
        floor: smallest c.
        level: of the test: more signs must agree than this quantile of chance.
    """

    name: ClassVar[str] = "poisonedfl"
    cites: ClassVar[tuple[str, ...]] = ("xie2025poisonedfl",)
    serves: ClassVar[tuple[str, ...]] = ("any",)

    factor: Annotated[float, Tunable(1, 100, log=True)] = Field(default=8.0, gt=0)
    check_every: Annotated[int, Tunable(5, 100, log=True, integer=True)] = Field(default=50, ge=1)
    decay: float = Field(default=0.7, gt=0, lt=1)
    floor: float = Field(default=0.5, ge=0)
    level: float = Field(default=0.99, gt=0, lt=1)

    def poison(self, view: View, state: State) -> Poisoned:
        """Zeros in the first attacked round, then the secret signs."""
        global_P = wide(view.global_D)[: view.flat.trained]
        if not state:
            drawn_P = torch.randint(0, 2, (len(global_P),), generator=view.run_generator("signs"), dtype=torch.int8)
            state = {
                "signs_P": (2 * drawn_P - 1).to(global_P.device),
                "sent_P": torch.zeros_like(global_P),
                "factor": self.factor,
                "checked": view.round,
                "checked_P": global_P.clone(),
            }
            return Poisoned(self.rows(view, state["sent_P"], state["sent_P"]), state, {"factor": self.factor})
        metrics: dict[str, float] = {}
        if view.round - state["checked"] >= self.check_every:
            state, metrics = self._check(view.round, global_P, state)
        moved_P = global_P - wide(view.previous_D)[: view.flat.trained]
        crafted_P = poisonedfl(moved_P, state["sent_P"], state["signs_P"].to(global_P), state["factor"])
        rows_MD = self.rows(view, crafted_P, torch.zeros_like(crafted_P))
        metrics["factor"] = float(state["factor"])
        metrics["norm"] = float(torch.linalg.vector_norm(rows_MD[0], dtype=torch.float64))
        # With a spread the rows differ; their mean is what was sent.
        sent_P = wide(rows_MD)[:, : view.flat.trained].mean(0)
        return Poisoned(rows_MD, {**state, "sent_P": sent_P}, metrics)

    def _check(self, round: int, global_P: Tensor, state: State) -> tuple[State, dict[str, float]]:
        """Shrink the factor unless more coordinates than chance explains have moved along the secret signs."""
        moved_P = (global_P - state["checked_P"]).sign()
        moved, agreeing = int((moved_P != 0).sum()), int((moved_P == state["signs_P"]).sum())
        factor = float(state["factor"])
        if moved and agreeing < least_agreement(moved, self.level) and self.decay * factor >= self.floor:
            factor *= self.decay
        state = {**state, "factor": factor, "checked": round, "checked_P": global_P.clone()}
        return state, {"agreement": agreeing / max(1, moved)}
