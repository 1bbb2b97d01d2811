"""How inputs are drawn."""

from matplotlib.axes import Axes
from torch import Tensor


def draw_image(axes: Axes, x: Tensor) -> None:
    """An input `[1 or 3, h, w]`, its values stretched from the least to the largest."""
    low, high = x.min(), x.max()
    shown = ((x - low) / (high - low).clamp(min=1e-12)).detach().cpu().float()
    if len(shown) == 3:
        axes.imshow(shown.permute(1, 2, 0).numpy())
    else:
        axes.imshow(shown[0].numpy(), cmap="gray")
    axes.set_xticks([])
    axes.set_yticks([])
