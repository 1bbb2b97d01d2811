"""Chameleon: an encoder that draws the backdoor to the benign images of its class, then a head on top of it.

References:
    Dai, Li, "Chameleon: Adapting to Peer Images for Planting Durable Backdoors in Federated Learning", ICML 2023, section 4.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._backdoor_training import BackdoorTraining, attacker_client, mix
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._flat_training import batches, descend, features, head_coordinates, head_of, mean_loss
from fl_lightning.attacks._projected import projected
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.clients import Sgd
from fl_lightning.data import Dataset, Samples
from fl_lightning.defenses import State
from fl_lightning.errors import ConfigError
from fl_lightning.models import FlatNetwork, Loss

if TYPE_CHECKING:
    from fl_lightning.config import Experiment

DECAY, MILESTONES = 0.3, (2, 4, 6, 8)
"""The contrastive learning rate falls to this share after these epochs."""


def contrastive_loss(features_BF: Tensor, labels_B: Tensor, target: int, weight: float, temperature: float) -> Tensor:
    r"""Weighted supervised contrastive loss.

    $L = \frac{1}{B} \sum_i w_i \frac{-1}{|P(i)|} \sum_{p \in P(i)} \log \frac{e^{f_i f_p / T}}{\sum_{a \neq i} e^{f_i f_a / T}}$

    Rows have length 1, P(i) holds the other samples of the same label, w_i is `weight` for the target class, else 1. A sample
    without others of its label counts 0, also in the mean.

    Args:
        features_BF: `[B, F]`.
        labels_B: `[B]` wished labels.
        target: the class whose samples weigh more.
        weight: their weight.
        temperature: T, above 0.

    Returns:
        The loss, a scalar.
    """
    unit_BF = F.normalize(features_BF, dim=1)
    itself = torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    likeness = (unit_BF @ unit_BF.T / temperature).masked_fill(itself, -torch.inf)
    log_share = (likeness - likeness.logsumexp(1, keepdim=True)).masked_fill(itself, 0.0)
    same = (labels_B[:, None] == labels_B[None, :]) & ~itself
    losses_B = -(log_share * same).sum(1) / same.sum(1).clamp(min=1)
    return (losses_B * torch.where(labels_B == target, weight, 1.0)).mean()


class Chameleon(BackdoorTraining):
    """Two stages: contrastive training of the encoder on clean and dirty samples, then of the head by cross-entropy.

    In the first, dirty samples are drawn to the benign ones of the wished class (facilitators) and away from those of their right
    class (interferers). In the second, the encoder stays. A ball, where given, is applied after each stage.

    Attributes:
        contrastive_epochs: epochs of the first stage.
        contrastive_lr: its learning rate (SGD), falling to 0.3 of it after epochs 2, 4, 6 and 8.
        facilitator_weight: weight of samples with the wished label.
        temperature: of the contrastive loss.
    """

    name: ClassVar[str] = "chameleon"
    cites: ClassVar[tuple[str, ...]] = ("dai2023chameleon",)
    serves: ClassVar[tuple[str, ...]] = ("backdoor",)

    contrastive_epochs: Annotated[int, Tunable(2, 20, integer=True)] = Field(default=10, ge=1)
    contrastive_lr: Annotated[float, Tunable(0.001, 0.1, log=True)] = Field(default=0.015, gt=0)
    facilitator_weight: Annotated[float, Tunable(1, 5)] = Field(default=2.0, gt=0)
    temperature: float = Field(default=0.07, gt=0)
    # both stages start from the broadcast model and see the own samples
    start: Literal["global"] = "global"
    rehearsal: Literal[0] = 0

    def check(self, data: Dataset, loss: Loss) -> None:
        """Contrast needs classes."""
        if data.task == "regression":
            raise ConfigError("chameleon needs classes, got regression data")

    def check_model(self, flat: FlatNetwork) -> None:
        """There must be an encoder before a linear head."""
        head_of(flat)

    def expense(self, experiment: "Experiment") -> str:
        """Epochs of contrast, attacker after attacker."""
        return (
            f"{self.contrastive_epochs} epochs of contrast an attacker, one after the other (attack.contrastive_epochs)"
        )

    def poison(self, view: View, state: State) -> Poisoned:
        """Encoder, head, then boost."""
        rows = [
            self._taught(view, row, own, dirty)
            for row, (own, dirty) in enumerate(zip(view.own_samples, view.dirty_samples, strict=True))
        ]
        return self.sent(view, torch.stack(rows), {})

    def _taught(self, view: View, row: int, own: Samples, dirty: Samples) -> Tensor:
        """`[D]` the displacement of one attacker."""
        flat, start_D = view.flat, view.global_D
        mixed = mix(own, dirty, self.poison_fraction, view.generator("mix", row))
        head_D = head_coordinates(flat).to(start_D.device)
        target = int(dirty.y.mode().values)
        settings = replace(view.client, epochs=self.contrastive_epochs, steps=None)
        lessons = batches(mixed, settings, view.generator("contrast", row))
        per_epoch = len(lessons) / self.contrastive_epochs

        def contrast(theta_D: Tensor, part: Samples) -> Tensor:
            seen = features(flat, theta_D, part.x)
            return contrastive_loss(seen, part.y, target, self.facilitator_weight, self.temperature)

        def rate(step: int) -> float:
            return self.contrastive_lr * DECAY ** sum(step >= epoch * per_epoch for epoch in MILESTONES)

        encoder_D = descend(flat, start_D, lessons, Sgd(lr=self.contrastive_lr), contrast, ~head_D, rate)
        encoder_D = self._inside(view, start_D, encoder_D)
        client = attacker_client(view.client, self.epochs, self.lr_factor)
        lessons = batches(mixed, client, view.generator("head", row))

        def entropy(theta_D: Tensor, part: Samples) -> Tensor:
            return mean_loss(flat, theta_D, part)

        taught_D = descend(flat, encoder_D, lessons, client.optimizer.at(view.round), entropy, head_D)
        return self._inside(view, start_D, taught_D) - start_D

    def _inside(self, view: View, start_D: Tensor, theta_D: Tensor) -> Tensor:
        if not self.radius:
            return theta_D
        return start_D + projected(theta_D - start_D, self.radius / self.boost_in(view), self.projection)
