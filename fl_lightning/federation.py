"""The federated orchestrator: communication rounds with an attack and defenses between the clients and the server."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fl_lightning.aggregators import finite_rows
from fl_lightning.attacks import Goal, Untargeted, View
from fl_lightning.config import Experiment
from fl_lightning.data import Dataset, Samples
from fl_lightning.defenses import ServerContext, State, applied
from fl_lightning.engines import Bench, Job, SharedTrainer
from fl_lightning.errors import ConfigError, errors_under
from fl_lightning.metrics import (
    accuracy_gap,
    carried_through,
    detection,
    evaluate,
    null_space,
    persistence,
    predicted_effect,
    stealth,
)
from fl_lightning.models import FlatNetwork, loss_for
from fl_lightning.participation import Cohort
from fl_lightning.randomness import generator, key_of

__all__ = ["Federation", "FederationState", "Observer", "RoundReport", "Submitted"]

Metrics = dict[str, float]


class RoundReport(NamedTuple):
    """What happened in a round.

    Attributes:
        round: from 0.
        metrics: figures by name; evaluation figures are there in evaluated rounds only.
        cohort: who took part.
    """

    round: int
    metrics: Metrics
    cohort: Cohort


class Submitted(NamedTuple):
    """What the clients of a round send to the server.

    Attributes:
        cohort: who takes part.
        jobs: what each of them trains on.
        updates_CD: `[C, D]` the updates.
        weights_C: `[C]` their weights.
        poisoned_C: `[C]` bool, which of them an attacker made.
        metrics: what callbacks and the attack report.
    """

    cohort: Cohort
    jobs: list[Job]
    updates_CD: Tensor
    weights_C: Tensor
    poisoned_C: Tensor
    metrics: Metrics


class Observer(Protocol):
    """Something that watches a federation: tracker, progress, checkpoints, pruning."""

    def start(self, federation: "Federation") -> None:
        """Called once before the first round of this process."""

    def round(self, federation: "Federation", report: RoundReport) -> None:
        """Called after every round; an exception ends the run."""


@dataclass
class FederationState:
    """Everything that a round depends on beside the configuration; tensors and plain values only.

    Attributes:
        round: the next communication round.
        global_D: `[D]` the global model.
        previous_D: `[D]` the global model of the round before.
        attack: the attack's memory.
        defenses: each defense's memory.
        server: moments of the server's optimizer.
        effect: the predicted effect of the attack on the parameters, once there was one.
        history: figures of every round so far.
        strongest: figures and parameters of the most successfully attacked model so far.
        stopped: why the run ended early, or None.
    """

    round: int
    global_D: Tensor
    previous_D: Tensor
    attack: State
    defenses: dict[str, State]
    server: dict[str, Tensor] = field(default_factory=dict)
    effect: dict[str, Tensor] = field(default_factory=dict)
    history: list[Metrics] = field(default_factory=list)
    strongest: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None


class Federation:
    """Runs an experiment round by round.

    Args:
        experiment: the configuration.
        observers: told of every round, in order.

    Raises:
        ConfigError: data, model, partition, objective or loss do not fit each other (before anything is trained).
    """

    def __init__(self, experiment: Experiment, observers: Sequence[Observer] = ()):
        self.experiment = experiment
        self.observers = list(observers)
        seed = experiment.seed
        with errors_under("engine"):
            experiment.engine.check()
        trainer = SharedTrainer(experiment.trainer)
        data = experiment.data.synthetic() if experiment.fast else experiment.data.load()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_of(seed, "initial model"))
            network = experiment.model.build(data.shape, data.classes).to(trainer.device, trainer.dtype)
        flat = FlatNetwork(network, loss_for(experiment.model, data.task, data.classes))
        self.bench = Bench(flat, trainer, seed)
        try:
            self.assignment = experiment.partition.assign(data, generator(seed, "partition"))
        except ConfigError as error:
            raise error.under("partition") from None
        empty = [client for client, index in enumerate(self.assignment) if not len(index)]
        if empty:
            raise ConfigError(f"clients {empty[:5]} of {len(self.assignment)} hold no samples", "partition")
        self.data: Dataset = data.to(trainer.device, trainer.dtype)
        objective = experiment.attack.objective if experiment.attack else Untargeted()
        try:
            self.goal: Goal = objective.goal(self.data, generator(seed, "objective"))
        except ConfigError as error:
            raise error.under("attack.objective") from None
        if experiment.attack:
            with errors_under("attack"):
                experiment.attack.check(self.data, flat.loss)
        self.initial_D = flat.vector()
        self.state = self._initial_state()
        self.paired: Federation | None = self.twin() if experiment.attack and experiment.evaluation.twin else None

    def _initial_state(self) -> FederationState:
        global_D = self.initial_D.clone()
        attack = self.experiment.attack
        defenses: dict[str, State] = {
            label: dict(defense.init()) for label, defense in self.experiment.defenses.items()
        }
        return FederationState(0, global_D, global_D.clone(), dict(attack.init()) if attack else {}, defenses)

    def twin(self) -> "Federation":
        """The attack-free twin from the first round: same clients, batches and noise, the malicious ones train honestly."""
        other = copy(self)
        other.experiment = self.experiment.model_copy(update={"attack": None})
        other.observers = []
        other.paired = None
        other.state = other._initial_state()
        return other

    def run(self) -> FederationState:
        """All remaining rounds, then the final state."""
        for observer in self.observers:
            observer.start(self)
        while self.state.round < self.experiment.rounds and not self.state.stopped:
            report = self.round()
            for observer in self.observers:
                observer.round(self, report)
        return self.state

    def round(self) -> RoundReport:
        """One communication round."""
        clock = _Clock()
        state = self.state
        cohort, jobs, updates_CD, weights_C, poisoned_C, metrics = self.submitted(clock)
        with clock("defend"):
            kept_CD, kept_weights_C, keep_C = self._defend(updates_CD, weights_C, poisoned_C, metrics)
        before_D = state.global_D
        with clock("aggregate"):
            self._server_step(kept_CD, kept_weights_C, keep_C, poisoned_C, metrics)
        if bool(poisoned_C.any()):
            metrics |= stealth(updates_CD, poisoned_C)
        if self._due(state.round):
            with clock("evaluate"):
                metrics |= self.evaluate()
                metrics |= accuracy_gap(self.bench.flat, before_D, updates_CD, poisoned_C, self.goal.clean)
        if self.paired:
            with clock("twin"):
                metrics |= self._impact(metrics, self.paired.round().metrics)
            if self.experiment.evaluation.effect:
                with clock("effect"):
                    metrics |= self._effect(jobs, weights_C, poisoned_C)
        return self._report(cohort, metrics | clock.metrics(), bool(poisoned_C.any()))

    # The steps of a round

    def submitted(self, clock: "_Clock | None" = None) -> Submitted:
        """Train the clients of the next round and poison what the malicious ones send.

        The model stays where it is; only the attack and defenses at the clients remember that they have seen the round.
        """
        clock = clock or _Clock()
        cohort = self.experiment.participation.sample(self.state.round, len(self.assignment), self.bench.seed)
        jobs = [Job(client, self.data.train, self._index(client)) for client in cohort.clients.tolist()]
        equal = self.experiment.server.weights == "equal"
        weights_C = torch.tensor([1 if equal else len(job.rows) for job in jobs], dtype=self.bench.trainer.dtype)
        weights_C = weights_C.to(self.state.global_D)
        local: Metrics = {}
        with clock("train"):
            updates_CD = self._protect(cohort, self._train(jobs, local), weights_C, local)
        with clock("poison"):
            updates_CD, poisoned_C, metrics = self._poison(cohort, jobs, updates_CD, weights_C)
        return Submitted(cohort, jobs, updates_CD, weights_C, poisoned_C, metrics | local)

    def _index(self, client: int) -> Tensor:
        return self.assignment[client].to(self.data.train.y.device)

    def _train(self, jobs: list[Job], metrics: Metrics | None = None) -> Tensor:
        """Honest updates `[C, D]`; `metrics` gets what the callbacks report, averaged over the fits."""
        experiment, reports = self.experiment, self.bench.trainer.reports
        configured = experiment.client.callbacks
        reports.clear()
        updates_CD = experiment.engine.train(
            self.bench,
            self.state.global_D,
            jobs,
            experiment.client,
            self.state.round,
            lambda: [config.build() for config in configured.values()],
        )
        told: dict[str, list[float]] = {}
        for report in reports:
            for label, figures in zip(configured, report, strict=True):
                for name, value in figures.items():
                    told.setdefault(f"client/{label}/{name}", []).append(value)
        if metrics is not None:
            metrics |= {name: sum(values) / len(values) for name, values in told.items()}
        return updates_CD

    def _protect(self, cohort: Cohort, updates_CD: Tensor, weights_C: Tensor, metrics: Metrics) -> Tensor:
        """What clients do to their own updates before anybody sees them, such as local differential privacy."""
        for label, defense in self.experiment.defenses.items():
            if not defense.at_clients:
                continue
            acting_C = ~cohort.malicious.to(updates_CD.device) | getattr(defense, "malicious_too", False)
            verdict = defense.apply(updates_CD[acting_C], self.context(weights_C[acting_C]), self.state.defenses[label])
            updates_CD = updates_CD.clone()
            updates_CD[acting_C] = applied(verdict, updates_CD[acting_C])
            self.state.defenses[label] = dict(verdict.state)
            metrics |= {f"defense/{label}/{name}": value for name, value in verdict.metrics.items()}
        return updates_CD

    def _poison(
        self, cohort: Cohort, jobs: list[Job], updates_CD: Tensor, weights_C: Tensor
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Replace the malicious rows; returns the submitted updates, which rows are poisoned, and the attack's figures."""
        attack = self.experiment.attack
        malicious_C = cohort.malicious.to(updates_CD.device)
        if attack is None or not cohort.adversarial or not bool(malicious_C.any()):
            return updates_CD, torch.zeros_like(malicious_C), {}
        view = View(
            knowledge=attack.knowledge,
            visible=attack.visible_updates,
            round=self.state.round,
            cohort=cohort,
            global_D=self.state.global_D.clone(),
            previous_D=self.state.previous_D.clone(),
            server_lr=self.experiment.server.lr,
            classes=self.data.classes,
            objective=attack.objective,
            client=self.experiment.client,
            _goal=self.goal,
            _honest_CD=updates_CD,
            _weights_C=weights_C,
            _jobs=jobs,
            _bench=self.bench,
            _engine=self.experiment.engine,
            _aggregator=self.experiment.aggregator,
            _defenses=self.experiment.defenses,
        )
        poisoned = attack.poison(view, self.state.attack)
        expected = (int(malicious_C.sum()), updates_CD.shape[1])
        if poisoned.updates.shape != expected:
            raise ValueError(f"{attack.name} returned updates of shape {list(poisoned.updates.shape)}, not {expected}")
        self.state.attack = dict(poisoned.state)
        submitted_CD = updates_CD.clone()
        submitted_CD[malicious_C] = poisoned.updates.to(updates_CD)
        return submitted_CD, malicious_C, {f"attack/{name}": value for name, value in poisoned.metrics.items()}

    def _defend(
        self, updates_CD: Tensor, weights_C: Tensor, poisoned_C: Tensor, metrics: Metrics
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Finite rows through every defense in order; returns the surviving rows, their weights, and which survived."""
        keep_C = finite_rows(updates_CD)
        if not bool(keep_C.all()):
            metrics["server/non_finite"] = float((~keep_C).sum())
        for label, defense in self.experiment.defenses.items():
            if defense.at_clients:
                continue
            rows = torch.nonzero(keep_C).flatten()
            if not len(rows):
                break
            part_CD, part_C = updates_CD[rows], weights_C[rows]
            verdict = defense.apply(part_CD, self.context(part_C), self.state.defenses[label])
            updates_CD, weights_C = updates_CD.clone(), weights_C.clone()
            updates_CD[rows], weights_C[rows] = applied(verdict, part_CD), verdict.weights_C
            keep_C[rows] = verdict.keep_C
            self.state.defenses[label] = dict(verdict.state)
            prefix = f"defense/{label}"
            metrics |= detection(verdict.keep_C, poisoned_C[rows], verdict.scores_C, prefix)
            metrics |= {f"{prefix}/{name}": value for name, value in verdict.metrics.items()}
        if any(not defense.at_clients for defense in self.experiment.defenses.values()):
            metrics |= detection(keep_C, poisoned_C, None, "defense")
        return updates_CD[keep_C], weights_C[keep_C], keep_C

    def context(self, weights_C: Tensor) -> ServerContext:
        """What the server knows when it looks at the updates of the next round."""
        seed, round = self.bench.seed, self.state.round
        return ServerContext(
            round=round,
            global_D=self.state.global_D,
            previous_D=self.state.previous_D,
            aggregator=self.experiment.aggregator,
            weights_C=weights_C,
            validation=self.data.validation,
            predict=self.bench.flat.scores,
            losses=self.bench.flat.losses,
            gradient=self.bench.flat.gradient,
            generator=lambda purpose: generator(seed, f"defense {purpose}", round),
            sample_rate=self.experiment.participation.per_round(len(self.assignment)) / len(self.assignment),
        )

    def _server_step(
        self, kept_CD: Tensor, weights_C: Tensor, keep_C: Tensor, poisoned_C: Tensor, metrics: Metrics
    ) -> None:
        """Aggregate what is left and move the global model; it stays where it is when nothing is left."""
        state = self.state
        state.previous_D = state.global_D
        if not len(kept_CD):
            metrics["server/skipped"] = 1.0
            if metrics.get("server/non_finite") == len(keep_C):
                state.stopped = f"diverged: every update of round {state.round} holds NaN or Inf"
            return
        rule = self.experiment.aggregator.without(int((~keep_C).sum()))
        aggregate = rule(kept_CD, weights_C)
        if bool(poisoned_C.any()):
            influence_C = rule.influence(kept_CD, weights_C, aggregate)
            metrics["attack/selected"] = float(influence_C[poisoned_C[keep_C]].sum())
        server = self.experiment.server
        candidate_D = state.global_D + server.lr * server.direction(aggregate.update, state.server)
        if not bool(torch.isfinite(candidate_D).all()):
            state.stopped = f"diverged: the global model of round {state.round} would hold NaN or Inf"
            return
        state.global_D = candidate_D

    def _due(self, round: int) -> bool:
        return (round + 1) % self.experiment.evaluation.every == 0 or round + 1 == self.experiment.rounds

    def evaluate(self) -> Metrics:
        """Figures of the current global model."""
        attacked = self.experiment.attack is not None
        return evaluate(self.bench.flat, self.state.global_D, self.goal, self.data.classes, attacked)

    def _impact(self, attacked: Metrics, honest: Metrics) -> Metrics:
        """Paired differences to the attack-free twin, and the attack effect on parameters ||W - W~||."""
        figures = {"impact/aep": float(self._deviation().norm())}
        for name, figure in (("global/accuracy", "impact/accuracy_drop"), ("global/loss", "impact/loss_drop")):
            if name in attacked and name in honest:
                figures[figure] = honest[name] - attacked[name]
        return figures

    def _deviation(self) -> Tensor:
        """`[D]` the attack effect on parameters, W - W~ (FL-WBC, eq. 6)."""
        twin = self.paired.state.global_D if self.paired else self.state.global_D
        return self.state.global_D - twin

    def _effect(self, jobs: list[Job], weights_C: Tensor, poisoned_C: Tensor) -> Metrics:
        """The predicted effect of past attacks on the parameters, and the curvature along the exact one.

        The prediction starts from the exact effect after an adversarial round and lives on by itself until the next.
        """
        state, experiment, flat = self.state, self.experiment, self.bench.flat
        exact_D = self._deviation()
        if not bool(exact_D.any()):
            return {}
        figures: Metrics = {}
        plans = [self.bench.plan(job, experiment.client, state.round) for job in jobs]
        before_D = state.effect.get("predicted")
        if bool(poisoned_C.any()) or before_D is None:
            state.effect = {"predicted": exact_D}
        else:
            carried_CD = torch.stack(
                [
                    carried_through(
                        flat,
                        state.previous_D,
                        before_D,
                        [job.samples[step] for step in plan],
                        experiment.client.optimizer.at(state.round).lr,
                    )
                    for job, plan in zip(jobs, plans, strict=True)
                ]
            )
            predicted_D = predicted_effect(before_D, carried_CD, weights_C, experiment.server.lr)
            state.effect = {"predicted": predicted_D}
            figures["impact/aep_predicted"] = float(predicted_D.norm())
            figures["impact/aep_cosine"] = float(torch.cosine_similarity(predicted_D, exact_D, dim=0))
        first = [
            job.samples[plan[0]] for job, plan, bad in zip(jobs, plans, poisoned_C.tolist(), strict=True) if not bad
        ]
        if first:
            random = generator(self.bench.seed, "random direction", state.round)
            along, beside = null_space(flat, state.global_D, exact_D, Samples.cat(first), random)
            figures |= {"impact/null_space": along, "impact/null_space_random": beside}
        return figures

    def _report(self, cohort: Cohort, metrics: Metrics, attacked: bool) -> RoundReport:
        state = self.state
        loss = metrics.get("global/loss", 0.0)
        if loss != loss or loss in (float("inf"), float("-inf")):
            state.stopped = f"diverged: global/loss of round {state.round} is {loss}"
        if self.experiment.attack:
            metrics["attack/active"] = float(attacked)
            if state.stopped or state.round + 1 == self.experiment.rounds:
                metrics |= persistence([*state.history, metrics])
        report = RoundReport(state.round, dict(sorted(metrics.items())), cohort)
        success = metrics.get("attack/success")
        if success is not None and success >= state.strongest.get("metrics", {}).get("attack/success", -1.0):
            state.strongest = {"round": state.round, "metrics": report.metrics, "model": state.global_D}
        state.history.append(report.metrics)
        state.round += 1
        return report

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values and CPU tensors."""
        saved = dict(vars(self.state))
        if self.paired:
            saved["paired"] = vars(self.paired.state)
        return {name: _to(value, torch.device("cpu")) for name, value in saved.items()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        device = self.state.global_D.device
        moved = {name: _to(value, device) for name, value in saved.items()}
        paired = moved.pop("paired", None)
        self.state = FederationState(**moved)
        if self.paired:
            self.paired.state = FederationState(**paired)


class _Clock:
    """Seconds spent in the named parts of a round."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.parts[f"time/{part}"] = time.perf_counter() - before

    def metrics(self) -> Metrics:
        return self.parts | {"time/round": time.perf_counter() - self.begin}


def _to(value: Any, device: torch.device) -> Any:
    """Nested mappings and lists with every tensor on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_to(item, device) for item in value]
    return value
