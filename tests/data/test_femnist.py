import json

import numpy as np
import pytest
import torch

from fl_lightning.config import load
from fl_lightning.data import DataError, Femnist, get, locate
from fl_lightning.federation import Federation
from fl_lightning.partition import Natural
from fl_lightning.randomness import generator

SIZES = {"f0001_41": 5, "f0000_14": 3, "f0002_09": 8}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_LIGHTNING_DATA", str(tmp_path))
    (tmp_path / "femnist").mkdir()
    return tmp_path / "femnist"


def samples(name, count):
    random = np.random.default_rng(list(name.encode()))
    return random.integers(0, 256, (count, 28, 28)) / 255, random.integers(0, 62, count)


def write_leaf(folder, sizes=SIZES):
    for split, scale in (("train", 1), ("test", 2)):
        (folder / split).mkdir()
        for part, names in enumerate((list(sizes)[:2], list(sizes)[2:])):
            users = {}
            for name in names:
                x, y = samples(name + split, sizes[name] * scale)
                users[name] = {"x": x.reshape(-1, 784).tolist(), "y": y.tolist()}
            content = {"users": names, "num_samples": [len(u["y"]) for u in users.values()], "user_data": users}
            (folder / split / f"all_data_{part}_niid_0.json").write_text(json.dumps(content))


def write_tff(folder, sizes=SIZES):
    h5py = pytest.importorskip("h5py")
    for split, scale in (("train", 1), ("test", 2)):
        with h5py.File(folder / f"fed_emnist_{split}.h5", "w") as file:
            for name, count in sizes.items():
                x, y = samples(name + split, count * scale)
                file[f"examples/{name}/pixels"] = x.astype(np.float32)
                file[f"examples/{name}/label"] = y.astype(np.int32)


@pytest.mark.parametrize("write", [write_leaf, write_tff])
def test_both_formats_hold_the_same(folder, write):
    write(folder)
    data = Femnist().load()
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((1, 28, 28), 62, 16, 32)
    assert data.train.x.dtype == torch.float32
    assert data.train.y.dtype == torch.int64
    assert data.writers.tolist() == [0] * 3 + [1] * 5 + [2] * 8
    for number, name in enumerate(sorted(SIZES)):
        x, y = samples(name + "train", SIZES[name])
        own = data.train[data.writers == number]
        np.testing.assert_allclose(own.x[:, 0], x, atol=1e-7)
        assert own.y.tolist() == y.tolist()


@pytest.mark.parametrize("write", [write_leaf, write_tff])
def test_natural_partition_gives_each_client_one_writer(folder, write):
    write(folder)
    data = Femnist().load()
    parts = Natural(clients=2).assign(data, generator(0, "partition"))
    assert [data.writers[part].unique().tolist() for part in parts] == [[2], [1]]
    assert [len(part) for part in parts] == [8, 5]


def test_a_federation_of_writers(folder):
    write_leaf(folder)
    partition = {"name": "natural", "clients": 3}
    federation = Federation(load({"data": "femnist", "partition": partition, "model": "linear", "rounds": 1}))
    assert "global/accuracy" in federation.round().metrics


def test_caps(folder):
    write_leaf(folder)
    some = Femnist(max_writers=2, validation=4).load()
    assert some.writers.unique().tolist() == [0, 1]
    assert len(some.test) + 4 == 2 * len(some.train)
    capped = Femnist(train_samples=6).load()
    assert len(capped.writers) == len(capped.train) == 6
    with pytest.raises(DataError, match="max_writers=4, but there are only 3"):
        Femnist(max_writers=4).load()


def test_test_set_of_other_writers(folder):
    write_leaf(folder)
    for path in (folder / "test").iterdir():
        path.write_text(path.read_text().replace("f000", "g000"))
    assert len(Femnist().load().test) == 32


def test_what_to_do_is_told(folder):
    for act in (lambda: Femnist().load(), lambda: get("femnist")):
        with pytest.raises(DataError, match=r"femnist/train/\*\.json.*fed_emnist_train\.h5"):
            act()
    write_leaf(folder)
    said = []
    get("femnist", said.append)
    assert said[0].startswith("femnist: found 4 files")
    assert len(locate("femnist")) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not one of LEAF's files"),
        ("[]", "not one of LEAF's files"),
        ('{"users": ["a"], "user_data": {}}', "not one of LEAF's files"),
        ('{"users": ["a"], "user_data": {"a": {"x": [[1, 2]], "y": [0]}}}', "expected 28x28 pixels"),
        (json.dumps({"users": ["a"], "user_data": {"a": {"x": [[0.5] * 784], "y": [62]}}}), "labels 62 to 62"),
        (json.dumps({"users": ["a"], "user_data": {"a": {"x": [[255] * 784], "y": [1]}}}), "pixels 255 to 255"),
        ('{"users": [], "user_data": {}}', "hold no samples"),
    ],
)
def test_a_damaged_leaf_file_is_named(folder, content, message):
    for split in ("train", "test"):
        (folder / split).mkdir()
        (folder / split / "part.json").write_text(content)
    with pytest.raises(DataError, match=message):
        Femnist().load()


def test_a_damaged_tff_file_is_named(folder):
    pytest.importorskip("h5py")
    for split in ("train", "test"):
        (folder / f"fed_emnist_{split}.h5").write_bytes(b"no hdf5")
    with pytest.raises(DataError, match=r"fed_emnist_\w+\.h5: not one of TensorFlow Federated's files"):
        Femnist().load()


def test_missing_h5py_is_named(folder, monkeypatch):
    write_tff(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install fl-lightning\[femnist\]"):
        Femnist().load()


def test_the_stand_in_has_writers():
    data = Femnist().synthetic()
    assert data.writers.unique().numel() == 100
    assert len(Natural(clients=50).assign(data, generator(0, "partition"))) == 50
