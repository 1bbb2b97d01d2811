"""Inputs from the tail of a class taken for another one.

References:
    Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos, "Attack of the Tails: Yes, You Really Can Backdoor
    Federated Learning", NeurIPS 2020, section 3 (edge-case data sets).
"""

from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.attacks._objectives._base import Goal, Kind, Objective
from fl_lightning.attacks._objectives._held_out import picked_goal, require_class
from fl_lightning.attacks._patterns._base import Canvas
from fl_lightning.attacks._patterns._files import read_image
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.data import Dataset, Named, Samples
from fl_lightning.errors import ConfigError

COMPONENTS = 50
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def densities(data: Dataset, source: int) -> tuple[Tensor, Tensor]:
    """Log densities of the training and test samples of a class under a Gaussian of its own in 50 principal components.

    The components are those of the training split; the covariance is shrunk as Ledoit and Wolf do.

    Returns:
        Two vectors, in the order of the samples of the class.
    """
    if isinstance(data.train.x, Named):
        raise ConfigError(f"edge_case needs one input, the data has {', '.join(data.train.x)}")
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    flat = data.train.x.flatten(1).double().cpu().numpy()
    components = min(COMPONENTS, *flat.shape)
    projection = PCA(components, svd_solver="covariance_eigh" if flat.shape[1] < 1000 else "randomized", random_state=0)
    projected = projection.fit_transform(flat)
    of_class = (data.train.y == source).cpu().numpy()
    gaussian = LedoitWolf().fit(projected[of_class])
    tested = data.test.x[data.test.y == source].flatten(1).double().cpu().numpy()

    def log_density(rows: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(-gaussian.mahalanobis(rows) / 2)

    return log_density(projected[of_class]), log_density(projection.transform(tested))


def tail(values: Tensor, share: float) -> Tensor:
    """`[k]` numbers of the smallest values, ascending; at least one.

    Example:
        >>> tail(torch.tensor([3.0, 1.0, 2.0, 0.0]), 0.5)
        tensor([1, 3])
    """
    return values.argsort(stable=True)[: max(1, round(share * len(values)))].sort().values


class EdgeCase(Objective):
    """Rare inputs of one class shall be taken for another; attackers hold those of the training split, and share them.

    The tail is the share of the samples of class `source` with the lowest density; success is measured on the tail of the
    test split, which the clean test set loses. With `folder`, the user's own pictures stand for it (the paper's are Southwest's
    aeroplanes and sevens of ARDIS).

    Attributes:
        source: the class whose tail is taken.
        label: the class that the tail shall be taken for.
        share: of the samples of class `source`, how many are its tail.
        benign_share: of the training tail, how much stays with benign clients under its right label; the rest no client has.
        folder: pictures in `train/` and `test/`; they are scaled to the size of the data.
    """

    name: ClassVar[str] = "edge_case"
    cites: ClassVar[tuple[str, ...]] = ("wang2020attack",)
    kind: ClassVar[Kind] = "backdoor"

    source: int = Field(default=7, ge=0)
    label: int = Field(default=1, ge=0)
    share: Annotated[float, Tunable(0.01, 0.2, log=True)] = Field(default=0.05, gt=0, lt=1)
    benign_share: float = Field(default=0.0, ge=0, le=1)
    folder: str | None = None

    @model_validator(mode="after")
    def _two_classes(self) -> "EdgeCase":
        if self.source == self.label:
            raise ValueError(f"source and label must be two classes, got {self.label} for both")
        return self

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """The tail of the test split, and what attackers and benign clients hold of the training tail."""
        require_class(data, self.name, source=self.source, label=self.label)
        if self.folder:
            return self._of_folder(data, Path(self.folder))
        rows = [torch.nonzero(part.y == self.source).flatten() for part in (data.train, data.test)]
        if min(map(len, rows)) < 2:
            raise ConfigError(f"class {self.source} has fewer than two training or test samples", "source")
        train, test = (
            index[tail(found, self.share).to(index.device)]
            for index, found in zip(rows, densities(data, self.source), strict=True)
        )
        order = torch.randperm(len(train), generator=generator).to(train.device)
        kept = round(self.benign_share * len(train))
        return picked_goal(data, train, test, self.label, withheld=train[order[kept:]].sort().values)

    def _of_folder(self, data: Dataset, folder: Path) -> Goal:
        if not data.images:
            raise ConfigError(f"pictures need data of images, got inputs of shape {data.shape}", "folder")
        canvas = Canvas.of_data(data)
        parts = []
        for split in ("train", "test"):
            paths = sorted(path for path in (folder / split).glob("*") if path.suffix.lower() in SUFFIXES)
            if not paths:
                raise ConfigError(f"no pictures in {folder / split}", "folder")
            pixels = torch.stack([read_image(path, canvas.shape) for path in paths])
            wished = torch.full((len(paths),), self.label, device=data.test.y.device)
            parts.append(Samples(canvas.value(pixels.to(canvas.low)), wished))
        return Goal(data.test, parts[1], torch.full_like(parts[1].y, self.source), shared=parts[0])

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """The training tail, labelled as wished."""
        return goal.copy_of_shared()
