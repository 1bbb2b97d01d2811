"""What is taken for what, and where the attack succeeds."""

import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from fl_lightning.analysis._page import Section, picture, table, text
from fl_lightning.analysis._pictures import draw_image
from fl_lightning.analysis._subject import Subject

SHOWN = 12
"""Success samples that are shown one by one."""


def confusion_matrix(predicted_n: Tensor, truth_n: Tensor, classes: int) -> Tensor:
    """`[K, K]` counts: row = right class, column = predicted class.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    return torch.bincount(truth_n * classes + predicted_n, minlength=classes * classes).view(classes, classes)


def success_by_class(predicted_n: Tensor, wished_n: Tensor | None, truth_n: Tensor, classes: int) -> Tensor:
    """`[K]` share of the samples of each right class that get the wished label; NaN where there are none.

    Args:
        predicted_n: `[n]` predicted classes.
        wished_n: `[n]` wished classes; None: any error is wished.
        truth_n: `[n]` right classes.
        classes: K.
    """
    hit_n = predicted_n != truth_n if wished_n is None else predicted_n == wished_n
    total_K = torch.bincount(truth_n, minlength=classes)
    return torch.bincount(truth_n, hit_n.double(), minlength=classes) / total_K


def confusion(subject: Subject) -> Section:
    """Confusion matrices of both models on the clean test set."""
    title = "Confusion matrices"
    data, clean = subject.federation.data, subject.federation.goal.clean
    figure = Figure(figsize=(5.4 * len(subject.both), 4.8), layout="constrained")
    for axes, (name, theta_D) in zip(
        figure.subplots(1, len(subject.both), squeeze=False)[0], subject.both.items(), strict=True
    ):
        predicted_n, _ = subject.judged(theta_D, clean.x)
        counts_KK = confusion_matrix(predicted_n, clean.y, data.classes).cpu()
        share_KK = counts_KK / counts_KK.sum(1, keepdim=True).clamp(min=1)
        axes.imshow(share_KK.numpy(), cmap="Reds" if name == "poisoned" else "Blues", norm=PowerNorm(0.5, 0, 1))
        axes.set(title=name, xlabel="predicted", ylabel="right class")
        if data.classes <= 20:
            axes.set(xticks=range(data.classes), yticks=range(data.classes))
            for row, column in torch.nonzero(counts_KK).tolist():
                dark = share_KK[row, column] > 0.35
                axes.text(
                    column, row, str(int(counts_KK[row, column])),
                    ha="center", va="center", fontsize=8, color="white" if dark else "black",
                )  # fmt: skip
    caption = f"{len(clean):,} clean test samples; colour: share of the right class, on a square-root scale"
    return Section(title, (picture(figure, caption),))


def success(subject: Subject) -> Section:
    """Success by right class, and on single success samples."""
    title = "Where the attack succeeds"
    goal, data = subject.federation.goal, subject.federation.data
    samples, truth_n = (goal.clean, goal.clean.y) if goal.success is None else (goal.success, goal.truth)
    if truth_n is None or not len(samples):
        return Section(title, (text("The objective has no success samples whose right classes are known."),))
    wished_n = None if goal.success is None else goal.success.y
    judged = {name: subject.judged(theta_D, samples.x) for name, theta_D in subject.both.items()}
    rates = {
        name: success_by_class(classes_n, wished_n, truth_n, data.classes) for name, (classes_n, _) in judged.items()
    }
    totals = torch.bincount(truth_n, minlength=data.classes).tolist()
    rows = [
        [f"class {k}", totals[k], *(float(rate_K[k]) for rate_K in rates.values())]
        for k in range(data.classes) if totals[k]
    ]  # fmt: skip
    means = [subject.success_rate(theta_D) for theta_D in subject.both.values()]
    what = "errors" if wished_n is None else "samples that get the wished label"
    parts: list[str] = [
        text(f"Share of {what}, by right class. None of these samples was trained on by a benign client."),
        table(["right class", "samples", *rates], [*rows, ["all", len(samples), *means]]),
    ]
    if goal.success is not None:
        parts += _one_by_one(subject, judged, truth_n)
    return Section(title, tuple(parts))


def _one_by_one(subject: Subject, judged: dict[str, tuple[Tensor, Tensor | None]], truth_n: Tensor) -> list[str]:
    """The first success samples: shown where they are pictures, with what each model says."""
    wished = subject.federation.goal.success
    if wished is None:
        return []
    rows = []
    for index in range(min(SHOWN, len(wished))):
        said: list[object] = []
        for classes_n, sure_n in judged.values():
            said += [int(classes_n[index])] + ([] if sure_n is None else [float(sure_n[index])])
        rows.append([f"{index + 1}", int(truth_n[index]), int(wished.y[index]), *said])
    heads = []
    for name, (_, sure_n) in judged.items():
        heads += [f"{name} model says"] + ([] if sure_n is None else ["probability"])
    parts: list[str] = [table(["sample", "right", "wished", *heads], rows)]
    if subject.federation.data.images:
        figure = Figure(figsize=(0.95 * SHOWN, 1.5), layout="constrained")
        for index, axes in enumerate(figure.subplots(1, SHOWN)):
            axes.axis("off")
            if index < len(wished):
                draw_image(axes, wished.x[index])
                axes.set_title(f"{index + 1}: {int(truth_n[index])} → {int(wished.y[index])}", fontsize=8)
        parts.append(picture(figure, "the samples of the table: right class → wished class"))
    return parts
