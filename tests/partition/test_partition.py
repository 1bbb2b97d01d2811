"""Partitions: what every one of them promises, what each one is for, and the picture."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from fl_lightning.data import Dataset, Samples
from fl_lightning.errors import ConfigError
from fl_lightning.partition import (
    Degree,
    Dirichlet,
    Iid,
    Natural,
    Quantity,
    Shards,
    dirichlet,
    label_counts,
    plot,
    shards,
)
from fl_lightning.partition._shares import apportion, even
from fl_lightning.randomness import generator
from fl_lightning.registry import registry

NAMES = registry("partition").names()


def dataset(n: int, classes: int = 10, *, writers: int | None = None, seed: int = 0) -> Dataset:
    """Labels only; one class means regression. Every writer owns at least one sample."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=draws) if classes > 1 else torch.randn(n, generator=draws)
    samples = Samples(torch.zeros(n, 1), y)
    owners = None if writers is None else torch.arange(n) % writers
    task = "classification" if classes > 1 else "regression"
    return Dataset(train=samples, test=samples, task=task, classes=classes, writers=owners)


def assign(partition, data: Dataset, seed: int = 0) -> list[torch.Tensor]:
    return partition.assign(data, generator(seed, "partition"))


def shares(partition, data: Dataset) -> torch.Tensor:
    counts = label_counts(assign(partition, data), data.train.y, data.classes)
    return counts / counts.sum(1, keepdim=True)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    clients=st.integers(1, 12),
    extra=st.integers(0, 150),
    classes=st.sampled_from([1, 2, 5]),
    cap=st.one_of(st.none(), st.integers(1, 4)),
    seed=st.integers(0, 5),
)
def test_disjoint_covering_deterministic_and_counted(name, clients, extra, classes, cap, seed):
    if name == "dirichlet" and classes == 1:
        classes = 3
    n = clients * (cap or 1) + extra
    data = dataset(n, classes, writers=clients, seed=seed)
    settings = {"name": name, "clients": clients, "samples_per_client": cap}
    if name == "dirichlet":
        settings["alpha"] = 50.0
    partition = registry("partition").build(settings)
    try:
        parts = assign(partition, data, seed)
    except ConfigError as error:
        if name != "dirichlet" or "in 100 draws" not in str(error):
            raise
        return

    dealt = torch.cat(parts)
    assert len(parts) == clients
    assert min(len(part) for part in parts) >= 1
    assert all(part.dtype == torch.int64 and part.ndim == 1 for part in parts)
    assert len(dealt.unique()) == len(dealt)
    assert 0 <= dealt.min() <= dealt.max() < n
    if cap is None:
        assert len(dealt) == n
    elif name == "natural":
        assert max(len(part) for part in parts) <= cap
    else:
        assert len(dealt) == clients * cap
    assert all(map(torch.equal, parts, assign(partition, data, seed)))
    if classes > 1:
        counts = label_counts(parts, data.train.y, classes)
        assert counts.sum(1).tolist() == [len(part) for part in parts]
        assert torch.equal(counts.sum(0), torch.bincount(data.train.y[dealt], minlength=classes))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "natural"])
def test_other_seed_other_clients(name):
    data, partition = dataset(2000), registry("partition").build({"name": name, "clients": 5})
    assert not torch.equal(assign(partition, data, 0)[0].sort().values, assign(partition, data, 1)[0].sort().values)


@pytest.mark.parametrize("partition", [Iid(), Shards(), Degree(p=0.3)])
def test_equal_sizes(partition):
    assert {len(part) for part in assign(partition, dataset(1234))} == {24, 25}
    capped = registry("partition").build(partition.to_dict() | {"samples_per_client": 17})
    assert {len(part) for part in assign(capped, dataset(1234))} == {17}


def test_cap_is_a_random_cut_before_sorting():
    """The cut keeps all labels; cutting sorted data would lose the last ones."""
    data = dataset(60_000)
    capped = torch.cat(assign(Degree(p=1, samples_per_client=100), data))
    histogram = torch.bincount(data.train.y[capped], minlength=10)
    assert histogram.min() > 400
    assert histogram.max() < 600


def test_degree_goes_from_uniform_to_sorted():
    data = dataset(60_000)
    uniform, half, full = (shares(Degree(p=p), data) for p in (0.0, 0.5, 1.0))
    assert uniform.max() < 0.2  # 1200 samples: 0.1 with a standard deviation of 0.009
    assert shares(Iid(), data).max() < 0.2
    assert (full > 0).sum(1).max() <= 2
    # half of every client lies on one label, or on two neighbours where a shard crosses the border
    top = half.topk(2).values
    assert ((top - 0.05).sum(1) - 0.5).abs().max() < 0.06
    assert half.min() > 0.02


