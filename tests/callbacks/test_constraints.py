"""Constraints on local training: the ball, frozen coordinates, and ascent."""

import pytest
import torch

from fl_lightning.callbacks import Frozen, LossAscent, NormBall
from fl_lightning.config import load
from fl_lightning.engines import LocalRound
from fl_lightning.federation import Federation
from fl_lightning.participation import Cohort
from fl_lightning.testing.callbacks import CALLBACK_CHECKS, Classifier

SIZE = sum(p.numel() for p in Classifier().parameters())
MADE = {
    "norm_ball": lambda: NormBall(0.1, every=3),
    "frozen": lambda: Frozen(torch.arange(SIZE) % 2 == 0),
    "loss_ascent": LossAscent,
}
OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 0.05},
    "adam": {"name": "adam", "lr": 0.01, "weight_decay": 0.05},
}


@pytest.mark.parametrize("check", CALLBACK_CHECKS.values(), ids=CALLBACK_CHECKS)
@pytest.mark.parametrize("name", MADE)
def test_conformance(name, check):
    check(MADE[name])


def federation(engine: str, optimizer: str = "sgd", epochs: int = 2, batch_size: int = 16) -> Federation:
    """Three clients of different sizes, so that in lock step some stop before others."""
    return Federation(
        load(
            {
                "data": {"name": "digits", "train_samples": 150, "test_samples": 50},
                "partition": {"name": "quantity", "clients": 3},
                "model": {"name": "mlp", "hidden": [8]},
                "client": {"epochs": epochs, "batch_size": batch_size, "optimizer": OPTIMIZERS[optimizer]},
                "engine": engine,
            }
        )
    )


def fit(federated: Federation, *callbacks) -> torch.Tensor:
    """`[3, D]` updates of one round under callbacks."""
    experiment, state = federated.experiment, federated.state
    jobs = federated.jobs(Cohort(torch.arange(3), torch.zeros(3, dtype=torch.bool), False))
    local = LocalRound(state.global_D, jobs, experiment.client, 0, lambda: [make() for make in callbacks])
    return experiment.engine.train(federated.bench, local)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_coordinates_do_not_move_at_all(engine, optimizer):
    """Weight decay, momentum and Adam move coordinates whose gradient is 0; these stay."""
    federated = federation(engine, optimizer)
    size = federated.bench.flat.dim
    free_D = torch.arange(size) % 3 == 0
    updates_CD = fit(federated, lambda: Frozen(free_D))
    assert (updates_CD[:, ~free_D] == 0).all()
    assert (updates_CD[:, free_D].abs().sum(1) > 0).all()


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("every", [1, 5])
def test_what_is_sent_lies_in_the_ball(engine, norm, every):
    updates_CD = fit(federation(engine), lambda: NormBall(0.3, norm, every))
    sizes_C = updates_CD.norm(dim=1) if norm == "l2" else updates_CD.abs().amax(1)
    assert (sizes_C <= 0.3 * (1 + 1e-6)).all()
    assert (sizes_C > 0.299).any(), "the ball is felt"


def test_a_wide_ball_changes_no_bit_and_a_ball_is_no_scaled_step():
    federated = federation("sequential")
    free_CD = fit(federated, lambda: NormBall(1e6))
    assert torch.equal(free_CD, fit(federated, lambda: Frozen(torch.ones(federated.bench.flat.dim, dtype=torch.bool))))
    tight_CD = fit(federated, lambda: NormBall(0.3))
    cosine = torch.cosine_similarity(tight_CD, free_CD, dim=1)
    assert (cosine < 0.9999).any()


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_ascent_climbs(engine):
    federated = federation(engine, epochs=1)
    updates_CD = fit(federated, LossAscent)
    flat, start_D = federated.bench.flat, federated.state.global_D
    for client, update_D in enumerate(updates_CD):
        own = federated.data.train[federated.assignment[client]]
        assert flat.losses(start_D + update_D, own).mean() > flat.losses(start_D, own).mean()


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_ascent_stops_at_the_last_finite_point(engine):
    federated = federation(engine)

    class Spoil(LossAscent):
        """Blows the parameters of the first client up in the third step."""

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                with torch.no_grad():
                    part = next(pl_module.parameters())
                    (part[0] if pl_module.n_stacked > 1 else part).fill_(torch.inf)
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    assert fit(federated, Spoil).isfinite().all()
    assert any(report[0].get("stopped") for report in federated.bench.trainer.reports)


@pytest.mark.parametrize("make", [lambda: NormBall(0), lambda: NormBall(1, every=0), lambda: Frozen(torch.ones(3))])
def test_settings_that_make_no_sense(make):
    with pytest.raises(ValueError, match="needs"):
        make()


def test_a_mask_of_another_model():
    with pytest.raises(ValueError, match="the mask has 2 entries, the model"):
        fit(federation("sequential"), lambda: Frozen(torch.ones(2, dtype=torch.bool)))
