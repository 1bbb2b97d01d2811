"""Projected gradient ascent: climb the loss of clean data, then send a step of unsuspicious length.

References:
    Shejwalkar, Houmansadr, Kairouz, Ramage, "Back to the Drawing Board: A Critical Evaluation of Poisoning Attacks on Production
    Federated Learning", IEEE S&P 2022, section V-C (PGA).
"""

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning import callbacks
from fl_lightning.attacks._backdoor_training import attacker_client
from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._known_rows import honest_statistics
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Samples
from fl_lightning.defenses import NormBound, State

STEP_NORM = 1.0


def of_length(updates_MD: Tensor, length: float) -> Tensor:
    """The rows scaled to a length; rows of zeros stay.

    Example:
        >>> of_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 1.0)
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    norms_M1 = torch.linalg.vector_norm(updates_MD.double(), dim=1, keepdim=True)
    return (updates_MD.double() * torch.where(norms_M1 > 0, length / norms_M1, 0.0)).to(updates_MD.dtype)


class Pga(Attack):
    """Malicious clients climb the loss of their own clean samples and send x = r delta / |delta|.

    Every local step has a gradient of norm at most 1 (ascent diverges otherwise), and a client that leaves the finite numbers
    stops where it was. With a `label_map`, only samples of the classes to be moved are climbed on.

    Attributes:
        radius: r; None: `factor` times the mean norm of the known honest updates, or with full knowledge the server's norm bound
            where it has one.
        factor: see `radius`.
        epochs: local epochs of the attackers; None: as everybody.
        lr_factor: the attackers' learning rate relative to that of the federation.
        average: all attackers send the mean of what they found (as published), scaled to r; else each its own.
    """

    name: ClassVar[str] = "pga"
    cites: ClassVar[tuple[str, ...]] = ("shejwalkar2022back",)
    serves: ClassVar[tuple[str, ...]] = ("any", "relabel")

    radius: float | None = Field(default=None, gt=0)
    factor: Annotated[float, Tunable(0.2, 20, log=True)] = Field(default=1.0, gt=0)
    epochs: int | None = Field(default=None, ge=1)
    lr_factor: Annotated[float, Tunable(0.1, 10, log=True)] = Field(default=1.0, gt=0)
    average: bool = True

    def poison(self, view: View, state: State) -> Poisoned:
        """Climb, then scale."""
        client = attacker_client(view.client, self.epochs, self.lr_factor)
        limit = min(STEP_NORM, client.optimizer.max_grad_norm or STEP_NORM)
        client = replace(client, optimizer=replace(client.optimizer, max_grad_norm=limit))
        samples = [self._climbed(own, bad) for own, bad in zip(view.own_samples, view.dirty_samples, strict=True)]
        updates_MD = view.train(samples, client, lambda: [callbacks.LossAscent()])
        if self.average:
            updates_MD = updates_MD.mean(0).expand_as(updates_MD)
        radius = self._radius(view)
        return Poisoned(honest_statistics(view, of_length(updates_MD, radius)), metrics={"radius": radius})

    def _climbed(self, own: Samples, dirty: Samples) -> Samples:
        if self.objective.kind == "any" or own.y.is_floating_point():
            return own
        moved = torch.nonzero(own.y != dirty.y).flatten()
        return own[moved] if len(moved) else own

    def _radius(self, view: View) -> float:
        if self.radius:
            return self.radius
        if view.knowledge == "full":
            bounds = [rule.max_norm for rule in view.defenses.values() if isinstance(rule, NormBound)]
            if bounds:
                return min(bounds)
        known_HD = view.known_updates
        if view.knowledge == "full" and len(view.benign_updates):
            known_HD = view.benign_updates
        return self.factor * float(known_HD.double().norm(dim=1).mean())
