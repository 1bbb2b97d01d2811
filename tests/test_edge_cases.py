"""Whole rounds at the edges: NaN, Inf, nothing, copies, one client, as many attackers as a rule bears. Never NaN in the model."""

import re
from copy import copy
from dataclasses import fields
from functools import cache
from math import isfinite
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field

from fl_lightning.attacks import Attack, Poisoned, View
from fl_lightning.callbacks import CALLBACKS
from fl_lightning.config import load
from fl_lightning.defenses import State
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, FederationState, Trained
from fl_lightning.participation import Cohort
from fl_lightning.randomness import generator
from fl_lightning.registry import named_config, registry

CLIENTS = 7
RULES = registry("aggregator").names()
NEEDED: dict[str, dict[str, Any]] = {"rlr": {"share": 0.6}, "sign_vote": {"lr": 0.01}}
"""What a rule does not work without."""
SMALL: dict[str, dict[str, Any]] = {
    "accuracy_check": {"gamma": 0.1},
    "cdp": {},
    "dagmm": {"n_byzantine": 2, "epochs": 2, "references": 5, "steps": 1},
    "err": {"n_byzantine": 2},
    "err_lfr": {"n_byzantine": 2},
    "ldp": {},
    "lfr": {"n_byzantine": 2},
    "norm_bound": {"noise_std": 0.01},
    "pdrr": {},
    "pyod": {"n_byzantine": 2},
    "snowball": {"hidden": 8, "latent": 2, "epochs": 10, "epochs_more": 2},
    "statistical_check": {},
    "vae": {"n_byzantine": 2, "epochs": 2, "references": 5, "steps": 1, "hidden": 8, "latent": 2},
}


DEFENSES = {name: SMALL.get(name) or named_config("defense", name) or {} for name in registry("defense").names()}
"""Every registered defense: with small settings, or as it is shipped."""
FEW_RULES = ("mean", "krum", "trimmed_mean")
"""Rules that every defense meets every day; the slow tests take all."""
TRAINING = {"anp", "backdoor_indicator", "fine_prune"}
"""Defenses that train in every round meet the first of them only."""

OPTIONS = {"hessian_regularizer": {"rho": 0.1}, "proximal_pull": {"rho": 0.1}}
"""What a callback does not work without."""


class Filled(Attack):
    """Submits one number in every coordinate, or in the last one of a zero update."""

    name: ClassVar[str] = "filled"
    value: float = Field(default=0.0, allow_inf_nan=True)
    last_only: bool = False

    def poison(self, view: View, state: State) -> Poisoned:
        updates = torch.zeros(view.n_malicious, len(view.global_D))
        updates[:, -1 if self.last_only else slice(None)] = self.value
        return Poisoned(updates)


# name: number in the malicious rows, in the last coordinate only, malicious clients, clients
CASES: dict[str, tuple[float, bool, int, int]] = {
    "nan": (torch.nan, True, 1, CLIENTS),
    "inf": (torch.inf, False, 2, CLIENTS),
    "minus inf": (-torch.inf, True, 2, CLIENTS),
    "one honest row left": (torch.nan, False, CLIENTS - 1, CLIENTS),
    "all zero": (0.0, False, CLIENTS, CLIENTS),
    "identical": (0.01, False, CLIENTS, CLIENTS),
    "identical and one honest": (0.01, False, CLIENTS - 1, CLIENTS),
    "as long as numbers go": (1e18, False, 1, CLIENTS),
    "one client": (0.0, False, 0, 1),
}


