"""The chequered corner of BadNets.

References:
    Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017,
    figure 3 (pattern backdoor).
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_lightning.attacks._patterns._base import Canvas, Pattern, Stamps, require_room

BRIGHT = ((0, 0), (0, 2), (1, 1), (2, 0))
"""Bright cells, counted from the corner inwards: row, column."""
SIDE = 3


def checker(height: int, width: int, corners: int = 1) -> tuple[Tensor, Tensor]:
    """`[h, w]` bool each: the cells that the pattern covers, and the bright ones among them.

    Args:
        height: of the image, at least 3.
        width: of the image, at least 3.
        corners: 1 for the lower right corner, 4 for all.

    Example:
        >>> checker(4, 4)[1].nonzero().tolist()
        [[1, 3], [2, 2], [3, 1], [3, 3]]
    """
    covered, bright = torch.zeros(height, width, dtype=torch.bool), torch.zeros(height, width, dtype=torch.bool)
    covered[-SIDE:, -SIDE:] = True
    for row, column in BRIGHT:
        bright[-1 - row, -1 - column] = True
    if corners == 4:
        for dims in ((0,), (1,)):
            covered, bright = covered | covered.flip(dims), bright | bright.flip(dims)
    return covered, bright


class Checker(Pattern):
    """A 3x3 grid of the smallest and the largest value in the lower right corner: visible on every background.

    Attributes:
        corners: 1, or 4 for a grid in every corner.
    """

    name: ClassVar[str] = "checker"
    cites: ClassVar[tuple[str, ...]] = ("gu2017badnets",)

    corners: Literal[1, 4] = 1

    def stamps(self, canvas: Canvas, generator: torch.Generator) -> Stamps:
        """The grid."""
        _, height, width = canvas.shape
        side = SIDE if self.corners == 1 else 2 * SIDE
        require_room(canvas, side, side, "the grid", "corners")
        covered, bright = checker(height, width, self.corners)
        return Stamps(canvas.painted(covered, bright.to(canvas.mean)))
