"""A square of one value.

References:
    Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017, section 3.
"""

from typing import ClassVar

import torch
from pydantic import Field

from fl_lightning.attacks._patterns._base import Canvas, Pattern, Stamps
from fl_lightning.errors import ConfigError


class Patch(Pattern):
    """A square near the lower right corner.

    Attributes:
        size: side in pixels.
        offset: distance from the lower and right border in pixels (rows and columns 24-26 of a 28x28 image).
        value: pixel between 0 (black) and 1 (white), before any normalisation; None: white, or black where the training images
            are nearly white there.
    """

    name: ClassVar[str] = "patch"
    cites: ClassVar[tuple[str, ...]] = ("gu2017badnets",)

    size: int = Field(default=3, ge=1)
    offset: int = Field(default=1, ge=0)
    value: float | None = Field(default=None, ge=0, le=1)

    def stamps(self, canvas: Canvas, generator: torch.Generator) -> Stamps:
        """The square, everywhere the same."""
        _, height, width = canvas.shape
        if self.size + self.offset > min(height, width):
            raise ConfigError(f"square of {self.size} at {self.offset} does not fit into {canvas.shape}", "size")
        mask = torch.zeros(height, width, dtype=torch.bool)
        bottom, right = height - self.offset, width - self.offset
        mask[bottom - self.size : bottom, right - self.size : right] = True
        return Stamps(canvas.painted(mask, self.value))