def limits(rule: str, n_clients: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The rule with the largest f that it accepts for so many clients, and with one more; None where it has no f."""
    cls = next(cls for cls in registry("aggregator") if cls.name == rule)
    if "n_byzantine" not in {field.name for field in fields(cls)}:  # type: ignore[arg-type]
        return {"name": rule, **NEEDED.get(rule, {})}, None
    for f in range(n_clients + 1):
        try:
            cls(n_byzantine=f).check(n_clients)  # type: ignore[call-arg,attr-defined]
        except ValueError:
            return {"name": rule, "n_byzantine": max(0, f - 1)}, {"name": rule, "n_byzantine": f}
    raise AssertionError(f"{rule} accepts {n_clients} attackers of {n_clients}")


class Untrained(Federation):
    """Honest clients send noise: what they learn does not matter here."""

    def train(self, cohort: Cohort) -> Trained:
        random, jobs = generator(0, "honest", self.state.round), self.jobs(cohort)
        updates_CD = 0.01 * torch.randn(len(jobs), len(self.state.global_D), generator=random)
        return Trained(cohort, jobs, updates_CD, torch.tensor([float(len(job.rows)) for job in jobs]))


@cache
def start(clients: int, kind: type[Federation]) -> Federation:
    """A federation before its first round, from which all others are copied."""
    return kind(
        load(
            {
                "data": {"name": "digits", "train_samples": 140, "test_samples": 50, "validation": 20},
                "rounds": 2,
                "partition": {"name": "iid", "clients": clients},
                "model": {"name": "mlp", "hidden": [4]},
                "engine": "vectorized",
                "evaluation": {"every": 2},
            }
        )
    )


def played(
    case: str, rule: dict[str, Any], defenses: dict[str, Any], client: dict[str, Any] | None = None
) -> FederationState:
    """Two rounds; the state after them."""
    value, last_only, malicious, clients = CASES[case]
    federation = copy(start(clients, Federation if client else Untrained))
    slots = {
        "participation": {"name": "full", "malicious": malicious},
        "aggregator": rule,
        "defenses": defenses,
        "client": {"batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.1}} | (client or {}),
    }
    federation.experiment = load(federation.experiment.to_dict() | slots).model_copy(
        update={"attack": Filled(value=value, last_only=last_only)}
    )
    federation.state = federation.initial_state()
    return federation.run()


FEW = {"krum", "multi_krum", "bulyan"}
"""Rules that refuse one row, or two."""


def stays_finite(case: str, rule: str, defenses: dict[str, Any], client: dict[str, Any] | None = None) -> None:
    """Every round ends with a finite model, or the run with an error that names the rule and how few rows it was left."""
    settings, _ = limits(rule, CASES[case][-1])
    try:
        state = played(case, settings, defenses, client)
    except ValueError as error:
        unfit = isinstance(error, ConfigError) and re.search(
            r"needs the aggregator|set aggregator to mean|needs f < C", str(error)
        )
        too_few = rule in FEW and bool(re.search(r"needs C >=? .* got C=[12], f=0", str(error)))
        if unfit or too_few:
            return
        raise
    assert bool(state.global_D.isfinite().all())
    assert not state.stopped
    assert len(state.history) == 2
    assert isfinite(state.history[-1]["global/loss"])


@pytest.mark.filterwarnings("ignore:rlr")  # rlr says that nearly all coordinates are, where nobody moves
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule, case):
    stays_finite(case, rule, {})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("defense", DEFENSES)
def test_every_defense_under_common_rules(defense, case):
    for rule in FEW_RULES[:1] if defense in TRAINING else FEW_RULES:
        stays_finite(case, rule, {"it": {**DEFENSES[defense], "name": defense}})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("defense", DEFENSES)
def test_every_defense_under_every_rule(defense, case):
    for rule in RULES:
        stays_finite(case, rule, {"it": {**DEFENSES[defense], "name": defense}})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_every_callback(callback, case):
    stays_finite(case, "mean", {}, {"callbacks": {"it": {"name": callback, **OPTIONS.get(callback, {})}}})


@pytest.mark.parametrize("callback", CALLBACKS)
def test_training_that_diverges_at_every_client_stops_the_run(callback):
    client = {
        "optimizer": {"name": "sgd", "lr": 1e30},
        "callbacks": {"it": {"name": callback, **OPTIONS.get(callback, {})}},
    }
    state = played("one client", {"name": "mean"}, {}, client)
    assert "diverged" in state.stopped
    assert bool(state.global_D.isfinite().all())


@pytest.mark.parametrize("rule", RULES)
def test_one_attacker_more_than_the_rule_bears_is_refused_with_numbers(rule):
    _, beyond = limits(rule, CLIENTS)
    if beyond is not None:
        with pytest.raises(ConfigError, match=rf"needs C >=? .*, got C={CLIENTS}, f={beyond['n_byzantine']}"):
            played("all zero", beyond, {})
