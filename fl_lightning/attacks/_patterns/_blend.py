"""A whole image blended in.

References:
    Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017, section 4.2 (blended injection).
"""

from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._patterns._base import Canvas, Pattern, Stamps
from fl_lightning.attacks._patterns._files import read_image
from fl_lightning.attacks._tunable import Tunable


def blend(x: Tensor, other: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) x + alpha n: images `[n, ch, h, w]` with `[ch, h, w]` one blended in.

    Example:
        >>> blend(torch.tensor([[[[1.0]]]]), torch.tensor([[[0.5]]]), 0.2)
        tensor([[[[0.9000]]]])
    """
    return (1 - alpha) * x + alpha * other


class Blend(Pattern):
    """The same faint image over every input: random pixels, or a picture.

    Attributes:
        alpha: share of the blended image.
        image: path of a picture; None: random pixels, keyed by the seed.
    """

    name: ClassVar[str] = "blend"
    cites: ClassVar[tuple[str, ...]] = ("chen2017targeted",)

    alpha: Annotated[float, Tunable(0.02, 0.5, log=True)] = Field(default=0.2, gt=0, le=1)
    image: str | None = None

    def stamps(self, canvas: Canvas, generator: torch.Generator) -> Stamps:
        """One image for everybody."""
        pixels = (
            read_image(Path(self.image), canvas.shape) if self.image else torch.rand(canvas.shape, generator=generator)
        )
        other = canvas.value(pixels.to(canvas.low))
        return Stamps(lambda x: blend(x, other.to(x), self.alpha))
