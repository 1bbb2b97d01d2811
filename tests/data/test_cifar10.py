"""CIFAR-10 in every form that it is published in: binary, pickled, as an image folder and as an archive of one."""

import io
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import sha, tar
from PIL import Image

from fl_lightning import data as data_package
from fl_lightning.data import Cifar10, DataError, Dataset, _catalogue, _cifar10, _image_folder
from fl_lightning.data._files import Files, save

pytestmark = pytest.mark.usefixtures("data_folder")


@pytest.fixture
def tiny_cifar() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The six batches with two images each, one of each class in the training part."""
    random = np.random.default_rng(1)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    labels = np.array([[6, 9], [0, 1], [2, 3], [8, 4], [5, 7], [3, 8]])
    pixels = random.integers(0, 256, (6, 2, 3, 32, 32), dtype=np.uint8)
    return {name: (pixels[i], labels[i]) for i, name in enumerate(names)}


def python2_pickle(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2 wrote it: protocol 2, byte strings, numpy's `_reconstruct`."""

    def text(word: str) -> bytes:
        return b"U" + bytes((len(word),)) + word.encode()

    data = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85U\x01b\x87Rq\x08(K\x01K\x02M\x00\x0c\x86"
        b"cnumpy\ndtype\nq\x09U\x02u1K\x00K\x01\x87Rq\x0a(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + (b"T" + struct.pack("<i", len(data)) + data)
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes((label,)) for label in labels.tolist()) + b"e"
    return (
        b"\x80\x02}q\x01("
        + (text("batch_label") + text("training batch 1 of 5"))
        + (text("labels") + b"q\x04" + numbers)
        + (text("data") + array)
        + (text("filenames") + b"](" + text("a.png") + text("b.png") + b"e")
        + b"u."
    )


def test_the_imitation_of_a_python_2_pickle_is_one():
    pixels, labels = np.arange(6144, dtype=np.uint8).reshape(2, 3072), np.array([4, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of numpy call its old name outdated
        loaded = pickle.loads(python2_pickle(pixels, labels), encoding="bytes")
    assert np.array_equal(loaded[b"data"], pixels)
    assert loaded[b"labels"] == [4, 2]


FORMS = ["binary", "python archive", "python batches", "python 3 batches"]


@pytest.mark.parametrize("form", FORMS)
def test_cifar_is_the_same_in_every_form(tiny_cifar, data_folder, monkeypatch, form):
    def python3(pixels, labels):
        flat = pixels.reshape(-1, 3072)
        return pickle.dumps({b"data": flat, b"labels": labels.tolist(), b"filenames": ["x", "y"]}, protocol=4)

    def records(pixels, labels):
        return np.concatenate([labels[:, None], pixels.reshape(-1, 3072)], axis=1).astype(np.uint8).tobytes()

    if form == "binary":
        archive = tar({f"cifar-10-batches-bin/{name}.bin": records(*batch) for name, batch in tiny_cifar.items()})
        place, contents = _cifar10.CIFAR10, {"cifar-10-binary.tar.gz": archive}
    elif form == "python archive":
        archive = tar({f"cifar-10-batches-py/{name}": python2_pickle(*batch) for name, batch in tiny_cifar.items()})
        place, contents = _cifar10.CIFAR10_PYTHON, {"cifar-10-python.tar.gz": archive}
    else:
        write = python2_pickle if form == "python batches" else python3
        place, contents = _cifar10.CIFAR10_BATCHES, {name: write(*batch) for name, batch in tiny_cifar.items()}
    tiny = Files("cifar10", {name: sha(content) for name, content in contents.items()}, place.layouts)
    forms = {tiny if key is place else key: reader for key, reader in _cifar10.FORMS.items()}
    monkeypatch.setattr(_cifar10, "FORMS", forms)
    for name, content in contents.items():
        save(content, data_folder / place.layouts[-1].format(file=name))

    dataset = Cifar10().load()
    assert dataset.train.y.tolist() == [6, 9, 0, 1, 2, 3, 8, 4, 5, 7]
    assert dataset.test.y.tolist() == [3, 8]
    expected = np.concatenate([pixels for name, (pixels, _) in tiny_cifar.items() if name != "test_batch"])
    assert torch.equal(dataset.train.x, torch.from_numpy(expected).float() / 255)
    assert dataset.train.x.dtype == torch.float32


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    "content", [pickle.dumps({"labels": [1], "data": Evil()}), b"\x80\x02X\xff", b"", b"garbage"], ids=range(4)
)
def test_a_pickle_is_never_executed(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="not a pickled CIFAR-10 batch"):
        _cifar10.parse_pickled(content)
    assert not Path("executed").exists()


def test_a_binary_batch_of_the_wrong_length_is_refused():
    with pytest.raises(DataError, match="3072 bytes are no multiple of 3073"):
        _cifar10.parse_binary(bytes(3072))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images() -> dict[str, bytes]:
    """An image folder: ten classes, two training images and one test image each; image i is filled with i."""
    names = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "jihgfedcba" for i in (0, 1)]
    names = [name for name in names if not name.startswith("test") or name.endswith("0.png")]
    return {name: png(np.full((3, 32, 32), i, np.uint8)) for i, name in enumerate(names)}


