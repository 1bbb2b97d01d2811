"""Where files are looked for, that nothing wrong gets in, and what is said when they are missing."""

import gzip
import hashlib
import re

import pytest
from data_files import Fake, sha, two_files

from fl_lightning.data import DataError, _catalogue
from fl_lightning.data._files import Files, atomic, save
from fl_lightning.data._packages import Package
from fl_lightning.errors import ConfigError

pytestmark = pytest.mark.usefixtures("data_folder")


@pytest.mark.parametrize("layout", ["set", "Set/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_found_in_every_layout_plain_or_packed(data_folder, layout, packed):
    for name, content in {"a": b"alpha", "b": b"beta"}.items():
        suffix = ".gz" if packed else ""
        save(gzip.compress(content) if packed else content, data_folder / layout / (name + suffix))
    never = Fake("never", reason="must not be asked")
    files = two_files(never)
    assert files.read() == {"a": b"alpha", "b": b"beta"}
    assert [path.parent for path in files.locate()] == [data_folder / layout] * 2
    assert never.asked == []


def test_data_folder_goes_before_system_path_before_sources(data_folder, tmp_path):
    system = tmp_path / "system"
    save(b"alpha", system / "a")
    save(b"wrong here, but never looked at", system / "b")
    save(b"beta", data_folder / "set" / "b")
    source = Fake("source", {"a": b"alpha", "b": b"beta"})
    said: list[str] = []
    assert two_files(source, system=system).read(said.append) == {"a": b"alpha", "b": b"beta"}
    assert source.asked == []
    assert str(system) in said[0]
    assert "2 of 2 files" in said[0]
    assert not (data_folder / "set" / "a").exists()  # what the system has is used where it lies


def test_only_missing_files_are_fetched_and_they_are_kept(data_folder):
    save(b"alpha", data_folder / "set" / "a")
    source = Fake("source", {"b": b"beta"})
    said: list[str] = []
    assert two_files(source).read(said.append) == {"a": b"alpha", "b": b"beta"}
    assert source.asked == [["b"]]
    assert (data_folder / "set" / "b").read_bytes() == b"beta"
    assert sorted(path.name for path in (data_folder / "set").iterdir()) == ["a", "b"]
    assert any("got b from source" in line and str(data_folder / "set") in line for line in said)
    assert two_files(source).read() == {"a": b"alpha", "b": b"beta"}
    assert source.asked == [["b"]]


def test_sources_are_asked_in_order_and_a_wrong_one_is_passed_over(data_folder):
    down = Fake("down", reason="no answer within 5 s")
    wrong = Fake("wrong", {"a": b"alpha", "b": b"tampered"})
    right = Fake("right", {"a": b"alpha", "b": b"beta"})
    late = Fake("late", {"a": b"alpha", "b": b"beta"})
    assert two_files(down, wrong, right, late).read() == {"a": b"alpha", "b": b"beta"}
    assert [len(source.asked) for source in (down, wrong, right, late)] == [1, 1, 1, 0]
    assert (data_folder / "set" / "b").read_bytes() == b"beta"


def test_error_lists_every_source_its_reason_and_where_to_put_the_files(data_folder, tmp_path):
    system = tmp_path / "system"
    save(b"not alpha", system / "a")
    down = Fake("https://mirror", reason="no answer within 5 s")
    wrong = Fake("npm pack thing", {"a": b"alpha", "b": b"tampered"})
    with pytest.raises(DataError) as caught:
        two_files(down, wrong, system=system).read()
    text = str(caught.value)
    assert "\n" not in text
    for part in ("set: cannot get a, b", str(data_folder), str(system / "a"), "https://mirror (no answer within 5 s)"):
        assert part in text
    assert f"npm pack thing (b: wrong checksum: expected SHA256 {sha(b'beta')}, got {sha(b'tampered')})" in text
    assert f"put the files into {data_folder / 'set'} (plain or .gz)" in text
    assert not (data_folder / "set").exists()  # nothing half-written
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("packed", [False, True])
def test_a_corrupted_file_in_the_data_folder_is_named_and_never_replaced(data_folder, packed):
    path = data_folder / "set" / ("a.gz" if packed else "a")
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


def test_a_truncated_gz_is_a_clear_error(data_folder):
    save(gzip.compress(b"alpha" * 100)[:-9], data_folder / "set" / "a.gz")
    with pytest.raises(DataError, match=r"set/a\.gz: cannot be unpacked .*expected SHA256"):
        two_files().read()


def test_md5_checksums_are_told_apart(data_folder):
    files = Files("old", {"a": f"md5:{hashlib.md5(b'alpha').hexdigest()}"}, ("{file}",))
    save(b"alpha", data_folder / "a")
    assert files.read() == {"a": b"alpha"}
    save(b"omega", data_folder / "a")
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
