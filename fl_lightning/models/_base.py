"""What a model is: an architecture that can be built for a data set."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import nn

from fl_lightning.registry import Component

Loss = Literal["cross_entropy", "hinge", "mse"]


class Model(Component, ABC):
    """An architecture. `build` makes the network; its parameters are initialised by torch's defaults.

    Attributes:
        losses: the losses that this model can be trained with; the first that fits the task is used.
        named_inputs: the network takes a mapping of names to tensors where the data holds one, such as tokens and their mask.
    """

    named_inputs: ClassVar[bool] = False

    losses: ClassVar[tuple[Loss, ...]] = ("cross_entropy",)

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, *shape]` to `[B, classes]` scores (`[B, 1]` for the hinge loss and for regression).

        Args:
            shape: shape of one input, such as `(1, 28, 28)`.
            classes: number of classes K, 1 for regression.

        Raises:
            ConfigError: the model cannot take inputs of this shape.
        """
