"""IBA: a generator learns a faint trigger for every image.

References:
    Nguyen, Nguyen, Tran, Doan, Wong, "IBA: Towards Irreversible Backdoor Attacks in Federated Learning", NeurIPS 2023, section 4.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._flat_training import batches, mean_loss
from fl_lightning.attacks._learnt_trigger import LearntTrigger
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.clients import Client
from fl_lightning.data import Samples
from fl_lightning.defenses import State

if TYPE_CHECKING:
    from fl_lightning.config import Experiment

WIDTH = 16


class Generator(nn.Module):
    """Images to perturbations in [-1, 1] of the same shape: two convolutions for one channel, a U-Net of three levels for more.

    Args:
        channels: of the images.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.deep = channels > 1
        self.into = nn.Conv2d(channels, WIDTH, 3, padding=1)
        if self.deep:
            self.down = nn.ModuleList([nn.Conv2d(WIDTH * 2**i, WIDTH * 2 ** (i + 1), 3, padding=1) for i in range(2)])
            self.up = nn.ModuleList(
                [nn.Conv2d(WIDTH * 3 * 2 ** (1 - i), WIDTH * 2 ** (1 - i), 3, padding=1) for i in range(2)]
            )
        self.out = nn.Conv2d(WIDTH, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, ch, h, w]` to the same."""
        hidden = torch.relu(self.into(x))
        if self.deep:
            levels = [hidden]
            for layer in self.down:
                levels.append(torch.relu(layer(F.avg_pool2d(levels[-1], 2, ceil_mode=True))))
            hidden = levels.pop()
            for layer in self.up:
                beside = levels.pop()
                hidden = torch.relu(layer(torch.cat([F.interpolate(hidden, size=beside.shape[2:]), beside], dim=1)))
        return torch.tanh(self.out(hidden))


def generator_of(channels: int, weights: Tensor | None, draw: torch.Generator) -> Generator:
    """A generator with given weights, or with fresh ones (normal, He's scale, no bias)."""
    with torch.random.fork_rng(devices=[]):
        network = Generator(channels)
    if weights is not None:
        vector_to_parameters(weights.clone(), network.parameters())
        return network.to(weights)
    with torch.no_grad():
        for part in network.parameters():
            if part.ndim == 1:
                part.zero_()
                continue
            part.copy_(torch.randn(part.shape, generator=draw) * (2 / part[0].numel()) ** 0.5)
    return network


class Iba(LearntTrigger):
    """Every image gets a trigger of its own, x' = clip(x + e T(x)), from a generator T that the attackers train.

    In each attacked round T is trained so that the broadcast model takes x' for the wished class; then the attackers train on
    a L(x, y) + (1 - a) L(x', y*), with a share of 1 - a of triggered samples. e falls from `eps` by `eps_decay` a round to
    `test_eps`, at which success is always measured.

    Attributes:
        eps: bound on the trigger in the first attacked round, as a share of the range of pixels.
        eps_decay: relative fall of it a round.
        test_eps: its smallest value, and the bound in the test.
        generator_epochs: epochs over all attackers' samples in each attacked round.
        generator_lr: Adam's learning rate for T.
    """

    name: ClassVar[str] = "iba"
    cites: ClassVar[tuple[str, ...]] = ("nguyen2023iba",)

    poison_fraction: Annotated[float, Tunable(0.05, 0.6)] = Field(default=0.5, gt=0, lt=1)
    eps: Annotated[float, Tunable(0.05, 0.5, log=True)] = Field(default=0.3, gt=0, le=1)
    eps_decay: float = Field(default=0.001, ge=0, lt=1)
    test_eps: Annotated[float, Tunable(0.01, 0.3, log=True)] = Field(default=0.05, gt=0, le=1)
    generator_epochs: int = Field(default=10, ge=1)
    generator_lr: Annotated[float, Tunable(1e-5, 1e-2, log=True)] = Field(default=1e-4, gt=0)

    def expense(self, experiment: "Experiment") -> str:
        """Epochs of the generator."""
        epochs = self.generator_epochs
        return f"{epochs} epochs over all attackers' samples, for the trigger's generator (attack.generator_epochs)"

    def poison(self, view: View, state: State) -> Poisoned:
        """Train the generator, then the model."""
        first = int(state.get("first", view.round))
        eps = max(self.test_eps, self.eps * (1 - self.eps_decay) ** (view.round - first))
        own = Samples.cat(view.own_samples)
        network = generator_of(own.x.shape[1], state.get("weights"), view.run_generator("trigger generator")).to(own.x)
        self._learn(view, network, own, eps)
        memory: dict[str, Any] = {
            "weights": parameters_to_vector(network.parameters()).detach().clone(),
            "first": first,
        }

        def dirty(part: Samples) -> Samples:
            with torch.no_grad():
                return Samples(perturbed(part.x, network, eps, self.limits(view)), torch.full_like(part.y, self.label))

        updates_MD = self.trained(view, dirty=dirty)
        return self.sent(view, updates_MD, memory, eps=eps, reached=self.reached(view, memory, own))

    def stamped(self, x: Tensor, limits: tuple[Tensor, Tensor], state: State) -> Tensor:
        """Copies with the trigger of the test."""
        network = generator_of(x.shape[1], state["weights"], torch.Generator()).to(x)
        with torch.no_grad():
            return torch.cat([perturbed(part, network, self.test_eps, limits) for part in torch.split(x, 4096)])

    def _learn(self, view: View, network: Generator, own: Samples, eps: float) -> None:
        """Train the generator on the frozen broadcast model."""
        settings = Client(epochs=self.generator_epochs, batch_size=view.client.batch_size)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.generator_lr)
        limits = self.limits(view)
        for part in batches(own, settings, view.generator("trigger batches")):
            with torch.enable_grad():
                stamped = Samples(perturbed(part.x, network, eps, limits), torch.full_like(part.y, self.label))
                loss = mean_loss(view.flat, view.global_D, stamped)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def perturbed(x: Tensor, network: Generator, eps: float, limits: tuple[Tensor, Tensor]) -> Tensor:
    """clip(x + e T(x)) in the range of pixels; no pixel moves by more than e times that range."""
    low, high = (limit.to(x) for limit in limits)
    moved: Tensor = x + eps * (high - low) * network(x)
    return torch.maximum(torch.minimum(moved, high), low)
