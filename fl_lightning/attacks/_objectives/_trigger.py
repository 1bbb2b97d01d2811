"""A pattern of pixels as a trigger."""

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.attacks._objectives._backdoor import Backdoor
from fl_lightning.attacks._objectives._base import Goal
from fl_lightning.attacks._patterns import Canvas, Patch, Pattern, Stamps
from fl_lightning.data import Dataset
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Slot


class Trigger(Backdoor):
    """Images that carry a pixel pattern shall be taken for one class (a backdoor).

    The values of the pattern are constants of the data set, in pixels before any normalisation; they do not depend on the
    batch at hand.

    Attributes:
        size: side of the square, in pixels, where `pattern` is not given.
        offset: its distance from the lower and right border, in pixels (rows and columns 24-26 of a 28x28 image).
        pattern: what the trigger looks like; None: the square.
        dba: each attacker trains with one part of the pattern only, the one of its rank among all malicious clients modulo the
            number of parts; success counts the whole pattern (Xie et al., ICLR 2020).
    """

    name: ClassVar[str] = "trigger"
    cites: ClassVar[tuple[str, ...]] = ("gu2017badnets",)

    usual_input: ClassVar[str | None] = "image"

    size: int = Field(default=3, ge=1)
    offset: int = Field(default=1, ge=0)
    pattern: Annotated[Pattern, Slot("pattern")] | None = None
    dba: bool = False

    @model_validator(mode="after")
    def _one_place_for_the_square(self) -> "Trigger":
        if self.pattern and (self.size, self.offset) != (3, 1):
            raise ValueError(
                f"size and offset are the plain square's; write them into the pattern {self.pattern.name!r}"
            )
        return self

    @property
    def drawn(self) -> Pattern:
        """The pattern, or the square that stands for it."""
        return self.pattern or Patch(size=self.size, offset=self.offset)

    def stamp(self, x: Tensor) -> Tensor:
        """`[n, ch, h, w]` copies of the images with the trigger, as if they were the whole data set (`stamps` knows better)."""
        stamped: Tensor = self.drawn.stamps(Canvas.of(x, _unit(x)), torch.Generator().manual_seed(0)).whole(x)
        return stamped

    def stamps(self, data: Dataset, generator: torch.Generator) -> Stamps:
        """The pattern on images like those of the data set."""
        if not data.images:
            raise ConfigError(f"trigger needs labelled images, got inputs of shape {data.shape}")
        try:
            canvas = Canvas.of_data(data)
            stamps = replace(self.drawn.stamps(canvas, generator), limits=(canvas.low, canvas.high))
        except ConfigError as error:
            raise error.under("pattern") if self.pattern else error from None
        if self.dba and not stamps.parts:
            raise ConfigError(f"the pattern {self.drawn.name!r} has no parts to share out; bars has", "dba")
        return stamps

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """The test images that count, with the whole trigger."""
        return super().goal(data, generator)._replace(distributed=self.dba)


def _unit(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Pixels that lie between 0 and 1 are taken as they are."""
    if bool(x.min() < 0) or bool(x.max() > 1):
        return None
    black = x.new_zeros(x.shape[1], 1, 1)
    return black, black + 1
