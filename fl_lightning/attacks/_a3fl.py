"""A3FL: a trigger that is learnt against a model that has unlearnt it.

References:
    Zhang, Jia, Chen, Lin, Wu, "A3FL: Adversarially Adaptive Backdoor Attacks to Federated Learning", NeurIPS 2023, algorithm 1.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._flat_training import batches, descend, mean_loss
from fl_lightning.attacks._learnt_trigger import LearntTrigger
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.clients import Client, Sgd
from fl_lightning.data import Dataset, Samples
from fl_lightning.defenses import State
from fl_lightning.errors import ConfigError
from fl_lightning.models import Loss

if TYPE_CHECKING:
    from fl_lightning.config import Experiment

PUBLISHED_SIZE, SMALL_SIZE = 5, 2


def place(shape: tuple[int, int, int], size: int | None, corner: int) -> tuple[slice, slice]:
    """Rows and columns of the trigger: a square with its upper left corner at (corner, corner).

    Args:
        shape: of an image.
        size: side; None: 5 as published, 2 on images smaller than 16 pixels.
        corner: distance from the upper and left border.

    Raises:
        ConfigError: it does not fit.
    """
    size = size or (PUBLISHED_SIZE if min(shape[1:]) >= 16 else SMALL_SIZE)
    if corner + size > min(shape[1:]):
        raise ConfigError(f"square of {size} at {corner} does not fit into {shape}", "size")
    return slice(corner, corner + size), slice(corner, corner + size)


class A3fl(LearntTrigger):
    """Search a trigger that works on the broadcast model and on one trained to resist it, then plant it.

    In each pass over the own clean samples: t <- clip(t - a sign(grad_t [CE(theta, x_t, y*) + lam CE(theta', x_t, y*)])), with
    theta the broadcast model and theta' the same after training on triggered samples with their right labels;
    lam = lam_0 cos(theta', theta) over all parameters. The search costs about 1 + `adversarial_epochs` / `refresh` epochs a pass.

    Attributes:
        size: side of the square trigger; None: 5, or 2 on images smaller than 16 pixels.
        corner: its distance from the upper and left border.
        outer: passes over the own samples in each attacked round.
        step: a, as a share of the range of pixels.
        balance: lam_0.
        adversarial_epochs: epochs of theta' (SGD, rate 0.01, momentum 0.9).
        refresh: passes after which theta' is trained anew.
        stop: success on own samples at which the search ends early; 1: never.
        shared: the mean of all attackers' triggers; else the first attacker's search serves all.
    """

    name: ClassVar[str] = "a3fl"
    cites: ClassVar[tuple[str, ...]] = ("zhang2023a3fl",)

    size: int | None = Field(default=None, ge=1)
    corner: int = Field(default=2, ge=0)
    outer: Annotated[int, Tunable(5, 200, log=True, integer=True)] = Field(default=20, ge=1)
    step: Annotated[float, Tunable(0.001, 0.1, log=True)] = Field(default=0.01, gt=0)
    balance: Annotated[float, Tunable(0.001, 1, log=True)] = Field(default=0.01, ge=0)
    adversarial_epochs: int = Field(default=5, ge=1)
    refresh: int = Field(default=1, ge=1)
    stop: float = Field(default=1.0, gt=0, le=1)
    shared: bool = False

    def check(self, data: Dataset, loss: Loss) -> None:
        """The square must fit."""
        super().check(data, loss)
        place((data.shape[0], data.shape[1], data.shape[2]), self.size, self.corner)

    def expense(self, experiment: "Experiment") -> str:
        """Epochs over own samples, for the trigger and against it."""
        epochs = self.outer + -(-self.outer // self.refresh) * self.adversarial_epochs * bool(self.balance)
        whose = "every attacker's own" if self.shared else "the first attacker's"
        return f"up to {epochs} epochs over {whose} samples, for the trigger (attack.outer, attack.refresh)"

    def poison(self, view: View, state: State) -> Poisoned:
        """Search the trigger, then train with it."""
        low, high = self.limits(view)
        own = view.own_samples
        before = state.get("trigger")
        if before is None:
            before = low + (high - low) * torch.full(own[0].x.shape[1:], 0.5).to(low)
        searches = range(len(own)) if self.shared else range(1)
        found = [self._search(view, row, own[row], before) for row in searches]
        memory: dict[str, Any] = {"trigger": torch.stack(found).mean(0)}
        dirty = lambda part: Samples(self.stamped(part.x, (low, high), memory), torch.full_like(part.y, self.label))  # noqa: E731
        updates_MD = self.trained(view, dirty=dirty)
        return self.sent(view, updates_MD, memory, reached=self.reached(view, memory, Samples.cat(own)))

    def stamped(self, x: Tensor, limits: tuple[Tensor, Tensor], state: State) -> Tensor:
        """Copies with the square of the trigger."""
        rows, columns = place((x.shape[1], x.shape[2], x.shape[3]), self.size, self.corner)
        stamped = x.clone()
        stamped[..., rows, columns] = state["trigger"].to(x)[..., rows, columns]
        return stamped

    def _search(self, view: View, row: int, own: Samples, trigger: Tensor) -> Tensor:
        """The trigger after all passes of one attacker."""
        flat, theta_D = view.flat, view.global_D
        low, high = self.limits(view)
        once = Client(epochs=1, batch_size=view.client.batch_size)
        several = Client(epochs=self.adversarial_epochs, batch_size=view.client.batch_size)
        random = view.generator("search", row)
        against_D, weight = theta_D, 0.0
        for number in range(self.outer):
            if number % self.refresh == 0 and self.balance:
                unlearn = Samples(self.stamped(own.x, (low, high), {"trigger": trigger}), own.y)
                lessons = batches(unlearn, several, random)
                against_D = descend(
                    flat,
                    theta_D,
                    lessons,
                    Sgd(lr=0.01, momentum=0.9),
                    lambda theta_D, part: mean_loss(flat, theta_D, part),
                )
                trained = flat.trained
                cosine = torch.cosine_similarity(against_D[:trained].double(), theta_D[:trained].double(), dim=0)
                weight = self.balance * float(cosine)
            for part in batches(own, once, random):
                trigger = self._step(view, part, trigger, against_D, weight)
            if self.stop < 1 and self.reached(view, {"trigger": trigger}, own) > self.stop:
                break
        return trigger

    def _step(self, view: View, part: Samples, trigger: Tensor, against_D: Tensor, weight: float) -> Tensor:
        """One signed gradient step of the trigger on one batch."""
        low, high = self.limits(view)
        wished = torch.full_like(part.y, self.label)
        with torch.enable_grad():
            moving = trigger.clone().requires_grad_()
            stamped = Samples(self.stamped(part.x, (low, high), {"trigger": moving}), wished)
            loss = mean_loss(view.flat, view.global_D, stamped)
            if weight:
                loss = loss + weight * mean_loss(view.flat, against_D, stamped)
            (gradient,) = torch.autograd.grad(loss, moving)
        moved = trigger - self.step * (high - low) * gradient.sign()
        return torch.maximum(torch.minimum(moved, high), low)
