"""The contract of trigger patterns, and the images that they are drawn on."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fl_lightning.data import Dataset, Inputs, joined
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Component

Stamp = Callable[[Inputs], Inputs]
"""`[n, ...]` inputs to copies of them that carry a trigger."""

NEARLY_WHITE = 0.75


@dataclass(frozen=True)
class Canvas:
    """What a pattern must know of the images of a data set; the same for every attacker and for the test.

    Attributes:
        low: `[ch, 1, 1]` what a pixel of 0 is in the data, after all transforms.
        high: `[ch, 1, 1]` what a pixel of 1 is.
        mean: `[ch, h, w]` the mean training image, as pixels between 0 and 1.
    """

    low: Tensor
    high: Tensor
    mean: Tensor

    @staticmethod
    def of(x: Tensor, limits: tuple[Tensor, Tensor] | None = None) -> "Canvas":
        """The canvas of images `[n, ch, h, w]`; without limits, each channel's smallest and largest value are its 0 and 1."""
        if limits is None:
            smallest, largest = x.amin((0, 2, 3))[:, None, None], x.amax((0, 2, 3))[:, None, None]
            limits = smallest, torch.where(largest > smallest, largest, smallest + 1)
        low, high = limits
        return Canvas(low, high, (x.mean(0) - low) / (high - low))

    @staticmethod
    def of_data(data: Dataset) -> "Canvas":
        """The canvas of a data set's images."""
        return Canvas.of(data.train.x, data.limits)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.mean.shape
        return channels, height, width

    def value(self, pixels: Tensor | float) -> Tensor:
        """Pixels between 0 and 1, `[ch, h, w]` or one for all, as values of the data."""
        return self.low + pixels * (self.high - self.low)

    def clamp(self, x: Tensor) -> Tensor:
        """Nothing blacker than 0 or whiter than 1."""
        return torch.maximum(torch.minimum(x, self.high), self.low)

    def contrast(self, mask: Tensor) -> float:
        """The pixel that shows at a place: 1, or 0 where the mean training image is nearly white (above 3/4) already.

        Args:
            mask: `[h, w]` bool, the place.
        """
        return 0.0 if float(self.mean[:, mask].mean()) > NEARLY_WHITE else 1.0

    def painted(self, mask: Tensor, pixel: float | Tensor | None) -> Stamp:
        """The stamp that sets the pixels of `[h, w]` bool `mask`; None: to the one that shows there."""
        value = self.value(self.contrast(mask) if pixel is None else pixel).expand(self.shape)
        place = mask.to(value.device)
        return lambda x: torch.where(place, value.to(x), x)


@dataclass(frozen=True)
class Stamps:
    """A trigger made concrete for a data set.

    Attributes:
        whole: what is stamped on test inputs.
        parts: the pieces that attackers share out; empty: the trigger has none.
        covers: distorted triggers; inputs that carry one keep their right label when attackers train (WaNet's noise mode).
        cover_ratio: inputs with a distorted trigger per one with the right trigger.
        limits: for images, `[ch, 1, 1]` each, what pixels of 0 and of 1 are in the data.
    """

    whole: Stamp
    parts: tuple[Stamp, ...] = ()
    covers: tuple[Stamp, ...] = ()
    cover_ratio: int = 0
    limits: tuple[Tensor, Tensor] | None = None

    def part(self, rank: int) -> "Stamps":
        """What the attacker of a rank trains with where the parts are shared out: its part for the whole."""
        return replace(self, whole=self.parts[rank % len(self.parts)])

    def covered(self, x: Inputs) -> Inputs:
        """`[cover_ratio * n, ...]` copies with distorted triggers; the i-th copy carries distortion i modulo their number."""
        copies = torch.arange(len(x)).repeat(self.cover_ratio)
        if not self.covers or not len(copies):
            return x[copies[:0]]
        stride = len(self.covers)
        stamped = joined([stamp(x[copies[number::stride]]) for number, stamp in enumerate(self.covers)])
        return stamped[torch.cat([torch.arange(len(copies))[number::stride] for number in range(stride)]).argsort()]

    def on(self, place: Callable[[Stamp], Stamp]) -> "Stamps":
        """The same trigger with every stamp put elsewhere, such as on one of several inputs."""
        covers, parts = tuple(map(place, self.covers)), tuple(map(place, self.parts))
        return replace(self, whole=place(self.whole), parts=parts, covers=covers)


class Pattern(Component, ABC):
    """What a trigger looks like; it is drawn once for a data set and then the same on every image."""

    @abstractmethod
    def stamps(self, canvas: Canvas, generator: torch.Generator) -> Stamps:
        """The trigger on images like these.

        Args:
            canvas: size and values of the images.
            generator: CPU generator, keyed by the seed of the experiment.

        Raises:
            ConfigError: the pattern does not fit.
        """


def require_room(canvas: Canvas, rows: int, columns: int, what: str, field: str = "") -> None:
    """Raise a ConfigError unless an image has so many rows and columns."""
    _, height, width = canvas.shape
    if rows > height or columns > width:
        raise ConfigError(f"{what} needs {rows}x{columns} pixels and does not fit into {canvas.shape}", field)
