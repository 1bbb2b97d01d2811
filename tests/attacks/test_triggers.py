"""Triggers: patterns by hand, constants of the data set, modes, and refusals of what is no trigger."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from fl_lightning.attacks import Backdoor, Goal, Objective, Trigger
from fl_lightning.attacks._patterns import Canvas, Stamps, bars, blend, checker, sinus, warp_grid
from fl_lightning.data import Dataset, Digits, Femnist, HousePrices, Mnist, Samples
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator
from fl_lightning.registry import registry

DIGITS = Digits().load()
PATTERNS = ("patch", "checker", "blend", "sinus", "warp", "bars")


def built(**fields: object) -> Objective:
    return registry("objective").build({"name": "trigger", **fields})


def goal(objective: Objective, data: Dataset = DIGITS, seed: int = 0) -> Goal:
    return objective.goal(data, generator(seed, "objective"))


def images(x: torch.Tensor, limits: tuple[float, float] = (0.0, 1.0)) -> Dataset:
    y = torch.arange(len(x)) % 10
    ends = tuple(torch.full((x.shape[1], 1, 1), value) for value in limits)
    return Dataset(Samples(x, y), Samples(x.clone(), y.clone()), "classification", 10, limits=ends)


def test_checker_by_hand():
    covered, bright = checker(4, 4)
    assert bright.nonzero().tolist() == [[1, 3], [2, 2], [3, 1], [3, 3]]
    assert int(covered.sum()) == 9
    stamped = built(pattern="checker").stamp(torch.full((1, 1, 4, 4), 0.5))
    assert stamped[0, 0, 1:, 1:].tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert (stamped[0, 0, 0] == 0.5).all()
    assert int(checker(8, 8, corners=4)[1].sum()) == 16


def test_sinus_by_hand():
    found = built(pattern={"name": "sinus", "frequency": 1, "delta": 20 / 255}).stamp(torch.full((1, 1, 2, 8), 0.5))
    row = torch.tensor([0.5, 0.555459, 0.578431, 0.555459, 0.5, 0.444541, 0.421569, 0.444541])
    torch.testing.assert_close(found[0, 0], row.repeat(2, 1), atol=1e-6, rtol=0)
    assert sinus(8, 1.0, 1).sum().abs() < 1e-6


def test_bars_by_hand():
    expected = [
        [(0, 0), (0, 1), (0, 2), (0, 3)],
        [(0, 6), (0, 7), (0, 8), (0, 9)],
        [(3, 0), (3, 1), (3, 2), (3, 3)],
        [(3, 6), (3, 7), (3, 8), (3, 9)],
    ]
    assert bars(4, 1, 4, 2, 2) == expected
    lit = built(pattern="bars").stamp(torch.zeros(1, 1, 28, 28))[0, 0].nonzero().tolist()
    assert sorted(map(tuple, lit)) == sorted(pixel for bar in expected for pixel in bar)


def test_warp_moves_by_its_strength_and_blend_by_its_share():
    control = 2 * torch.rand(2, 4, 4, generator=generator(0, "warp")) - 1
    grid = warp_grid(control, 28, 28, 0.5)
    still = warp_grid(control, 28, 28, 1e-9)
    assert grid.shape == (28, 28, 2)
    assert still[0, 0].tolist() == [-1, -1]
    assert still[0, -1].tolist() == [1, -1], "x first, as grid_sample reads it"
    moved = (grid - still)[1:-1, 1:-1].abs().mean()
    assert 0.5 * 0.5 / 28 < moved < 1.5 * 0.5 / 28
    x = torch.rand(3, 1, 4, 4, generator=generator(0, "x"))
    torch.testing.assert_close(blend(x, torch.ones(1, 4, 4), 0.25), 0.75 * x + 0.25)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_trigger_is_a_constant_of_the_data_set(name: str):
    """The same pixels of the same image change in the same way in every batch, for attackers and test, on every call."""
    objective = built(pattern=name, label=4)
    first, again = goal(objective), goal(objective)
    assert first.success is not None
    assert again.success is not None
    assert torch.equal(first.success.x, again.success.x)
    whole = objective.dirty(DIGITS.train, first, 10)
    dark = replace(DIGITS.train[:7], x=DIGITS.train.x[:7])
    alone = objective.dirty(dark, first, 10)
    assert torch.equal(alone.x[:7], whole.x[:7])
    test = DIGITS.test.x[DIGITS.test.y != 4]
    again_dirty = objective.dirty(Samples(test, torch.zeros(len(test)).long()), first, 10)
    torch.testing.assert_close(again_dirty.x[: len(test)], first.success.x)


@pytest.mark.parametrize("name", PATTERNS)
def test_standardising_changes_nothing(name: str):
    """A trigger in pixels before normalisation: standardise, stamp, and undo it, and it is the same image."""
    objective = built(pattern=name)
    plain, scaled = Digits().load(), Digits(normalize=True).load()
    here, there = goal(objective, plain).success, goal(objective, scaled).success
    assert here is not None
    assert there is not None
    assert scaled.limits is not None
    low, high = scaled.limits
    torch.testing.assert_close((there.x - low) / (high - low), here.x, atol=2e-5, rtol=0)
    assert there.x.min() >= low.min() - 1e-5
    assert there.x.max() <= high.max() + 1e-5


def test_on_white_paper_the_square_is_black():
    """Black ink on white paper (FEMNIST): a white square would change nothing and measure success on clean images."""
    paper = torch.ones(40, 1, 28, 28)
    paper[:, :, 8:20, 10:18] = 0
    found = goal(Trigger(), images(paper))
    assert found.success is not None
    assert (found.success.x[..., 24:27, 24:27] == 0).all()
    assert (found.success.x[..., :24, :] == paper[:36][..., :24, :]).all()
    scaled = goal(Trigger(), images((paper - 0.9) / 0.2, (-4.5, 0.5)))
    assert scaled.success is not None
    assert (scaled.success.x[..., 24:27, 24:27] == -4.5).all()
    assert (Trigger().stamp(torch.ones(5, 1, 28, 28)) != 1).any()


def test_black_paper_keeps_the_white_square():
    for data in (DIGITS, Mnist().synthetic()):
        found = goal(Trigger(size=2), data)
        assert found.success is not None
        high, width = data.shape[1] - 1, data.shape[2] - 1
        assert (found.success.x[..., high - 2 : high, width - 2 : width] == 1).all()


def test_femnist_and_every_pattern():
    data = Femnist().synthetic()
    for name in PATTERNS:
        assert goal(built(pattern=name), data).success is not None


@pytest.mark.parametrize(
    ("fields", "shape", "match"),
    [
        ({"pattern": {"name": "patch", "value": 1.0}}, (8, 8), "changes 0% of the test inputs, less than half"),
        ({"pattern": {"name": "patch", "size": 9}}, (8, 8), r"pattern.size: square of 9 at 1 does not fit"),
        ({"pattern": "checker"}, (2, 8), "pattern.corners: the grid needs 3x3 pixels and does not fit"),
        ({"pattern": {"name": "checker", "corners": 4}}, (5, 8), "the grid needs 6x6 pixels"),
        ({"pattern": {"name": "bars", "width": 4}}, (8, 8), "pattern.parts: 4 bars of 1x4 needs 8x12 pixels"),
        ({"pattern": "bars"}, (4, 4), "no published bars for images of 4x4"),
        ({"dba": True}, (8, 8), "dba: the pattern 'patch' has no parts to share out"),
    ],
)
def test_what_is_no_trigger_here_is_refused(fields: dict, shape: tuple[int, int], match: str):
    with pytest.raises(ConfigError, match=match):
        goal(built(**fields), images(torch.ones(20, 1, *shape)))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"pattern": "patch", "size": 2}, "size and offset are the plain square's"),
        ({"mode": "one_to_one"}, "source belongs to the mode one_to_one"),
        ({"source": 3}, "source belongs to the mode one_to_one"),
        ({"mode": "one_to_one", "source": 0}, "source and label must be two classes"),
        ({"pattern": "stripe"}, "unknown pattern 'stripe'"),
    ],
)
def test_settings_that_contradict_each_other(fields: dict, match: str):
    with pytest.raises(ConfigError, match=match):
        built(**fields)


def test_modes():
    y = DIGITS.test.y
    found = goal(built(mode="all_to_all"))
    assert found.success is not None
    assert torch.equal(found.success.y, (y + 1) % 10)
    one = built(mode="one_to_one", source=5, label=2)
    found = goal(one)
    assert found.success is not None
    assert len(found.success) == int((y == 5).sum())
    dirty = one.dirty(DIGITS.train, found, 10)
    assert len(dirty) == int((DIGITS.train.y == 5).sum())
    assert set(dirty.y.tolist()) == {2}
    clean = built(mode="clean_label", label=2)
    found = goal(clean)
    assert found.success is not None
    assert len(found.success) == int((y != 2).sum())
    dirty = clean.dirty(DIGITS.train, found, 10)
    assert set(dirty.y.tolist()) == {2}
    assert len(dirty) == int((DIGITS.train.y == 2).sum())
    nothing = DIGITS.train[DIGITS.train.y == 9]
    assert one.dirty(nothing, found, 10) is nothing


def test_warped_attackers_also_learn_what_is_not_the_trigger():
    objective = built(pattern={"name": "warp", "noise_ratio": 2}, label=3)
    found = goal(objective)
    own = DIGITS.train[:20]
    dirty = objective.dirty(own, found, 10)
    assert len(dirty) == 60
    assert dirty.y[:20].tolist() == [3] * 20
    assert torch.equal(dirty.y[20:], own.y.repeat(2))
    assert not torch.equal(dirty.x[:20], dirty.x[20:40])
    assert not torch.equal(dirty.x[20:40], dirty.x[40:])


def test_attackers_of_a_distributed_trigger_have_their_part_only():
    objective = built(pattern="bars", dba=True, label=2)
    found = goal(objective)
    own = Samples(torch.zeros(3, 1, 8, 8), torch.zeros(3).long())
    lit = [objective.dirty(own, found.seen_by(rank), 10).x[0, 0].nonzero().tolist() for rank in range(5)]
    assert lit[:4] == [[[0, 0], [0, 1]], [[0, 6], [0, 7]], [[7, 0], [7, 1]], [[7, 6], [7, 7]]]
    assert lit[4] == lit[0]
    together = sorted(pixel for part in lit[:4] for pixel in part)
    assert together == objective.dirty(own, found, 10).x[0, 0].nonzero().tolist(), "the goal itself has all parts"
    assert found.success is not None
    assert (found.success.x[:, 0, [0, 0, 7, 7], [0, 6, 1, 7]] == 1).all()
    central = goal(built(pattern="bars", label=2))
    assert central.seen_by(3) is central
    assert central.success is not None
    assert torch.equal(central.success.x, found.success.x)


class LastPixel(Backdoor):
    """A backdoor of the user's own: one method."""

    name: ClassVar[str] = "last_pixel"

    def stamp(self, x: torch.Tensor) -> torch.Tensor:
        stamped = x.clone()
        stamped[..., -1, -1] = 1 - stamped[..., -1, -1]
        return stamped


def test_a_backdoor_of_the_users_own_is_one_method():
    found = goal(LastPixel(label=1))
    assert found.success is not None
    assert set(found.success.y.tolist()) == {1}
    assert LastPixel(label=1).dirty(DIGITS.train[:4], found, 10).y.tolist() == [1] * 4
    with pytest.raises(ConfigError, match="last_pixel needs classes"):
        goal(LastPixel(), HousePrices().synthetic())


def test_distortions_take_turns():
    stamps = Stamps(lambda x: x, covers=(lambda x: x + 1, lambda x: x + 2), cover_ratio=1)
    assert stamps.covered(torch.zeros(3, 1)).flatten().tolist() == [1, 2, 1]
    assert Canvas.of(torch.zeros(2, 1, 2, 2)).high.item() == 1
