"""What attackers wish for, and that success is never measured on what anybody trains on."""

import pytest
import torch

from fl_lightning.attacks import Goal, LabelMap, Objective, TargetSamples, Trigger, Untargeted
from fl_lightning.data import Dataset, Digits, HousePrices, Samples
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator

DIGITS = Digits().load()
HOUSES = HousePrices().synthetic()


def goal(objective: Objective, data: Dataset = DIGITS, seed: int = 0) -> Goal:
    return objective.goal(data, generator(seed, "objective"))


def rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


# --- untargeted --------------------------------------------------------------------------------------------------------


def test_untargeted_wishes_for_nothing_special():
    found = goal(Untargeted())
    assert found.success is None
    assert found.clean is DIGITS.test
    own = DIGITS.train[:5]
    assert Untargeted().dirty(own, found, 10) is own


# --- label map ---------------------------------------------------------------------------------------------------------


def test_the_shift_is_the_published_map():
    assert LabelMap().wished(10).tolist() == [9, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert LabelMap().wished(2).tolist() == [1, 0]


def test_the_shift_moves_every_test_sample_and_every_label():
    found = goal(LabelMap())
    assert found.success is not None
    assert torch.equal(found.success.x, DIGITS.test.x)
    assert torch.equal(found.success.y, (DIGITS.test.y - 1) % 10)
    own = DIGITS.train[:50]
    dirty = LabelMap().dirty(own, found, 10)
    assert torch.equal(dirty.x, own.x)
    assert torch.equal(dirty.y, (own.y - 1) % 10)


def test_a_mapping_moves_some_classes_only():
    objective = LabelMap(mapping={5: 7, 1: 0})
    found = goal(objective)
    assert found.success is not None
    source = torch.isin(DIGITS.test.y, torch.tensor([1, 5]))
    assert torch.equal(found.success.x, DIGITS.test.x[source])
    assert torch.equal(found.success.y, torch.where(DIGITS.test.y[source] == 5, 7, 0))
    dirty = objective.dirty(DIGITS.train, found, 10)
    changed = dirty.y != DIGITS.train.y
    assert torch.equal(changed, torch.isin(DIGITS.train.y, torch.tensor([1, 5])))
    assert set(dirty.y[DIGITS.train.y == 5].tolist()) == {7}
    assert found.clean is DIGITS.test


@pytest.mark.parametrize("mapping", [{5: 5}, {5: 10}, {-1: 3}, {10: 3}])
def test_maps_that_make_no_sense(mapping: dict[int, int]):
    with pytest.raises(ConfigError, match=r"mapping: needs two different classes of 0\.\.9, got"):
        goal(LabelMap(mapping=mapping))


def test_regression_targets_are_negated():
    found = goal(LabelMap(), HOUSES)
    assert found.success is None
    own = HOUSES.train[:7]
    assert torch.equal(LabelMap().dirty(own, found, 1).y, -own.y)


def test_success_samples_are_no_training_samples():
    train = rows(DIGITS.train.x)
    for objective in (LabelMap(), TargetSamples(count=5), Trigger()):
        found = goal(objective)
        assert found.success is not None
        assert not rows(found.success.x) & train


def test_the_right_classes_of_success_samples_are_remembered():
    found = goal(LabelMap(mapping={5: 7}))
    assert found.truth is not None
    assert set(found.truth.tolist()) == {5}
    found = goal(Trigger(label=3))
    assert found.truth is not None
    assert torch.equal(found.truth, DIGITS.test.y[DIGITS.test.y != 3])
    found = goal(TargetSamples(count=7))
    assert found.truth is not None
    assert found.success is not None
    for x, y in zip(found.success.x, found.truth, strict=True):
        assert y in DIGITS.test.y[(DIGITS.test.x == x).flatten(1).all(1)]


# --- target samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_targets_leave_the_clean_test_set(seed: int):
    found = goal(TargetSamples(count=7), seed=seed)
    assert found.success is not None
    assert len(found.success) == 7
    assert len(found.clean) == len(DIGITS.test) - 7
    assert not rows(found.success.x) & rows(found.clean.x)
    assert rows(found.success.x) | rows(found.clean.x) == rows(DIGITS.test.x)
    truth = {row.numpy().tobytes(): int(y) for row, y in zip(DIGITS.test.x, DIGITS.test.y, strict=True)}
    for x, wished in zip(found.success.x, found.success.y.tolist(), strict=True):
        assert wished != truth[x.numpy().tobytes()], "the wished label is always wrong"
        assert 0 <= wished < 10


def test_targets_follow_the_seed():
    a, b, c = goal(TargetSamples(), seed=0), goal(TargetSamples(), seed=0), goal(TargetSamples(), seed=1)
    assert a.success is not None
    assert b.success is not None
    assert c.success is not None
    assert torch.equal(a.success.x, b.success.x)
    assert not torch.equal(a.success.x, c.success.x)


def test_every_wrong_label_is_wished_for_sometimes():
    found = goal(TargetSamples(count=300))
    assert found.success is not None
    assert set(found.success.y.tolist()) == set(range(10))


def test_a_given_label_is_never_the_right_one():
    found = goal(TargetSamples(count=100, label=3))
    assert found.success is not None
    assert set(found.success.y.tolist()) == {3}
    assert int((found.clean.y == 3).sum()) == int((DIGITS.test.y == 3).sum())


def test_attackers_train_on_the_targets_themselves():
    found = goal(TargetSamples(count=2))
    dirty = TargetSamples(count=2).dirty(DIGITS.train[:9], found, 10)
    assert found.success is not None
    assert torch.equal(dirty.x, found.success.x)
    assert torch.equal(dirty.y, found.success.y)
    with pytest.raises(ValueError, match="no targets"):
        TargetSamples().dirty(DIGITS.train, Goal(DIGITS.test, None), 10)


@pytest.mark.parametrize(
    ("objective", "data", "match"),
    [
        (TargetSamples(count=360), DIGITS, "count: at most 359 targets can leave the test set, got 360"),
        (TargetSamples(label=10), DIGITS, r"label: must be a class of 0\.\.9, got 10"),
        (TargetSamples(), HOUSES, "needs classes, got regression"),
    ],
)
def test_targets_that_cannot_be(objective: TargetSamples, data: Dataset, match: str):
    with pytest.raises(ConfigError, match=match):
        goal(objective, data)


# --- trigger -----------------------------------------------------------------------------------------------------------


def test_the_square_lies_where_the_paper_puts_it():
    images = torch.zeros(2, 1, 28, 28)
    stamped = Trigger(size=3, offset=1).stamp(images)
    assert not images.any(), "stamp copies"
    lit = torch.nonzero(stamped[0, 0])
    assert sorted(map(tuple, lit.tolist())) == [(r, c) for r in (24, 25, 26) for c in (24, 25, 26)]
    assert stamped.unique().tolist() == [0.0, 1.0]


def test_the_square_has_no_margin_at_offset_zero_and_covers_every_channel():
    stamped = Trigger(size=2, offset=0).stamp(torch.zeros(1, 3, 8, 8))
    assert stamped[0, :, 6:, 6:].all()
    assert int(stamped.sum()) == 3 * 4


def test_trigger_success_is_measured_on_other_classes_only():
    objective = Trigger(label=4)
    found = goal(objective)
    assert found.success is not None
    others = DIGITS.test.y != 4
    assert len(found.success) == int(others.sum())
    assert set(found.success.y.tolist()) == {4}
    untouched = torch.ones(8, 8, dtype=torch.bool)
    untouched[4:7, 4:7] = False
    assert torch.equal(found.success.x[..., untouched], DIGITS.test.x[others][..., untouched])
    assert (found.success.x[..., 4:7, 4:7] == 1).all()
    assert found.clean is DIGITS.test
    dirty = objective.dirty(DIGITS.train[:9], found, 10)
    assert (dirty.x[..., 4:7, 4:7] == 1).all()
    assert dirty.y.tolist() == [4] * 9


@pytest.mark.parametrize(
    ("objective", "data", "match"),
    [
        (Trigger(label=10), DIGITS, r"label: must be a class of 0\.\.9, got 10"),
        (Trigger(size=8, offset=1), DIGITS, r"size: square of 8 at 1 does not fit into \(1, 8, 8\)"),
        (Trigger(), HOUSES, "needs classes, got regression"),
    ],
)
def test_triggers_that_cannot_be(objective: Trigger, data: Dataset, match: str):
    with pytest.raises(ConfigError, match=match):
        goal(objective, data)


def test_the_training_set_is_never_changed():
    before = DIGITS.train.x.clone()
    labels = DIGITS.train.y.clone()
    for objective in (Untargeted(), LabelMap(), TargetSamples(), Trigger()):
        objective.dirty(Samples(DIGITS.train.x, DIGITS.train.y), goal(objective), 10)
    assert torch.equal(DIGITS.train.x, before)
    assert torch.equal(DIGITS.train.y, labels)