def expect_images(dataset: Dataset) -> None:
    assert dataset.train.x.shape == (20, 3, 32, 32)
    assert dataset.train.y.tolist() == [label for label in range(10) for _ in (0, 1)]  # classes by name: a is 0
    assert dataset.test.y.tolist() == list(range(10))
    written = (dataset.train.x[:, 0, 0, 0] * 255).round().int().tolist()
    assert written == [18, 19, 16, 17, 14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1]


@pytest.mark.parametrize("name", ["cifar10", "cifar10-imagefolder"])
def test_cifar_from_an_image_folder(images, data_folder, name):
    for path, content in images.items():
        save(content, data_folder / name / path)
    save(b"not an image", data_folder / name / "train" / "a" / "notes.txt")
    assert data_package.locate("cifar10") == [data_folder / name]
    expect_images(Cifar10().load())


@pytest.mark.parametrize("prefix", ["", "./", "cifar10/"])
def test_cifar_from_an_archive_of_an_image_folder(images, data_folder, monkeypatch, prefix):
    content = tar({prefix + path: image for path, image in images.items()} | {prefix + "labels.txt": b"a b c"})
    tiny = Files("cifar10", {"cifar10-imagefolder.tar.gz": sha(content)}, _catalogue.CIFAR10_ARCHIVES)
    monkeypatch.setattr(_cifar10, "FORMS", {tiny: _cifar10.FORMS[_cifar10.CIFAR10_IMAGES]})
    save(content, data_folder / "cifar10-imagefolder.tar.gz")
    expect_images(Cifar10().load())
    assert sorted(path.name for path in data_folder.rglob("*")) == ["cifar10-imagefolder.tar.gz"]  # never unpacked


def test_an_archive_with_the_wrong_checksum_is_refused_before_it_is_opened(images, data_folder):
    save(tar(images), data_folder / "cifar10-imagefolder.tar.gz")
    with pytest.raises(DataError, match=r"cifar10-imagefolder\.tar\.gz: wrong checksum: expected SHA256 70260124"):
        Cifar10().load()


@pytest.mark.parametrize(
    "path", ["../outside.png", "/etc/outside.png", "train/../../a/b.png", "train/a/../../../x.png"]
)
def test_an_archive_that_leads_out_of_itself_is_refused(images, path):
    with pytest.raises(DataError, match="leads out of it"):
        _image_folder.read_archive(tar(images | {path: images["train/a/0.png"]}))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret.png", "0.png"])
def test_an_archive_with_links_is_refused(images, target):
    with pytest.raises(DataError, match="neither file nor folder"):
        _image_folder.read_archive(tar(images, links={"train/a/link.png": target}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test/new/0.png": png(np.zeros((3, 32, 32), np.uint8))}, "10 and 11 classes"),
        ({"train/a/0.png": png(np.zeros((3, 31, 32), np.uint8))}, r"sizes \[\(31, 32\), \(32, 32\)\]"),
        ({"train/a/0.png": b"no image"}, r"train/a/0\.png cannot be decoded"),
        ({"train/a/0.png": b"%PDF-1.4"}, "cannot be decoded"),
    ],
    ids=["classes", "sizes", "broken", "no image"],
)
def test_a_wrong_image_folder_is_a_clear_error(images, change, message):
    with pytest.raises(DataError, match=message):
        _image_folder.read_archive(tar(images | change))


@pytest.mark.parametrize("content", [b"", b"no archive", tar({"x": b"y"})[:-20], tar({"x": b"y"})], ids=range(4))
def test_an_archive_that_is_damaged_or_holds_something_else_is_a_clear_error(content):
    with pytest.raises(DataError, match=r"cannot be read|need the same classes"):
        _image_folder.read_archive(content)


def test_decoded_images_are_kept_and_recognised(images, data_folder, monkeypatch):
    monkeypatch.setattr(_image_folder, "WORTH_KEEPING_SECONDS", -1)
    content = tar(images)  # once: an archive bears the second in which it was made
    first = _image_folder.read_archive(content)
    kept = data_folder / "cifar10" / "decoded.safetensors"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]

    calls: list[int] = []
    decode = _image_folder.decode
    monkeypatch.setattr(_image_folder, "decode", lambda entries: calls.append(1) or decode(entries))
    again = _image_folder.cached(_image_folder.sha256_of(content), lambda: pytest.fail("decoded again"))
    for split_name in ("train", "test"):
        assert torch.equal(first[split_name][0], again[split_name][0])
        assert torch.equal(first[split_name][1], again[split_name][1])

    del images["train/a/1.png"]
    assert len(_image_folder.read_archive(tar(images))["train"][1]) == 19  # another archive: decoded afresh
    kept.write_bytes(b"damaged")
    assert len(_image_folder.read_archive(tar(images))["train"][1]) == 19
    assert calls == [1, 1]


def test_nothing_is_kept_in_a_folder_that_cannot_be_written(images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FL_LIGHTNING_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(_image_folder, "WORTH_KEEPING_SECONDS", -1)
    assert len(_image_folder.read_archive(tar(images))["train"][1]) == 20
