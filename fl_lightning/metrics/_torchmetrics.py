"""Figures of one's own on the clean test set: the slot `metric`, and any metric of torchmetrics."""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torchmetrics
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.errors import ConfigError, suggest
from fl_lightning.models import predict
from fl_lightning.registry import Component


class Metric(Component, ABC):
    """A figure of the global model; named by its label in `evaluation.metrics`, reported as `global/<label>`."""

    @abstractmethod
    def compute(self, scores_nK: Tensor, y_n: Tensor, classes: int) -> float:
        """The figure.

        Args:
            scores_nK: `[n, K]` scores of the model, `[n, 1]` for regression.
            y_n: `[n]` targets.
            classes: number of classes K, 1 for regression.
        """


class Torchmetrics(Metric):
    """A metric of torchmetrics by its class: `{name: torchmetrics, metric: F1Score, args: {average: macro}}`.

    Attributes:
        metric: name of the class.
        args: of its constructor; `task: multiclass` and `num_classes` are known.

    Example:
        >>> import torch
        >>> scores_nK = torch.eye(2)[torch.tensor([0, 0, 1, 0])]
        >>> round(Torchmetrics(metric="F1Score", args={"average": "macro"}).compute(scores_nK, torch.tensor([0, 0, 1, 1]), 2), 4)
        0.7333
    """

    name: ClassVar[str] = "torchmetrics"

    metric: str
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_built(self) -> "Torchmetrics":
        if self.metric not in torchmetrics.__all__:
            raise ConfigError(
                f"torchmetrics has no {self.metric!r}; {suggest(self.metric, torchmetrics.__all__)}", "metric"
            )
        try:
            self.build(2)
        except (TypeError, ValueError) as error:
            raise ConfigError(" ".join(str(error).split()), "args") from None
        return self

    def build(self, classes: int) -> torchmetrics.Metric:
        """The metric for so many classes."""
        cls = getattr(torchmetrics, self.metric)
        known = (
            {"task": "multiclass", "num_classes": classes}
            if "task" in inspect.signature(cls.__new__).parameters
            else {}
        )
        metric: torchmetrics.Metric = cls(**known | self.args)
        return metric

    def compute(self, scores_nK: Tensor, y_n: Tensor, classes: int) -> float:
        """The metric over all test samples at once."""
        metric = self.build(max(classes, 2)).to(scores_nK.device)
        if y_n.is_floating_point():
            return float(metric(scores_nK.squeeze(-1), y_n))
        return float(metric(predict(scores_nK) if scores_nK.shape[-1] == 1 else scores_nK, y_n))
