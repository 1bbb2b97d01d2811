"""Runs whose store or state somebody, or a power cut, has damaged; and runs that fail or are told to end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import wait_until

from fl_lightning import runs, tracking
from fl_lightning.config import Experiment, dump
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.runs import run_folder

pytestmark = pytest.mark.usefixtures("store_folder")


class Stop:
    """An observer that ends a run in the middle."""

    def __init__(self, after: int, error: BaseException):
        self.after, self.error = after, error

    def start(self, federation: Federation) -> None:
        pass

    def round(self, federation: Federation, report: RoundReport) -> None:
        if report.round == self.after:
            raise self.error


def light(tiny: Callable[..., Experiment], **slots: Any) -> Experiment:
    return tiny(**{"tracking": {"models": False}, "rounds": 3, "attack": "gaussian"} | slots)


def interrupted(experiment: Experiment) -> Path:
    """Folder of a run that was ended after its second round."""
    with pytest.raises(KeyboardInterrupt):
        runs.run(experiment, "tiny", lambda _: [Stop(1, KeyboardInterrupt())])
    (folder,) = run_folder("x").parent.iterdir()
    return folder


def figures(outcome: runs.Outcome) -> dict[str, float]:
    return {name: value for name, value in outcome.metrics.items() if not name.startswith("time/")}


def exchange_config(folder: Path, tiny: Callable[..., Experiment]) -> None:
    (folder / "config.yaml").write_text(dump(light(tiny, model={"name": "mlp", "hidden": [4]})))


def foreign_line(folder: Path, tiny: Callable[..., Experiment]) -> None:
    path = folder / "journal.jsonl"
    path.write_text(path.read_text().splitlines()[0] + '\n{"another": "program"}\n[1, 2]\n')


DAMAGES: dict[str, Callable[[Path, Callable[..., Experiment]], Any]] = {
    "checkpoint cut short": lambda folder, _: os.truncate(folder / "checkpoint.pt", 1000),
    "checkpoint empty": lambda folder, _: (folder / "checkpoint.pt").write_bytes(b""),
    "checkpoint of another model": lambda folder, _: torch.save({"round": 1}, folder / "checkpoint.pt"),
    "journal with other lines": foreign_line,
    "no run.json": lambda folder, _: (folder / "run.json").unlink(),
    "config cut short": lambda folder, _: (folder / "config.yaml").write_text("data: {name: dig"),
    "config exchanged": exchange_config,
}


def test_whatever_is_damaged_the_figures_are_the_same(tiny: Callable[..., Experiment]):
    experiment = light(tiny)
    whole = figures(runs.run(experiment, "tiny"))
    for what, damage in DAMAGES.items():
        folder = interrupted(experiment)
        damage(folder, tiny)
        outcome = runs.resume(folder.name)
        assert figures(outcome) == whole, what
        assert outcome.experiment == "tiny", what
        assert not folder.exists(), what


def test_a_run_that_was_deleted_is_restored_and_one_that_is_gone_is_told(tiny: Callable[..., Experiment]):
    folder = interrupted(light(tiny))
    store = tracking.client()
    store.delete_run(folder.name)
    assert runs.resume(folder.name).rounds == 3
    assert store.get_run(folder.name).info.lifecycle_stage == "active"
    folder.mkdir()  # killed while it tidied up
    (folder / "journal.jsonl").touch()
    assert runs.resume(folder.name).rounds == 3
    assert not folder.exists()
    other = interrupted(light(tiny))
    other.rename(other.with_name("f" * 32))
    with pytest.raises(ConfigError, match="only its state is here: put its database back"):
        runs.resume("f" * 32)


def test_a_failed_run_keeps_its_traceback(tiny: Callable[..., Experiment], tmp_path: Path):
    with pytest.raises(RuntimeError, match="out of luck") as told:
        runs.run(light(tiny), "tiny", lambda _: [Stop(0, RuntimeError("out of luck"))])
    store = tracking.client()
    (run,) = store.search_runs([tracking.experiment_id(store, "fl_lightning")])
    assert runs.reason(told.value) == f"RuntimeError: out of luck; the whole of it: error.txt of run {run.info.run_id}"
    text = Path(store.download_artifacts(run.info.run_id, "error.txt", str(tmp_path))).read_text()
    assert "in round" in text
    assert text.endswith("RuntimeError: out of luck\n")


def test_a_run_that_cannot_be_described_does_not_stay_running(
    tiny: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
):
    def refuse(experiment: Experiment) -> str:
        raise RuntimeError("refused")

    store = tracking.client()
    monkeypatch.setattr("fl_lightning.tracking._store.environment", lambda: refuse(light(tiny)))
    with pytest.raises(RuntimeError, match="refused"):
        runs.run(light(tiny), "tiny")
    (run,) = store.search_runs([tracking.experiment_id(store, "fl_lightning")])
    assert run.info.status == "FAILED"


PROGRAM = """
import sys, time, yaml
from fl_lightning import runs
from fl_lightning.config import load
from fl_lightning.runs import run_campaign

class Slow:
    def start(self, federation): pass
    def round(self, federation, report):
        print(report.round, flush=True)
        time.sleep(0.1)

if __name__ == "__main__":
    experiment = load(yaml.safe_load(open(sys.argv[1])))
    if sys.argv[2] == "run":
        runs.run(experiment, "tiny", lambda _: [Slow()])
    else:
        run_campaign({"a": experiment, "b": experiment.model_copy(update={"seed": 1})}, "tiny", jobs=2)
"""


@contextmanager
def program(experiment: Experiment, folder: Path, what: str) -> "Iterator[subprocess.Popen[str]]":
    """A process at work, which does not outlive the block."""
    config, script = folder / "config.yaml", folder / "program.py"
    config.write_text(dump(experiment))
    script.write_text(PROGRAM)
    settings = os.environ | {"OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"}
    settings |= {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    command = [sys.executable, str(script), str(config), what]
    with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_sigterm_ends_a_run_as_killed_and_a_scheduler_does_not_matter(tiny: Callable[..., Experiment], tmp_path: Path):
    with program(light(tiny, rounds=1000), tmp_path, "run") as process:
        assert process.stdout
        assert process.stdout.readline() == "0\n"
        process.terminate()
        assert process.wait(60) != 0
    store = tracking.client()
    (run,) = store.search_runs([tracking.experiment_id(store, "fl_lightning")])
    assert (run.info.status, run.data.tags["fl.stopped"]) == ("KILLED", "interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tiny: Callable[..., Experiment], tmp_path: Path, how: signal.Signals):
    store = tracking.client()

    def statuses() -> list[str]:
        experiment = store.get_experiment_by_name("fl_lightning")
        found = store.search_runs([experiment.experiment_id]) if experiment else []
        return sorted(run.info.status for run in found)

    with program(light(tiny, rounds=100_000), tmp_path, "campaign") as process:
        wait_until(lambda: len(statuses()) == 3, 120, "two cells and their parent")
        time.sleep(2)
        process.send_signal(how)
        process.wait(60)
    expected = ["KILLED"] * 3 if how == signal.SIGTERM else ["KILLED", "KILLED", "RUNNING"]
    wait_until(lambda: statuses() == expected, 60, f"{expected}")
