"""One run or study in a file: whole in another runs folder, and harmless where somebody has made it up."""

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from fl_lightning import runs, tracking
from fl_lightning.cli import main
from fl_lightning.search import pack, studies_url, sweep, unpack
from fl_lightning.tracking import described, find

NAME = "digits-mlp-gaussian-vs-mean"


@pytest.fixture
def elsewhere(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go on in another runs folder."""

    def go(name: str) -> Path:
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
        monkeypatch.setenv("FL_LIGHTNING_RUNS", str(folder))
        return folder

    return go


@pytest.fixture(scope="module")
def home(tiny: Any, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a run, its registered model and that one's twin, packed as `run.zip`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    settings: dict[str, Any] = {"tracking": {"register": "always"}, "evaluation": {"twin": True}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_LIGHTNING_RUNS", str(folder))
        outcome = runs.run(tiny(attack="gaussian", rounds=2, **settings), "tiny")
        pack(outcome.run_id, folder / "run.zip")
    return folder


@pytest.fixture
def packed(home: Path, tmp_path: Path) -> Path:
    """The pack of that run."""
    return Path(shutil.copy(home / "run.zip", tmp_path))


def run_of(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return str(json.loads(archive.read("pack.json"))["store"]["runs"][0]["run_id"])


def files(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def test_a_run_is_whole_in_another_folder(
    packed: Path,
    home: Path,
    elsewhere: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    run_id = run_of(packed)
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(home))
    before = described(tracking.client(), run_id)
    weights, figures = find(NAME).network.state_dict(), runs.open(run_id).frame()
    artifacts = files(home / "artifacts")
    there = elsewhere("there")
    assert main(["unpack", str(packed)]) == 0
    assert f"unpacked: run {run_id}, 1 runs in all, 3 models" in capsys.readouterr().out
    assert described(tracking.client(), run_id) == before
    assert runs.open(run_id).frame().equals(figures)
    assert files(there / "artifacts") == artifacts
    assert tracking.client().get_run(run_id).data.metrics == {
        name: points[-1][0] for name, points in before.runs[0].metrics.items()
    }
    assert all(torch.equal(part, weights[name]) for name, part in find(NAME).network.state_dict().items())
    assert find(f"{NAME}@clean").version.name == "digits-mlp-clean"
    assert [one.tags["mlflow.data.context"] for one in before.runs[0].data] == ["testing", "training"]
    assert main(["models", "list"]) == 0
    assert main(["models", "export", NAME, str(tmp_path / "exported")]) == 0
    again = files(there)
    assert main(["unpack", str(packed)]) == 2
    assert "is in sqlite:" in capsys.readouterr().err
    assert files(there) == again
    assert main(["pack", run_id, str(packed)]) == 2
    assert "is there already; nothing is overwritten" in capsys.readouterr().err
    assert not [path.name for path in there.iterdir() if path.name.startswith(".")]
    assert pack(run_id, tmp_path / "again.zip").is_file()


def test_a_number_that_is_taken_is_told_and_links_follow(packed: Path, tiny: Any, elsewhere: Any):
    elsewhere("there")
    weak = tiny(attack={"name": "gaussian", "std": 1e-6}, rounds=1, tracking={"register": "always"})
    runs.run(weak, "weak")
    got = unpack(packed)
    clean = "digits-mlp-clean"
    assert got.renamed == {f"{NAME}/1": f"{NAME}/2"}
    store = tracking.client()
    version, twin = store.get_model_version(NAME, "2"), store.get_model_version(clean, "1")
    assert (version.tags["clean_twin"], twin.tags["twin_of"]) == (f"{clean}/1", f"{NAME}/2")
    for name, poisoned in ((NAME, "true"), (clean, "false")):
        registered = store.get_registered_model(name)
        assert registered.tags == {"poisoned": poisoned}
        assert registered.description
    run = store.get_run(got.run_id)
    assert run.data.tags["fl.registered_model"] == f"{NAME}/2"
    logged = store.get_logged_model(str(version.source).removeprefix("models:/"))
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": "2"}]
    success = {number: float(store.get_model_version(NAME, number).tags["attack/success"]) for number in ("1", "2")}
    strongest = str(store.get_model_version_by_alias(NAME, "strongest").version)
    assert strongest == max(success, key=lambda number: (success[number], number == "1"))


# ---- Made up by somebody ----


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A pack whose list says something else."""
    target = path.with_name("changed.zip")
    target.unlink(missing_ok=True)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "x") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == "pack.json":
                contents = json.loads(content)
                change(contents)
                content = json.dumps(contents).encode()
            new.writestr(info.filename, content)
    return target