def test_degree_one_is_one_shard_a_client_and_zero_leaves_no_order():
    data = dataset(600, classes=6)
    assert all(
        map(torch.equal, assign(Degree(p=1, clients=6), data), assign(Shards(clients=6, shards_per_client=1), data))
    )
    several = label_counts(assign(Degree(p=1, clients=6, shards_per_client=3), data), data.train.y, 6)
    assert (several > 0).sum(1).float().mean() > 3


def test_degree_sorts_regression_by_target():
    data = dataset(5000, classes=1)
    y, middle = data.train.y, {}
    for p in (0.0, 1.0):
        stds = sorted(float(y[part].std()) for part in assign(Degree(p=p), data))
        middle[p] = stds[len(stds) // 2]
    assert middle[0.0] == pytest.approx(float(y.std()), rel=0.1)
    assert middle[1.0] < y.std() / 20


def test_shards_are_stretches_of_the_sorted_labels():
    """200 shards for 100 clients: two stretches of 300 each, dealt at random."""
    data = dataset(60_000)
    parts = assign(Shards(clients=100), data)
    assert {len(part) for part in parts} == {600}
    y = data.train.y
    for part in parts:
        first, second = y[part[:300]], y[part[300:]]
        assert first[-1] - first[0] <= 1
        assert second[-1] - second[0] <= 1
        assert torch.equal(first, first.sort().values)
    # labels of the two stretches are unrelated
    pairs = torch.tensor([[y[part[0]], y[part[-1]]] for part in parts], dtype=torch.float32)
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 0.35
    assert abs(float(torch.corrcoef(torch.stack([torch.arange(100.0), pairs[:, 0]]))[0, 1])) < 0.35


def test_shards_by_hand():
    y = torch.tensor([2, 0, 1, 0, 2, 1])
    parts = shards(torch.arange(6), y, [2, 2, 2], torch.Generator().manual_seed(0), shards_per_client=1)
    assert sorted(part.tolist() for part in parts) == [[0, 4], [1, 3], [2, 5]]


def test_dirichlet_shares_have_the_variance_of_the_distribution():
    """Var q = (1/C)(1 - 1/C) / (C α + 1) for the share of a class that one of C clients holds."""
    clients, alpha, classes = 20, 0.5, 200
    y = torch.arange(classes).repeat_interleave(1000)
    parts = dirichlet(torch.arange(len(y)), y, clients, classes, alpha, generator(0, "partition"))
    q = label_counts(parts, y, classes) / 1000
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert float(q.var()) == pytest.approx(expected, rel=0.1)
    assert float(q.mean()) == pytest.approx(1 / clients)


def test_dirichlet_concentration():
    data = dataset(20_000)
    skewed, even_ = (shares(Dirichlet(clients=10, alpha=alpha), data).max(1).values.mean() for alpha in (0.1, 1000))
    assert skewed > 0.4
    assert even_ < 0.13


@pytest.mark.parametrize("min_samples", [1, 60])
def test_dirichlet_keeps_the_smallest_client(min_samples):
    sizes = {
        min(
            len(part) for part in assign(Dirichlet(clients=20, alpha=0.3, min_samples=min_samples), dataset(6000), seed)
        )
        for seed in range(10)
    }
    assert min(sizes) >= min_samples
    if min_samples == 1:
        assert min(sizes) < 60  # so that the other case had something to redraw


def test_dirichlet_gives_up_with_the_numbers():
    message = r"alpha: in 100 draws with alpha=0\.01 .* 50 clients .* min_samples=1 of the 60 samples"
    with pytest.raises(ConfigError, match=message):
        assign(Dirichlet(alpha=0.01), dataset(60))
    with pytest.raises(ConfigError, match="regression"):
        assign(Dirichlet(), dataset(600, classes=1))


def test_quantity_differs_in_size_not_in_labels():
    data = dataset(60_000)
    parts = assign(Quantity(clients=20, alpha=0.3, min_samples=200), data)
    sizes = torch.tensor([len(part) for part in parts])
    assert sizes.min() >= 200
    assert sizes.max() > 4 * sizes.median()
    large = [part for part in parts if len(part) > 2000]
    counts = label_counts(large, data.train.y, 10)
    assert (counts / counts.sum(1, keepdim=True)).max() < 0.14
    almost_equal = [len(part) for part in assign(Quantity(clients=20, alpha=1e5), data)]
    assert max(almost_equal) < 1.1 * min(almost_equal)
    with pytest.raises(ConfigError, match="min_samples: 20 clients x 50 samples = 1000, but there are only 600"):
        assign(Quantity(clients=20, min_samples=50), dataset(600))


def test_natural_takes_the_largest_writers():
    writers = torch.tensor([3, 1, 1, 8, 8, 8, 3, 8, 5])
    data = dataset(9)
    data = Dataset(train=data.train, test=data.test, task=data.task, classes=10, writers=writers)
    parts = assign(Natural(clients=3), data)
    assert [sorted(part.tolist()) for part in parts] == [[3, 4, 5, 7], [1, 2], [0, 6]]
    assert [len(part) for part in assign(Natural(clients=3, samples_per_client=1), data)] == [1, 1, 1]
    chosen = {
        tuple(writers[part[0]].item() for part in assign(Natural(clients=2, choose="random"), data, s))
        for s in range(20)
    }
    assert len(chosen) > 4


def test_natural_needs_writers():
    with pytest.raises(ConfigError, match="femnist"):
        assign(Natural(), dataset(100))
    with pytest.raises(ConfigError, match="clients: 50 clients, but the data have only 7 owners"):
        assign(Natural(), dataset(100, writers=7))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "natural"])
