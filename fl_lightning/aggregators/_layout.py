"""What the columns of the updates mean: layers, running statistics, the classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from fl_lightning.registry import ConfigError


class Layer(NamedTuple):
    """One tensor of the model.

    Attributes:
        name: as the network names it.
        slice: its columns.
        shape: of the tensor.
        trained: False for a running statistic.
    """

    name: str
    slice: slice
    shape: tuple[int, ...]
    trained: bool = True


class Classifier(NamedTuple):
    """The last, linear layer.

    Attributes:
        weight: columns of its weight, row by row.
        shape: `(K, H)` of the weight.
        bias: columns of its bias, or None.
    """

    weight: slice
    shape: tuple[int, int]
    bias: slice | None


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in the order of the vector: parameters first, then running statistics.

    Attributes:
        layers: every tensor.
        model: what the model is called in messages.
        last: name of the module whose weight and bias are the classifier; None: the last module is not linear.
    """

    layers: tuple[Layer, ...]
    model: str = "this model"
    last: str | None = None

    @property
    def trained(self) -> slice:
        """The columns of the parameters."""
        return slice(0, max((layer.slice.stop for layer in self.layers if layer.trained), default=0))

    @property
    def classifier(self) -> Classifier:
        """Where the last linear layer lies.

        Raises:
            ConfigError: the last layer is no linear one.
        """
        named = {layer.name: layer for layer in self.layers}
        prefix = f"{self.last}." if self.last else ""
        weight = None if self.last is None else named.get(f"{prefix}weight")
        if weight is None or len(weight.shape) != 2:
            raise ConfigError(f"needs a model whose last layer is linear, {self.model} ends in another")
        bias = named.get(f"{prefix}bias")
        classes, inputs = weight.shape
        return Classifier(weight.slice, (classes, inputs), None if bias is None else bias.slice)


def last_layer(network: nn.Module) -> tuple[str, nn.Linear] | None:
    """Name and module of the last layer that has parameters, if it is linear."""
    layers = [(name, module) for name, module in network.named_modules() if [*module.parameters(recurse=False)]]
    if not layers or not isinstance(layers[-1][1], nn.Linear):
        return None
    return layers[-1][0], layers[-1][1]


def layout_of(network: nn.Module, names: Sequence[str], shapes: Sequence[Sequence[int]], trained: int) -> Layout:
    """The layout of a network's vector.

    Args:
        network: the architecture.
        names: of the tensors, in the order of the vector.
        shapes: of the tensors.
        trained: how many columns, the first ones, are parameters.
    """
    layers, start = [], 0
    for name, shape in zip(names, shapes, strict=True):
        size = 1
        for length in shape:
            size *= length
        layers.append(Layer(name, slice(start, start + size), tuple(shape), start < trained))
        start += size
    last = last_layer(network)
    return Layout(tuple(layers), type(network).__name__, last and last[0])