def with_file(path: Path, name: str, content: bytes = b"x", mode: int = stat.S_IFREG) -> Path:
    """A pack with one more file."""
    target = changed(path, lambda contents: None)
    with zipfile.ZipFile(target, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (mode | 0o644) << 16
        archive.writestr(info, content)
    return target


def first(contents: dict[str, Any]) -> dict[str, Any]:
    run: dict[str, Any] = contents["store"]["runs"][0]
    return run


def cut(path: Path) -> Path:
    target = path.with_name("cut.zip")
    target.write_bytes(path.read_bytes()[:-1000])
    return target


def flipped(path: Path) -> Path:
    """A pack of which one byte in the middle is another."""
    target, content = path.with_name("flipped.zip"), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    target.write_bytes(content)
    return target


def stranger_study(contents: dict[str, Any]) -> None:
    trial = {"state": "COMPLETE", "values": None, "params": {}, "distributions": {"x": "{"}, "user_attrs": {}}
    trial |= {"system_attrs": {}, "reported": {}, "began": None, "ended": None}
    contents["study"] = {"name": "a", "directions": ["MAXIMIZE"], "user_attrs": {}, "trials": [trial]}


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "leads up": lambda path: with_file(path, "../../outside"),
    "leads up inside": lambda path: with_file(path, f"runs/{run_of(path)}/../../../outside"),
    "absolute": lambda path: with_file(path, "/tmp/outside"),
    "backslashes": lambda path: with_file(path, "runs\\..\\outside"),
    "drive": lambda path: with_file(path, "C:/outside"),
    "link": lambda path: with_file(path, f"runs/{run_of(path)}/link", b"/etc/passwd", stat.S_IFLNK),
    "not in its list": lambda path: with_file(path, f"runs/{run_of(path)}/more.txt"),
    "twice": lambda path: with_file(path, "PACK.json"),
    "id leads up": lambda path: changed(path, lambda all_: first(all_).update(run_id="../../outside")),
    "no id": lambda path: changed(path, lambda all_: first(all_).update(run_id="x")),
    "unknown key": lambda path: changed(path, lambda all_: first(all_).update(code="import os")),
    "status": lambda path: changed(path, lambda all_: first(all_).update(status="RUNNING")),
    "figures": lambda path: changed(path, lambda all_: first(all_).update(metrics={"a": [["x", 0, 0]]})),
    "huge step": lambda path: changed(path, lambda all_: first(all_).update(metrics={"a": [[0.5, 0, 10**40]]})),
    "same run twice": lambda path: changed(path, lambda all_: all_["store"]["runs"].append(first(all_))),
    "format": lambda path: changed(path, lambda all_: all_.update(format="fl_lightning pack 2")),
    "files missing": lambda path: changed(path, lambda all_: all_["files"].update({"runs/x/y": [1, "0"]})),
    "sizes": lambda path: changed(path, lambda all_: all_["files"].update({min(all_["files"]): [10**15, "0"]})),
    "sums": lambda path: changed(
        path, lambda all_: all_["files"].update({min(all_["files"]): [all_["files"][min(all_["files"])][0], "0"]})
    ),
    "another's model": lambda path: changed(path, lambda all_: all_["store"]["models"][0].update(run_id="f" * 32)),
    "study": lambda path: changed(path, stranger_study),
    "cut short": cut,
    "a byte": flipped,
    "no zip": lambda path: Path(__file__),
    "a folder": lambda path: path.parent,
    "no file": lambda path: path.with_name("none.zip"),
}


