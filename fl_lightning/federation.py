"""The federated orchestrator: communication rounds with an attack and defenses between the clients and the server."""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from fl_lightning.aggregators import Aggregate, Aggregator, Geometry, Past, RoundRefusedError, finite_rows
from fl_lightning.attacks import Goal, Services, Untargeted, View
from fl_lightning.clients import check_last_batches, check_loop, merging_lone
from fl_lightning.config import Experiment
from fl_lightning.data import Dataset, Samples
from fl_lightning.defenses import Defense, Judged, ServerContext, State, applied, defended
from fl_lightning.engines import Bench, Job, LocalRound, SharedTrainer
from fl_lightning.errors import ConfigError, errors_under, suggest
from fl_lightning.metrics import (
    GLOSSARY,
    Metric,
    accuracy_gap,
    carried_through,
    detection,
    evaluate,
    meaning,
    null_space,
    persistence,
    predicted_effect,
    stealth,
)
from fl_lightning.models import FlatNetwork, check_size, loss_for
from fl_lightning.participation import Cohort, Never
from fl_lightning.randomness import generator, key_of

__all__ = [
    "Aggregated",
    "Defended",
    "Federation",
    "FederationState",
    "Observer",
    "RoundReport",
    "Submitted",
    "Trained",
]

Metrics = dict[str, float]
ROOT_SAMPLES = 100
"""How many of its own samples the server trains a trusted update on."""


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


class Trained(NamedTuple):
    """What the clients of a round have trained, before any of them attacks.

    Attributes:
        cohort: who takes part.
        jobs: what each of them trains on.
        updates_CD: `[C, D]` the honest updates.
        weights_C: `[C]` their weights.
        metrics: what callbacks and defenses at the clients report.
    """

    cohort: Cohort
    jobs: list[Job]
    updates_CD: Tensor
    weights_C: Tensor
    metrics: Mapping[str, float] = MappingProxyType({})


class Submitted(NamedTuple):
    """What the clients of a round send to the server.

    Attributes:
        cohort: who takes part.
        jobs: what each of them trains on.
        updates_CD: `[C, D]` the updates.
        weights_C: `[C]` their weights.
        poisoned_C: `[C]` bool, which of them an attacker made.
        metrics: what callbacks, defenses at the clients and the attack report.
    """

    cohort: Cohort
    jobs: list[Job]
    updates_CD: Tensor
    weights_C: Tensor
    poisoned_C: Tensor
    metrics: Metrics

    @property
    def attacked(self) -> bool:
        """Whether any update was made by an attacker."""
        return bool(self.poisoned_C.any())


class Defended(NamedTuple):
    """What the defenses have left of the submitted updates.

    Attributes:
        geometry: of the rows that stay, as the defenses have changed them.
        weights_R: `[R]` their weights.
        keep_C: `[C]` bool, which of the submitted rows they are.
        metrics: what the defenses report, and how well they detected.
    """

    geometry: Geometry
    weights_R: Tensor
    keep_C: Tensor
    metrics: Metrics

    @property
    def updates_RD(self) -> Tensor:  # noqa: N802
        """`[R, D]` the rows themselves, made on demand."""
        return self.geometry.rows


