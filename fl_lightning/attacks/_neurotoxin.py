"""Neurotoxin: a backdoor in the coordinates that benign clients leave alone.

References:
    Zhang, Panda, Song, Yang, Mahoney, Gonzalez, Ramchandran, Mittal, "Neurotoxin: Durable Backdoors in Federated Learning",
    ICML 2022, algorithm 1.
"""

from math import ceil
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning import callbacks
from fl_lightning.attacks._backdoor_training import BackdoorTraining
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Samples
from fl_lightning.defenses import State


def free_coordinates(gradient_D: Tensor, ratio: float, sizes: list[int] | None = None) -> Tensor:
    """`[D]` bool: all but the ceil(ratio D) coordinates of largest magnitude; of equal ones the first are protected.

    Args:
        gradient_D: `[D]` where benign training moves the model.
        ratio: share of protected coordinates, in [0, 1].
        sizes: lengths of the layers, to protect that share of each; None: of all coordinates together.

    Example:
        >>> free_coordinates(torch.tensor([0.1, -0.5, 0.3, 0.5, -0.2, 0.0]), 0.34).int().tolist()
        [1, 0, 0, 0, 1, 1]
    """
    if sizes is not None:
        return torch.cat([free_coordinates(part, ratio) for part in torch.split(gradient_D, sizes)])
    free_D = torch.ones(len(gradient_D), dtype=torch.bool, device=gradient_D.device)
    free_D[gradient_D.abs().argsort(descending=True, stable=True)[: ceil(ratio * len(gradient_D))]] = False
    return free_D


class Neurotoxin(BackdoorTraining):
    """Train a backdoor without touching the coordinates that benign clients move most, so that they do not undo it.

    Protected coordinates keep their value after every local step, also under weight decay, momentum and Adam.

    Attributes:
        ratio: share of protected coordinates; 0: none, which is `model_replacement`.
        mask_from: `global_update`: magnitudes of the last global update, as printed. `own_gradient`: of the gradient of the
            attackers' clean samples at the broadcast model; also used where there was no global update yet.
        per_layer: protect that share of each layer instead of all coordinates together.
    """

    name: ClassVar[str] = "neurotoxin"
    cites: ClassVar[tuple[str, ...]] = ("zhang2022neurotoxin",)

    ratio: Annotated[float, Tunable(0.005, 0.3, log=True)] = Field(default=0.05, ge=0, lt=1)
    mask_from: Literal["global_update", "own_gradient"] = "global_update"
    per_layer: bool = False

    def poison(self, view: View, state: State) -> Poisoned:
        """Train on clean and dirty samples together in the free coordinates, then boost."""
        if not self.ratio:
            return self.sent(view, self.trained(view), {})
        trained = view.flat.trained
        moved_D = (view.global_D - view.previous_D)[:trained]
        if self.mask_from == "own_gradient" or not bool(moved_D.any()):
            moved_D = view.flat.gradient(view.global_D, Samples.cat(view.own_samples))[:trained]
        free_D = free_coordinates(moved_D, self.ratio, self._layers(view) if self.per_layer else None)
        updates_MD = self.trained(view, lambda: callbacks.Frozen(free_D))
        return self.sent(view, updates_MD, {}, protected=float((~free_D).double().mean()))

    def _layers(self, view: View) -> list[int]:
        sizes, left = [], view.flat.trained
        for size in view.flat.sizes:
            if left > 0:
                sizes.append(size)
            left -= size
        return sizes
