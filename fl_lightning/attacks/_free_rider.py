"""Free riders: clients that pretend to train.

References:
    Fraboni, Vidal, Lorenzi, "Free-rider Attacks on Model Aggregation in Federated Learning", AISTATS 2021, sections 3.2 (plain)
    and 3.3 (disguised by noise that fades with the rounds).
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._crafted import bounded
from fl_lightning.attacks._known_rows import with_statistics
from fl_lightning.attacks._perturbation import wide
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State

Pretence = Literal["zero", "replay", "noise"]


def disguised(
    replay_D: Tensor, count: int, round: int, generator: torch.Generator, *, std: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """`[M, D]` rows replay + sigma t^-gamma noise, one draw a client.

    Args:
        replay_D: `[D]` the global model's last step.
        count: M.
        round: t; 0 counts as 1.
        generator: CPU generator.
        std: sigma in units of the root mean square of the replayed step.
        gamma: how fast the noise fades, >= 0.
    """
    sigma = std * float(torch.linalg.vector_norm(replay_D)) / max(1, len(replay_D)) ** 0.5
    noise_MD = torch.randn(count, len(replay_D), generator=generator).to(replay_D)
    fading = float(max(1, round) ** -gamma)
    return noise_MD.mul_(sigma * fading).add_(replay_D)


class FreeRider(Attack):
    """Free riders: malicious clients send nothing, or the global model's last step, with or without noise.

    Attributes:
        kind: `zero`: the model as it was received; `replay`: the last step; `noise`: the last step and fading noise.
        std: of the noise, in units of the root mean square of the last step.
        gamma: the noise fades as round^-gamma.
    """

    name: ClassVar[str] = "free_rider"
    cites: ClassVar[tuple[str, ...]] = ("fraboni2021freerider",)
    serves: ClassVar[tuple[str, ...]] = ("any",)

    kind: Annotated[Pretence, Choice(("zero", "replay", "noise"))] = "noise"
    std: Annotated[float, Tunable(0.01, 10, log=True)] = Field(default=1.0, ge=0)
    gamma: float = Field(default=1.0, ge=0)

    def poison(self, view: View, state: State) -> Poisoned:
        """The pretended updates."""
        moved_D = wide(view.global_D) - wide(view.previous_D)
        replay_P = moved_D[: view.flat.trained] / view.server_lr
        if self.kind == "zero":
            replay_P = torch.zeros_like(replay_P)
        rows_MP = replay_P.repeat(view.n_malicious, 1)
        if self.kind == "noise":
            random = view.generator("noise")
            rows_MP = disguised(replay_P, view.n_malicious, view.round, random, std=self.std, gamma=self.gamma)
        metrics = {"norm": float(torch.linalg.vector_norm(replay_P))}
        return Poisoned(bounded(with_statistics(view, rows_MP), view.global_D), metrics=metrics)
