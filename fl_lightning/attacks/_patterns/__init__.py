"""What a trigger looks like on an image."""

from fl_lightning.attacks._patterns._bars import Bars, bars
from fl_lightning.attacks._patterns._base import Canvas, Pattern, Stamp, Stamps
from fl_lightning.attacks._patterns._blend import Blend, blend
from fl_lightning.attacks._patterns._checker import Checker, checker
from fl_lightning.attacks._patterns._patch import Patch
from fl_lightning.attacks._patterns._sinus import Sinus, sinus
from fl_lightning.attacks._patterns._warp import Warp, warp_grid

PATTERNS: list[type[Pattern]] = [Patch, Checker, Blend, Sinus, Warp, Bars]

__all__ = [
    "PATTERNS",
    "Bars",
    "Blend",
    "Canvas",
    "Checker",
    "Patch",
    "Pattern",
    "Sinus",
    "Stamp",
    "Stamps",
    "Warp",
    "bars",
    "blend",
    "checker",
    "sinus",
    "warp_grid",
]
