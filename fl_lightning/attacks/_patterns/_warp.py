"""A small smooth warp of the whole image.

References:
    Nguyen, Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021, eqs. 3-6; section 3.3 for the noise mode.
"""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._patterns._base import Canvas, Pattern, Stamp, Stamps
from fl_lightning.attacks._tunable import Tunable

NOISY_GRIDS = 64


def warp_grid(control: Tensor, height: int, width: int, strength: float) -> Tensor:
    """`[h, w, 2]` where each pixel is read from, in [-1, 1]: the identity plus a smooth field of mean size strength / h.

    Args:
        control: `[2, k, k]` random directions at the control points; divided by their mean absolute value.
        height: of the image.
        width: of the image.
        strength: s of the paper.
    """
    field = (control / control.abs().mean())[None]
    field = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)[0]
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    identity = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    return (identity + field.permute(1, 2, 0) * strength / height).clamp(-1, 1)


class Warp(Pattern):
    """One warp of all images, drawn once a run.

    Attributes:
        control: control points along each side.
        strength: mean displacement, in units of 2 / height of the image's own [-1, 1].
        noise_ratio: per warped sample so many more that are warped otherwise (the grid plus uniform noise) and keep their right
            label, so that only the one warp counts. The distortions are a bank of 64, drawn once a run.
    """

    name: ClassVar[str] = "warp"
    cites: ClassVar[tuple[str, ...]] = ("nguyen2021wanet",)

    control: int = Field(default=4, ge=2)
    strength: Annotated[float, Tunable(0.1, 2, log=True)] = Field(default=0.5, gt=0)
    noise_ratio: int = Field(default=2, ge=0)

    def stamps(self, canvas: Canvas, generator: torch.Generator) -> Stamps:
        """The warp, and its distortions."""
        _, height, width = canvas.shape
        draw = 2 * torch.rand(2, self.control, self.control, generator=generator) - 1
        grid = warp_grid(draw, height, width, self.strength)

        def warped(grid: Tensor) -> Stamp:
            return lambda x: F.grid_sample(x, grid.to(x).expand(len(x), -1, -1, -1), align_corners=True)

        noise = 2 * torch.rand(NOISY_GRIDS if self.noise_ratio else 0, *grid.shape, generator=generator) - 1
        covers = tuple(warped((grid + one / height).clamp(-1, 1)) for one in noise)
        return Stamps(warped(grid), covers=covers, cover_ratio=self.noise_ratio)
