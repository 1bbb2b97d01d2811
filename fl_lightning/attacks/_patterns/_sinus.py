"""A faint wave across the columns.

References:
    Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", ICIP 2019, eq. 1.
"""

from math import pi
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._patterns._base import Canvas, Pattern, Stamps
from fl_lightning.attacks._tunable import Tunable


def sinus(width: int, delta: float, frequency: float) -> Tensor:
    """`[w]` v_j = delta sin(2 pi j f / w), j = 0 .. w - 1.

    Example:
        >>> sinus(8, 20 / 255, 1)[:3]
        tensor([0.0000, 0.0555, 0.0784])
    """
    return delta * torch.sin(2 * pi * frequency * torch.arange(width) / width)


class Sinus(Pattern):
    """A wave over the columns, cut to the range of pixels; its authors use it with `mode: clean_label`.

    Attributes:
        delta: its height, as a share of the range of pixels.
        frequency: waves across the image.
    """

    name: ClassVar[str] = "sinus"
    cites: ClassVar[tuple[str, ...]] = ("barni2019new",)

    delta: Annotated[float, Tunable(5 / 255, 60 / 255, log=True)] = Field(default=20 / 255, gt=0, le=1)
    frequency: float = Field(default=6.0, gt=0)

    def stamps(self, canvas: Canvas, generator: torch.Generator) -> Stamps:
        """The wave, the same on every row and channel."""
        wave = sinus(canvas.shape[2], self.delta, self.frequency).to(canvas.low) * (canvas.high - canvas.low)
        return Stamps(lambda x: canvas.clamp(x + wave.to(x)))
