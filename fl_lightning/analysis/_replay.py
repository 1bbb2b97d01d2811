"""What every rule and every defense of the platform would have made of the attack, from its first round on."""

import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

from fl_lightning.aggregators import Aggregator
from fl_lightning.analysis._page import Section, folded, table, text
from fl_lightning.analysis._panel import panel
from fl_lightning.analysis._subject import Subject
from fl_lightning.defenses import Defense
from fl_lightning.federation import Federation, FederationState, check_server

__all__ = ["Replayed", "first_attacked", "replayed", "replays"]

ROUNDS = 10
"""Rounds that are replayed, where the time allows it."""

SECONDS = 120.0
"""How long all replays together may take."""


class Replayed(NamedTuple):
    """What a server has become after some rounds of the attack.

    Attributes:
        label: what was put in the place of the configured server.
        accuracy: on the clean test set.
        success: of the attack.
        why: why there are no figures, or None.
    """

    label: str
    accuracy: float | None
    success: float | None
    why: str | None = None


def first_attacked(subject: Subject, seconds: float = SECONDS) -> Federation | None:
    """The federation before its first attacked round; None where there is none, or where it takes too long to get there."""
    experiment, begin = subject.federation.experiment, time.monotonic()
    federation = subject.from_the_start()
    seed = federation.bench.seed
    while federation.state.round < experiment.planned_rounds:
        if experiment.participation.schedule.adversarial(federation.state.round, seed):
            cohort = federation.cohort()
            if bool(cohort.malicious.any()):
                return federation
        if time.monotonic() - begin > seconds or federation.state.stopped:
            return None
        federation.round()
    return None


def forked(before: Federation, **changes: Any) -> Federation:
    """The federation with slots of the experiment changed, at the same state; memories of new defenses are fresh.

    Raises:
        ConfigError: what it is changed to cannot work here.
    """
    other = before.twin()
    other.experiment = before.experiment.model_copy(update=changes)
    other.experiment.check_clients(len(other.assignment))
    check_server(other)
    state = before.state
    defenses = {
        label: deepcopy(state.defenses[label]) if before.experiment.defenses.get(label) == one else dict(one.init())
        for label, one in other.experiment.defenses.items()
    }
    other.state = FederationState(
        state.round, state.global_D.clone(), state.previous_D.clone(), deepcopy(state.attack), defenses,
        server=deepcopy(state.server), past=deepcopy(state.past),
    )  # fmt: skip
    return other


def replayed(subject: Subject, before: Federation, rounds: int, label: str, **changes: Any) -> Replayed:
    """Some rounds from the first attacked one on with another server: what accuracy and success are then.

    The attack knows of the other server what its knowledge allows, and crafts its updates against that one.
    """
    try:
        federation = forked(before, **changes)
        for _ in range(rounds):
            federation.round()
    except ValueError as error:
        return Replayed(label, None, None, str(error))
    theta_D, goal = federation.state.global_D, federation.goal_now()
    samples = goal.success
    accuracy = subject.flat.accuracy(theta_D, goal.clean)
    success = 1 - accuracy if samples is None else subject.flat.accuracy(theta_D, samples)
    return Replayed(label, accuracy, success, federation.state.stopped)


def servers(subject: Subject) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Label and changes of every server that is tried: each rule without defenses, each defense before the configured rule."""
    experiment, federation = subject.federation.experiment, subject.federation
    malicious = max(1, round(experiment.participation.malicious * experiment.participation.per_round(
        len(federation.assignment)) / len(federation.assignment)))  # fmt: skip
    for label, rule in panel("aggregator", malicious, {}).items():
        yield label, {"aggregator": rule, "defenses": {}} if isinstance(rule, Aggregator) else str(rule)
    for label, one in panel("defense", malicious, {}).items():
        changes = {"defenses": {label: one}}
        yield f"{label} + {experiment.aggregator.name}", changes if isinstance(one, Defense) else str(one)


def replays(subject: Subject) -> Section:
    """Accuracy and success after some rounds of the attack against every server, the one that withstands best first."""
    title = "What would have stopped it"
    before = first_attacked(subject)
    if before is None:
        return Section(
            title, (text(f"No round was attacked, or it takes more than {SECONDS:.0f} s to get there again."),)
        )
    tried, begin = list(servers(subject)), time.monotonic()
    left = subject.federation.experiment.planned_rounds - before.state.round
    configured = replayed(subject, before, 1, "as configured")
    each = time.monotonic() - begin
    rounds = max(1, min(ROUNDS, left, int(SECONDS / max(each * (len(tried) + 2), 1e-9))))
    found = [replayed(subject, before, rounds, "as configured") if rounds > 1 else configured]
    found.append(replayed(subject, before, rounds, "as configured, nobody attacks", attack=None))
    late = []
    for label, changes in tried:
        if time.monotonic() - begin > 2 * SECONDS:
            late.append(label)
        elif isinstance(changes, str):
            found.append(Replayed(label, None, None, changes))
        else:
            found.append(replayed(subject, before, rounds, label, **changes))
    first = before.state.round
    words = (
        f"The attack again, from its first round ({first}) to round {first + rounds - 1}, against each rule without defenses and "
        "each defense before the configured rule: same clients, batches and noise. Every method has its shipped settings and is "
        "told the expected number of malicious updates a round; the attack crafts its updates against it as far as it knows it. "
        f"{rounds} rounds are few: a low success may come later, and a low accuracy is the price of a rule early in training."
    )
    rows = ordered(found)
    parts = [text(words), table(["server", "attack success", "accuracy"], [row[:3] for row in rows if not row[3]])]
    if refused := [[row[0], row[3]] for row in rows if row[3]]:
        parts.append(folded(f"{len(refused)} servers cannot be used here, and why", table(["server", "why"], refused)))
    if late:
        parts.append(text(f"Not tried, since it takes too long here: {', '.join(late)}."))
    return Section(title, tuple(parts))


def ordered(found: list[Replayed]) -> list[list[object]]:
    """Rows of a table: what is configured first, then the lowest success, and last those without figures."""
    head, rest = (
        found[:2],
        sorted(found[2:], key=lambda one: (one.success is None, one.success or 0.0, -(one.accuracy or 0.0))),
    )
    return [[one.label, one.success, one.accuracy, one.why or ""] for one in [*head, *rest]]
