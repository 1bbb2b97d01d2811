"""Attacks crossed with servers: every cell is the run that it says, continued where it was left, and counted right."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY

from fl_lightning import runs, tracking
from fl_lightning._matrix import Matrix, load_matrix, run_matrix
from fl_lightning.errors import ConfigError
from fl_lightning.paths import CONFIGS
from fl_lightning.runs import Cell, run_campaign
from fl_lightning.runs import _campaign as campaigns
from fl_lightning.runs import _run as single

pytestmark = pytest.mark.usefixtures("store_folder")
SMALL: dict[str, Any] = {
    "base": TINY | {"rounds": 2},
    "attacks": {"noise": {"name": "gaussian", "std": 10.0}, "nothing": {"name": "gaussian", "std": 1e-9}},
    "servers": {"mean": {"aggregator": "mean"}, "median": {"aggregator": "median"}},
    "seeds": [0, 1],
    "jobs": 1,
}


@pytest.mark.parametrize("path", sorted((CONFIGS / "matrix").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_matrices_load(path: Path):
    matrix = load_matrix(path.stem)
    assert len(matrix.experiments()) == len(matrix.servers) * (len(matrix.attacks) + 1)


def test_every_cell_is_the_run_that_it_says(tiny):
    outcome = run_matrix(Matrix(**SMALL), "small")
    assert len(outcome.campaign.outcomes) == 2 * 3 * 2
    alone = runs.run(tiny(rounds=2, attack={"name": "gaussian", "std": 10.0}, aggregator="median", seed=1), "alone")
    cell = outcome.campaign.outcomes[Cell("noise | median", 1)]
    assert cell.metrics["attack/success"] == alone.metrics["attack/success"]
    found = outcome.cell("noise", "median")
    values = [outcome.campaign.outcomes[Cell("noise | median", seed)].metrics["attack/success"] for seed in (0, 1)]
    assert found is not None
    assert found.mean == pytest.approx(sum(values) / 2)
    drops = [
        outcome.campaign.outcomes[Cell("no attack | mean", seed)].metrics["global/accuracy"]
        - outcome.campaign.outcomes[Cell("noise | mean", seed)].metrics["global/accuracy"]
        for seed in (0, 1)
    ]
    drop = outcome.drop("noise", "mean")
    assert drop is not None
    assert drop.mean == pytest.approx(sum(drops) / 2)
    worst = {server: outcome.cell(str(outcome.worst(server)), server) for server in ("mean", "median")}
    assert all(worst[server].mean >= outcome.cell("nothing", server).mean for server in worst)
    assert outcome.safest() == min(worst, key=lambda server: worst[server].mean)
    artifacts = {file.path for file in tracking.client().list_artifacts(outcome.campaign.run_id)}
    assert {"matrix.md", "matrix.csv", "matrix.html", "matrix.png"} <= artifacts
    assert outcome.markdown().count("\n") == 2 + 2
    assert outcome.csv().count("\n") == 1 + 4


def test_a_campaign_that_was_killed_runs_only_what_is_missing(tiny, monkeypatch: pytest.MonkeyPatch):
    experiments = {"a": tiny(rounds=1, seeds=[0, 1]), "b": tiny(rounds=1)}
    real, started = single.run_one, []

    def counting(*args: Any, **more: Any) -> Any:
        started.append(args[0].seed)
        if len(started) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(single, "run_one", counting)
    with pytest.raises(KeyboardInterrupt):
        run_campaign(experiments, "test")
    rest = run_campaign(experiments, "test")
    assert started == [0, 1, 1, 0]  # the first was finished, the second is tried again, the third was never begun
    assert list(rest.outcomes) == [Cell("a", 0), Cell("a", 1), Cell("b", 0)]
    again = run_campaign(experiments, "test")
    assert again.run_id == rest.run_id
    assert len(started) == 4


def test_a_cell_that_fails_does_not_stop_the_others(tiny, monkeypatch: pytest.MonkeyPatch):
    real = single.run_one

    def sometimes(experiment: Any, name: str, *rest: Any, **more: Any) -> Any:
        if name == "bad":
            raise RuntimeError("out of luck")
        return real(experiment, name, *rest, **more)

    monkeypatch.setattr(single, "run_one", sometimes)
    done = run_campaign({"bad": tiny(rounds=1), "good": tiny(rounds=1)}, "test")
    assert list(done.outcomes) == [Cell("good", 0)]
    assert done.failures == {Cell("bad", 0): "bad, seed 0: RuntimeError: out of luck"}


def dies_once(*arguments: Any) -> Any:
    """A worker that is killed where nobody was killed before."""
    mark = Path(os.environ["DIES_ONCE"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return campaigns._worker(*arguments)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_lost(tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DIES_ONCE", str(tmp_path / "mark"))
    monkeypatch.setattr(campaigns, "_worker", dies_once)
    experiments = {"a": tiny(rounds=1, seeds=[0, 1])}
    monkeypatch.setattr(campaigns, "DEATHS", 1)
    given_up = run_campaign(experiments, "test", jobs=2)
    assert set(given_up.failures.values()) == {"a worker process died 1 times: killed, or out of memory?"}
    (tmp_path / "mark").unlink()
    monkeypatch.setattr(campaigns, "DEATHS", 2)
    done = run_campaign(experiments, "test", jobs=2)
    assert list(done.outcomes) == [Cell("a", 0), Cell("a", 1)]
    assert not done.failures


@pytest.mark.parametrize("jobs", [2, pytest.param("ray", marks=pytest.mark.slow)])
def test_several_processes_give_the_same_figures_as_one(tiny, jobs: Any, request: pytest.FixtureRequest):
    if jobs == "ray":
        request.getfixturevalue("local_ray")
    experiments = {"a": tiny(rounds=1, seeds=[0, 1])}
    one, two = run_campaign(experiments, "one"), run_campaign(experiments, "two", jobs=jobs)
    assert len(two.outcomes) == 2
    for cell, outcome in one.outcomes.items():
        assert two.outcomes[cell].metrics["global/loss"] == outcome.metrics["global/loss"]


@pytest.mark.slow
def test_a_cell_on_ray_does_not_wait_for_workers_that_it_leaves_no_room_for(tiny, local_ray: Any):
    done = run_campaign({"a": tiny(rounds=1, engine="ray")}, "test", jobs="ray")
    assert "a trial that is a Ray task itself trains by vectorized" in done.failures[Cell("a", 0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"servers": {"krum": {"aggregator": {"name": "krum", "n_byzantine": 4}}}},
            r"no attack \| krum.*Krum needs C > 2f \+ 2",
        ),
        ({"attacks": {"x": "gausian"}}, r"x \| mean.*did you mean 'gaussian'"),
    ],
)
def test_a_cell_that_cannot_run_is_named_before_any_starts(changes, message):
    with pytest.raises(ConfigError, match=message):
        run_matrix(Matrix(**SMALL | changes), "wrong")


@pytest.mark.slow
def test_tuned_attacks_are_at_least_searched_and_not_searched_again(tiny, monkeypatch: pytest.MonkeyPatch):
    attacks = {"noise": {"name": "gaussian", "std": 1e-3}}
    matrix = Matrix(**SMALL | {"attacks": attacks, "seeds": [0], "tune": {"trials": 4, "sampler": "random"}})
    told: list[tuple[int, int, str | None]] = []
    outcome = run_matrix(matrix, "tuned", progress=lambda *now: told.append((*now[:2], now[2] and now[2].name)))
    assert told[:4] == [(0, 2, None), (1, 2, "search: noise | mean"), (2, 2, "search: noise | median"), (0, 4, None)]
    store = tracking.client()
    found = yaml.safe_load(Path(store.download_artifacts(outcome.campaign.run_id, "tuned.yaml")).read_text())
    assert set(found) == {"noise | mean", "noise | median"}
    for name, drawn in found.items():
        run = store.get_run(outcome.campaign.outcomes[Cell(name, 0)].run_id)
        assert float(run.data.params["attack.std"]) == drawn["attack.std"] != 1e-3
    studies = store.search_runs([run.info.experiment_id], "tags.`fl.kind` = 'study'")
    assert {study.data.tags["fl.seed"] for study in studies} == {"1"}
    table = outcome.minimax().splitlines()
    assert len(table) == 2 + 2
    assert table[2].startswith(f"| {outcome.safest()} | {outcome.worst(str(outcome.safest()))} |")

    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("everything was run already")

    monkeypatch.setattr(runs, "run", never)
    monkeypatch.setattr(single, "run_one", never)
    again = run_matrix(matrix, "tuned")
    assert again.campaign.run_id == outcome.campaign.run_id
    assert again.minimax() == outcome.minimax()
