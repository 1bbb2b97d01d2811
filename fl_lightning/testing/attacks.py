"""What every attack must do.

A package that brings its own attack checks it with one line, or one test a check:

    check_attack(MyAttack(boost=3.0))

    @pytest.mark.parametrize("check", ATTACK_CHECKS.values(), ids=ATTACK_CHECKS)
    def test_my_attack(check):
        check(MyAttack(boost=3.0))

The checks play two rounds of eight clients on small real images, with a network of one hidden layer.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import cache
from math import isfinite
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Mean, Median
from fl_lightning.attacks import Attack, Choice, Tunable
from fl_lightning.attacks._view import LEVELS
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, Trained
from fl_lightning.participation import Cohort
from fl_lightning.randomness import generator
from fl_lightning.registry import registry
from fl_lightning.testing._checks import configuration_round_trips, require, run_all, same

CLIENTS = 8
ORDER = (1, 4, 6, 0, 2, 3, 5, 7)
"""The first M of these clients are malicious: neither the first nor neighbours, so that a mixed-up row shows."""


class Round(NamedTuple):
    """What one attacked round was made of.

    Attributes:
        honest_CD: the honest updates, as they are after the attack.
        submitted_CD: what reaches the server.
        malicious_C: which rows are malicious.
        poisoned_C: which rows the federation reports as poisoned.
        metrics: the attack's figures.
        state: the attack's memory.
        federation: as it is after the attack.
    """

    honest_CD: Tensor
    submitted_CD: Tensor
    malicious_C: Tensor
    poisoned_C: Tensor
    metrics: Mapping[str, float]
    state: dict[str, Any]
    federation: Federation


def check_attack(attack: Attack) -> None:
    """Run every check of `ATTACK_CHECKS`.

    Args:
        attack: the component to check, with the settings to check it with.

    Raises:
        AssertionError: naming the attack, the check that failed, and why.

    Example:
        >>> from fl_lightning.attacks import SignFlip
        >>> check_attack(SignFlip(scale=2.0))
    """
    run_all(ATTACK_CHECKS, repr(attack), attack)


def check_honest_at_zero(attack: Attack) -> None:
    """An attack at strength 0 sends what honest clients send; for attacks that declare such a strength.

    Args:
        attack: the component with its strength set to 0.

    Raises:
        AssertionError: a malicious row differs from the honest one.
    """
    played = play(attack)
    difference = float((played.submitted_CD - played.honest_CD).abs().max())
    require(difference == 0, f"{attack!r} at strength 0 differs from honest training by {difference:.3g}")


@cache
def scene() -> tuple[Federation, Trained]:
    """A federation without an attack, and what its clients train in the first round."""
    federation = Federation(
        load(
            {
                "data": "digits",
                "partition": {"name": "iid", "clients": CLIENTS, "samples_per_client": 24},
                "model": {"name": "mlp", "hidden": [8]},
                "client": {"steps": 2, "batch_size": 12},
            }
        )
    )
    return federation, federation.train(cohort(0))


def cohort(n_malicious: int, adversarial: bool = True) -> Cohort:
    """All clients, the first ones of `ORDER` malicious."""
    malicious_C = torch.zeros(CLIENTS, dtype=torch.bool)
    malicious_C[list(ORDER[:n_malicious])] = True
    return Cohort(torch.arange(CLIENTS), malicious_C, adversarial)


def play(
    attack: Attack,
    n_malicious: int = 3,
    *,
    adversarial: bool = True,
    aggregator: Aggregator | None = None,
    before: Round | None = None,
    other_world: bool = False,
) -> Round:
    """Poison one round.

    Args:
        attack: the attack.
        n_malicious: number of malicious clients.
        adversarial: whether the malicious clients attack in this round.
        aggregator: the server's rule; None: the mean.
        before: the round before, after which the server has moved.
        other_world: give the benign clients other updates, data and sample counts.
    """
    base, trained = scene()
    federation = copy(base)
    rule = aggregator or Mean()
    federation.experiment = base.experiment.model_copy(update={"attack": attack, "aggregator": rule})
    federation.goal = attack.objective.goal(base.data, generator(0, "objective"))
    federation.state = federation.initial_state()
    jobs, honest_CD = trained.jobs, trained.updates_CD.clone()
    cast = cohort(n_malicious, adversarial)
    malicious_C = cast.malicious.to(honest_CD.device)
    weights_C = torch.arange(CLIENTS, dtype=honest_CD.dtype, device=honest_CD.device) + 20
    if before is not None:
        update_D = rule(before.submitted_CD, weights_C).update
        federation.state.round = 1
        federation.state.global_D = federation.state.global_D + update_D
        federation.state.attack = dict(before.state)
        honest_CD *= 0.8
    if other_world:
        weights_C[~malicious_C] += 5
        honest_CD[~malicious_C] = honest_CD[~malicious_C].flip(1)
        benign = [job for job, bad in zip(jobs, cast.malicious.tolist(), strict=True) if not bad]
        swapped = {job.client: job._replace(rows=other.rows) for job, other in zip(benign, benign[::-1], strict=True)}
        jobs = [swapped.get(job.client, job) for job in jobs]
    sent = federation.poison(Trained(cast, jobs, honest_CD, weights_C))
    state = dict(federation.state.attack)
    return Round(honest_CD, sent.updates_CD, malicious_C, sent.poisoned_C, sent.metrics, state, federation)


def search_ranges_are_valid(attack: Attack) -> None:
    """Both ends of every search range, and every choice, can be set; a default that is a number lies inside."""
    for name, hint in get_type_hints(type(attack), include_extras=True).items():
        for mark in getattr(hint, "__metadata__", ()):
            default = getattr(type(attack), name, None)
            if isinstance(mark, Tunable):
                values: tuple[Any, ...] = (mark.low, mark.high)
                inside = not isinstance(default, int | float) or mark.low <= default <= mark.high
                require(inside or default == 0, f"{name}: default {default} lies outside {mark}")
            elif isinstance(mark, Choice):
                values = mark.values
            else:
                continue
            for value in values:
                try:
                    replace(attack, **{name: value})
                except ValueError as error:
                    raise AssertionError(f"{name}={value!r} of its search range is refused: {error}") from None


def only_malicious_rows_change(attack: Attack) -> None:
    """Malicious rows change and are finite; benign rows, honest updates and global model keep every bit."""
    base, trained = scene()
    expected_CD = trained.updates_CD
    played = play(attack)
    require(torch.equal(played.honest_CD, expected_CD), "the honest updates were modified in place")
    require(torch.equal(played.federation.state.global_D, base.initial_D), "the global model was modified in place")
    bad_C = played.malicious_C
    require(torch.equal(played.poisoned_C, bad_C), f"rows {played.poisoned_C.tolist()} are reported as poisoned")
    require(torch.equal(played.submitted_CD[~bad_C], expected_CD[~bad_C]), "a benign row has changed")
    require(not torch.equal(played.submitted_CD[bad_C], expected_CD[bad_C]), "no malicious row has changed")
    require(finite(attack, played.submitted_CD), "a submitted update holds NaN or Inf")


def any_number_of_attackers(attack: Attack) -> None:
    """One malicious client, two, and nobody else: finite updates."""
    for n_malicious in (1, 2, CLIENTS):
        submitted_CD = play(attack, n_malicious).submitted_CD
        require(finite(attack, submitted_CD), f"{n_malicious} malicious clients send NaN or Inf")


def nothing_without_attackers(attack: Attack) -> None:
    """No malicious participant, or a round that is not adversarial: nothing changes, nothing is logged."""
    for n_malicious, adversarial in ((0, True), (3, False)):
        played = play(attack, n_malicious, adversarial=adversarial)
        require(torch.equal(played.submitted_CD, played.honest_CD), "updates changed in a round without an attack")
        require(not played.poisoned_C.any() and not played.metrics, "a round without an attack is reported as attacked")
        require(same(played.state, dict(attack.init())), "the state changed in a round without an attack")


def declared_knowledge_suffices(attack: Attack) -> None:
    """The attack works with the least knowledge that it declares, and cannot be configured with less."""
    visible = attack.visible_updates if attack.needs == "partial" else 0
    play(replace(attack, knowledge=attack.needs, visible_updates=visible))
    for level in LEVELS[: LEVELS.index(attack.needs)]:
        try:
            replace(attack, knowledge=level, visible_updates=0)
        except (ValueError, ConfigError):
            continue
        raise AssertionError(f"{level} knowledge is accepted, although {attack.needs} is declared as needed")


def knows_no_more_than_granted(attack: Attack) -> None:
    """What the threat model hides has no effect: benign updates and data, and without knowledge the aggregator, too."""
    for level in LEVELS[LEVELS.index(attack.needs) : -1]:
        if level == "partial" and attack.visible_updates:
            continue
        blind = replace(attack, knowledge=level, visible_updates=0)
        other_rule = Median() if level == "none" else None
        seen, unseen = play(blind), play(blind, other_world=True, aggregator=other_rule)
        bad_C = seen.malicious_C
        equal = same(seen.submitted_CD[bad_C], unseen.submitted_CD[bad_C])
        require(equal, f"with {level} knowledge the crafted updates depend on what the attackers must not know")


def deterministic(attack: Attack) -> None:
    """The same round gives the same bits, whatever the global random state, which is left alone."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = play(attack)
    require(torch.equal(before, torch.get_rng_state()), "the global random state has changed")
    torch.manual_seed(2)
    second = play(attack)
    require(same(first.submitted_CD, second.submitted_CD), "two equal rounds gave different updates")
    require(first.metrics == second.metrics, f"two equal rounds gave {first.metrics} and {second.metrics}")


