"""Loss and success on the straight line through the clean and the poisoned model."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from fl_lightning.analysis._page import CLEAN, OTHER, POISONED, Section, picture, text
from fl_lightning.analysis._subject import Subject

STEPS = [step / 10 for step in range(-3, 14)]
SAMPLES = 2000


def along(
    clean_D: Tensor, poisoned_D: Tensor, measure: Callable[[Tensor], float], steps: Sequence[float] = STEPS
) -> list[float]:
    r"""A measure at $(1 - t) w_{clean} + t\, w_{poisoned}$ for every t.

    Example:
        >>> import torch
        >>> along(torch.zeros(2), torch.ones(2), lambda w_D: float(w_D.sum()), [0.0, 0.5, 1.0])
        [0.0, 1.0, 2.0]
    """
    return [measure(clean_D + t * (poisoned_D - clean_D)) for t in steps]


def line(subject: Subject) -> Section:
    """How the loss on clean samples, accuracy and success change from the clean to the poisoned model."""
    title = "From the clean to the poisoned model"
    if subject.clean_D is None:
        return Section(title, (text("Without a clean model there is no line to follow."),))
    flat, goal = subject.flat, subject.federation.goal
    some = subject.some(goal.clean, SAMPLES)
    wished = None if goal.success is None else subject.some(goal.success, SAMPLES)

    def success(w_D: Tensor) -> float:
        return 1 - flat.accuracy(w_D, some) if wished is None else flat.accuracy(w_D, wished)

    ends = (subject.clean_D, subject.poisoned_D)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left: Any = figure.subplots()
    losses = along(*ends, lambda w_D: float(flat.losses(w_D, some).double().mean()))
    left.plot(STEPS, losses, color=OTHER, label="loss on clean samples")
    left.set(
        xlabel="0: clean model, 1: poisoned model",
        ylabel="loss",
        yscale="log" if max(losses) > 20 * min(losses) else "linear",
    )
    right = left.twinx()
    right.plot(STEPS, along(*ends, lambda w_D: flat.accuracy(w_D, some)), color=CLEAN, label="accuracy")
    right.plot(STEPS, along(*ends, success), color=POISONED, label="attack success")
    right.set(ylim=(-0.02, 1.02), ylabel="share")
    for t in (0, 1):
        left.axvline(t, color=OTHER, linewidth=0.8, linestyle=":")
    left.legend(handles=[*left.get_lines()[:1], *right.get_lines()], frameon=False, fontsize=8, loc="center left")
    caption = f"{len(some):,} clean test samples" + ("" if wished is None else f", {len(wished):,} success samples")
    return Section(title, (picture(figure, caption),))
