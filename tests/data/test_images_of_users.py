"""Image folders of the user's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fl_lightning.config import load
from fl_lightning.data import DataError, Frame, ImageFolder
from fl_lightning.federation import Federation


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hospitals, two classes, five images each; the red of an image says whose it is, the green what."""
    monkeypatch.setenv("FL_LIGHTNING_DATA", str(tmp_path / "cache"))
    for site, red in (("berlin", 0), ("rome", 255)):
        for label, green in (("healthy", 51), ("ill", 204)):
            folder = tmp_path / "scans" / site / label
            folder.mkdir(parents=True)
            for number in range(5):
                pixels = np.zeros((6, 8, 3), np.uint8)
                pixels[..., 0], pixels[..., 1], pixels[..., 2] = red, green, number
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "scans"


def folder(path: Path, **settings: Any) -> ImageFolder:
    return ImageFolder(path=str(path), **settings)


def brighter(image: torch.Tensor) -> torch.Tensor:
    return image + 1


def test_owner_and_class_come_from_the_folders(scans: Path):
    data = folder(scans).load()
    assert (data.owner_names, data.class_names, data.shape) == (("berlin", "rome"), ("healthy", "ill"), (3, 6, 8))
    assert (len(data.train), len(data.test)) == (16, 4)
    for part in (data.train, data.test):
        assert torch.equal(part.x[:, 0, 0, 0].long(), part.owner)
        assert torch.allclose(part.x[:, 1, 0, 0], 0.2 + 0.6 * part.y)
    assert data.limits[1].flatten().tolist() == [1, 1, 1]
    grey = folder(scans, owner=None, channels=1, size=(3, 4), normalize=True).load()
    assert grey.shape == (1, 3, 4)
    assert grey.train.owner is None
    assert grey.train.x.mean().abs() < 1e-5


def test_pixels_from_a_mapped_file_are_the_same(scans: Path):
    here, mapped = folder(scans), folder(scans, mapped=True)
    for _ in range(2):  # decoded, then taken from the file
        assert torch.equal(mapped.load().train.x, here.load().train.x)
    (file,) = (scans.parent / "cache" / "mapped").glob("*.f32")
    assert file.stat().st_size == 20 * 3 * 6 * 8 * 4
    data = mapped.load()
    moved = data.to("cpu", torch.float32)
    assert moved.train.x.data_ptr() == data.train.x.data_ptr()  # nothing is copied into memory
    assert moved.test.x.untyped_storage().data_ptr() == data.train.x.untyped_storage().data_ptr()


def test_a_transform_and_folders_of_splits(scans: Path, monkeypatch: pytest.MonkeyPatch):
    brightened = folder(scans, transform=f"{__name__}:brighter").load()
    assert torch.allclose(brightened.train.x, folder(scans).load().train.x + 1)
    (scans / "berlin").rename(scans / "train")
    data = folder(scans, owner=None, split=1).load()
    assert (len(data.train), len(data.test)) == (10, 10)


def test_what_is_wrong_is_named(scans: Path):
    Image.new("RGB", (3, 3)).save(scans / "rome" / "ill" / "9.png")
    with pytest.raises(DataError, match=r"rome/ill/9.png has the size \(3, 3\) after \(6, 8\): set size"):
        folder(scans).load()
    assert folder(scans, size=(4, 4)).load().shape == (3, 4, 4)
    (scans / "rome" / "ill" / "9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"rome/ill/9.png cannot be decoded"):
        folder(scans).load()
    with pytest.raises(DataError, match="needs images 3 folders deep, got"):
        folder(scans, target=3).load()


def test_a_table_of_image_files(scans: Path):
    (scans / "table.csv").write_text("file,who,what\n" + "".join(f"rome/ill/{n}.png,me,{n % 2}\n" for n in range(5)))
    data = Frame(path=str(scans / "table.csv"), owner="who", target="what", image="file", size=(6, 8)).load()
    assert data.shape == (3, 6, 8)
    assert torch.allclose(data.train.x[:, 1], torch.tensor(0.8))
    (scans / "table.csv").write_text("file,what\nrome/ill/0.png,0\nrome/none.png,1\n" + "rome/ill/1.png,0\n" * 3)
    with pytest.raises(DataError, match=r"row 2: 'file' is no image that can be read, got 'rome/none.png'"):
        Frame(path=str(scans / "table.csv"), target="what", image="file").load()


def test_a_federation_of_hospitals(scans: Path):
    tree = {
        "data": folder(scans),
        "rounds": 3,
        "partition": {"name": "natural", "clients": "all"},
        "model": "linear",
        "client": {"batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.5}},
    }
    figures = Federation(load(tree)).run().history[-1]
    sites = [figures[f"owner/accuracy/{site}"] for site in ("berlin", "rome")]
    assert figures["owner/worst"] == min(sites)
    assert figures["owner/mean"] == pytest.approx(figures["global/accuracy"]) == sum(sites) / 2
