"""What is carried through a chain of steps against the same measured on the rows themselves, in float64."""

import pytest
import torch
from torch.testing import assert_close

from fl_lightning.aggregators import Geometry, Past, _blocks, _geometry, nnm, squared_distances
from fl_lightning.aggregators._arc import Arc
from fl_lightning.aggregators._nnm import Nnm
from fl_lightning.randomness import generator

C, D = 11, 400


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "geometry"), dtype=torch.float64)


def distances(rows_RD):
    return (rows_RD[:, None] - rows_RD[None]).square().sum(-1)


def shares(n_out, n_in, seed=3):
    matrix = torch.rand(n_out, n_in, generator=generator(seed, "shares"), dtype=torch.float64) ** 4
    return matrix / matrix.sum(1, keepdim=True)


NEAR = 5 + 1e-3 * normal(C, D)
INPUTS = {"normal": normal(C, D), "near": NEAR, "huge": torch.cat([1e12 * normal(2, D), normal(C - 2, D, seed=1)])}
FACTORS = torch.linspace(0.1, 1, C, dtype=torch.float64)
STEPS = {
    "kept": lambda g: g.keep(torch.arange(C) % 3 > 0),
    "scaled": lambda g: g.scale(FACTORS),
    "mixed": lambda g: g.mix(shares(7, C)),
    "scaled, mixed": lambda g: g.scale(FACTORS).mix(shares(7, C)),
    "mixed, scaled, kept": lambda g: g.mix(shares(9, C)).scale(FACTORS[:9]).keep(torch.arange(9) != 4),
    "clipped, nearest": lambda g: nearest(clipped(g)),
}


def clipped(geometry):
    return geometry.mix(Arc(n_byzantine=3).mix(geometry, Past()))


def nearest(geometry):
    return geometry.mix(Nnm(n_byzantine=3).mix(geometry, Past()))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("updates_CD", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("trained", [None, 300])
def test_what_is_carried_is_what_the_rows_say(updates_CD, step, trained):
    geometry = step(Geometry(updates_CD, trained))
    products, norms, squared = geometry.gram, geometry.norms, geometry.squared_distances
    coefficients, vector_D = normal(len(geometry), seed=5), normal(D, seed=6)
    summed, towards = geometry.weighted_sum(coefficients), geometry.products(vector_D)
    columns = geometry.columns(torch.tensor([0, 7, 299, 300, 399]))
    assert not geometry.made
    rows = geometry.rows
    scale = float(rows.square().sum(1).max())
    assert_close(products, rows @ rows.T, rtol=1e-9, atol=1e-9 * scale)
    assert_close(norms, rows.norm(dim=1), rtol=1e-9, atol=0)
    assert_close(squared, distances(rows), rtol=1e-6, atol=1e-18 * scale)
    assert_close(summed, coefficients @ rows, rtol=1e-9, atol=1e-9 * scale**0.5)
    assert_close(towards, rows @ vector_D, rtol=1e-9, atol=1e-9 * scale**0.5)
    assert_close(columns, rows[:, [0, 7, 299, 300, 399]], rtol=1e-9, atol=1e-12 * scale**0.5)
    assert_close(geometry.distances_from(vector_D), (rows - vector_D).norm(dim=1), rtol=1e-9, atol=0)


def test_raw_products_would_have_lost_what_the_formula_keeps():
    """The negative control: distances out of W G W^T are wrong where rows nearly coincide."""
    W = shares(7, C)
    mixed = Geometry(NEAR).mix(W)
    truth = distances(W @ NEAR)
    raw = W @ Geometry(NEAR).gram @ W.T
    naive = raw.diagonal()[:, None] + raw.diagonal() - 2 * raw
    off = ~torch.eye(7, dtype=torch.bool)
    assert float(((mixed.squared_distances - truth).abs() / truth)[off].max()) < 1e-9
    assert float(((naive - truth).abs() / truth)[off].max()) > 1e-7


def test_statistics_are_scaled_down_but_never_up():
    updates_CD = normal(4, 10)
    geometry = Geometry(updates_CD, 6).scale(torch.tensor([2.0, 0.5, 1.0, 3.0], dtype=torch.float64))
    assert_close(geometry.rows[:, :6], updates_CD[:, :6] * torch.tensor([2.0, 0.5, 1.0, 3.0])[:, None])
    assert_close(geometry.rows[:, 6:], updates_CD[:, 6:] * torch.tensor([1.0, 0.5, 1.0, 1.0])[:, None])
    assert_close(geometry.trained.norms, geometry.rows[:, :6].norm(dim=1))
    assert geometry.trained.rows.shape == (4, 6)


def test_cosine_distances_of_near_copies():
    """Updates of 0.007 on a model of norm 35, in float32: nothing of 1 - cosine is left by the plain way."""
    theta = normal(20_000, seed=1)
    theta = (35 * theta / theta.norm()).float()
    updates = (0.007 * normal(8, 20_000, seed=2) / 20_000**0.5).float()
    models = theta.double() + updates.double()
    unit = models / models.norm(dim=1, keepdim=True)
    truth = distances(unit) / 2  # exact: |a - b|^2 / 2 of unit vectors
    geometry = Geometry(updates)
    found = geometry.model_cosine_distances(theta)
    off = ~torch.eye(8, dtype=torch.bool)
    assert float(((found - truth).abs() / truth)[off].max()) < 1e-5
    naive = (models.float() @ models.float().T) / (models.float().norm(dim=1)[:, None] * models.float().norm(dim=1))
    assert float((((1 - naive).double() - truth).abs() / truth)[off].max()) > 1e-2
    assert_close(geometry.cosine_distances, 1 - geometry.cosines, rtol=1e-5, atol=1e-6)


def test_untouched_rows_are_not_copied():
    updates_CD = normal(5, 30).float()
    geometry = Geometry(updates_CD)
    assert geometry.rows is updates_CD
    assert geometry.keep(torch.ones(5, dtype=torch.bool)) is geometry
    assert torch.equal(geometry.squared_distances, squared_distances(updates_CD))


def test_measured_once(monkeypatch):
    calls = []
    real = _blocks.gram
    for module in (_blocks, _geometry):
        monkeypatch.setattr(module, "gram", lambda *args, **more: calls.append(1) or real(*args, **more))
    geometry = Geometry(normal(6, 50).float(), products_follow=True)
    kept = geometry.scale(torch.ones(6)).keep(torch.arange(6) < 4)
    for _ in range(2):
        _ = kept.squared_distances, geometry.cosine_distances, kept.norms
    assert len(calls) == 1


def test_copies_stay_copies():
    updates_CD = normal(9, 60)
    updates_CD[3] = updates_CD[7]
    mixed = Geometry(updates_CD).mix(torch.stack([shares(1, 9)[0]] * 2 + [shares(1, 9, seed=9)[0]]))
    assert float(mixed.squared_distances[0, 1]) == 0
    assert torch.equal(nnm(updates_CD, 2)[3], nnm(updates_CD, 2)[7])
