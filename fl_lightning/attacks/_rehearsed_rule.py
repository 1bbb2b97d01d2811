"""The server's rule, played by attackers who know it on the rows that they know."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregate, Aggregator, MultiKrum, Past
from fl_lightning.attacks._known_rows import known_rows
from fl_lightning.attacks._view import View


class RehearsedRule(NamedTuple):
    """A rule and the rows that it will see, of which the crafted ones are still to come.

    Attributes:
        rule: the server's, or what is left of it for fewer rows.
        known_ND: `[N, D]` the rows that are not crafted.
        weights_C: `[C]` their weights in the order of the server; None: equal.
        crafted_C: `[C]` bool, where the crafted rows stand.
        past: what the rule knows of the rounds before, as far as the attackers know it.
    """

    rule: Aggregator
    known_ND: Tensor
    weights_C: Tensor | None
    crafted_C: Tensor
    past: Past | None = None

    @property
    def n_crafted(self) -> int:
        """How many of the rows are crafted."""
        return int(self.crafted_C.sum())

    def aggregate(self, crafted_D: Tensor) -> Aggregate:
        """What the rule makes of copies of a crafted row and the known rows."""
        rows_CD = crafted_D.new_empty(len(self.crafted_C), len(crafted_D))
        crafted_C = self.crafted_C.to(crafted_D.device)
        rows_CD[crafted_C] = crafted_D
        rows_CD[~crafted_C] = self.known_ND
        return self.rule(rows_CD, self.weights_C, past=self.past)


def rehearsed_rule(view: View) -> RehearsedRule | None:
    """The rule over all rows with full knowledge; otherwise over the known rows and a proportionate number of crafted ones.

    J = max(1, floor(M H / C)) crafted rows stand beside the H known ones: a share just below the true one. As many copies as
    there are attackers, beside as few rows as are visible, would be each other's neighbours, and Krum would accept anything. The
    rule is then told n_byzantine = J, or the largest that it accepts.

    Returns:
        None where the rule accepts no n_byzantine for so few rows, or needs the server's own samples, which attackers do not see.
    """
    past = view.past
    if view.aggregator.needs_samples and past.trusted is None:
        return None
    if view.knowledge == "full":
        crafted_C = view.cohort.malicious.cpu()
        weights_C = torch.empty(view.n_clients, dtype=view.own_weights.dtype, device=view.own_weights.device)
        weights_C[crafted_C.to(weights_C.device)] = view.own_weights
        weights_C[~crafted_C.to(weights_C.device)] = view.benign_weights
        benign_BD = view.benign_updates.to(torch.promote_types(view.benign_updates.dtype, torch.float32))
        return RehearsedRule(view.aggregator, benign_BD, weights_C, crafted_C, past)
    known_ND = known_rows(view)
    n_crafted = max(1, view.n_malicious * len(known_ND) // view.n_clients)
    total = n_crafted + len(known_ND)
    rule = fitted(view.aggregator, total, n_crafted)
    return None if rule is None else RehearsedRule(rule, known_ND, None, torch.arange(total) < n_crafted, past)


def fitted(rule: Aggregator, n_rows: int, n_byzantine: int) -> Aggregator | None:
    """The rule for fewer rows: told of at most `n_byzantine` arbitrary ones, or None where it accepts no number."""
    told = rule.n_byzantine is not None
    for f in range(n_byzantine, -1, -1) if told else (None,):
        candidate = rule if f is None else rule.assuming(f)
        if isinstance(candidate, MultiKrum) and candidate.m and f is not None and candidate.m > n_rows - f:
            candidate = replace(candidate, m=max(1, n_rows - f))
        try:
            candidate.check(n_rows)
        except ValueError:
            continue
        return candidate
    return None
