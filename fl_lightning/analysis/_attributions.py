"""Which pixels make the models say what the attacker wishes: integrated gradients.

References:
    Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.
"""

import importlib.util

from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call

from fl_lightning.analysis._page import Section, picture, text
from fl_lightning.analysis._pictures import draw_image
from fl_lightning.analysis._subject import Subject
from fl_lightning.errors import ConfigError
from fl_lightning.models import FlatNetwork

SHOWN = 8
STEPS = 32


def attributions(flat: FlatNetwork, theta_D: Tensor, x: Tensor, classes_n: Tensor, baseline: Tensor) -> Tensor:
    """Integrated gradients of the score of a class, by Captum.

    Args:
        flat: architecture.
        theta_D: `[D]` parameters.
        x: `[n, ...]` inputs.
        classes_n: `[n]` whose score is explained.
        baseline: `[...]` the input that is taken to say nothing.

    Returns:
        Like `x`; sums to the score of x minus that of the baseline.

    Raises:
        ConfigError: Captum is not installed.
    """
    if importlib.util.find_spec("captum") is None:
        raise ConfigError("attributions come with Captum: pip install fl-lightning[analysis]")
    from captum.attr import IntegratedGradients

    parameters = {name: part.detach() for name, part in flat.split(theta_D).items()}

    def scores(inputs: Tensor) -> Tensor:
        found: Tensor = functional_call(flat.network, parameters, (inputs,))
        return found

    start = baseline.expand_as(x).contiguous()
    with flat.eval_mode():
        found: Tensor = IntegratedGradients(scores).attribute(x, start, target=classes_n, n_steps=STEPS)
    return found.detach()


def explained(subject: Subject) -> Section:
    """Attributions of the wished class on success samples, by both models."""
    title = "Which pixels decide"
    goal, flat = subject.federation.goal, subject.flat
    images = subject.federation.data.images and flat.loss == "cross_entropy"
    if goal.success is None or not len(goal.success) or not images:
        return Section(title)
    some = goal.success[:SHOWN]
    baseline = subject.federation.data.train.x.mean(0)
    try:
        found = {name: attributions(flat, one_D, some.x, some.y, baseline) for name, one_D in subject.both.items()}
    except ConfigError as error:
        return Section(title, (text(str(error)),))
    figure = Figure(figsize=(1.2 * SHOWN, 1.35 * (1 + len(found))), layout="constrained")
    every = figure.subplots(1 + len(found), SHOWN, squeeze=False)
    for axes in every.flatten():
        axes.set(xticks=[], yticks=[])
    for index in range(len(some)):
        draw_image(every[0, index], some.x[index])
        every[0, index].set_title(f"→ {int(some.y[index])}", fontsize=9)
    for row, (name, parts) in zip(every[1:], found.items(), strict=True):
        maps = parts.sum(1).cpu()
        for index, one in enumerate(maps):
            bound = float(one.abs().max().clamp(min=1e-12))
            row[index].imshow(one.numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound)
        row[0].set_ylabel(name)
    words = (
        "Integrated gradients of the score of the wished class against the mean training image: red pixels speak for "
        "that class, blue ones against it; each picture on its own scale."
    )
    return Section(title, (text(words), picture(figure, "success samples, and what speaks for the wished class")))
