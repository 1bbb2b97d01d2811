"""ByzFL's parts under our names: the same numbers as ByzFL gives, from keyed random numbers, in float64."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fl_lightning.aggregators import Past, krum, trimmed_mean
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator
from fl_lightning.registry import registry

byzfl = pytest.importorskip("byzfl", reason="needs ByzFL: pip install 'fl-lightning[byzfl]'")
ROWS_CD = torch.randn(11, 30, generator=generator(0, "test"), dtype=torch.float64)


def rule(**settings):
    return registry("aggregator").build({"name": "byzfl", **settings})


def test_a_chain_is_byzfl_s_own_to_the_last_bit():
    ours = rule(rule="TrMean", pre=["NNM", {"name": "Clipping", "c": 3.0}], n_byzantine=2)(ROWS_CD).update
    theirs = byzfl.TrMean(f=2)(byzfl.Clipping(c=3.0)(byzfl.NNM(f=2)(ROWS_CD.numpy())))
    assert torch.equal(ours, torch.from_numpy(theirs))


def test_pre_is_byzfl_s_own_there_and_ours_elsewhere():
    assert rule(pre=["NNM"], n_byzantine=2).name == "byzfl"
    assert (
        registry("aggregator").build({"name": "median", "pre": [{"name": "nnm", "n_byzantine": 2}]}).name
        == "nnm-median"
    )


@pytest.mark.parametrize(("theirs", "ours"), [("TrMean", trimmed_mean), ("Krum", krum)])
def test_it_agrees_with_our_rules(theirs, ours):
    assert_close(rule(rule=theirs, n_byzantine=2)(ROWS_CD).update, ours(ROWS_CD, 2))


def test_random_numbers_are_keyed_and_leave_numpy_s_alone():
    bucketing = rule(rule="Median", pre=[{"name": "Bucketing", "s": 2}])
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = bucketing(ROWS_CD).update
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert torch.equal(first, bucketing(ROWS_CD).update)
    other = Past(generator=lambda purpose: generator(1, purpose))
    assert not torch.equal(first, bucketing(ROWS_CD, past=other).update)


def test_influence_of_a_rule_that_keeps_one_row_is_that_row():
    row = int(rule(rule="Krum", n_byzantine=2).influence(ROWS_CD).argmax())
    assert_close(rule(rule="Krum", n_byzantine=2)(ROWS_CD).update, ROWS_CD[row])
    assert_close(rule(rule="Average").influence(ROWS_CD), torch.full((11,), 1 / 11, dtype=torch.float64))


@pytest.mark.parametrize(
    ("slot", "settings", "message"),
    [
        ("aggregator", {"rule": "Krumm"}, "did you mean 'Krum'"),
        ("aggregator", {"pre": ["NMN"]}, "did you mean 'NNM'"),
        ("aggregator", {"options": {"g": 1}}, "unknown key g"),
        ("attack", {"rule": "Mimicry"}, "did you mean 'Mimic'"),
        ("attack", {"rule": "LabelFlipping"}, "use label_flip"),
        ("attack", {"rule": "Mimic", "options": {"epsilon": -1}}, "refuses its options"),
    ],
)
def test_wrong_names_are_taught(slot, settings, message):
    with pytest.raises(ConfigError, match=message):
        registry(slot).build({"name": "byzfl", **settings})


def test_too_many_subsets_are_refused_before_anything_is_tried():
    with pytest.raises(ValueError, match="tries all 13123110 subsets"):
        rule(rule="SMEA", n_byzantine=10).check(30 - 2)
