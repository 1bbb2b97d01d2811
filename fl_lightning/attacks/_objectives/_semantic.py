"""Inputs with a feature of their own taken for another class.

References:
    Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020, section 4 (semantic backdoors:
    cars with a racing stripe, green cars, cars before a striped wall).
"""

from collections.abc import Callable
from math import pi
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.attacks._objectives._base import Goal, Kind, Objective
from fl_lightning.attacks._objectives._held_out import picked_goal, require_class
from fl_lightning.attacks._patterns._base import Canvas
from fl_lightning.data import Dataset, Samples
from fl_lightning.errors import ConfigError


def brightness(pixels: Tensor) -> Tensor:
    """`[n]` mean pixel of images `[n, ch, h, w]` in [0, 1]."""
    return pixels.mean((1, 2, 3))


def slant(pixels: Tensor) -> Tensor:
    """`[n]` how far strokes lean: mu_11 / mu_02, the shear that second moments about the centre of mass show.

    Example:
        >>> slant(torch.eye(5)[None, None])
        tensor([1.])
    """
    ink = pixels.mean(1)
    ink = ink / ink.sum((1, 2), keepdim=True).clamp(min=1e-12)
    rows = torch.arange(ink.shape[1], dtype=ink.dtype, device=ink.device)[None, :, None]
    columns = torch.arange(ink.shape[2], dtype=ink.dtype, device=ink.device)[None, None, :]
    down = rows - (ink * rows).sum((1, 2), keepdim=True)
    right = columns - (ink * columns).sum((1, 2), keepdim=True)
    return (ink * down * right).sum((1, 2)) / (ink * down.square()).sum((1, 2)).clamp(min=1e-12)


def thickness(pixels: Tensor) -> Tensor:
    """`[n]` width of strokes: twice the ink over the length of its outline (the total variation)."""
    ink = pixels.mean(1)
    outline = ink.diff(dim=1).abs().sum((1, 2)) + ink.diff(dim=2).abs().sum((1, 2))
    return 2 * ink.sum((1, 2)) / outline.clamp(min=1e-12)


def hue(pixels: Tensor) -> Tensor:
    """`[n]` hue of the mean colour in [0, 1): red 0, green 1/3, blue 2/3; three channels."""
    red, green, blue = pixels.mean((2, 3)).unbind(1)
    return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * pi) % 1


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "slant": slant,
    "thickness": thickness,
    "brightness": brightness,
    "hue": hue,
}


class Semantic(Objective):
    """Images of one class that have a feature by themselves shall be taken for another; nothing is stamped.

    Attackers share the selected training images, each several times under a little noise; no benign client holds them.

    Attributes:
        source: the class of the images.
        label: the class that they shall be taken for.
        feature: computed from pixels alone; the images in its upper tail are selected.
        quantile: of the feature among the training images of class `source`; above it lies the tail, also of the test split.
        indices: rows of the training and test split instead, such as `{train: [330, 568], test: [3934]}` (published lists).
        noise: standard deviation of the noise on the attackers' copies, in pixels.
        copies: of each selected training image, the first one without noise.
    """

    name: ClassVar[str] = "semantic"
    cites: ClassVar[tuple[str, ...]] = ("bagdasaryan2020how",)
    kind: ClassVar[Kind] = "backdoor"

    source: int = Field(default=7, ge=0)
    label: int = Field(default=1, ge=0)
    feature: Literal["slant", "thickness", "brightness", "hue"] = "slant"
    quantile: float = Field(default=0.95, gt=0, lt=1)
    indices: dict[Literal["train", "test"], list[int]] | None = None
    noise: float = Field(default=0.05, ge=0)
    copies: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _two_classes_and_two_lists(self) -> "Semantic":
        if self.source == self.label:
            raise ValueError(f"source and label must be two classes, got {self.label} for both")
        if self.indices is not None and not all(self.indices.get(split) for split in ("train", "test")):
            raise ValueError("indices needs rows of both train and test")
        return self

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """The selected test images, and noisy copies of the selected training images."""
        require_class(data, self.name, source=self.source, label=self.label)
        if not data.images:
            raise ConfigError(f"semantic needs images, got inputs of shape {data.shape}")
        canvas = Canvas.of_data(data)
        train, test = self._listed(data) if self.indices else self._tails(data, canvas)
        x = data.train.x[train].repeat(self.copies, 1, 1, 1)
        noise = self.noise * torch.randn(x.shape, generator=generator).to(x)
        noise[: len(train)] = 0
        x = canvas.clamp(x + noise * (canvas.high - canvas.low))
        shared = Samples(x, torch.full((len(x),), self.label, device=x.device))
        return picked_goal(data, train, test, self.label, shared)

    def _tails(self, data: Dataset, canvas: Canvas) -> tuple[Tensor, Tensor]:
        if self.feature == "hue" and data.shape[0] != 3:
            raise ConfigError(f"hue needs three channels, the data has {data.shape[0]}", "feature")
        rows, values = [], []
        for part in (data.train, data.test):
            rows.append(torch.nonzero(part.y == self.source).flatten())
            values.append(FEATURES[self.feature]((part.x[rows[-1]] - canvas.low) / (canvas.high - canvas.low)))
        if not len(rows[0]):
            raise ConfigError(f"the training split has no samples of class {self.source}", "source")
        limit = values[0].double().quantile(self.quantile)
        train, test = (index[own.double() > limit] for index, own in zip(rows, values, strict=True))
        if not (len(train) and len(test)):
            raise ConfigError(
                f"{len(train)} training and {len(test)} test images lie above it: choose a lower one", "quantile"
            )
        return train, test

    def _listed(self, data: Dataset) -> tuple[Tensor, Tensor]:
        rows = []
        for split, part in (("train", data.train), ("test", data.test)):
            listed = self.indices[split]  # type: ignore[index]
            if not all(0 <= row < len(part) for row in listed):
                raise ConfigError(f"needs rows of 0..{len(part) - 1} in {split}, got {listed}", "indices")
            rows.append(torch.tensor(listed, device=part.y.device))
        return rows[0], rows[1]

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """The attackers' copies, labelled as wished."""
        return goal.copy_of_shared()
