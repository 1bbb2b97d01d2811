"""What a typical input of each class looks like to the models: class-activation maximisation.

References:
    Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency
    Maps", 2013, section 2. Wei et al., "Covert Model Poisoning Against Federated Learning", figures 4 and 5, look at poisoned
    models in this way.
"""

from copy import deepcopy

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call

from fl_lightning.analysis._page import Section, picture, text
from fl_lightning.analysis._pictures import draw_image
from fl_lightning.analysis._subject import Subject
from fl_lightning.models import FlatNetwork
from fl_lightning.tracking import client, kept_rounds

STEPS = 200
CLASSES = 10


def typical_inputs(
    flat: FlatNetwork,
    theta_D: Tensor,
    start: Tensor,
    classes: int,
    bounds: tuple[float, float],
    steps: int = STEPS,
    lr: float = 0.05,
    weight: float = 0.1,
) -> Tensor:
    r"""For each class k the input that maximises $\log p_k(x) - \lambda \overline{(x - x_0)^2} - 10 \lambda R(x)$ by Adam.

    R is the mean squared difference of neighbouring pixels; all values are relative to the width of the bounds.

    Args:
        flat: architecture; its first K scores are those of the classes.
        theta_D: `[D]` parameters.
        start: `[ch, h, w]` x_0, such as the mean of the training images.
        classes: K.
        bounds: least and largest value of an input.
        steps: steps of Adam.
        lr: its step size, relative to the width of the bounds.
        weight: λ.

    Returns:
        `[K, ch, h, w]`.
    """
    low, high = bounds
    width = max(high - low, 1e-12)
    parameters = {name: part.detach() for name, part in flat.split(theta_D).items()}
    x = start.detach().clone().unsqueeze(0).repeat(classes, *[1] * start.ndim).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr * width)
    with flat.eval_mode(), torch.enable_grad():
        for _ in range(steps):
            gain = functional_call(flat.network, parameters, (x,)).log_softmax(-1).diagonal().sum()
            away = ((x - start) / width).square().flatten(1).mean(1).sum()
            rough = sum((x.diff(dim=dim) / width).square().flatten(1).mean(1).sum() for dim in (-1, -2))
            loss = -gain + weight * away + 10 * weight * rough
            (x.grad,) = torch.autograd.grad(loss, x)
            optimizer.step()
            with torch.no_grad():
                x.clamp_(low, high)
    return x.detach()


def typical(subject: Subject) -> Section:
    """The typical input of each class, by both models."""
    title = "What a typical input looks like to the model"
    data, flat = subject.federation.data, subject.flat
    if not data.images or flat.loss != "cross_entropy":
        return Section(title)
    shown = min(CLASSES, data.classes)
    bounds = (float(data.train.x.min()), float(data.train.x.max()))
    start = data.train.x.mean(0)
    figure = Figure(figsize=(1.05 * shown, 1.35 * len(subject.both)), layout="constrained")
    every = figure.subplots(len(subject.both), shown, squeeze=False)
    sure = {}
    for row, (name, theta_D) in zip(every, subject.both.items(), strict=True):
        found = typical_inputs(flat, theta_D, start, data.classes, bounds)
        scores_KK = flat.scores(theta_D, found).softmax(-1)
        sure[name] = float(scores_KK.diagonal().mean())
        for k, axes in enumerate(row):
            draw_image(axes, found[k])
            axes.set_title(str(k), fontsize=9)
        row[0].set_ylabel(name)
    reached = ", ".join(f"{value:.2f} for the {name} model" for name, value in sure.items())
    words = (
        "For each class the input that the model is surest of, found by climbing the logarithm of its probability from the "
        f"mean training image, with a penalty on distance and roughness. Mean probability reached: {reached}."
    )
    return Section(title, (text(words), picture(figure, "typical inputs by class")))


def typical_rounds(subject: Subject) -> Section:
    """The typical input of each class to the global model of every round that was kept."""
    title = "What a typical input looks like over the rounds"
    data, flat = subject.federation.data, subject.flat
    kept = kept_rounds(client(), str(subject.model.version.run_id))
    if not kept or not data.images or flat.loss != "cross_entropy":
        return Section(title)  # `tracking.keep_rounds` was not asked for
    shown = min(CLASSES, data.classes)
    bounds = (float(data.train.x.min()), float(data.train.x.max()))
    start = data.train.x.mean(0)
    figure = Figure(figsize=(1.05 * shown, 1.2 * len(kept)), layout="constrained")
    every = figure.subplots(len(kept), shown, squeeze=False)
    network = deepcopy(subject.model.network)
    for row, (round, weights) in zip(every, kept.items(), strict=True):
        network.load_state_dict(weights)
        theta_D = flat.like(network).vector().to(start)
        found = typical_inputs(flat, theta_D, start, data.classes, bounds, steps=STEPS // 2)
        for k, axes in enumerate(row):
            draw_image(axes, found[k])
        row[0].set_ylabel(f"round {round}", fontsize=9)
    for k, axes in enumerate(every[0]):
        axes.set_title(str(k), fontsize=9)
    words = "The same climb for the global model after single rounds, the first one on top: when an attack takes hold."
    return Section(title, (text(words), picture(figure, "typical inputs by class and round")))