def test_too_few_samples(name):
    build = registry("partition").build
    with pytest.raises(ConfigError, match="clients: 50 clients cannot share 49 training samples"):
        assign(build({"name": name}), dataset(49))
    message = "samples_per_client: 50 clients x 3 samples = 150, but there are only 149 training samples: at most 2"
    with pytest.raises(ConfigError, match=message):
        assign(build({"name": name, "samples_per_client": 3}), dataset(149))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "degree", "p": 1.5}, "p: .*less than or equal to 1, got 1.5"),
        ({"name": "degree", "p": -0.1}, "p: .*greater than or equal to 0, got -0.1"),
        ({"name": "dirichlet", "alpha": 0}, "alpha: .*greater than 0, got 0"),
        ({"name": "shards", "shards_per_client": 0}, "shards_per_client: .*got 0"),
        ({"name": "iid", "clients": 0}, "clients: .*got 0"),
        ({"name": "natural", "choose": "smallest"}, "choose: .*'largest' or 'random', got 'smallest'"),
        ({"name": "iid", "client": 3}, "client: unknown key; did you mean 'clients'"),
    ],
)
def test_ranges(settings, message):
    with pytest.raises(ConfigError, match=message):
        registry("partition").build(settings)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs" / "partition").glob("*.yaml")))
def test_configuration_round_trips_and_deals(path):
    partition = registry("partition").build(path.stem)
    assert registry("partition").build(yaml.safe_load(yaml.safe_dump(partition.to_dict()))) == partition
    assert len(assign(partition, dataset(40_000, writers=300))) == partition.clients


def test_every_partition_has_a_configuration():
    folder = Path(__file__).parents[2] / "configs" / "partition"
    assert sorted(path.stem for path in folder.glob("*.yaml")) == NAMES


@given(st.integers(0, 1000), st.integers(1, 30))
def test_even(total, parts):
    sizes = even(total, parts)
    assert (sum(sizes), len(sizes)) == (total, parts)
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(lambda q: sum(q) > 0.1), st.integers(0, 10**6))
def test_apportion_adds_up_and_is_off_by_at_most_one(weights, total):
    q = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    sizes = apportion(q, total)
    assert sizes.sum() == total
    assert sizes.min() >= 0
    assert (sizes - q * total).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("classes", [1, 62])
@pytest.mark.parametrize("clients", [1, 100])
def test_picture_is_drawn(classes, clients):
    data = dataset(2000, classes)
    figure = plot(assign(Quantity(clients=clients), data), data.train.y, classes)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    pixels = imread(file)
    assert pixels.shape[0] > 300
    assert pixels[..., :3].std() > 0.05  # something other than white


def test_picture_shows_the_shares():
    y = torch.tensor([0, 0, 0, 1, 2, 2])
    figure = plot([torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5])], y, 3)
    above, below, _ = figure.axes
    assert [bar.get_height() for bar in above.patches] == [4, 2]
    assert below.images[0].get_array().tolist() == [[0.75, 0], [0.25, 0], [0, 1]]


def test_picture_needs_no_window_system():
    """Drawn without pyplot: no backend is chosen and no figure is kept in a global list."""
    code = """
import io, sys, torch
from fl_lightning.partition import plot
plot([torch.tensor([0, 1])], torch.tensor([0, 1]), 2).savefig(io.BytesIO())
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
