"""Every shipped rule and pre-aggregator, as it is, at a server of ten clients of which two are malicious."""

import pytest
import torch

from fl_lightning.config import load
from fl_lightning.federation import Federation
from fl_lightning.paths import CONFIGS
from fl_lightning.registry import registry

BASE = {
    "data": {"name": "digits", "train_samples": 400, "test_samples": 100, "validation": 100},
    "rounds": 2,
    "partition": {"name": "iid", "clients": 10},
    "model": {"name": "mlp", "hidden": [8]},
    "client": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.2}},
    "participation": {"name": "full", "malicious": 2},
    "attack": "sign_flip",
}
RULES = sorted(path.stem for path in (CONFIGS / "aggregator").glob("*.yaml"))
STEPS = sorted(path.stem for path in (CONFIGS / "pre_aggregator").glob("*.yaml"))
SERVERS = {name: name for name in RULES} | {
    f"{step}-{rule}": {"name": rule, "n_byzantine": "auto", "pre": [step]}
    for step in STEPS
    for rule in ("trimmed_mean", "caf")
}


@pytest.fixture(scope="module")
def attacked():
    """A federation after one round, and what its clients send in the next."""
    federation = Federation(load(BASE))
    federation.round()
    return federation, federation.submitted()


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_a_shipped_setting_runs_as_it_is(attacked, server):
    federation, sent = attacked
    experiment = load(BASE | {"aggregator": server})
    rule = experiment.aggregator
    assert registry("aggregator").build(rule.to_dict()) == rule
    before = federation.experiment
    try:
        federation.experiment = experiment
        result = federation.aggregate(sent, federation.defend(sent))
    finally:
        federation.experiment = before
    assert result.stopped is None
    assert result.update_D is not None
    assert bool(torch.isfinite(result.update_D).all())
    assert 0 <= result.metrics["attack/selected"] <= 1
    honest_D = sent.updates_CD[~sent.poisoned_C].mean(0)
    if rule.robust:
        assert float(torch.cosine_similarity(result.update_D, honest_D, dim=0)) > 0.5


def test_every_rule_has_a_setting():
    shipped = {cls.name for cls in registry("aggregator")}
    assert shipped <= set(RULES)
    assert {cls.name for cls in registry("pre_aggregator")} == set(STEPS)
