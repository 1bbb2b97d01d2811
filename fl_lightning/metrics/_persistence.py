"""How long an attack outlives its last shot, and how often the server used what was submitted."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

ATTACKED = "attack/active"
SUCCESS = "attack/success"
SELECTED = "attack/selected"
ACCURACY = "global/accuracy"


def persistence(
    history: Sequence[Mapping[str, float]], threshold: float | Literal["benign_error"] = 0.5
) -> dict[str, float]:
    """Figures of a whole run, from the figures of its rounds.

    `attack/persistence`: rounds from the last attacked one, which counts 0, until the success first falls below the
    threshold: the attack mitigation rounds of FL-WBC. `attack/persistence_for_good`: until it falls below and stays there;
    the two differ where the clients of a round happen to lack the class that would repair the model. When the success never
    falls, both are the number of rounds that it was watched plus one, a lower bound, and `attack/persists` is 1.
    `attack/attacking_rate`: share of the attacked rounds in which the server used a malicious row.

    With `benign_error` the success of a round must fall below the error of the same round on the clean task, as FL-WBC defines
    mitigation for several images; the figures are then called `attack/persistence_benign_error` and
    `attack/persists_benign_error`.

    Args:
        history: one mapping a round; attacked rounds hold `attack/active` = 1. Rounds that were not evaluated are skipped.
        threshold: a success below it is no success; `benign_error`: 1 - `global/accuracy` of the round.

    Returns:
        Nothing for a run without an attacked round; no persistence where the success was not evaluated from then on.

    Example:
        >>> shot, rest = {"attack/active": 1.0, "attack/success": 0.9}, [0.7, 0.4, 0.6, 0.3]
        >>> persistence([shot, *({"attack/active": 0.0, "attack/success": s} for s in rest)])
        {'attack/persistence': 2.0, 'attack/persistence_for_good': 4.0, 'attack/persists': 0.0}

    References:
        Sun et al., "FL-WBC", NeurIPS 2021, section 7.1 (attack mitigation rounds); Wei et al., "Covert Model Poisoning Against
        Federated Learning", section 5 (successful attacking rate).
    """
    attacked = [round for round, figures in enumerate(history) if figures.get(ATTACKED)]
    if not attacked:
        return {}
    figures: dict[str, float] = {}
    selected = [history[round][SELECTED] > 0 for round in attacked if SELECTED in history[round]]
    if selected:
        figures["attack/attacking_rate"] = math.fsum(selected) / len(selected)
    last = attacked[-1]
    after = [
        (round - last, one[SUCCESS] < limit)
        for round, one in enumerate(history)
        if round >= last and SUCCESS in one and (limit := _limit(one, threshold)) is not None
    ]
    if not after:
        return figures
    never = len(history) - last
    below = [rounds for rounds, mitigated in after if mitigated]
    above = [rounds for rounds, mitigated in after if not mitigated]
    later = [rounds for rounds in below if not above or rounds > above[-1]]
    if threshold == "benign_error":
        figures["attack/persistence_benign_error"] = float(below[0] if below else never)
        figures["attack/persists_benign_error"] = float(not below)
        return figures
    figures["attack/persistence"] = float(below[0] if below else never)
    figures["attack/persistence_for_good"] = float(later[0] if later else never)
    figures["attack/persists"] = float(not later)
    return figures


def _limit(figures: Mapping[str, float], threshold: float | Literal["benign_error"]) -> float | None:
    """What the success of a round must fall below; None where the round was not evaluated for it."""
    if threshold != "benign_error":
        return threshold
    return 1 - figures[ACCURACY] if ACCURACY in figures else None
