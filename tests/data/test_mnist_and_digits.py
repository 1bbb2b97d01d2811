"""IDX files, MNIST's pixels and labels, the bundled digits, and how a data set is split."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import idx, sha
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.data import DataError, Dataset, Digits, Mnist, MnistParity, Samples, _mnist, _mnist_parity
from fl_lightning.data._files import Files, save
from fl_lightning.data._idx import parse_idx
from fl_lightning.data._split import split
from fl_lightning.errors import ConfigError
from fl_lightning.registry import registry

pytestmark = pytest.mark.usefixtures("data_folder")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2**31))
def test_idx_is_read_as_it_was_written(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape)
    assert np.array_equal(parse_idx(idx(array)), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "nothing"),
        (b"<html>", "3c 68 74 6d"),
        (bytes((0, 0, 13, 1)) + struct.pack(">I", 0), "00 00 0d 01"),  # floats
        (idx(np.zeros((3, 2, 2)))[:-1], r"\(3, 2, 2\) = 12 bytes, the file has 11"),
        (idx(np.zeros((3, 2, 2))) + b"x", "the file has 13"),
        (bytes((0, 0, 8, 3)) + b"\0\0", "the file has"),
    ],
    ids=["empty", "text", "floats", "short", "long", "no shape"],
)
def test_what_is_no_idx_file_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        parse_idx(content)


@pytest.fixture
def tiny_mnist(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """MNIST with six training and four test images."""
    random = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": random.integers(0, 256, (6, 28, 28)),
        "train-labels-idx1-ubyte": np.array([3, 1, 4, 1, 5, 9]),
        "t10k-images-idx3-ubyte": random.integers(0, 256, (4, 28, 28)),
        "t10k-labels-idx1-ubyte": np.array([2, 6, 5, 3]),
    }
    files = Files("mnist", {name: sha(idx(array)) for name, array in arrays.items()}, ("mnist/{file}",))
    for name, array in arrays.items():
        save(idx(array), data_folder / "mnist" / name)
    monkeypatch.setattr(_mnist, "MNIST", files)
    monkeypatch.setattr(_mnist_parity, "MNIST", files)
    return arrays


def test_mnist_pixels_and_labels(tiny_mnist):
    dataset = Mnist().load()
    assert dataset.train.x.shape == (6, 1, 28, 28)
    assert dataset.train.x.dtype == torch.float32
    assert torch.equal(
        (dataset.train.x * 255).round().int()[:, 0], torch.tensor(tiny_mnist["train-images-idx3-ubyte"]).int()
    )
    assert dataset.train.y.tolist() == [3, 1, 4, 1, 5, 9]
    assert dataset.test.y.tolist() == [2, 6, 5, 3]
    assert dataset.classes == 10
    assert dataset.validation is None
    parity = MnistParity().load()
    assert parity.train.y.tolist() == [1, 1, 0, 1, 1, 1]
    assert parity.test.y.tolist() == [0, 0, 1, 1]
    assert parity.classes == 2
    assert torch.equal(parity.train.x, dataset.train.x)


def test_normalize_uses_the_training_split(tiny_mnist):
    plain, dataset = Mnist().load(), Mnist(normalize=True).load()
    assert dataset.train.x.mean().abs() < 1e-5
    assert dataset.train.x.std(correction=0).sub(1).abs() < 1e-5
    expected = (plain.test.x - plain.train.x.mean()) / plain.train.x.std(correction=0)
    torch.testing.assert_close(dataset.test.x, expected)


# ------------------------------------------------------------------------------------------------- digits and splits


def test_digits_need_no_file():
    dataset = Digits().load()
    assert dataset.train.x.shape == (1437, 1, 8, 8)
    assert dataset.test.x.shape == (360, 1, 8, 8)
    assert dataset.shape == Digits.shape == (1, 8, 8)
    assert (dataset.train.x.min(), dataset.train.x.max()) == (0, 1)
    both = torch.cat([dataset.train.y, dataset.test.y]).bincount()
    assert both.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # the data set's published class counts
    assert dataset.test.y.bincount(minlength=10).min() > 20


def rows(samples: Samples) -> set[bytes]:
    return {sample.numpy().tobytes() for sample in samples.x}


def test_validation_is_held_back_from_the_test_set():
    plain, held = Digits().load(), Digits(validation=100).load()
    assert held.validation is not None
    assert (len(held.validation), len(held.test)) == (100, 260)
    assert rows(held.validation) | rows(held.test) == rows(plain.test)
    assert not rows(held.validation) & rows(held.test)
    assert torch.equal(held.train.x, plain.train.x)
    assert held.validation.y.unique().tolist() == list(range(10))  # at random, not the first ones
    assert not torch.equal(held.validation.x, plain.test.x[:100])


def test_loading_twice_gives_the_same_samples():
    settings = {"validation": 50, "train_samples": 200, "test_samples": 60, "normalize": True}
    first, second = Digits(**settings).load(), Digits(**settings).load()
    for one, other in [(first.train, second.train), (first.test, second.test), (first.validation, second.validation)]:
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)


def test_caps_draw_from_all_classes_and_leave_global_randomness_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    dataset = Digits(train_samples=300, test_samples=100, validation=60).load()
    assert (len(dataset.train), len(dataset.test), len(dataset.validation)) == (300, 100, 60)
    assert dataset.train.y.bincount(minlength=10).min() > 10
    assert torch.equal(before, torch.get_rng_state())


def test_writers_follow_their_samples():
    samples = Samples(torch.arange(20.0)[:, None], torch.arange(20))
    dataset = split(Dataset(samples, samples, "classification", 20, torch.arange(20) * 7), "x", 0, 5, None)
    assert dataset.writers.tolist() == (dataset.train.y * 7).tolist()
    assert len(dataset.writers) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 360}, "digits: validation=360 leaves nothing of the 360 test samples"),
        ({"train_samples": 1438}, "digits: train_samples=1438, but there are only 1437 samples"),
        ({"validation": 300, "test_samples": 61}, "digits: test_samples=61, but there are only 60 samples"),
    ],
)
def test_asking_for_too_many_samples_is_a_clear_error(settings, message):
    with pytest.raises(DataError, match=message):
        Digits(**settings).load()


@pytest.mark.parametrize("field_name", ["validation", "train_samples", "test_samples"])
def test_negative_counts_are_refused_by_name(field_name):
    with pytest.raises(ConfigError, match=rf"{field_name}: .*got -1"):
        registry("data").build({"name": "digits", field_name: -1})
