"""What a rule may know beside the rows: the rounds before, random numbers, the model's layout, the server's own update."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_lightning.aggregators._layout import Layout
from fl_lightning.randomness import generator


def first_round(purpose: str) -> torch.Generator:
    """Random numbers of seed 0 in round 0."""
    return generator(0, f"defense {purpose}", 0)


@dataclass(frozen=True)
class Past:
    """Owned by the federation, so that a rule stays frozen: calling it twice, or in an attacker's rehearsal, moves nothing.

    Attributes:
        reference_D: `[D]` the last aggregated update; None in the first round.
        generator: fresh random numbers for a purpose, keyed by seed and round.
        layout: what the columns mean; None: all are parameters.
        trusted: makes `[D]`, the server's own update from its validation samples; None: it has none.
    """

    reference_D: Tensor | None = None
    generator: Callable[[str], torch.Generator] = first_round
    layout: Layout | None = None
    trusted: Callable[[], Tensor] | None = None
