"""What the server knows when it looks at the updates of a round."""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl_lightning.aggregators import Past
from fl_lightning.clients import merging_lone
from fl_lightning.data import Samples
from fl_lightning.defenses import ServerContext
from fl_lightning.engines import Job, LocalRound
from fl_lightning.randomness import generator, key_of

if TYPE_CHECKING:
    from fl_lightning.federation._federation import Federation

ROOT_SAMPLES = 100
"""How many of its own samples the server trains a trusted update on."""


def server_context(federation: "Federation", weights_C: Tensor, clients_C: Tensor | None = None) -> ServerContext:
    """What the server knows when it looks at the updates of the next round.

    Args:
        federation: before or in that round.
        weights_C: `[C]` of the rows.
        clients_C: `[C]` who sent them; None: 0 to C - 1.
    """
    round, flat, experiment = federation.state.round, federation.bench.flat, federation.experiment
    population, global_D = len(federation.assignment), federation.state.global_D

    def train(samples: Samples, purpose: str, steps: int | None = None) -> Tensor:
        # Batches are keyed by client: no client has this number, and every purpose another
        number = population + key_of(0, purpose) % 2**31
        job = Job(number, samples, torch.arange(len(samples), device=samples.y.device))
        client = experiment.client if steps is None else replace(experiment.client, steps=steps)
        client = merging_lone(client, flat.network, [samples])
        return experiment.engine.train(
            federation.bench, LocalRound(global_D, [job], client, round, rounds=experiment.planned_rounds)
        )[0]

    validation = federation.data.validation

    @cache
    def trusted() -> Tensor:
        assert validation is not None
        order = torch.randperm(len(validation), generator=generator(federation.bench.seed, "root samples"))
        return train(validation[order[:ROOT_SAMPLES].to(validation.y.device)], "trusted")

    known = trusted if validation is not None else None
    return ServerContext(
        round=round,
        global_D=global_D,
        previous_D=federation.state.previous_D,
        aggregator=experiment.aggregator,
        weights_C=weights_C,
        validation=validation,
        predict=flat.scores,
        losses=flat.losses,
        gradient=flat.gradient,
        generator=federation.coins,
        sample_rate=experiment.participation.per_round(population) / population,
        clients_C=clients_C,
        population=population,
        layout=flat.layout,
        train=train,
        features=flat.features,
        rounds=experiment.planned_rounds,
        server_lr=experiment.server.lr if experiment.server.optimizer == "sgd" else None,
        past=Past(federation.state.past.get("reference_D"), federation.coins, flat.layout, known),
    )