class Aggregated(NamedTuple):
    """What the rule makes of the rows that the defenses have left.

    Attributes:
        update_D: `[D]` the aggregate; None: nothing was left that the rule can aggregate.
        kept_C: `[C]` bool, which of the submitted rows are in it.
        metrics: how much of it came from attackers.
        stopped: why the run cannot go on, or None.
        skipped: why there is no update; empty if there is one.
    """

    update_D: Tensor | None
    kept_C: Tensor
    metrics: Metrics
    stopped: str | None = None
    skipped: str = ""


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
        past: `reference_D`, the last aggregated update, once there was one.
        effect: the predicted effect of the attack on the parameters, once there was one.
        history: figures of every round so far.
        strongest: figures and parameters of the most successfully attacked model so far.
        stopped: what ended the run before its time, or None.
        reached: what `experiment.stop` waited for, once it was there.
        given_up: whether it was an observer that ended it: nobody asks for its model.
    """

    round: int
    global_D: Tensor
    previous_D: Tensor
    attack: State
    defenses: dict[str, State]
    server: dict[str, Tensor] = field(default_factory=dict)
    past: dict[str, Tensor] = field(default_factory=dict)
    effect: dict[str, Tensor] = field(default_factory=dict)
    history: list[Metrics] = field(default_factory=list)
    strongest: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    given_up: bool = False
    reached: str | None = None

    @property
    def over(self) -> bool:
        """Whether no round follows, however many are planned."""
        return bool(self.stopped or self.reached)

    def give_up(self, reason: str) -> None:
        """End the run after this round; an observer does, who has seen enough."""
        self.stopped, self.given_up = reason, True


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
        _check_stop(experiment)
        self.observers = list(observers)
        seed = experiment.seed
        with errors_under("engine"):
            experiment.engine.check()
        trainer = SharedTrainer(experiment.trainer)
        data = experiment.data.synthetic() if experiment.fast else experiment.data.load()
        if isinstance(data.train.x, Mapping) and not experiment.model.named_inputs:
            reason = f"{experiment.model.name} takes one tensor, the data has {', '.join(data.train.x)} by name"
            raise ConfigError(reason, "model")
        clients = experiment.partition.clients  # of `all` owners at most so many
        per_round = experiment.participation.per_round(clients if isinstance(clients, int) else len(data.owner_names))
        with errors_under("model"):
            check_size(experiment.model, data.shape, data.classes, per_round, trainer.device, trainer.dtype.itemsize)
        model = experiment.model
        with torch.random.fork_rng(devices=[]), errors_under("model"):
            torch.manual_seed(key_of(seed, "initial model"))
            network = model.network(data.shape, data.classes).to(trainer.device, trainer.dtype)
            model.check(network, data.train[:2].to(trainer.device, trainer.dtype), data.classes)
        check_loop(experiment.client, network, experiment.trainer.accumulate)
        chosen = loss_for(model, data.task, data.classes, experiment.loss)
        flat = FlatNetwork(network, chosen, model.federate, model.buffers)
        self.bench = Bench(flat, trainer, seed)
        # Attackers get a network of their own: engines leave the clients' models and gradients in the shared one.
        self.shown_flat = flat.like(deepcopy(network))
        with errors_under("partition"):
            assignment = experiment.partition.assign(data, generator(seed, "partition"))
        self.data: Dataset = data.to(trainer.device, trainer.dtype)
        objective = experiment.attack.objective if experiment.attack else Untargeted()
        with errors_under("attack.objective"):
            self.goal: Goal = objective.goal(self.data, generator(seed, "objective"))
        self.assignment = _without(assignment, self.goal.withheld)
        empty = [client for client, index in enumerate(self.assignment) if not len(index)]
        if empty:
            raise ConfigError(f"clients {empty[:5]} of {len(self.assignment)} hold no samples", "partition")
        if len(self.assignment) != experiment.partition.clients:  # all owners, known only now
            experiment = self.experiment = experiment.model_copy()
            experiment.check_clients(len(self.assignment))
        with errors_under("client.last_batch"):
            check_last_batches(network, self.data.train, list(map(len, self.assignment)), experiment.client)
        if experiment.attack:
            with errors_under("attack"):
                experiment.attack.check(self.data, flat.loss)
                experiment.attack.check_model(flat)
        self._check_server()
        self.initial_D = flat.vector()
        self.state = self.initial_state()
        self.paired: Federation | None = self.twin() if experiment.attack and experiment.evaluation.twin else None

    def _check_server(self) -> None:
        """What only the built model can tell, and what is unwise about the rule's settings."""
        for label, defense in self.experiment.defenses.items():
            if defense.needs_classifier:
                with errors_under(f"defenses.{label}"):
                    _ = self.bench.flat.layout.classifier
        self._check_metrics()
        refuse_absent_attackers(self.experiment)
        for caution in attack_cautions(self.experiment):
            say_once(caution)
        rule = self.experiment.aggregator
        for caution in rule.cautions(self.experiment.participation.per_round(len(self.assignment))):
            warnings.warn(caution, stacklevel=3)

    def _check_metrics(self) -> None:
        """Try the figures of `evaluation.metrics` on the first model: what they cannot take shows before a round."""
        if not self.experiment.evaluation.metrics:
            return
        clean = self.goal.clean
        scores_nK = self.bench.flat.scores(self.bench.flat.vector(), clean.x)
        for label, metric in self.experiment.evaluation.metrics.items():
            with errors_under(f"evaluation.metrics.{label}"):
                try:
                    metric.compute(scores_nK, clean.y, self.data.classes)
                except (RuntimeError, ValueError, TypeError, LookupError) as error:
                    raise ConfigError(f"does not fit this model and data: {error}") from None

    def initial_state(self) -> FederationState:
        """The state before the first round."""
        global_D = self.initial_D.clone()
        attack = self.experiment.attack
        defenses: dict[str, State] = {
            label: dict(defense.init()) for label, defense in self.experiment.defenses.items()
        }
        return FederationState(0, global_D, global_D.clone(), dict(attack.init()) if attack else {}, defenses)

    def twin(self) -> "Federation":
        """The attack-free twin from the first round: same clients, batches and noise, the malicious ones train honestly."""
        other = copy(self)
        other.experiment = self.experiment.model_copy(update={"attack": None, "stop": None})
        other.observers = []
        other.paired = None
        other.state = other.initial_state()
        return other

    def run(self) -> FederationState:
        """All remaining rounds, then the final state."""
        for observer in self.observers:
            observer.start(self)
        while self.state.round < self.experiment.planned_rounds and not self.state.over:
            report = self.round()
            for observer in self.observers:
                observer.round(self, report)
        return self.state

    def round(self) -> RoundReport:
        """One communication round."""
        clock = _Clock()
        sent = self.submitted(clock)
        before_D = self.state.global_D
        with clock("defend"):
            left = self.defend(sent)
        with clock("aggregate"):
            result = self.aggregate(sent, left)
            self.step(result)
        metrics = sent.metrics | left.metrics | result.metrics
        if sent.attacked:
            metrics |= stealth(sent.updates_CD, sent.poisoned_C)
        if self.due(self.state.round):
            with clock("evaluate"):
                metrics |= self.evaluate()
                metrics |= accuracy_gap(self.bench.flat, before_D, sent.updates_CD, sent.poisoned_C, self.goal.clean)
        if self.paired:
            with clock("twin"):
                metrics |= self._impact(metrics, self.paired.round().metrics)
            if self.experiment.evaluation.effect:
                with clock("effect"):
                    metrics |= self._effect(sent)
        if not self.state.stopped and self.experiment.stop:
            self.state.reached = self.experiment.stop.reason([*self.state.history, metrics])
        if (self.state.round + 1 == self.experiment.planned_rounds or self.state.reached) and not self.state.stopped:
            metrics |= self.finish()
        return self._report(sent.cohort, metrics | clock.metrics(), sent.attacked)

    # The steps of a round: each returns what it found out, and remembers in `state` what the next round needs

    def submitted(self, clock: "_Clock | None" = None) -> Submitted:
        """Train the clients of the next round and poison what the malicious ones send.

        The model stays where it is, unless a defense changes what is broadcast; only the attack and defenses at the clients
        remember that they have seen the round.
        """
        clock = clock or _Clock()
        self.broadcast()
        with clock("train"):
            trained = self.protect(self.train(self.cohort()))
        with clock("poison"):
            return self.poison(trained)

    def broadcast(self) -> None:
        """What defenses make of the model before it is sent: updates are measured from it, the server's step starts from it."""
        for label, defense in self._overriding("broadcast").items():
            context, memory = self.context(self.state.global_D.new_ones(0)), self.state.defenses[label]
            self.state.global_D, memory = defense.broadcast(self.state.global_D, context, memory)
            self.state.defenses[label] = dict(memory)

    def _overriding(self, hook: str) -> dict[str, Defense]:
        """The defenses that do something at a hook."""
        defenses = self.experiment.defenses.items()
        return {label: one for label, one in defenses if getattr(type(one), hook) is not getattr(Defense, hook)}

    def cohort(self) -> Cohort:
        """Who takes part in the next round; nobody attacks in the rounds of `evaluation.after`."""
        experiment, round = self.experiment, self.state.round
        participation = experiment.participation
        if experiment.rounds <= round < experiment.planned_rounds:
            participation = replace(participation, schedule=Never())
        return participation.sample(round, len(self.assignment), self.bench.seed)

    def jobs(self, cohort: Cohort) -> list[Job]:
        """What each participant trains on."""
        train = self.data.train
        return [Job(client, train, self.assignment[client].to(train.y.device)) for client in cohort.clients.tolist()]

    def train(self, cohort: Cohort) -> Trained:
        """Every participant trains honestly."""
        experiment, reports, jobs = self.experiment, self.bench.trainer.reports, self.jobs(cohort)
        callbacks = experiment.client.callbacks
        reports.clear()
        self.bench.trainer.logged.clear()
        local = LocalRound(
            self.state.global_D,
            jobs,
            experiment.client,
            self.state.round,
            lambda: [config.build() for config in callbacks.values()],
            experiment.planned_rounds,
        )
        updates_CD = experiment.engine.train(self.bench, local)
        equal = experiment.server.weights == "equal"
        weights_C = torch.tensor([1 if equal else len(job.rows) for job in jobs], dtype=self.bench.trainer.dtype)
        metrics = _averaged(callbacks, reports)
        if experiment.client.loop == "module":
            metrics |= _logged(self.bench.trainer.logged, cohort.malicious.tolist())
        return Trained(cohort, jobs, updates_CD, weights_C.to(self.state.global_D), metrics)

    def protect(self, trained: Trained) -> Trained:
        """What clients do to their own updates before anybody sees them, such as local differential privacy."""
        updates_CD, weights_C, metrics = trained.updates_CD, trained.weights_C, dict(trained.metrics)
        for label, defense in self.experiment.defenses.items():
            if not defense.at_clients:
                continue
            acting_C = ~trained.cohort.malicious.to(updates_CD.device) | defense.malicious_too
            context = self.context(weights_C[acting_C], trained.cohort.clients[acting_C.cpu()])
            verdict = defense.apply(updates_CD[acting_C], context, self.state.defenses[label])
            updates_CD = updates_CD.clone()
            updates_CD[acting_C] = applied(verdict, updates_CD[acting_C], context.layout)
            self.state.defenses[label] = dict(verdict.state)
            metrics |= {f"defense/{label}/{name}": value for name, value in verdict.metrics.items()}
        return trained._replace(updates_CD=updates_CD, metrics=metrics)

    def poison(self, trained: Trained) -> Submitted:
        """The malicious clients replace their updates, if this is a round in which they attack."""
        attack, cohort = self.experiment.attack, trained.cohort
        malicious_C = cohort.malicious.to(trained.updates_CD.device)
        if attack is None or not cohort.adversarial or not bool(malicious_C.any()):
            return Submitted(*trained[:4], torch.zeros_like(malicious_C), dict(trained.metrics))
        # Copied before the attack is asked: whatever it writes to, the server's rows are others.
        submitted_CD = trained.updates_CD.clone()
        poisoned = attack.poison(self.view(trained), self.state.attack)
        expected = (int(malicious_C.sum()), submitted_CD.shape[1])
        if poisoned.updates.shape != expected:
            raise ValueError(f"{attack.name} returned updates of shape {list(poisoned.updates.shape)}, not {expected}")
        self.state.attack = dict(poisoned.state)
        metrics = dict(trained.metrics) | {f"attack/{name}": value for name, value in poisoned.metrics.items()}
        updates_MD = poisoned.updates.to(submitted_CD)
        if torch.equal(updates_MD, submitted_CD[malicious_C]):
            say_once(f"the attack {attack.name} sends what honest clients would send (attack/idle)")
            metrics.setdefault("attack/idle", 1.0)
        submitted_CD[malicious_C] = updates_MD
        return Submitted(cohort, trained.jobs, submitted_CD, self._claimed(trained), malicious_C, metrics)

    def _claimed(self, trained: Trained) -> Tensor:
        """`[C]` the sample counts that clients tell the server, if it wants to know any."""
        attack, malicious_C = self.experiment.attack, trained.cohort.malicious.to(trained.weights_C.device)
        if attack is None or attack.inflate == 1 or self.experiment.server.weights == "equal":
            return trained.weights_C
        return torch.where(malicious_C, attack.inflate * trained.weights_C, trained.weights_C)

    def view(self, trained: Trained) -> View:
        """What the attackers of a round know.

        Raises:
            ConfigError: the experiment has no attack.
        """
        experiment, state, cohort = self.experiment, self.state, trained.cohort
        if (attack := experiment.attack) is None:
            raise ConfigError("without an attack nobody needs a view", "attack")
        known = [
            (job, bad)
            for job, bad in zip(trained.jobs, cohort.malicious.tolist(), strict=True)
            if bad or attack.knowledge == "full"
        ]
        services = Services(
            bench=self.bench,
            engine=experiment.engine,
            round=state.round,
            global_D=state.global_D.clone(),
            jobs=[job for job, _ in known],
            malicious=[bad for _, bad in known],
            ranks=self._ranks(cohort),
            objective=attack.objective,
            goal=self.goal,
            classes=self.data.classes,
            server=partial(self.replayed, cohort),
            past=self.past(),
            weights_C=self._claimed(trained),
            rounds=experiment.planned_rounds,
        )
        return View(
            knowledge=attack.knowledge,
            visible=attack.visible_updates,
            cohort=cohort,
            honest_CD=trained.updates_CD,
            weights_C=trained.weights_C,
            previous_D=state.previous_D,
            server_lr=experiment.server.lr,
            client=experiment.client,
            flat=self.shown_flat,
            aggregator=experiment.aggregator,
            defenses=experiment.defenses,
            services=services,
        )

    def _ranks(self, cohort: Cohort) -> list[int]:
        """The place of each malicious participant among all malicious clients of the population."""
        own: list[int] = cohort.clients[cohort.malicious].tolist()
        drawn = self.experiment.participation.malicious_clients(len(self.assignment), self.bench.seed).tolist()
        everybody = sorted({*drawn, *own})
        return [everybody.index(client) for client in own]

    def defend(self, sent: Submitted) -> Defended:
        """Finite rows through every defense of the server in order."""
        metrics: Metrics = {}
        finite_C = finite_rows(sent.updates_CD)
        if not bool(finite_C.all()):
            metrics["server/non_finite"] = float((~finite_C).sum())
        context, defenses = self.context(sent.weights_C, sent.cohort.clients), self.experiment.defenses
        policy = self.experiment.server.all_flagged
        left = defended(defenses, sent.updates_CD, finite_C, context, self.state.defenses, policy)
        self.state.defenses = {label: dict(memory) for label, memory in left.states.items()}
        for judged in left.judged:
            metrics |= _judged(judged, sent.poisoned_C)
            if judged.idle:
                say_once(
                    f"the defense {judged.label} flagged all updates of a round, and all stay (defense/{judged.label}/idle)"
                )
        if any(not defense.at_clients for defense in defenses.values()):
            metrics |= detection(left.keep_C, sent.poisoned_C, None, "defense")
        return Defended(left.geometry, left.weights_R, left.keep_C, metrics)

    def coins(self, purpose: str) -> torch.Generator:
        """The server's fresh random numbers for a purpose in the next round."""
        return generator(self.bench.seed, f"defense {purpose}", self.state.round)

    def context(self, weights_C: Tensor, clients_C: Tensor | None = None) -> ServerContext:
        """What the server knows when it looks at the updates of the next round.

        Args:
            weights_C: `[C]` of the rows.
            clients_C: `[C]` who sent them; None: 0 to C - 1.
        """
        round, flat, experiment = self.state.round, self.bench.flat, self.experiment
        population, global_D = len(self.assignment), self.state.global_D

        def train(samples: Samples, purpose: str, steps: int | None = None) -> Tensor:
            # Batches are keyed by client: no client has this number, and every purpose another
            number = population + key_of(0, purpose) % 2**31
            job = Job(number, samples, torch.arange(len(samples), device=samples.y.device))
            client = experiment.client if steps is None else replace(experiment.client, steps=steps)
            client = merging_lone(client, flat.network, [samples])
            return experiment.engine.train(
                self.bench, LocalRound(global_D, [job], client, round, rounds=experiment.planned_rounds)
            )[0]

        validation = self.data.validation

        @cache
        def trusted() -> Tensor:
            assert validation is not None
            root = torch.randperm(len(validation), generator=generator(self.bench.seed, "root samples"))[:ROOT_SAMPLES]
            return train(validation[root.to(validation.y.device)], "trusted")

        known = trusted if validation is not None else None
        return ServerContext(
            round=round,
            global_D=global_D,
            previous_D=self.state.previous_D,
            aggregator=experiment.aggregator,
            weights_C=weights_C,
            validation=validation,
            predict=flat.scores,
            losses=flat.losses,
            gradient=flat.gradient,
            generator=self.coins,
            sample_rate=experiment.participation.per_round(population) / population,
            clients_C=clients_C,
            population=population,
            layout=flat.layout,
            train=train,
            features=flat.features,
            rounds=experiment.planned_rounds,
            server_lr=experiment.server.lr if experiment.server.optimizer == "sgd" else None,
            past=Past(self.state.past.get("reference_D"), self.coins, flat.layout, known),
        )

    def past(self) -> Past:
        """What the rule may know beside the rows of the next round."""
        past = self.context(self.state.global_D.new_ones(0)).past
        assert past is not None
        return past

    def aggregate(self, sent: Submitted, left: Defended) -> Aggregated:
        """The rule over what the defenses have left; the round is skipped where nothing, or too little for the rule, is left."""
        nobody_C = torch.zeros_like(left.keep_C)
        if not len(left.geometry) or not bool(left.weights_R.any()):
            lost = left.metrics.get("server/non_finite") == len(left.keep_C)
            reason = f"diverged: every update of round {self.state.round} holds NaN or Inf" if lost else None
            return Aggregated(None, nobody_C, {"server/skipped": 1.0}, reason, "nothing is left to aggregate")
        past = self.past()
        try:
            rule = self.experiment.aggregator.dropping(~left.keep_C)
            rule.check(len(left.geometry))
        except ValueError as error:
            return Aggregated(None, nobody_C, {"server/skipped": 1.0, "server/too_few": 1.0}, None, str(error))
        try:
            aggregate = rule.on(left.geometry, left.weights_R, past=past)
        except RoundRefusedError as error:
            return Aggregated(None, nobody_C, {"server/skipped": 1.0, "server/refused": 1.0}, None, str(error))
        poisoned_R = sent.poisoned_C[left.keep_C]
        figures = rule.figures(left.geometry, left.weights_R, past, poisoned_R)
        metrics = {f"aggregator/{name}": value for name, value in figures.items()}
        if sent.attacked:
            influence_R = rule.influence_on(left.geometry, left.weights_R, aggregate, past=past)
            metrics["attack/selected"] = float(influence_R[poisoned_R].sum())
        kept_C = left.keep_C.clone()
        kept_C[left.keep_C] = aggregate.kept
        return Aggregated(aggregate.update, kept_C, metrics)

    def replayed(
        self,
        cohort: Cohort,
        updates_CD: Tensor,
        weights_C: Tensor,
        rule: Aggregator | None,
        coins: Callable[[str], torch.Generator],
    ) -> Aggregate:
        """What the server would make of a round, on copies: nothing that is remembered moves.

        Args:
            cohort: who takes part.
            updates_CD: `[C, D]` what the clients would send; not modified.
            weights_C: `[C]` the sample counts that they would tell.
            rule: the rule alone, without defenses; None: the server as it is.
            coins: random numbers for a purpose, in place of the server's own, which nobody can foresee.

        Returns:
            The aggregate; an update of 0 and no row kept where the round would be skipped.
        """
        server = copy(self)
        server.coins = coins  # type: ignore[assignment,method-assign]
        server.state = replace(self.state, defenses=deepcopy(self.state.defenses))
        if rule is not None:
            # pydantic's own copy, which does not validate: the rule is told of these rows, not of those of a round
            server.experiment = BaseModel.model_copy(self.experiment, update={"aggregator": rule, "defenses": {}})
            server.data = replace(self.data, validation=None)
            cohort = Cohort(torch.arange(len(updates_CD)), torch.zeros(len(updates_CD), dtype=torch.bool), False)
        unknown_C = torch.zeros(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        sent = Submitted(cohort, [], updates_CD, weights_C, unknown_C, {})
        result = server.aggregate(sent, server.defend(sent))
        update_D = torch.zeros_like(updates_CD[0]) if result.update_D is None else result.update_D
        return Aggregate(update_D, result.kept_C)

    def step(self, result: Aggregated) -> None:
        """Move the global model by the aggregate; it stays where it is when there is none."""
        state, server = self.state, self.experiment.server
        state.previous_D = state.global_D
        state.stopped = result.stopped or state.stopped
        if result.update_D is None:
            say_once(f"a round is skipped: {result.skipped}")
            return
        state.past = {"reference_D": result.update_D}
        candidate_D = state.global_D + server.lr * server.direction(result.update_D, state.server)
        for label, defense in self._overriding("after_step").items():
            context = self.context(state.global_D.new_ones(0))
            candidate_D, memory = defense.after_step(candidate_D, context, state.defenses[label])
            state.defenses[label] = dict(memory)
        if not bool(torch.isfinite(candidate_D).all()):
            state.stopped = f"diverged: the global model of round {state.round} would hold NaN or Inf"
            return
        state.global_D = candidate_D

    def due(self, round: int) -> bool:
        """Whether the model is evaluated after a round."""
        return (round + 1) % self.experiment.evaluation.every == 0 or round + 1 == self.experiment.planned_rounds

    def evaluate(self) -> Metrics:
        """Figures of the current global model."""
        attacked = self.experiment.attack is not None
        owners: Sequence[str] = ()
        chosen: Mapping[str, Metric] = self.experiment.evaluation.metrics
        if self.experiment.partition.test_by_owner:
            owners = self.data.owner_names
        return evaluate(
            self.bench.flat, self.state.global_D, self.goal_now(), self.data.classes, attacked, owners, chosen
        )

    def goal_now(self) -> Goal:
        """What counts as success now: attacks that learn their trigger move it."""
        attack = self.experiment.attack
        return self.goal._replace(success=attack.success(self.goal, self.state.attack)) if attack else self.goal

    def finish(self) -> Metrics:
        """What defenses make of the model after the last round, and its figures as `final/`; nothing where none does anything."""
        repairing = self._overriding("finish")
        for label, defense in repairing.items():
            context = self.context(self.state.global_D.new_ones(0))
            self.state.global_D = defense.finish(self.state.global_D, context, self.state.defenses[label])
        figures = self.evaluate() if repairing else {}
        return {f"final/{name.replace('global/', '').replace('/', '_')}": value for name, value in figures.items()}

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

    def _effect(self, sent: Submitted) -> Metrics:
        """The predicted effect of past attacks on the parameters, and the curvature along the exact one.

        The prediction starts from the exact effect after an adversarial round and lives on by itself until the next.
        """
        state, experiment, flat = self.state, self.experiment, self.bench.flat
        jobs, poisoned_C = sent.jobs, sent.poisoned_C
        exact_D = self._deviation()
        if not bool(exact_D.any()):
            return {}
        figures: Metrics = {}
        plans = [self.bench.plan(job, experiment.client, state.round) for job in jobs]
        before_D = state.effect.get("predicted")
        if sent.attacked or before_D is None:
            state.effect = {"predicted": exact_D}
        else:
            carried_CD = torch.stack(
                [
                    carried_through(
                        flat,
                        state.previous_D,
                        before_D,
                        [job.samples[step] for step in plan],
                        experiment.client.optimizer_at(state.round, experiment.planned_rounds).lr,
                    )
                    for job, plan in zip(jobs, plans, strict=True)
                ]
            )
            predicted_D = predicted_effect(before_D, carried_CD, sent.weights_C, experiment.server.lr)
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
            state.stopped, state.reached = f"diverged: global/loss of round {state.round} is {loss}", None
        if self.experiment.attack:
            metrics["attack/active"] = float(attacked)
            if cohort.adversarial and not attacked:
                metrics["attack/idle"] = 1.0
            if state.over or state.round + 1 == self.experiment.planned_rounds:
                history = [*state.history, metrics]
                metrics |= persistence(history) | persistence(history, "benign_error")
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


@cache
def say_once(what: str) -> None:
    """A warning of the project's logger, once in a process."""
    logging.getLogger("fl_lightning").warning("%s", what)


def refuse_absent_attackers(experiment: Experiment) -> None:
    """An attack that nobody carries out is a mistake, unless it is said that nobody is to attack.

    Raises:
        ConfigError: there is an attack, and no malicious client.
    """
    participation = experiment.participation
    if experiment.attack and not participation.malicious and not isinstance(participation.schedule, Never):
        raise ConfigError(
            f"nobody carries out {experiment.attack.name}: participation.malicious is 0; set it, set attack=null, or, where a "
            "control without attackers is meant, participation.schedule=never",
            "attack",
        )


def _check_stop(experiment: Experiment) -> None:
    """Refuse to wait for a figure that no round reports."""
    if experiment.stop is None:
        return
    metric = experiment.stop.metric
    label = metric.removeprefix("global/")
    unknown = metric.startswith("global/") and metric not in GLOSSARY and label not in experiment.evaluation.metrics
    if unknown or meaning(metric) is None:
        raise ConfigError(f"no run reports {metric!r}; {suggest(metric, GLOSSARY)}", "stop.metric")


def attack_cautions(experiment: Experiment) -> list[str]:
    """What about an experiment makes its attack do nothing, in sentences."""
    attack, participation, seed = experiment.attack, experiment.participation, experiment.seed
    if attack is None:
        return []
    cautions = attack.cautions(experiment)
    if not any(participation.schedule.adversarial(round, seed) for round in range(experiment.rounds)):
        cautions.append(f"attack {attack.name}: its schedule attacks in none of {experiment.rounds} rounds")
    if attack.inflate > 1 and experiment.server.weights == "equal":
        cautions.append("attack.inflate does nothing where server.weights is equal: nobody is asked for sample counts")
    return cautions


def _without(assignment: Sequence[Tensor], withheld: Tensor | None) -> list[Tensor]:
    """Each client's rows of the training split, without those that no client may train on."""
    if withheld is None:
        return list(assignment)
    return [index[~torch.isin(index, withheld.to(index))] for index in assignment]


def _averaged(labels: Iterable[str], reports: Iterable[Iterable[Mapping[str, float]]]) -> Metrics:
    """What the callbacks of each fit report, averaged over the fits."""
    told: dict[str, list[float]] = {}
    for report in reports:
        for label, figures in zip(labels, report, strict=True):
            for name, value in figures.items():
                told.setdefault(f"client/{label}/{name}", []).append(value)
    return {name: sum(values) / len(values) for name, values in told.items()}


def _judged(judged: Judged, poisoned_C: Tensor) -> Metrics:
    """How well a defense detects by whom it removed and, where it tells, by whom it flagged, and its own figures."""
    prefix, verdict, poisoned_n = f"defense/{judged.label}", judged.verdict, poisoned_C[judged.rows]
    metrics = detection(verdict.keep_C, poisoned_n, verdict.scores_C, prefix)
    if verdict.flagged_C is not None:
        rates = detection(~judged.flagged_n, poisoned_n, None, prefix)
        metrics |= {f"{prefix}/flagged_{name.rpartition('/')[2]}": value for name, value in rates.items()}
    return metrics | {f"{prefix}/{name}": value for name, value in judged.metrics.items()}


def _logged(fits: Sequence[Mapping[str, float]], malicious: Sequence[bool]) -> Metrics:
    """What modules have logged, averaged over the benign clients that did; attackers' honest training apart."""
    told: dict[str, list[float]] = {}
    for figures, bad in zip(fits, malicious, strict=False):  # an engine on other machines keeps what they log to itself
        for name, value in figures.items():
            told.setdefault(f"client/attackers/{name}" if bad else f"client/{name}", []).append(value)
    return {name: sum(values) / len(values) for name, values in told.items()}


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
