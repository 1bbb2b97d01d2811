"""What the trigger looks like: on a sample, alone, where, how large."""

from matplotlib.figure import Figure
from torch import Tensor

from fl_lightning.analysis._page import Section, picture, text
from fl_lightning.analysis._pictures import draw_image
from fl_lightning.analysis._subject import Subject

SHOWN = 4
"""Samples before and after."""


def where_changed(plain: Tensor, stamped: Tensor) -> Tensor:
    """`[h, w]` share of the images in which a pixel differs.

    Args:
        plain: `[n, ch, h, w]` images.
        stamped: `[n, ch, h, w]` the same with the trigger.

    Example:
        >>> import torch
        >>> plain, stamped = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
        >>> stamped[:, 0, 1, 1] = 1
        >>> stamped[0, 0, 0, 0] = 1
        >>> where_changed(plain, stamped).tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """
    return (plain != stamped).any(1).double().mean(0)


def extent(changed_hw: Tensor) -> str:
    """Size and place of what changes, in words.

    Example:
        >>> import torch
        >>> square = torch.zeros(8, 8)
        >>> square[5:7, 4:7] = 1
        >>> extent(square)
        '6 of 64 pixels change: rows 5 to 6 of 0 to 7, columns 4 to 6 of 0 to 7'
    """
    rows, columns = (changed_hw > 0).any(1).nonzero().flatten(), (changed_hw > 0).any(0).nonzero().flatten()
    if not len(rows):
        return "no pixel changes"
    height, width = changed_hw.shape
    return (
        f"{int((changed_hw > 0).sum())} of {height * width} pixels change: rows {int(rows[0])} to {int(rows[-1])} of 0 to "
        f"{height - 1}, columns {int(columns[0])} to {int(columns[-1])} of 0 to {width - 1}"
    )


def trigger(subject: Subject) -> Section:
    """Samples without and with the trigger, and what is between them; nothing where the attack has none."""
    title, goal = "The trigger", subject.federation.goal
    if goal.stamps is None or goal.counted is None or goal.success is None or not subject.federation.data.images:
        return Section(title)
    plain, stamped = goal.clean.x[goal.counted], goal.success.x
    changed_hw = where_changed(plain, stamped).cpu()
    figure = Figure(figsize=(1.5 * SHOWN + 2, 4.3), layout="constrained")
    every = figure.subplots(3, SHOWN, squeeze=False)
    for axes in every.flatten():
        axes.set(xticks=[], yticks=[])
    for index in range(min(SHOWN, len(plain))):
        draw_image(every[0, index], plain[index])
        draw_image(every[1, index], stamped[index])
        far = (stamped[index] - plain[index]).abs().sum(0).cpu()
        every[2, index].imshow(far.numpy(), cmap="Reds", vmin=0)
        if goal.truth is not None:
            every[0, index].set_title(f"{int(goal.truth[index])} → {int(goal.success.y[index])}", fontsize=9)
    for row, name in zip(every, ("without", "with", "difference"), strict=True):
        row[0].set_ylabel(name)
    labels = sorted(set(goal.success.y[:1000].tolist()))
    wish = f"class {labels[0]}" if len(labels) == 1 else f"classes {', '.join(map(str, labels[:10]))}"
    least = (
        "always the same pixels"
        if bool(((changed_hw == 0) | (changed_hw == 1)).all())
        else "not the same in every image"
    )
    shared = " Each attacker trains with a part of it only." if goal.distributed else ""
    words = f"{extent(changed_hw)} ({least}). Images that carry it shall be taken for {wish}.{shared}"
    return Section(title, (text(words[:1].upper() + words[1:]), picture(figure, "right class → wished class")))
