"""Objectives without pixels, and backdoors that stamp nothing; attacks serve kinds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fl_lightning.attacks import (
    AttributeTrigger,
    EdgeCase,
    FeatureTrigger,
    Goal,
    LabelMap,
    Objective,
    Semantic,
    TokenTrigger,
)
from fl_lightning.attacks._objectives._edge_case import densities, tail
from fl_lightning.attacks._objectives._semantic import brightness, hue, slant, thickness
from fl_lightning.data import Dataset, Digits, HousePrices, Samples
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator
from fl_lightning.registry import registry

DIGITS = Digits().load()


def goal(objective: Objective, data: Dataset = DIGITS) -> Goal:
    return objective.goal(data, generator(0, "objective"))


def table(x: torch.Tensor, classes: int = 3) -> Dataset:
    y = torch.arange(len(x)) % classes
    return Dataset(Samples(x, y), Samples(x.clone(), y.clone()), "classification", classes)


TEXTS = table(torch.randint(1, 90, (60, 12), generator=generator(0, "texts")))
ROWS = table(torch.randn(60, 5, generator=generator(0, "rows")))


@pytest.mark.parametrize("texts", [TEXTS, TEXTS.to("cpu", torch.float32)], ids=["int64", "float32"])
def test_tokens_are_written_at_their_place(texts: Dataset):
    objective = TokenTrigger(token=(99, 98), position=-3, label=1)
    found = goal(objective, texts)
    assert found.success is not None
    assert found.success.x.dtype == texts.test.x.dtype
    assert (found.success.x[:, 9:11] == torch.tensor([99, 98])).all()
    kept = torch.ones(12, dtype=torch.bool)
    kept[9:11] = False
    others = texts.test.y != 1
    assert torch.equal(found.success.x[:, kept], texts.test.x[others][:, kept])
    assert objective.dirty(texts.train[:5], found, 3).y.tolist() == [1] * 5
    assert registry("objective").build(objective.to_dict()) == objective


def test_features_are_set():
    found = goal(FeatureTrigger(values={1: 4.0, 3: -2.0}), ROWS)
    assert found.success is not None
    assert (found.success.x[:, 1] == 4).all()
    assert (found.success.x[:, 3] == -2).all()
    assert torch.equal(found.success.x[:, 0], ROWS.test.x[ROWS.test.y != 0][:, 0])


def test_attributes_are_found_and_nothing_is_stamped():
    objective = AttributeTrigger(where={0: (0.5, 9.0)}, label=2)
    found = goal(objective, ROWS)
    assert found.success is not None
    assert found.truth is not None
    counted = (ROWS.test.x[:, 0] >= 0.5) & (ROWS.test.y != 2)
    assert torch.equal(found.success.x, ROWS.test.x[counted])
    assert len(found.clean) == len(ROWS.test) - int(counted.sum())
    dirty = objective.dirty(ROWS.train, found, 3)
    assert torch.equal(dirty.x, ROWS.train.x[ROWS.train.x[:, 0] >= 0.5])
    assert set(dirty.y.tolist()) == {2}
    without = ROWS.train[ROWS.train.x[:, 0] < 0.5]
    assert objective.dirty(without, found, 3) is without


def test_tail_inputs_are_rare_and_leave_the_clean_test_set():
    objective = EdgeCase(source=7, label=1, share=0.1)
    found = goal(objective)
    assert found.success is not None
    assert found.shared is not None
    assert found.withheld is not None
    assert len(found.clean) == len(DIGITS.test) - len(found.success)
    assert set(DIGITS.train.y[found.withheld].tolist()) == {7}
    assert torch.equal(found.shared.x, DIGITS.train.x[found.withheld])
    density, _ = densities(DIGITS, 7)
    sevens = torch.nonzero(DIGITS.train.y == 7).flatten()
    in_tail = torch.isin(sevens, found.withheld)
    assert int(in_tail.sum()) == round(0.1 * len(sevens))
    assert density[in_tail].max() <= density[~in_tail].min()
    dirty = objective.dirty(DIGITS.train[:3], found, 10)
    assert torch.equal(dirty.x, found.shared.x)
    assert set(dirty.y.tolist()) == {1}
    half = goal(EdgeCase(source=7, label=1, share=0.1, benign_share=0.5))
    assert half.withheld is not None
    assert len(half.withheld) == len(found.withheld) - round(0.5 * len(found.withheld))
    assert tail(torch.tensor([3.0, 1.0, 2.0, 0.0]), 0.5).tolist() == [1, 3]


def test_pictures_of_the_users_own_are_the_tail(tmp_path: Path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for number in range(3):
            pixels = np.full((16, 16), 60 * (number + 1), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{number}.png")
    found = goal(EdgeCase(folder=str(tmp_path)), Digits(normalize=True).load())
    assert found.success is not None
    assert found.success.x.shape == (3, 1, 8, 8)
    limits = Digits(normalize=True).load().limits
    assert limits is not None
    low, high = limits
    torch.testing.assert_close((found.success.x[0] - low) / (high - low), torch.full((1, 8, 8), 60 / 255))
    with pytest.raises(ConfigError, match="folder: no pictures in"):
        goal(EdgeCase(folder=str(tmp_path / "nowhere")))


def test_features_of_pixels_by_hand():
    diagonal = torch.eye(6)[None, None]
    assert slant(diagonal).item() == pytest.approx(1)
    assert slant(diagonal.flip(-1)).item() == pytest.approx(-1)
    bar = torch.zeros(1, 1, 40, 40)
    bar[..., 5:35, 10:13] = 1
    thick = torch.zeros(1, 1, 40, 40)
    thick[..., 5:35, 10:16] = 1
    assert thickness(bar).item() == pytest.approx(2 * 90 / 66)
    assert thickness(thick).item() > thickness(bar).item()
    assert brightness(bar).item() == pytest.approx(90 / 1600)
    colours = torch.eye(3)[:, :, None, None]
    torch.testing.assert_close(hue(colours), torch.tensor([0, 1 / 3, 2 / 3]))


def test_the_upper_tail_of_a_feature_is_the_semantic_backdoor():
    objective = Semantic(feature="slant", quantile=0.9, copies=4)
    found = goal(objective)
    assert found.success is not None
    assert found.shared is not None
    assert found.withheld is not None
    values = slant(DIGITS.train.x)
    chosen = values[found.withheld]
    rest = values[(DIGITS.train.y == 7) & ~torch.isin(torch.arange(len(DIGITS.train)), found.withheld)]
    assert chosen.min() > rest.max()
    assert len(found.shared) == 4 * len(found.withheld)
    assert torch.equal(found.shared.x[: len(chosen)], DIGITS.train.x[found.withheld])
    assert not torch.equal(found.shared.x[len(chosen) : 2 * len(chosen)], found.shared.x[: len(chosen)])
    assert found.shared.x.min() >= 0
    assert found.shared.x.max() <= 1
    listed = goal(Semantic(indices={"train": [3, 5], "test": [1]}, copies=1))
    assert listed.shared is not None
    assert torch.equal(listed.shared.x, DIGITS.train.x[[3, 5]])
    assert len(listed.clean) == len(DIGITS.test) - 1


def test_named_maps():
    assert LabelMap(mapping="static").wished(10)[[0, 4, 9]].tolist() == [9, 5, 0]
    assert LabelMap(mapping="static").wished(3).tolist() == [2, 1, 0]
    assert LabelMap(mapping="pair").wished(3).tolist() == [1, 2, 0]
    odd = goal(LabelMap(mapping="static"), table(torch.randn(9, 2)))
    assert odd.success is not None
    assert set(odd.success.y.tolist()) == {0, 2}, "success counts only classes that move"


@pytest.mark.parametrize(
    ("fields", "data", "match"),
    [
        ({"name": "token_trigger", "token": 5}, ROWS, "needs rows of token numbers"),
        ({"name": "token_trigger", "token": 5}, DIGITS, "needs rows of token numbers"),
        ({"name": "token_trigger", "token": [1, 2], "position": 11}, TEXTS, "position: 2 tokens do not fit"),
        ({"name": "feature_trigger", "values": {5: 1}}, ROWS, r"values: needs columns of 0\.\.4, got 5"),
        ({"name": "feature_trigger", "values": {5: 1}}, DIGITS, "values: needs rows of a table"),
        ({"name": "feature_trigger", "values": {0: 1}}, HousePrices().synthetic(), "needs classes"),
        ({"name": "attribute_trigger", "where": {0: [50, 60]}}, ROWS, "where: some training and test inputs must have"),
        ({"name": "edge_case", "source": 12}, DIGITS, r"source: must be a class of 0\.\.9, got 12"),
        ({"name": "semantic", "feature": "hue"}, DIGITS, "feature: hue needs three channels"),
        ({"name": "semantic", "source": 2}, ROWS, "semantic needs images"),
        (
            {"name": "semantic", "indices": {"train": [1], "test": [999]}},
            DIGITS,
            r"indices: needs rows of 0\.\.359 in test",
        ),
    ],
)
def test_what_does_not_fit_the_data(fields: dict[str, Any], data: Dataset, match: str):
    with pytest.raises(ConfigError, match=match):
        goal(registry("objective").build(fields), data)


def test_attacks_serve_kinds_and_names_are_still_taken():
    for attack in ("label_flip", "model_replacement", "multi_party", "alternating_minimization", "deep", "cmp"):
        built = registry("attack").build({"name": attack, "objective": {"name": "token_trigger", "token": 3}})
        assert built.objective.kind in built.serves
    with pytest.raises(ConfigError, match="alie serves any, relabel, got objective 'edge_case' of kind 'backdoor'"):
        registry("attack").build({"name": "alie", "objective": "edge_case"})
