"""A real MLflow server on a real database that is killed, and comes back, in the middle of a run."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from servers import MlflowServer, postgresql

from fl_lightning import runs, tracking
from fl_lightning.federation import Federation, RoundReport


class Outage:
    """An observer that kills the server after a round, and starts it again some rounds later while the run goes on."""

    def __init__(self, server: MlflowServer, after: int, rounds: int, pause: float):
        self.server, self.after, self.back, self.pause = server, after, after + rounds, pause
        self.starting = threading.Thread(target=server.start)

    def start(self, federation: Federation) -> None:
        pass

    def round(self, federation: Federation, report: RoundReport) -> None:
        time.sleep(self.pause)
        if report.round == self.after:
            self.server.kill()
        elif report.round == self.back:
            assert not self.server.answers()
            self.starting.start()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_server_killed_in_the_middle_of_a_run_has_every_metric_of_every_round(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str, request: pytest.FixtureRequest
):
    if database == "postgresql":
        entered = postgresql()
        url = entered.__enter__()
        request.addfinalizer(lambda: entered.__exit__(None, None, None))
    else:
        url = f"sqlite:///{tmp_path / 'server.db'}"
    server = MlflowServer(tmp_path, url)
    request.addfinalizer(server.kill)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    attacked = {"attack": "gaussian", "participation": {"name": "full", "malicious": 2}, "rounds": 30}
    experiment = tiny(**attacked, tracking={"register": "always", "keep_rounds": [0, 12, 29]})
    outage = Outage(server, after=8, rounds=8, pause=0.2)
    outcome = runs.run(experiment, "tiny", lambda _: [outage])
    outage.starting.join()
    assert outcome.rounds == 30
    store = tracking.client()
    state = Federation(experiment).run()
    for name in state.history[0]:
        kept = {one.step: one.value for one in store.get_metric_history(outcome.run_id, name)}
        assert sorted(kept) == list(range(30)), name
        if not name.startswith("time/"):
            assert [kept[round] for round in range(30)] == pytest.approx([row[name] for row in state.history]), name
    run = store.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert sorted(tracking.kept_rounds(store, outcome.run_id)) == [0, 12, 29]
    assert outcome.registered_model == "digits-mlp-gaussian-vs-mean/1"
    assert (tmp_path / "served").is_dir(), "artifacts go to the server's own store"
