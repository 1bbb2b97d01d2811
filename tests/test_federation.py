"""The round: who is shown what, what is counted, what happens when things go wrong."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Krum
from fl_lightning.attacks import Attack, Goal, Poisoned, Untargeted, View
from fl_lightning.config import Experiment
from fl_lightning.data import Dataset, Samples
from fl_lightning.defenses import Defense, ServerContext, State, Verdict
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, say_once
from fl_lightning.participation import Full, Never


class Constant(Attack):
    """Submits the same number everywhere and remembers how often it has done so."""

    name: ClassVar[str] = "constant"
    value: float = Field(default=1.0, allow_inf_nan=True)

    def init(self) -> State:
        return {"rounds": 0}

    def poison(self, view: View, state: State) -> Poisoned:
        updates = torch.full((view.n_malicious, len(view.global_D)), self.value)
        return Poisoned(updates, {"rounds": state["rounds"] + 1}, {"norm": float(updates[0].norm())})


class DropRows(Defense):
    """Drops the first n rows that it sees and counts its calls."""

    name: ClassVar[str] = "drop_rows"
    n: int = Field(default=1, ge=0)

    def init(self) -> State:
        return {"calls": 0}

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        keep_C = torch.arange(len(updates_CD)) >= self.n
        return Verdict(keep_C, context.weights_C, updates_CD, (~keep_C).float(), {"calls": state["calls"] + 1})


def with_parts(experiment: Experiment, **parts: Any) -> Federation:
    """A federation with components that no registry knows."""
    return Federation(experiment.model_copy(update=parts))


def test_a_round_without_attack_is_federated_averaging(tiny):
    federation = Federation(tiny())
    before = federation.state.global_D.clone()
    updates = federation.train(federation.cohort()).updates_CD
    sizes = torch.tensor([float(len(index)) for index in federation.assignment])
    report = federation.round()
    torch.testing.assert_close(federation.state.global_D, before + (sizes / sizes.sum()) @ updates)
    assert report.round == 0
    assert not any(name.startswith("attack/") for name in report.metrics)


def test_the_server_moves_by_its_rate(tiny):
    whole, half = Federation(tiny()), Federation(tiny(server={"lr": 0.5}))
    whole.round()
    half.round()
    step = whole.state.global_D - whole.initial_D
    torch.testing.assert_close(half.state.global_D, half.initial_D + 0.5 * step)


def test_the_poisoned_row_is_what_the_attack_returned_and_is_counted(tiny):
    federation = with_parts(tiny(), attack=Constant(value=0.5), aggregator=Krum(n_byzantine=1))
    metrics = federation.round().metrics
    assert metrics["attack/norm"] == pytest.approx(0.5 * len(federation.initial_D) ** 0.5)
    assert metrics["attack/selected"] == 0.0  # Krum never takes the far row
    assert federation.state.attack == {"rounds": 1}
    assert with_parts(tiny(), attack=Constant()).round().metrics["attack/selected"] == pytest.approx(1 / 5)


def test_no_malicious_client_means_no_attack(tiny):
    clean = Federation(tiny()).run()
    idle = with_parts(tiny(), attack=Constant(), participation=Full(malicious=0, schedule=Never())).run()
    assert torch.equal(clean.global_D, idle.global_D)
    assert all("attack/norm" not in figures for figures in idle.history)
    with pytest.raises(ConfigError, match=r"nobody carries out constant: participation\.malicious is 0"):
        with_parts(tiny(), attack=Constant(), participation=Full(malicious=0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_no_number_never_reaches_the_model(tiny, value):
    state = with_parts(tiny(rounds=10), attack=Constant(value=value)).run()
    assert bool(torch.isfinite(state.global_D).all())
    assert all(figures["server/non_finite"] == 1.0 for figures in state.history)
    assert state.stopped is None
    assert state.history[-1]["global/accuracy"] > 0.3  # the four others learn on


def test_a_run_in_which_every_update_is_no_number_stops_and_says_so(tiny):
    state = with_parts(tiny(), attack=Constant(value=float("nan")), participation=Full(malicious=5)).run()
    assert state.stopped == "diverged: every update of round 0 holds NaN or Inf"
    assert len(state.history) == 1


def test_a_model_that_overflows_stops_the_run(tiny):
    federation = with_parts(tiny(), attack=Constant(value=3e38), participation=Full(malicious=4))
    federation.run()
    assert federation.state.stopped
    assert "diverged" in federation.state.stopped
    assert bool(torch.isfinite(federation.state.global_D).all())


def test_defenses_run_in_their_order_on_what_the_former_left(tiny):
    parts = {"defenses": {"first": DropRows(n=2), "second": DropRows(n=1)}, "attack": Constant()}
    federation = with_parts(tiny(), **parts)
    metrics = federation.round().metrics
    assert federation.state.defenses == {"first": {"calls": 1}, "second": {"calls": 1}}
    malicious = [
        c
        for c in range(5)
        if c in set(federation.experiment.participation.sample(0, 5, 0).malicious.nonzero().flatten().tolist())
    ]
    missed = float(malicious[0] >= 3)
    assert metrics["defense/missed_alarm_rate"] == missed
    assert metrics["defense/false_alarm_rate"] == pytest.approx((3 - (1 - missed)) / 4)


def test_the_model_stays_where_it_is_when_everybody_is_rejected(tiny):
    federation = with_parts(tiny(), defenses={"all": DropRows(n=5)})
    metrics = federation.round().metrics
    assert metrics["server/skipped"] == 1.0
    assert torch.equal(federation.state.global_D, federation.initial_D)


def test_an_attack_that_returns_the_wrong_shape_is_an_error(tiny):
    class Wrong(Constant):
        def poison(self, view: View, state: State) -> Poisoned:
            return Poisoned(torch.zeros(3, 2))

    with pytest.raises(ValueError, match=r"constant returned updates of shape \[3, 2\]"):
        with_parts(tiny(), attack=Wrong()).round()


def test_ldp_changes_benign_rows_before_the_attacker_sees_them(tiny):
    seen: dict[str, Tensor] = {}

    class Watching(Constant):
        def poison(self, view: View, state: State) -> Poisoned:
            seen["benign"] = view.benign_updates
            return super().poison(view, state)

    clip = {"private": {"name": "ldp", "max_norm": 0.01, "std": 0.0}}
    with_parts(tiny(defenses=clip), attack=Watching(knowledge="full")).round()
    assert float(seen["benign"].norm(dim=1).max()) == pytest.approx(0.01, rel=1e-4)


def test_the_twin_is_the_same_run_without_the_attack(tiny):
    federation = Federation(tiny(attack="gaussian", evaluation={"twin": True}))
    state = federation.run()
    clean = Federation(tiny()).run()
    assert federation.paired is not None
    assert torch.equal(federation.paired.state.global_D, clean.global_D)
    last = state.history[-1]
    assert last["impact/aep"] == pytest.approx(float((state.global_D - clean.global_D).norm()))
    drop = clean.history[-1]["global/accuracy"] - last["global/accuracy"]
    assert last["impact/accuracy_drop"] == pytest.approx(drop)


def test_evaluation_happens_every_so_often_and_in_the_last_round(tiny):
    history = Federation(tiny(rounds=5, evaluation={"every": 2})).run().history
    assert ["global/accuracy" in figures for figures in history] == [False, True, False, True, True]


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in figures.items() if not name.startswith("time/")} for figures in history]


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_the_same_seed_gives_the_same_figures(tiny, engine):
    first, second = (Federation(tiny(attack="gaussian", engine=engine)).run() for _ in range(2))
    assert torch.equal(first.global_D, second.global_D)
    assert without_times(first.history) == without_times(second.history)
    assert not torch.equal(first.global_D, Federation(tiny(attack="gaussian", engine=engine, seed=1)).run().global_D)


def test_a_saved_state_continues_to_the_same_end(tiny):
    settings: Mapping[str, Any] = {
        "rounds": 4,
        "evaluation": {"twin": True},
        "defenses": {"clip": {"name": "norm_bound", "max_norm": 1.0}},
    }
    whole = with_parts(tiny(**settings), attack=Constant(value=0.1))
    whole.run()
    half = with_parts(tiny(**settings), attack=Constant(value=0.1))
    half.round()
    half.round()
    rest = with_parts(tiny(**settings), attack=Constant(value=0.1))
    rest.load_state_dict(half.state_dict())
    rest.run()
    assert torch.equal(rest.state.global_D, whole.state.global_D)
    assert rest.state.attack == whole.state.attack == {"rounds": 4}
    assert without_times(rest.state.history) == without_times(whole.state.history)
    assert rest.state.strongest["round"] == whole.state.strongest["round"]
    assert torch.equal(rest.state.strongest["model"], whole.state.strongest["model"])


def test_clients_without_samples_are_refused_before_training(tiny):
    settings = {
        "data": {"name": "digits", "train_samples": 4, "test_samples": 20},
        "partition": {"name": "iid", "clients": 5},
    }
    with pytest.raises(ConfigError, match="partition"):
        Federation(tiny(**settings))


def test_a_wrong_objective_is_refused_before_training(tiny):
    attack = {"name": "label_flip", "objective": {"name": "label_map", "mapping": {3: 30}}}
    with pytest.raises(ConfigError, match=r"attack\.objective.*0\.\.9.*3: 30"):
        Federation(tiny(attack=attack))


def test_regression_reports_its_own_figures():
    from fl_lightning.config import load

    settings = {"data": "house_prices", "model": "linear", "partition": {"name": "iid", "clients": 4}, "rounds": 2}
    figures = (
        Federation(load(settings | {"fast": True, "client": {"optimizer": {"name": "sgd", "lr": 0.01}}}))
        .run()
        .history[-1]
    )
    assert "global/accuracy" not in figures
    assert figures["global/normalized_cost"] >= 0


def test_what_is_submitted_can_be_had_without_moving_the_model(tiny):
    federation = with_parts(tiny(), attack=Constant(value=0.1))
    before = federation.state.global_D.clone()
    sent = federation.submitted()
    assert torch.equal(federation.state.global_D, before)
    assert federation.state.round == 0
    assert torch.equal(sent.poisoned_C, sent.cohort.malicious)
    assert (sent.updates_CD[sent.poisoned_C] == 0.1).all()
    federation.round()
    mean = (sent.weights_C / sent.weights_C.sum()) @ sent.updates_CD
    torch.testing.assert_close(federation.state.global_D, before + mean)


# --- an attack that does nothing says so -------------------------------------------------------------------------------


class Honest(Attack):
    """Sends what honest clients send."""

    name: ClassVar[str] = "honest"

    def poison(self, view: View, state: State) -> Poisoned:
        return Poisoned(view.own_updates)


def idle(tiny: Any, caplog: Any, **parts: Any) -> tuple[list[float | None], str]:
    """`attack/idle` of every round, and what was said."""
    say_once.cache_clear()
    caplog.clear()
    slots = {name: part for name, part in parts.items() if isinstance(part, dict)}
    ready = {name: part for name, part in parts.items() if not isinstance(part, dict)}
    state = with_parts(tiny(rounds=2, **slots), **ready).run()
    return [figures.get("attack/idle") for figures in state.history], caplog.text


def test_an_attack_that_changes_nothing_is_counted_and_told_once(tiny, caplog):
    figures, told = idle(tiny, caplog, attack=Honest())
    assert figures == [1.0, 1.0]
    assert told.count("sends what honest clients would send") == 1
    assert idle(tiny, caplog, attack=Constant()) == ([None, None], "")


def test_a_control_without_attackers_is_told(tiny, caplog):
    control = {"name": "full", "schedule": {"name": "never"}}
    figures, told = idle(tiny, caplog, attack=Constant(), participation=control)
    assert figures == [None, None]
    assert "its schedule attacks in none of 2 rounds" in told


def test_a_schedule_that_never_begins_is_told(tiny, caplog):
    late = {"name": "full", "malicious": 1, "schedule": {"name": "from_round", "round": 7}}
    figures, told = idle(tiny, caplog, attack=Constant(), participation=late)
    assert figures == [None, None]
    assert "its schedule attacks in none of 2 rounds" in told


def test_inflated_counts_that_nobody_asks_for_are_told(tiny, caplog):
    told = idle(tiny, caplog, attack=Constant(inflate=2.0), server={"weights": "equal"})[1]
    assert "attack.inflate does nothing where server.weights is equal" in told


def test_clean_rounds_follow_the_attack(tiny):
    federation = with_parts(tiny(rounds=2, evaluation={"after": 3, "every": 2}), attack=Constant(value=0.01))
    state = federation.run()
    assert [figures["attack/active"] for figures in state.history] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert "attack/persistence" in state.history[-1]
    assert ["global/accuracy" in figures for figures in state.history] == [False, True, False, True, True]
    short = with_parts(tiny(rounds=2), attack=Constant(value=0.01)).run()
    assert torch.equal(short.strongest["model"], state.strongest["model"]) or state.strongest["round"] > 1


def test_an_attack_may_move_what_counts_as_success(tiny):
    class Moving(Constant):
        def success(self, goal: Goal, state: State) -> Samples | None:
            return Samples(goal.clean.x[:4], goal.clean.y[:4]) if state["rounds"] else None

    federation = with_parts(tiny(rounds=1), attack=Moving(value=0.0))
    assert federation.goal_now().success is None
    federation.run()
    moved = federation.goal_now().success
    assert moved is not None
    assert len(moved) == 4
    right = federation.bench.flat.accuracy(federation.state.global_D, moved)
    assert federation.evaluate()["attack/success"] == pytest.approx(right)


def test_withheld_rows_are_nobodys(tiny):
    class Withheld(Untargeted):
        def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
            return super().goal(data, generator)._replace(withheld=torch.arange(50))

    federation = with_parts(tiny(), attack=Constant(objective=Withheld()))
    rows = torch.cat(federation.assignment)
    assert sorted(rows.tolist()) == list(range(50, 200))
