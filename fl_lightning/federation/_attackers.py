"""What the attackers of a round know and claim."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl_lightning.attacks import Services, View
from fl_lightning.errors import ConfigError
from fl_lightning.federation._state import Trained
from fl_lightning.participation import Cohort

if TYPE_CHECKING:
    from fl_lightning.federation._federation import Federation


def view_of(federation: "Federation", trained: Trained) -> View:
    """What the attackers of a round know.

    Raises:
        ConfigError: the experiment has no attack.
    """
    experiment, state, cohort = federation.experiment, federation.state, trained.cohort
    if (attack := experiment.attack) is None:
        raise ConfigError("without an attack nobody needs a view", "attack")
    known = [
        (job, bad)
        for job, bad in zip(trained.jobs, cohort.malicious.tolist(), strict=True)
        if bad or attack.knowledge == "full"
    ]
    services = Services(
        bench=federation.bench,
        engine=experiment.engine,
        round=state.round,
        global_D=state.global_D.clone(),
        jobs=[job for job, _ in known],
        malicious=[bad for _, bad in known],
        ranks=ranks(federation, cohort),
        objective=attack.objective,
        goal=federation.goal,
        classes=federation.data.classes,
        server=partial(federation.replayed, cohort),
        past=federation.past(),
        weights_C=claimed_weights(federation, trained),
        rounds=experiment.planned_rounds,
    )
    return View(
        knowledge=attack.knowledge,
        visible=attack.visible_updates,
        cohort=cohort,
        honest_CD=trained.updates_CD,
        weights_C=trained.weights_C,
        previous_D=state.previous_D,
        server_lr=experiment.server.lr,
        client=experiment.client,
        flat=federation.shown_flat,
        aggregator=experiment.aggregator,
        defenses=experiment.defenses,
        services=services,
    )


def claimed_weights(federation: "Federation", trained: Trained) -> Tensor:
    """`[C]` the sample counts that clients tell the server, if it wants to know any."""
    attack, malicious_C = federation.experiment.attack, trained.cohort.malicious.to(trained.weights_C.device)
    if attack is None or attack.inflate == 1 or federation.experiment.server.weights == "equal":
        return trained.weights_C
    return torch.where(malicious_C, attack.inflate * trained.weights_C, trained.weights_C)


def ranks(federation: "Federation", cohort: Cohort) -> list[int]:
    """The place of each malicious participant among all malicious clients of the population."""
    present: list[int] = cohort.clients[cohort.malicious].tolist()
    participation, population = federation.experiment.participation, len(federation.assignment)
    drawn = participation.malicious_clients(population, federation.bench.seed).tolist()
    everybody = sorted({*drawn, *present})
    return [everybody.index(client) for client in present]
