"""An attacker who knows the server can try out what it would make of crafted updates, and nothing real moves."""

from copy import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fl_lightning.aggregators import Krum, Mean, TrimmedMean
from fl_lightning.attacks import Attack, KnowledgeError, Poisoned, View
from fl_lightning.attacks._view import tolerating
from fl_lightning.config import load
from fl_lightning.defenses import Defense, ServerContext, State, Verdict
from fl_lightning.federation import Federation, Trained

CLIENTS = 9
RULES = [
    {"name": "mean"},
    {"name": "krum", "n_byzantine": 2},
    {"name": "multi_krum", "n_byzantine": 2},
    {"name": "trimmed_mean", "n_byzantine": 2},
    {"name": "geometric_median"},
    {"name": "bulyan", "n_byzantine": 1},
]
CHAINS: list[dict[str, Any]] = [
    {},
    {"bound": {"name": "norm_bound", "max_norm": 0.05}},
    {"check": {"name": "statistical_check"}, "bound": {"name": "norm_bound", "max_norm": 0.05}},
]


class Big(Attack):
    """Sends large multiples of the honest updates."""

    name = "big"
    scale: float = 3.0

    def poison(self, view: View, state: State) -> Poisoned:
        """Larger and reversed."""
        return Poisoned(-self.scale * view.own_updates)


class Counting(Defense):
    """Drops the row after the one that it dropped last: its state decides."""

    name = "counting"

    def init(self) -> State:
        return {"calls": 0}

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        keep_C = torch.arange(len(updates_CD)) != state["calls"]
        return Verdict(keep_C, context.weights_C, state={"calls": state["calls"] + 1})


class Few(Defense):
    """Leaves the last two rows."""

    name = "few"

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        return Verdict(torch.arange(len(updates_CD)) >= len(updates_CD) - 2, context.weights_C)


class Noisy(Defense):
    """Adds noise from the server's coins."""

    name = "noisy"

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        noise_CD = torch.randn(updates_CD.shape, generator=context.generator("noise"))
        return Verdict(torch.ones(len(updates_CD), dtype=torch.bool), context.weights_C, updates_CD + noise_CD)


@cache
def base() -> tuple[Federation, Trained]:
    tree = {
        "data": {"name": "digits", "train_samples": 180, "test_samples": 40},
        "rounds": 2,
        "partition": {"name": "quantity", "clients": CLIENTS, "alpha": 5.0},
        "model": {"name": "mlp", "hidden": [4]},
        "client": {"steps": 1, "batch_size": 8},
        "participation": {"name": "full", "malicious": 3},
    }
    federation = Federation(load(tree))
    return federation, federation.train(federation.cohort())


def attacked(attack: Attack, **parts: Any) -> tuple[Federation, Trained]:
    """A federation before its first server step, with other parts; the clients have trained."""
    start, trained = base()
    federation = copy(start)
    tree = start.experiment.to_dict() | {name: part for name, part in parts.items() if isinstance(part, dict)}
    ready = {name: part for name, part in parts.items() if not isinstance(part, dict)}
    federation.experiment = load(tree).model_copy(update={"attack": attack} | ready)
    federation.state = federation.initial_state()
    return federation, trained


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(chain) or "none")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["name"])
def test_with_full_knowledge_a_replay_is_what_the_server_then_does(rule: dict[str, Any], chain: dict[str, Any]):
    attack = Big(knowledge="full")
    federation, trained = attacked(attack, aggregator=rule, defenses=chain)
    view = federation.view(trained)
    foreseen = view.replay(-3 * view.own_updates)
    before = federation.state_dict()
    again = view.replay(-3 * view.own_updates)
    assert torch.equal(again.update, foreseen.update)
    sent = federation.poison(trained)
    assert str(before) == str(federation.state_dict())
    result = federation.aggregate(sent, federation.defend(sent))
    assert torch.equal(foreseen.kept, result.kept_C)
    if result.update_D is None:  # too few rows are left for the rule
        assert chain.keys() == CHAINS[2].keys()
        assert not foreseen.update.any()
        return
    assert torch.equal(foreseen.update, result.update_D)
    if rule["name"] == "mean":
        assert not torch.equal(view.replay(view.own_updates).update, foreseen.update), (
            "it does not look at its argument"
        )


def test_what_defenses_remember_is_replayed_and_does_not_move():
    federation, trained = attacked(Big(knowledge="full"), defenses={"counting": Counting()}, aggregator=Mean())
    federation.experiment = federation.experiment.model_copy(update={"defenses": {"counting": Counting()}})
    federation.state.defenses = {"counting": {"calls": 4}}
    view = federation.view(trained)
    for _ in range(2):
        assert view.replay(view.own_updates).kept.tolist() == [row != 4 for row in range(CLIENTS)]
    assert federation.state.defenses == {"counting": {"calls": 4}}


