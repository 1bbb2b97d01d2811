"""Snowball's two elections, and the check of a client against itself."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import calinski_harabasz_score

from fl_lightning.aggregators import Mean
from fl_lightning.config import load
from fl_lightning.defenses import CrossRound, Snowball
from fl_lightning.defenses._rflbat import principal_components
from fl_lightning.defenses._snowball import calinski_harabasz, groups_from, joined, votes
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.testing.defenses import server


def squared(rows_CF):
    return torch.cdist(rows_CF, rows_CF).square()


def crowd(seed=0, honest=16, malicious=4, width=12, apart=True):
    """Malicious rows first, far from the honest ones: each in a direction of its own, or all close together."""
    rows = torch.randn(honest + malicious, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[:malicious] = rows[:malicious] + 12 * torch.eye(malicious, width) if apart else 0.1 * rows[:malicious] + 6
    return 0.2 * rows


@pytest.mark.parametrize("seed", range(5))
def test_groups_and_index_are_those_of_scikit_learn(seed):
    rows = torch.randn(14, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    starts = torch.tensor([3, 7, 1])
    labels = groups_from(rows, starts[None])[0]
    theirs = KMeans(3, init=rows[starts].numpy(), n_init=1, algorithm="lloyd", tol=0).fit_predict(rows.numpy())
    assert labels.tolist() == theirs.tolist()
    assert calinski_harabasz(rows, labels) == pytest.approx(calinski_harabasz_score(rows.numpy(), theirs))
    # the coordinates of the distances hold the same groups, and so do differences from any row
    assert groups_from(principal_components(squared(rows), 14), starts[None])[0].tolist() == theirs.tolist()
    assert groups_from(rows[4] - rows, starts[None])[0].tolist() == theirs.tolist()


def test_one_group_or_only_groups_of_one_have_no_index():
    rows = torch.arange(6.0)[:, None]
    assert calinski_harabasz(rows, torch.zeros(6, dtype=torch.int64)) == 0
    assert calinski_harabasz(rows, torch.arange(6)) == 0


def test_votes_by_hand():
    # Rows 0, 1 near 0 and 10, 11 near 10, one start beside the voter: two groups for everybody, all with the same index.
    rows = torch.tensor([[0.0], [1.0], [10.0], [11.0], [12.0]])
    assert votes([squared(rows)], 1).tolist() == [2, 2, 3, 3, 3]
    assert votes([squared(rows), squared(rows)], 1).tolist() == [4, 4, 6, 6, 6]


@pytest.mark.parametrize("seed", range(3))
def test_attackers_apart_are_not_elected_and_close_together_elect_themselves(seed):
    first = Snowball(form="minus", far=4)
    apart = first.apply(crowd(seed), server(Mean(), 20), {})
    assert apart.scores_C[:4].min() > apart.scores_C[4:].max()
    together = first.apply(crowd(seed, apart=False), server(Mean(), 20), {})
    assert together.keep_C[:4].sum() == 2


def test_who_differs_as_the_elected_do_joins_first():
    torch.manual_seed(0)
    rows = crowd().float()
    settings = {"wanted": 10, "step": 2, "hidden": 32, "latent": 8, "epochs": 40, "epochs_more": 10}
    elected = joined(rows, [5, 9, 12, 14], **settings)
    assert elected[:4] == [5, 9, 12, 14]
    assert len(set(elected)) == 10
    assert min(elected) >= 4


def test_shares_of_the_rows_are_elected_and_the_warmup_ends():
    rows = crowd()
    short = {"epochs": 1, "epochs_more": 0, "hidden": 4, "latent": 2}
    context = server(Mean(), 20)
    kept = [Snowball(**short, share=share).apply(rows, context, {}).keep_C.sum() for share in (0.05, 0.3, 0.5)]
    assert kept == [2, 6, 10]
    warm = Snowball(**short, warmup=1)
    assert warm.apply(rows, context, {}).keep_C.sum() == 2
    assert warm.apply(rows, server(Mean(), 20, round=1), {}).keep_C.sum() == 10


@pytest.mark.slow
def test_elections_on_digits():
    """As shipped: a boosted backdoor is voted out; one that is not boosted elects itself, which the mean alone would dilute."""
    base = {
        "data": "digits",
        "rounds": 6,
        "partition": {"name": "iid", "clients": 10},
        "model": {"name": "mlp", "hidden": []},
        "client": {"steps": 5, "batch_size": 128, "optimizer": {"name": "sgd", "lr": 0.5}},
        "participation": {"name": "full", "malicious": 2},
        "defenses": {"snowball": "snowball"},
    }
    trigger = {"name": "trigger", "label": 0, "size": 2, "offset": 0}
    found = {}
    for boost in (1.0, 3.0):
        attack = {"name": "model_replacement", "boost": boost, "poison_fraction": 0.5, "objective": trigger}
        history = Federation(load(base | {"attack": attack})).run().history
        selected = sum(figures["attack/selected"] for figures in history) / len(history)
        found[boost] = history[-1]["attack/success"], selected, history[-1]["global/accuracy"]
    assert found[3.0][0] < 0.1
    assert found[3.0][1] < 0.1
    assert found[3.0][2] > 0.85
    assert found[1.0][1] > 0.2, "more than their share of the clients"


def test_more_rows_than_it_can_do_are_refused_with_the_numbers():
    with pytest.raises(ConfigError, match="C=201, max_rows=200"):
        Snowball().check_rows(201)


def test_who_turns_goes_and_who_is_new_stays():
    first = torch.eye(4, 6)
    context = server(Mean(), 4)
    seen = CrossRound().apply(first, context, {})
    assert seen.keep_C.all()
    assert np.isclose(seen.metrics["judged"], 0)
    then = first.clone()
    then[1] = -then[1]
    verdict = CrossRound().apply(then, context, seen.state)
    assert verdict.keep_C.tolist() == [True, False, True, True]
    assert verdict.scores_C.tolist() == [-1, 1, -1, -1]
    # who attacks alike from the first round on is never seen
    again = CrossRound().apply(then, context, verdict.state)
    assert again.keep_C.all()