def test_a_pack_that_somebody_made_up_is_refused_and_leaves_nothing(
    packed: Path, elsewhere: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    there = elsewhere("there")
    tracking.client()
    capsys.readouterr()
    for what, make in HOSTILE.items():
        assert main(["unpack", str(make(packed))]) == 2, what
        told = capsys.readouterr().err
        assert told.startswith("error: "), what
        assert told.count("\n") == 1, what
    left = {path.name for path in there.iterdir()} - {
        "mlflow.db",
        "mlflow.lock",
        "unpack.lock",
        "optuna.db",
        "optuna.lock",
    }
    assert left <= {"artifacts"}
    assert not files(there / "artifacts")
    assert not list(tmp_path.rglob("outside*"))
    assert not Path("/tmp/outside").exists()
    store = tracking.client()
    experiments = [one.experiment_id for one in store.search_experiments()]
    assert not store.search_runs(experiments)
    assert unpack(packed).runs == 1


def test_what_unpacks_to_more_than_a_bound_is_refused(
    packed: Path, elsewhere: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    elsewhere("there")
    for bound, told in (("MAX_FILES", "more than 3 files"), ("MAX_PACKED_BYTES", "more than 3")):
        with monkeypatch.context() as patch:
            patch.setattr(f"fl_lightning.inputs._zip.{bound}", 3)
            assert main(["unpack", str(packed)]) == 2
            assert told in capsys.readouterr().err
    monkeypatch.setattr("fl_lightning.search._pack.SPARE_BYTES", 2**62)
    assert main(["unpack", str(packed)]) == 2
    assert "has room for" in capsys.readouterr().err


def test_what_cannot_be_packed_is_told(store_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words, told in (
        (["f" * 32, str(tmp_path / "a.zip")], "no run 'fff"),
        (["no-study", str(tmp_path / "a.zip")], "no run 'no-study'"),
        (["f" * 32, str(tmp_path / "a.tar")], "ends with .zip"),
        (["f" * 32, str(tmp_path / "none" / "a.zip")], "no run"),
    ):
        assert main(["pack", *words]) == 2
        assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.slow
def test_a_study_goes_on_in_another_folder(
    tiny: Any, store_folder: Path, elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"trials": 3, "confirm_seeds": [7], "space": {"attack.std": {"low": 1.0, "high": 2.0}}, "pruner": "none"}
    searched = sweep(tiny(attack="gaussian", rounds=2, sweep=settings), "tiny")
    before = described(tracking.client(), searched.run_id)
    trials = optuna.load_study(study_name=searched.study, storage=studies_url()).trials
    assert len(before.runs) == 6
    path = pack(searched.study, tmp_path / "study.zip")
    longer = tiny(attack="gaussian", rounds=2, sweep=settings | {"trials": 5})
    expected = [trial.params for trial in _trials(sweep(longer, "tiny"))]
    there = elsewhere("there")
    with monkeypatch.context() as patch:  # killed between study and runs
        patch.setattr("fl_lightning.tracking.enter", lambda *_: os._exit(9))
        child = os.fork()
        if not child:
            unpack(path)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    got = unpack(path)
    assert (got.run_id, got.study, got.trials, got.renamed) == (searched.run_id, searched.study, 3, {})
    assert described(tracking.client(), searched.run_id) == before
    moved = optuna.load_study(study_name=searched.study, storage=studies_url()).trials
    for old, new in zip(trials, moved, strict=True):
        assert vars(old) | {"_trial_id": 0} == vars(new) | {"_trial_id": 0}
    again = sweep(longer, "tiny")
    assert again.run_id == searched.run_id
    assert [trial.params for trial in _trials(again)] == expected
    assert (there / "artifacts" / searched.run_id).is_dir()


def _trials(outcome: Any) -> list[Any]:
    return optuna.load_study(study_name=outcome.study, storage=studies_url()).trials
