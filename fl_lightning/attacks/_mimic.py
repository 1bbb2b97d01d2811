"""Mimic: all malicious clients copy one honest client, so that the server counts it too often.

References:
    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, appendix on the
    mimic attack (the direction of largest variance among the honest updates, by an online power iteration).
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._known_rows import known_rows
from fl_lightning.attacks._perturbation import direction, wide
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State

Target = Literal["learnt", "fixed", "farthest"]


def follow_spread(rows_HD: Tensor, mean_D: Tensor, direction_D: Tensor, round: int) -> tuple[Tensor, Tensor]:
    r"""One step of the online search for the direction z along which honest updates differ most.

    With the running mean m, $c = \sum_i ((k_i - m) \cdot z) (k_i - m)$; in round t, $z \leftarrow \frac{t}{t+1} z +
    \frac{1}{t+1} c / \|c\|$, at length 1.

    Args:
        rows_HD: `[H, D]` honest updates of the round.
        mean_D: `[D]` m of the rounds before; ignored in round 0.
        direction_D: `[D]` z before; in round 0 a random vector.
        round: t, adversarial rounds before this one.

    Returns:
        m and z; z stays where it is when all rows are equal.
    """
    keep = round / (round + 1)
    mean_D = keep * mean_D + rows_HD.mean(0) / (round + 1) if round else rows_HD.mean(0)
    away_HD = rows_HD - mean_D
    spread_D = direction(away_HD.T @ (away_HD @ direction_D))
    if not bool(spread_D.any()):
        return mean_D, direction_D
    return mean_D, direction(keep * direction_D + spread_D / (round + 1))


class Mimic(Attack):
    """Mimic: all malicious clients send the update of one honest client; it does harm only where clients differ.

    Nothing abnormal is sent. With full knowledge a target client is learnt and then kept; with partial knowledge the target is
    chosen anew among the visible updates of each round; with none all send what the first attacker would have sent honestly.

    Attributes:
        target: `learnt`: the client farthest along the direction in which honest updates differ most; `fixed`: the benign
            client with the lowest number; `farthest`: the update farthest from the honest mean (not in the paper).
        warmup: adversarial rounds in which the direction is learnt.
    """

    name: ClassVar[str] = "mimic"
    cites: ClassVar[tuple[str, ...]] = ("karimireddy2022byzantine",)
    serves: ClassVar[tuple[str, ...]] = ("any",)

    target: Annotated[Target, Choice(("learnt", "fixed", "farthest"))] = "learnt"
    warmup: Annotated[int, Tunable(1, 100, log=True, integer=True)] = Field(default=10, ge=1)

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of the target's update, bit for bit."""
        if view.knowledge == "none":
            return self._copies(view, view.own_updates[0], state, -1)
        full = view.knowledge == "full" and view.n_malicious < view.n_clients
        rows_HD = known_rows(view) if full else view.visible_updates
        if not len(rows_HD):
            return self._copies(view, view.own_updates[0], state, -1)
        ids = view.cohort.clients[~view.cohort.malicious].tolist() if full else [-1] * len(rows_HD)
        row, state = self._choose(view, rows_HD, ids, state)
        return self._copies(view, rows_HD[row], state, ids[row])

    def _choose(self, view: View, rows_HD: Tensor, ids: list[int], state: State) -> tuple[int, State]:
        """The row to copy, and what to remember."""
        if self.target == "fixed":
            return min(range(len(ids)), key=ids.__getitem__), state
        if self.target == "farthest":
            return int(torch.linalg.vector_norm(rows_HD - rows_HD.mean(0), dim=1).argmax()), state
        round = int(state.get("rounds", 0))
        if round < self.warmup:
            start_D = torch.randn(rows_HD.shape[1], generator=view.generator("direction")).to(rows_HD)
            mean_D, z_D = state.get("mean_D", start_D), state.get("direction_D", start_D)
            mean_D, z_D = follow_spread(rows_HD, mean_D, z_D, round)
            row = int((rows_HD @ z_D).argmax())
            return row, {"rounds": round + 1, "mean_D": mean_D, "direction_D": z_D, "target": ids[row]}
        kept = int(state["target"])
        if kept >= 0 and kept in ids:
            return ids.index(kept), state
        return int((rows_HD @ state["direction_D"]).argmax()), state

    def _copies(self, view: View, row_D: Tensor, state: State, target: int) -> Poisoned:
        metrics = {"target": float(target), "norm": float(torch.linalg.vector_norm(wide(row_D)))}
        return Poisoned(row_D.repeat(view.n_malicious, 1), state, metrics)
