"""What a search loses when it is killed: nothing that was finished."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from searches import LIGHT, finished_trials, searched, study_of, trial_states
from servers import postgresql

from fl_lightning import tracking
from fl_lightning.config import dump
from fl_lightning.search import sweep
from fl_lightning.search._storage import studies_url


@pytest.mark.slow
def test_a_trial_that_was_killed_is_tried_again_even_if_it_was_the_last(tiny, store_folder: Path):
    sweep(searched(tiny, trials=1).override(LIGHT), "tiny")
    study_of(store_folder).add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    sweep(searched(tiny, trials=2).override(LIGHT), "tiny")
    assert len(finished_trials(store_folder)) == 2


PROGRAM = """
import sys, yaml
from fl_lightning.config import load
from fl_lightning.search._first_trials import configured, enqueue_first, fitted
from fl_lightning.search import sweep
if __name__ == "__main__":
    sweep(load(yaml.safe_load(open(sys.argv[1]))), "tiny")
"""


@pytest.mark.slow
def test_two_workers_and_a_kill_9_leave_nothing_running(tiny, store_folder: Path, tmp_path: Path):
    experiment = searched(tiny, trials=6, jobs=2)
    config, program = tmp_path / "config.yaml", tmp_path / "program.py"
    config.write_text(dump(experiment))
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(config)]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True) as process:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            time.sleep(0.3)
            if "COMPLETE" in trial_states(store_folder).values():
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 1 <= len(finished_trials(store_folder)) < 6
    outcome = sweep(experiment.model_copy(update={"sweep": searched(tiny, trials=6).sweep}), "tiny")
    states = [trial.state for trial in study_of(store_folder).trials]
    assert optuna.trial.TrialState.RUNNING not in states
    errors = [trial.user_attrs.get("error") for trial in study_of(store_folder).trials]
    assert len(finished_trials(store_folder)) == 6, errors
    store = tracking.client()
    parent = store.get_run(outcome.run_id)
    query = f"tags.`mlflow.parentRunId` = '{outcome.run_id}' AND attributes.status = 'RUNNING'"
    assert not store.search_runs([parent.info.experiment_id], query)


@pytest.fixture(params=["sqlite", "postgresql"])
def study_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the searches of a test are kept."""
    if request.param == "sqlite":
        yield studies_url()
        return
    with postgresql() as url:
        monkeypatch.setenv("FL_LIGHTNING_STUDIES", url)
        yield url


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments_lose_no_finished_trial(tiny, store_folder: Path, tmp_path: Path, study_store: str):
    experiment = searched(tiny, trials=100_000, jobs=2)  # no machine is fast enough to end it before the last kill
    config, program = tmp_path / "config.yaml", tmp_path / "program.py"
    config.write_text(dump(experiment))
    program.write_text(PROGRAM)
    moments = random.Random(0)
    finished: set[int] = set()
    for kill in range(10):
        begun = len(trial_states(store_folder))
        command = [sys.executable, str(program), str(config)]
        with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True) as process:
            deadline = time.monotonic() + 120
            while kill % 5 and len(trial_states(store_folder)) <= begun and time.monotonic() < deadline:
                assert process.poll() is None, "the search ended before it was killed"
                time.sleep(0.1)  # two of ten die while they start, the others some time after their first trial began
            time.sleep(moments.uniform(0, 8))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        now = finished_trials(store_folder)
        assert finished <= now
        finished = now
    assert finished
    trials = len(finished) + 5
    outcome = sweep(experiment.model_copy(update={"sweep": searched(tiny, trials=trials).sweep}), "tiny")
    assert finished <= finished_trials(store_folder)
    study = study_of(store_folder)
    assert optuna.trial.TrialState.RUNNING not in {trial.state for trial in study.trials}
    assert len(finished_trials(store_folder)) == trials
    store = tracking.client()
    ours = [store.get_run(outcome.run_id).info.experiment_id]
    assert not store.search_runs(ours, "attributes.status = 'RUNNING'")
    ended = {run.info.run_id for run in store.search_runs(ours, "attributes.status = 'FINISHED'")}
    assert {trial.user_attrs["run_id"] for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")} <= ended
