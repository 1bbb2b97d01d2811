"""Which client holds how much of what, drawn."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from fl_lightning.partition._label_counts import label_counts

__all__ = ["plot"]

BLUE, GREY = "#2f6b9a", "#6b7280"


def plot(assignment: Sequence[Tensor], y: Tensor, classes: int) -> Figure:
    """The label distribution of every client, below the number of its samples.

    Classes are a heat map of each client's label shares, on a fixed square-root colour scale from 0 to 100 %, so that
    pictures can be compared and small shares are seen. Real targets (`classes = 1`) are drawn by their quantiles.

    Args:
        assignment: for each client its indices into `y`; no client is empty.
        y: `[n_train]` labels, or real targets.
        classes: number of classes K, 1 for regression.
    """
    clients = len(assignment)
    height = 4.6 if classes <= 20 else 7.0
    figure = Figure(figsize=(min(7.0 + clients / 25, 14.0), height), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, height - 1.3))
    sizes = [len(part) for part in assignment]
    draw_sizes(above, sizes)
    if classes > 1:
        draw_labels(below, label_counts(assignment, y, classes))
    else:
        draw_targets(below, [y.cpu()[part].double() for part in assignment])
    below.set_xlabel("client")
    below.set_xlim(-0.5, clients - 0.5)
    below.xaxis.set_major_locator(MaxNLocator(nbins=11, integer=True, min_n_ticks=1))
    figure.suptitle(f"{clients} clients, {sum(sizes):,} training samples", fontsize=11, x=0.01, ha="left")
    return figure


def draw_sizes(axes: Axes, sizes: list[int]) -> None:
    """Bars of the clients' sample counts."""
    axes.bar(range(len(sizes)), sizes, width=0.8, color=GREY)
    axes.set_ylabel("samples")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    axes.tick_params(bottom=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_labels(axes: Axes, counts_CK: Tensor) -> None:
    """Heat map of label shares: a column a client, a row a label."""
    shares_CK = counts_CK / counts_CK.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(
        shares_CK.T.numpy(),
        norm=PowerNorm(0.5, 0, 1),
        cmap="Blues",
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    axes.vlines(torch.arange(1, len(shares_CK)) - 0.5, *axes.get_ylim(), color="white", linewidth=0.6)
    axes.set_ylabel("label")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    bar = axes.figure.colorbar(image, ax=axes, format=PercentFormatter(1.0, decimals=0), pad=0.015)
    bar.set_ticks([0, 0.05, 0.1, 0.25, 0.5, 1])
    bar.set_label("share of the client's samples")


def draw_targets(axes: Axes, targets: list[Tensor]) -> None:
    """Quantiles of each client's targets: a line from 5 to 95 %, a box from 25 to 75 %, a dot at the median."""
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    low, lower, middle, upper, high = torch.stack([part.quantile(levels) for part in targets], dim=1).numpy()
    clients = range(len(targets))
    drawn = [
        axes.scatter(clients, middle, s=12, color="white", edgecolor=BLUE, zorder=3, label="median"),
        axes.bar(clients, upper - lower, bottom=lower, width=0.7, color=BLUE, alpha=0.55, label="25 to 75 %"),
        axes.vlines(clients, low, high, color=BLUE, alpha=0.45, linewidth=1, label="5 to 95 %"),
        axes.axhline(
            float(torch.cat(targets).median()), color=GREY, linewidth=1, linestyle="--", label="median of all"
        ),
    ]
    axes.set_ylabel("target")
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=drawn, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, fontsize=8)
