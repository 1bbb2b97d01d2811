"""The components give the golden verdicts, too: nine rows against a model that they are measured from."""

from dataclasses import replace

import pytest
import torch

from fl_lightning.aggregators import Mean
from fl_lightning.defenses import (
    Afa,
    Alignins,
    ClippedClustering,
    Flame,
    Fltrust,
    Foolsgold,
    Freqfed,
    MultiMetrics,
    applied,
)
from fl_lightning.testing.defenses import server

d, i = torch.arange(12, dtype=torch.float64), torch.arange(9, dtype=torch.float64)[:, None]
BASE = 1 + 0.5 * d.cos()
EASY = BASE + 0.3 * (1.7 * i + 2.3 * d + 0.9 * i * d).cos()
EASY[:2] = -1.5 * BASE + 0.1 * (i[:2] + d).cos()
THETA = (0.3 * d).cos() + 0.2
TRUSTED = 0.5 * EASY[2:].mean(0) + 0.1 * d.sin()


@pytest.mark.parametrize(
    ("defense", "kept", "update"),
    [
        (Fltrust(), [2, 3, 4, 5, 6, 7, 8], [0.75529, 0.626889, 0.401719, 0.2451]),
        (Foolsgold(features="all"), [2, 3, 4, 5, 6, 7, 8], [1.511232, 1.257123, 0.805397, 0.49198]),
        (Flame(of="updates"), [3, 5, 6, 7, 8], [1.511752, 1.162785, 0.713046, 0.494471]),
        (ClippedClustering(), [2, 3, 4, 5, 6, 7, 8], [1.50422, 1.250792, 0.801468, 0.489185]),
        (Alignins(), [2, 3, 4, 5, 6, 7, 8], [1.497853, 1.245123, 0.797832, 0.486568]),
        (MultiMetrics(), [6, 7], [1.510771, 1.345523, 0.824137, 0.608777]),
        (MultiMetrics(form="program"), [5, 8], [1.486454, 1.065608, 0.699388, 0.337445]),
        (Freqfed(of="updates", shape="flat"), [2, 5, 6, 7, 8], [1.440882, 1.239281, 0.801893, 0.419491]),
        (Afa(), [2, 3, 4, 5, 6, 7], [1.487518, 1.277236, 0.788784, 0.505133]),
    ],
    ids=str,
)
def test_golden_verdicts(defense, kept, update):
    context = replace(
        server(Mean(), 9),
        global_D=THETA,
        weights_C=torch.ones(9, dtype=torch.float64),
        layout=None,
        train=lambda samples, purpose, steps=None: TRUSTED,
    )
    verdict = defense.apply(EASY, context, defense.init())
    assert verdict.keep_C.nonzero().flatten().tolist() == kept
    rows, weights = applied(verdict, EASY)[verdict.keep_C], verdict.weights_C[verdict.keep_C]
    expected = torch.tensor(update, dtype=torch.float64)
    torch.testing.assert_close((weights @ rows / weights.sum())[:4], expected, rtol=1e-6, atol=1e-6)
