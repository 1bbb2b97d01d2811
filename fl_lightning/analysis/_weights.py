"""Where the two models differ: distributions of their weights and distances, layer by layer."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fl_lightning.analysis._page import CLEAN, POISONED, Section, picture, table, text
from fl_lightning.analysis._subject import Subject
from fl_lightning.tracking import compare

PANELS = 12
BINS = 60
FEWEST = 100
"""Numbers in a tensor whose distribution is drawn: that of a few is noise."""


def densities(values: dict[str, Tensor], bins: int = BINS) -> tuple[Tensor, dict[str, Tensor]]:
    """Histograms over common bins, each with area 1.

    Args:
        values: the numbers by name, any shape; no set is empty.
        bins: number of bins between the 0.1 % and 99.9 % quantile of all of them; what lies outside counts in the outer bins.

    Returns:
        `[bins + 1]` edges, and `[bins]` densities by name.
    """
    every = torch.cat([part.flatten() for part in values.values()]).double().cpu().sort().values
    low, high = (float(every[round(share * (len(every) - 1))]) for share in (0.001, 0.999))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    counts = {
        name: torch.histogram(part.flatten().double().cpu().clamp(low, high), edges).hist
        for name, part in values.items()
    }
    return edges, {name: count / count.sum() / ((high - low) / bins) for name, count in counts.items()}


def weights(subject: Subject) -> Section:
    """Densities of the weights by layer, and the distances of the layers."""
    title = "Weights"
    parts = {name: subject.flat.split(theta_D) for name, theta_D in subject.both.items()}
    large = [name for name, part in parts["poisoned"].items() if part.numel() >= FEWEST]
    layers = sorted(large, key=lambda name: -parts["poisoned"][name].numel())[:PANELS]
    if not layers:
        return Section(title)
    layers = [name for name in parts["poisoned"] if name in layers]  # in the order of the network
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, layer in zip(every, layers, strict=False):
        edges, found = densities({name: own[layer] for name, own in parts.items()})
        for name, color in (("clean", CLEAN), ("poisoned", POISONED)):
            if name in found:
                axes.stairs(found[name].numpy(), edges.numpy(), color=color, label=name)
        axes.set_title(f"{layer} {list(parts['poisoned'][layer].shape)}", fontsize=9)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=5)
    every[0].legend(frameon=False, fontsize=8)
    for axes in every[len(layers) :]:
        axes.axis("off")
    caption = "density of the weights; the outer bins hold what lies beyond the 0.1 % and 99.9 % quantiles"
    left = len(parts["poisoned"]) - len(layers)
    shown = picture(figure, caption + (f"; the {left} smallest tensors are left out" if left else ""))
    if subject.clean is None:
        return Section(title, (shown, text("Without a clean model there are no distances.")))
    rows_ = compare(subject.clean, subject.model)
    far = text("Distance of the poisoned from the clean model; relative to the norm of the clean one.")
    return Section(title, (shown, far, table(["tensor", "L2 distance", "relative", "cosine"], rows_)))
