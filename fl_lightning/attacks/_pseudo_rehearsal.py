"""Pseudo-rehearsal: made-up images, labelled by the model of before, keep an attacker from forgetting what it has no data of.

References:
    Robins, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal", Connection Science 7(2), 1995.
    Li, Hoiem, "Learning without Forgetting", IEEE TPAMI 40(12), 2018: the old model's probabilities as labels.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Attack
from fl_lightning.attacks._view import View
from fl_lightning.data import Dataset, Samples
from fl_lightning.errors import ConfigError
from fl_lightning.models import Loss

TURN, SHEAR, SCALE, SHIFT = math.radians(30), math.radians(30), 1.4, 0.3


def warped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images under an affine map each: turned and sheared by up to 30 degrees, scaled by 1 / 1.4 to 1.4, shifted by up to 15 %.

    Args:
        x: `[n, ch, h, w]`.
        generator: CPU generator.

    Returns:
        `[n, ch, h, w]`; what lies outside the image is its nearest border pixel.
    """

    def within(limit: float) -> Tensor:
        return limit * (2 * torch.rand(len(x), generator=generator) - 1)

    turn, zoom, one = within(TURN), SCALE ** within(1), torch.ones(len(x))
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=1).view(-1, 2, 2)
    shear = torch.stack([one, within(SHEAR).tan(), within(SHEAR).tan(), one], dim=1).view(-1, 2, 2)
    shift = torch.stack([within(SHIFT), within(SHIFT)], dim=1)
    maps = torch.cat([zoom[:, None, None] * rotation @ shear, shift[:, :, None]], dim=2).to(x)
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def as_probabilities(samples: Samples, classes: int) -> Samples:
    """The same samples with `[n, K]` probabilities of their classes for labels, all on one class."""
    return Samples(samples.x, F.one_hot(samples.y, classes).to(samples.x.dtype))


def certain(samples: Samples) -> Samples:
    """The same samples with their likeliest class for a label."""
    return Samples(samples.x, samples.y.argmax(1))


def rehearsed(view: View, copies: int, theta_D: Tensor) -> list[Samples]:
    """Every attacker's own images, and warped copies of them that a model has labelled, drawn evenly over its classes.

    Args:
        view: the attackers' view.
        copies: warped images per own one.
        theta_D: the model whose behaviour is to be kept.

    Returns:
        Images with `[n, K]` probabilities: the own ones' labels, and what the model says about the copies.
    """
    parts = []
    for row, own in enumerate(view.own_samples):
        random = view.generator("rehearsal", row)
        rarity = 1 / torch.bincount(own.y).to(torch.float64)
        drawn = torch.multinomial(rarity[own.y].cpu(), copies * len(own), replacement=True, generator=random)
        copied = warped(own.x[drawn.to(own.y.device)], random)
        labels = view.flat.scores(theta_D, copied).softmax(1)
        parts.append(Samples.cat([as_probabilities(own, view.classes), Samples(copied, labels)]))
    return parts


class Rehearsing(Attack):
    """An attack that can rehearse what its own images do not show.

    Attributes:
        rehearsal: warped copies of each own image that the attackers train on beside it, labelled by the model that they start
            from; 0: none. With `start: foreseen` the benign updates are foretold by honest training on such copies. For attackers
            that hold next to nothing of some classes (an extension).
    """

    rehearsal: int = Field(default=0, ge=0)

    def check(self, data: Dataset, loss: Loss) -> None:
        """Rehearsal takes images and probabilities of classes."""
        if self.rehearsal and (not data.images or loss != "cross_entropy"):
            raise ConfigError(
                f"warps images and needs cross_entropy, got inputs of shape {data.shape} and {loss}", "rehearsal"
            )