def resumes_exactly(attack: Attack) -> None:
    """The state holds tensors and plain values; continuing from its file gives the same bits, and leaves it as it was."""
    first = play(attack)
    file = io.BytesIO()
    torch.save(first.state, file)
    uninterrupted = play(attack, before=first)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    require(same(loaded, first.state), "the attack modifies the state that it is given")
    resumed = play(attack, before=first._replace(state=loaded))
    require(same(resumed.submitted_CD, uninterrupted.submitted_CD), "a resumed attack sends other updates")
    require(same(resumed.state, uninterrupted.state), "a resumed attack remembers something else")


def survives_every_aggregator(attack: Attack) -> None:
    """Two rounds against every registered rule, designed for it or not: finite updates, which the rule can aggregate."""
    for cls in registry("aggregator"):
        rule: Aggregator = registry("aggregator").build(cls.name)
        if rule.n_byzantine is not None:
            rule = rule.assuming(1)
        if rule.needs_samples:  # the server's own are not here: a benign client is trusted instead
            rule = replace(rule, index=ORDER[3])  # type: ignore[call-arg]
        with warnings.catch_warnings():  # what a rule has to say of an attack is no fault of the attack
            warnings.simplefilter("ignore", UserWarning)
            first = play(attack, aggregator=rule)
            second = play(attack, aggregator=rule, before=first)
            for played in (first, second):
                survived = finite(attack, played.submitted_CD) and rule(played.submitted_CD).update.isfinite().all()
                require(survived, f"against {cls.name}: NaN or Inf")


def metrics_are_numbers(attack: Attack) -> None:
    """Figures are finite floats under plain names."""
    for name, value in play(attack).metrics.items():
        require(type(value) is float and isfinite(value), f"{name} is {value!r}, not a finite float")
        require(name.startswith("attack/") and name.count("/") == 1, f"{name} is no plain name under attack/")


def finite(attack: Attack, updates_CD: Tensor) -> bool:
    """Whether updates hold neither NaN nor Inf, unless these are what the attack is about."""
    return not attack.finite or bool(updates_CD.isfinite().all())


ATTACK_CHECKS: dict[str, Callable[[Attack], None]] = {
    check.__name__: check
    for check in (
        configuration_round_trips,
        search_ranges_are_valid,
        only_malicious_rows_change,
        any_number_of_attackers,
        nothing_without_attackers,
        declared_knowledge_suffices,
        knows_no_more_than_granted,
        deterministic,
        resumes_exactly,
        survives_every_aggregator,
        metrics_are_numbers,
    )
}
