"""What a model is: an architecture that can be built for a data set."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import nn

from fl_lightning.data import Samples
from fl_lightning.models._statistics import Buffers, with_policy
from fl_lightning.registry import Component

Loss = Literal["cross_entropy", "hinge", "mse"]


class Model(Component, ABC):
    """An architecture. `build` makes the network; its parameters are initialised by torch's defaults.

    Attributes:
        losses: the losses that this model can be trained with; the first that fits the task is used.
        named_inputs: the network takes a mapping of names to tensors where the data holds one, such as tokens and their mask.
        federate: what the clients send: `trainable` parameters, or `all`, frozen ones, too.
        buffers: what becomes of running statistics: they travel with the update (`average`), are not tracked at all (`local`), or
            stay what they came as (`freeze`). Those of frozen layers always stay.
    """

    named_inputs: ClassVar[bool] = False
    losses: ClassVar[tuple[Loss, ...]] = ("cross_entropy",)

    federate: Literal["trainable", "all"] = "trainable"
    buffers: Buffers = "average"

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, *shape]` to `[B, classes]` scores (`[B, 1]` for the hinge loss and for regression).

        Args:
            shape: shape of one input, such as `(1, 28, 28)`.
            classes: number of classes K, 1 for regression.

        Raises:
            ConfigError: the model cannot take inputs of this shape.
        """

    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """What `build` makes, its normalisation layers under the policy `buffers`; see `build`."""
        return with_policy(self.build(shape, classes), self.buffers)

    def check(self, network: nn.Module, samples: Samples, classes: int) -> None:
        """Refuse a network that cannot score the data, before anything is trained.

        Args:
            network: what `network` made.
            samples: some of the data.
            classes: number of classes K, 1 for regression.

        Raises:
            ConfigError: it cannot.
        """
