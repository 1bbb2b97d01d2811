"""ResNet-18 for small images."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fl_lightning.errors import ConfigError
from fl_lightning.models._base import Model

__all__ = ["FrozenNorm2d", "Resnet18"]

Norm = Callable[[int], nn.Module]


class FrozenNorm2d(nn.Module):
    """BatchNorm whose statistics stay at mean 0 and variance 1: a learnt scale and shift for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels, H, W]` to the same shape."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norms, and a shortcut around them."""

    def __init__(self, width_in: int, width: int, stride: int, norm: Norm):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(width),
        )
        same = stride == 1 and width_in == width
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), norm(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width_in, H, W]` to `[B, width, H / stride, W / stride]`."""
        out: Tensor = (self.body(x) + self.shortcut(x)).relu()
        return out


class Resnet18(Model):
    """ResNet-18 for 32x32 images: a 3x3 stem without pooling, stages of 64, 128, 256 and 512 channels.

    Group normalisation by default: it keeps no statistics, which clients with different data could not share. With batch
    normalisation the running means and variances are buffers, for which a policy is stated:

    * `average`: they travel with the update and are aggregated, attacked and defended like parameters, as where whole state
      dictionaries are averaged.
    * `local`: nothing is tracked and nothing leaves a client: every batch, of clients and of the evaluation, is normalised by
      its own mean and variance.
    * `freeze`: they stay at mean 0 and variance 1, and the layer is a learnt scale and shift.

    Attributes:
        norm: `group` or `batch`.
        groups: channel groups of group normalisation.
        width: channels of the first stage; each later one has twice as many.

    Example:
        >>> sum(weight.numel() for weight in Resnet18().build((3, 32, 32), classes=10).parameters())
        11173962

    References:
        K. He, X. Zhang, S. Ren, J. Sun: Deep Residual Learning for Image Recognition, CVPR 2016; Y. Wu, K. He: Group
        Normalization, ECCV 2018. Used by X. Zhou, M. Xu, Y. Wu, N. Zheng: Deep Model Poisoning Attack on Federated Learning,
        Future Internet 13(3), 2021, table 2, which gives neither depth nor normalisation.
    """

    name: ClassVar[str] = "resnet18"
    cites: ClassVar[tuple[str, ...]] = ("he2016deep", "wu2018group")

    norm: Literal["group", "batch"] = "group"
    groups: int = Field(default=32, ge=1)
    width: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _groups_divide(self) -> "Resnet18":
        if self.norm == "group" and self.width % self.groups:
            raise ValueError(f"width {self.width} must be a multiple of groups {self.groups}")
        return self

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network: `[B, channels, height, width]` to `[B, classes]`; raises ConfigError for what is no image."""
        if len(shape) != 3:
            raise ConfigError(f"needs images of shape (channels, height, width), got inputs of shape {shape}")
        norm = self._norm()
        layers: list[nn.Module] = [
            nn.Conv2d(shape[0], self.width, 3, padding=1, bias=False),
            norm(self.width),
            nn.ReLU(),
        ]
        width_in = self.width
        for stage in range(4):
            width = self.width * 2**stage
            layers.append(BasicBlock(width_in, width, stride=1 if stage == 0 else 2, norm=norm))
            layers.append(BasicBlock(width, width, stride=1, norm=norm))
            width_in = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, classes))

    def _norm(self) -> Norm:
        if self.norm == "group":
            return partial(nn.GroupNorm, self.groups)
        if self.buffers == "freeze":
            return FrozenNorm2d
        return partial(nn.BatchNorm2d, track_running_stats=self.buffers == "average")
