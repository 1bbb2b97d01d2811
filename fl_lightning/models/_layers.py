"""The two shapes of network that the papers use: a dense stack, and two convolutions in front of one."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fl_lightning.errors import ConfigError
from fl_lightning.models._dropout import KeyedDropout

__all__ = ["cnn", "dense"]


def dense(widths: Sequence[int], dropout: float = 0.0) -> list[nn.Module]:
    """Linear layers from width to width with ReLU between them, and dropout in front of each where asked for.

    Example:
        >>> [type(layer).__name__ for layer in dense((784, 128, 10))]
        ['Linear', 'ReLU', 'Linear']
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        if dropout:
            layers.append(KeyedDropout(dropout, (width_in,)))
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return layers[:-1]


def cnn(
    shape: tuple[int, ...],
    classes: int,
    *,
    channels: Sequence[int],
    padding: Sequence[int],
    kernel: int = 5,
    pool: int = 2,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
) -> nn.Sequential:
    """Convolutions, each with ReLU and a max-pool that halves the image, then a dense stack.

    Args:
        shape: `(channels, height, width)` of one image.
        classes: number of outputs K.
        channels: output channels of each convolution.
        padding: padding of each convolution, in pixels on every side.
        kernel: side of the (square) convolution kernels, in pixels.
        pool: side of the pooling windows, in pixels: 2, or 3 padded by 1; the stride is 2.
        hidden: widths of the hidden dense layers.
        dropout: probability of dropout in front of every dense layer.

    Raises:
        ConfigError: not an image, or too small for these kernels.
    """
    if len(shape) != 3:
        raise ConfigError(f"needs images of shape (channels, height, width), got inputs of shape {shape}")
    layers: list[nn.Module] = []
    height, width = shape[1:]
    for (depth_in, depth_out), pad in zip(pairwise((shape[0], *channels)), padding, strict=True):
        convolution = nn.Conv2d(depth_in, depth_out, kernel, padding=pad)
        layers += [convolution, nn.ReLU(), nn.MaxPool2d(pool, stride=2, padding=(pool - 1) // 2)]
        height, width = (((side + 2 * pad - kernel + 1) + pool - 2) // 2 for side in (height, width))
    if min(height, width) < 1:
        raise ConfigError(f"images of {shape[1]} x {shape[2]} pixels are too small for {len(layers) // 3} convolutions")
    return nn.Sequential(*layers, nn.Flatten(), *dense((channels[-1] * height * width, *hidden, classes), dropout))
