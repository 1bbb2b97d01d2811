"""Gaussian noise instead of training: the baseline that robust rules shrug off.

References:
    Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020, section 4.1:
    every coordinate is drawn with the mean and variance of the compromised clients' honest models.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._known_rows import honest_statistics
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State


def gaussian(
    honest_MD: Tensor,
    generator: torch.Generator,
    std: float | None = None,
    *,
    mean: float = 0.0,
    replace: bool = False,
) -> Tensor:
    """Noisy updates.

    Args:
        honest_MD: `[M, D]` honest updates of the malicious clients.
        generator: CPU generator.
        std: standard deviation of noise around each honest update; None: every coordinate is drawn afresh from the normal
            distribution with the mean and variance of the M honest values (variance 0 for one client).
        mean: of the noise, where its standard deviation is given.
        replace: send the noise alone instead of the honest update with noise.

    Returns:
        `[M, D]` updates.

    Example:
        >>> honest = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
        >>> gaussian(honest, torch.Generator(), std=0.0)
        tensor([[1., 2.],
                [3., 2.]])
    """
    noise_MD = torch.randn(honest_MD.shape, generator=generator).to(honest_MD)
    if std is not None:
        noise_MD = mean + std * noise_MD if mean else std * noise_MD
        return noise_MD if replace else honest_MD + noise_MD
    return honest_MD.mean(0) + honest_MD.std(0, correction=0) * noise_MD


class Gaussian(Attack):
    """Malicious clients send Gaussian noise.

    Attributes:
        std: standard deviation of the noise that is added to the honest update; None: the honest updates' own spread.
        mean: of that noise.
        replace: send the noise alone, as other suites do.
    """

    name: ClassVar[str] = "gaussian"
    cites: ClassVar[tuple[str, ...]] = ("fang2020local",)
    serves: ClassVar[tuple[str, ...]] = ("any", "relabel")

    std: Annotated[float | None, Tunable(1e-3, 10, log=True)] = Field(default=None, ge=0)
    mean: float = 0.0
    replace: bool = False

    @model_validator(mode="after")
    def _noise_of_its_own(self) -> "Gaussian":
        if self.std is None and (self.mean or self.replace):
            raise ValueError(f"mean and replace need std, got std=None, mean={self.mean}, replace={self.replace}")
        return self

    def poison(self, view: View, state: State) -> Poisoned:
        """Replace the honest updates by noise."""
        draws = view.generator("noise")
        noisy_MD = gaussian(view.own_updates, draws, self.std, mean=self.mean, replace=self.replace)
        return Poisoned(honest_statistics(view, noisy_MD))
