"""The rounds of a run in one picture."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

LINES = {
    "global/accuracy": ("accuracy", "#1f6fb4"),
    "attack/success": ("attack success", "#c8321e"),
    "attack/selected": ("attackers' share of the aggregate", "#8a8a8a"),
    "global/normalized_cost": ("MSE / Var(y)", "#1f6fb4"),
}


def curves(history: Sequence[dict[str, float]]) -> Figure:
    """Accuracy, attack success and the attackers' share over the rounds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    for name, (label, color) in LINES.items():
        points = [(step, metrics[name]) for step, metrics in enumerate(history) if name in metrics]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=color, marker="o" if len(points) < 15 else None)
    axes.set_xlabel("communication round")
    if all("global/accuracy" not in metrics for metrics in history):
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return figure