def test_the_servers_coins_are_not_known():
    federation, trained = attacked(Big(knowledge="full"))
    federation.experiment = federation.experiment.model_copy(update={"defenses": {"noisy": Noisy()}})
    federation.state.defenses = {"noisy": {}}
    view = federation.view(trained)
    foreseen = view.replay(-3 * view.own_updates)
    assert torch.equal(foreseen.update, view.replay(-3 * view.own_updates).update)
    sent = federation.poison(trained)
    result = federation.aggregate(sent, federation.defend(sent))
    assert result.update_D is not None
    assert float((result.update_D - foreseen.update).abs().max()) > 0.1


def test_with_partial_knowledge_a_few_crafted_rows_stand_beside_the_known_ones():
    attack = Big(knowledge="partial", visible_updates=4)
    chain = {"bound": {"name": "norm_bound", "max_norm": 1e-6}}
    federation, trained = attacked(attack, aggregator={"name": "trimmed_mean", "n_byzantine": 3}, defenses=chain)
    view = federation.view(trained)
    crafted_MD = torch.stack([torch.full_like(view.global_D, value) for value in (1.0, 2.0, 3.0)])
    rows_RD = torch.cat([crafted_MD[:2], view.known_updates])  # J = 3 * 7 // 9
    expected = TrimmedMean(n_byzantine=2)(rows_RD)
    result = view.replay(crafted_MD)
    assert torch.equal(result.update, expected.update)
    assert torch.equal(result.kept, expected.kept)


def test_a_rule_tolerates_as_many_as_it_accepts():
    assert tolerating(Krum(n_byzantine=3), 3, 9) == Krum(n_byzantine=3)
    assert tolerating(Krum(n_byzantine=3), 3, 8) == Krum(n_byzantine=2)
    assert tolerating(Mean(), 3, 5) == Mean()


def test_without_knowledge_nothing_is_replayed_and_shapes_are_checked():
    federation, trained = attacked(Big())
    view = federation.view(trained)
    with pytest.raises(KnowledgeError, match=r"^replay needs partial knowledge"):
        view.replay(view.own_updates)
    federation, trained = attacked(Big(knowledge="full"))
    with pytest.raises(ValueError, match=r"needs updates of shape \[3, .*got \[2, "):
        federation.view(trained).replay(view.own_updates[:2])


def test_a_server_that_would_skip_the_round_moves_nothing():
    federation, trained = attacked(Big(knowledge="full"), aggregator={"name": "krum", "n_byzantine": 2})
    view = federation.view(trained)
    view_of_nothing = view.replay(torch.full_like(view.own_updates, torch.nan))  # 6 finite rows: krum takes them
    assert view_of_nothing.kept.any()
    federation.experiment = federation.experiment.model_copy(update={"defenses": {"few": Few()}})
    federation.state.defenses = {"few": {}}
    skipped = federation.view(trained).replay(view.own_updates)
    assert not skipped.update.any()
    assert not skipped.kept.any()
    sent = federation.poison(trained)
    result = federation.aggregate(sent, federation.defend(sent))
    assert result.metrics == {"server/skipped": 1.0, "server/too_few": 1.0}
    assert "needs C > 2f + 2, got C=2, f=0" in result.skipped


def test_inflated_counts_weigh_at_the_server_and_in_the_replay():
    plain, trained = attacked(Big(knowledge="full"))
    liar, _ = attacked(Big(knowledge="full", inflate=10.0))
    malicious_C = trained.cohort.malicious
    honest_C, claimed_C = (federation.poison(trained).weights_C for federation in (plain, liar))
    assert torch.equal(claimed_C[malicious_C], 10 * honest_C[malicious_C])
    assert torch.equal(claimed_C[~malicious_C], honest_C[~malicious_C])
    assert torch.equal(liar.view(trained).own_weights, plain.view(trained).own_weights)
    updates_MD = -3 * liar.view(trained).own_updates
    sent = liar.poison(trained)
    result = liar.aggregate(sent, liar.defend(sent))
    assert result.update_D is not None
    assert torch.equal(liar.view(trained).replay(updates_MD).update, result.update_D)
    equal, _ = attacked(Big(inflate=10.0), server={"weights": "equal"})
    assert torch.equal(equal.poison(trained).weights_C, trained.weights_C), (
        "a server that counts everybody once asks nobody"
    )


def test_the_rule_is_called_with_the_past_that_the_level_knows():
    federation, trained = attacked(Big(knowledge="full"), data={"name": "digits", "validation": 10})
    assert federation.view(trained).past.reference_D is None
    federation.state.past = {"reference_D": torch.ones(federation.bench.flat.dim)}
    seen = federation.view(trained).past
    assert seen.reference_D is not None
    seen.reference_D.zero_()
    assert bool(federation.state.past["reference_D"].all())
    first, server = (past.generator("buckets") for past in (seen, federation.past()))
    assert not torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=server)), "coins are not known"
    partial, _ = attacked(Big(knowledge="partial"))
    assert partial.view(trained).past.trusted is None
