"""Four small bars, which attackers can share out.

References:
    Xie, Huang, Chen, Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020, section 3 and appendix A.1.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._patterns._base import Canvas, Pattern, Stamps, require_room
from fl_lightning.errors import ConfigError

PUBLISHED = {8: (1, 2, 6, 4), 28: (1, 4, 2, 2), 32: (1, 6, 3, 3)}
"""Smallest side of the image -> height, width, vertical and horizontal gap: the paper's for MNIST and CIFAR-10; 8x8 is ours."""


def bars(parts: int, height: int, width: int, gap_h: int, gap_w: int, shift: int = 0) -> list[list[tuple[int, int]]]:
    """The pixels (row, column) of each bar; bar i stands in row i div 2 and column i mod 2 of a grid of bars.

    Example:
        >>> bars(2, 1, 4, 2, 2)[1]
        [(0, 6), (0, 7), (0, 8), (0, 9)]
    """
    corners = [(shift + (i // 2) * (height + gap_h), shift + (i % 2) * (width + gap_w)) for i in range(parts)]
    return [[(top + r, left + c) for r in range(height) for c in range(width)] for top, left in corners]


class Bars(Pattern):
    """Small bars in the upper left corner; with `dba: true` of the trigger, each attacker trains with one of them only.

    Attributes:
        parts: number of bars.
        height: of a bar, in pixels; None here and below: as published for images of this size.
        width: of a bar.
        gap_h: rows between bars.
        gap_w: columns between bars.
        shift: distance of the first bar from the upper and left border.
        value: pixel between 0 and 1, before any normalisation; None: as in `patch`.
    """

    name: ClassVar[str] = "bars"
    cites: ClassVar[tuple[str, ...]] = ("xie2020dba",)

    parts: int = Field(default=4, ge=2)
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    gap_h: int | None = Field(default=None, ge=0)
    gap_w: int | None = Field(default=None, ge=0)
    shift: int = Field(default=0, ge=0)
    value: float | None = Field(default=None, ge=0, le=1)

    def stamps(self, canvas: Canvas, generator: torch.Generator) -> Stamps:
        """All bars, and each alone; all of one value."""
        masks = self.masks(canvas)
        everywhere = masks.any(0)
        pixel = canvas.contrast(everywhere) if self.value is None else self.value
        return Stamps(canvas.painted(everywhere, pixel), tuple(canvas.painted(mask, pixel) for mask in masks))

    def masks(self, canvas: Canvas) -> Tensor:
        """`[parts, h, w]` bool, the pixels of each bar."""
        _, height, width = canvas.shape
        sizes = [size for size in PUBLISHED if size <= min(height, width)]
        given = (self.height, self.width, self.gap_h, self.gap_w)
        if not sizes and None in given:
            raise ConfigError(f"no published bars for images of {height}x{width}: set height, width, gap_h and gap_w")
        usual = PUBLISHED[max(sizes)] if sizes else (0, 0, 0, 0)
        h, w, gap_h, gap_w = (mine if mine is not None else theirs for mine, theirs in zip(given, usual, strict=True))
        pixels = bars(self.parts, h, w, gap_h, gap_w, self.shift)
        last_row, last_column = (max(place[axis] for bar in pixels for place in bar) for axis in (0, 1))
        require_room(canvas, last_row + 1, last_column + 1, f"{self.parts} bars of {h}x{w}", "parts")
        masks = torch.zeros(self.parts, height, width, dtype=torch.bool)
        for mask, bar in zip(masks, pixels, strict=True):
            for row, column in bar:
                mask[row, column] = True
        return masks
