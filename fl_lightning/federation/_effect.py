"""What an attack has done to the parameters, against the attack-free twin."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl_lightning.data import Samples
from fl_lightning.federation._state import Metrics, Submitted
from fl_lightning.metrics import carried_through, null_space, predicted_effect
from fl_lightning.randomness import generator

if TYPE_CHECKING:
    from fl_lightning.federation._federation import Federation


def impact(federation: "Federation", attacked: Metrics, honest: Metrics) -> Metrics:
    """Paired differences to the attack-free twin, and the attack effect on parameters ||W - W~||."""
    figures = {"impact/aep": float(deviation(federation).norm())}
    for name, figure in (("global/accuracy", "impact/accuracy_drop"), ("global/loss", "impact/loss_drop")):
        if name in attacked and name in honest:
            figures[figure] = honest[name] - attacked[name]
    return figures


def deviation(federation: "Federation") -> Tensor:
    """`[D]` the attack effect on parameters, W - W~ (FL-WBC, eq. 6)."""
    twin = federation.paired.state.global_D if federation.paired else federation.state.global_D
    return federation.state.global_D - twin


def effect(federation: "Federation", sent: Submitted) -> Metrics:
    """The predicted effect of past attacks on the parameters, and the curvature along the exact one.

    The prediction starts from the exact effect after an adversarial round and lives on by itself until the next.
    """
    state, experiment, flat = federation.state, federation.experiment, federation.bench.flat
    jobs, poisoned_C = sent.jobs, sent.poisoned_C
    exact_D = deviation(federation)
    if not bool(exact_D.any()):
        return {}
    figures: Metrics = {}
    plans = [federation.bench.plan(job, experiment.client, state.round) for job in jobs]
    before_D = state.effect.get("predicted")
    if sent.attacked or before_D is None:
        state.effect = {"predicted": exact_D}
    else:
        carried_CD = torch.stack(
            [
                carried_through(
                    flat,
                    state.previous_D,
                    before_D,
                    [job.samples[step] for step in plan],
                    experiment.client.optimizer_at(state.round, experiment.planned_rounds).lr,
                )
                for job, plan in zip(jobs, plans, strict=True)
            ]
        )
        predicted_D = predicted_effect(before_D, carried_CD, sent.weights_C, experiment.server.lr)
        state.effect = {"predicted": predicted_D}
        figures["impact/aep_predicted"] = float(predicted_D.norm())
        figures["impact/aep_cosine"] = float(torch.cosine_similarity(predicted_D, exact_D, dim=0))
    first = [job.samples[plan[0]] for job, plan, bad in zip(jobs, plans, poisoned_C.tolist(), strict=True) if not bad]
    if first:
        random = generator(federation.bench.seed, "random direction", state.round)
        along, beside = null_space(flat, state.global_D, exact_D, Samples.cat(first), random)
        figures |= {"impact/null_space": along, "impact/null_space_random": beside}
    return figures
