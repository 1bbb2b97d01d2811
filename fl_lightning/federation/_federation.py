"""A federation: communication rounds with an attack and defenses between the clients and the server."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from fl_lightning.aggregators import Aggregate, Aggregator, Past, RoundRefusedError, finite_rows
from fl_lightning.attacks import Goal, Untargeted, View
from fl_lightning.clients import check_last_batches
from fl_lightning.config import Experiment
from fl_lightning.data import Dataset
from fl_lightning.defenses import Defense, ServerContext, State, applied, defended
from fl_lightning.engines import Bench, Job, LocalRound, SharedTrainer
from fl_lightning.errors import errors_under
from fl_lightning.federation._attackers import claimed_weights, view_of
from fl_lightning.federation._checks import check_server, check_stop, say_once
from fl_lightning.federation._context import server_context
from fl_lightning.federation._effect import effect, impact
from fl_lightning.federation._figures import Clock, averaged, judged_figures, logged
from fl_lightning.federation._setup import built_network, dealt_rows
from fl_lightning.federation._state import (
    Aggregated,
    Defended,
    FederationState,
    Metrics,
    Observer,
    RoundReport,
    Submitted,
    Trained,
    on_device,
)
from fl_lightning.federation._worst import server_seconds, worst_case
from fl_lightning.metrics import Metric, accuracy_gap, detection, evaluate, layer_distributions, persistence, stealth
from fl_lightning.participation import Cohort, Never
from fl_lightning.randomness import generator


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
        check_stop(experiment)
        self.observers = list(observers)
        seed = experiment.seed
        with errors_under("engine"):
            experiment.engine.check()
        trainer = SharedTrainer(experiment.trainer)
        data = experiment.data.synthetic() if experiment.fast else experiment.data.load()
        flat = built_network(experiment, data, trainer)
        self.bench = Bench(flat, trainer, seed)
        # Attackers get a network of their own: engines leave the clients' models and gradients in the shared one.
        self.shown_flat = flat.like(deepcopy(flat.network))
        self.data: Dataset = data.to(trainer.device, trainer.dtype)
        objective = experiment.attack.objective if experiment.attack else Untargeted()
        with errors_under("attack.objective"):
            self.goal: Goal = objective.goal(self.data, generator(seed, "objective"))
        self.assignment = dealt_rows(experiment, data, self.goal.withheld)
        if len(self.assignment) != experiment.partition.clients:  # all owners, known only now
            experiment = self.experiment = experiment.model_copy()
            experiment.check_clients(len(self.assignment))
        with errors_under("client.last_batch"):
            check_last_batches(flat.network, self.data.train, list(map(len, self.assignment)), experiment.client)
        if experiment.attack:
            with errors_under("attack"):
                experiment.attack.check(self.data, flat.loss)
                experiment.attack.check_model(flat)
        check_server(self)
        self.initial_D = flat.vector()
        self.state = self.initial_state()
        self.paired: Federation | None = self.twin() if experiment.attack and experiment.evaluation.twin else None

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
        clock = Clock()
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
            if self.experiment.evaluation.layers:
                metrics |= layer_distributions(sent.updates_CD, sent.poisoned_C, self.bench.flat.layout)
        if self.due(self.state.round):
            with clock("evaluate"):
                metrics |= self.evaluate()
                metrics |= accuracy_gap(self.bench.flat, before_D, sent.updates_CD, sent.poisoned_C, self.goal.clean)
        if self.paired:
            with clock("twin"):
                metrics |= impact(self, metrics, self.paired.round().metrics)
            if self.experiment.evaluation.effect:
                with clock("effect"):
                    metrics |= effect(self, sent)
        if not self.state.stopped and self.experiment.stop:
            self.state.reached = self.experiment.stop.reason([*self.state.history, metrics])
        if (self.state.round + 1 == self.experiment.planned_rounds or self.state.reached) and not self.state.stopped:
            metrics |= self.finish()
            if self.experiment.evaluation.worst:
                metrics |= worst_case(self.experiment, lambda own: Federation(own).run())
                metrics |= server_seconds([*self.state.history, clock.metrics()])
        return self._report(sent.cohort, metrics | clock.metrics(), sent.attacked)

    # The steps of a round: each returns what it found out, and remembers in `state` what the next round needs

    def submitted(self, clock: "Clock | None" = None) -> Submitted:
        """Train the clients of the next round and poison what the malicious ones send.

        The model stays where it is, unless a defense changes what is broadcast; only the attack and defenses at the clients
        remember that they have seen the round.
        """
        clock = clock or Clock()
        self.broadcast()
        with clock("train"):
            trained = self.protect(self.train(self.cohort()))
        with clock("poison"):
            return self.poison(trained)

    def broadcast(self) -> None:
        """What defenses make of the model before it is sent: updates are measured from it, the server's step starts from it."""
        for label, defense in self._acting_at("broadcast").items():
            context, memory = self.context(self.state.global_D.new_ones(0)), self.state.defenses[label]
            self.state.global_D, memory = defense.broadcast(self.state.global_D, context, memory)
            self.state.defenses[label] = dict(memory)

    def _acting_at(self, hook: Literal["broadcast", "after_step", "finish"]) -> dict[str, Defense]:
        """The defenses that do something at a hook."""
        return {label: defense for label, defense in self.experiment.defenses.items() if defense.acts_at(hook)}

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
        metrics = averaged(callbacks, reports)
        if experiment.client.loop == "module":
            metrics |= logged(self.bench.trainer.logged, cohort.malicious.tolist())
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
        elif metrics.get("attack/idle"):
            say_once(f"the attack {attack.name} has nothing to change in a round (attack/idle)")
        submitted_CD[malicious_C] = updates_MD
        return Submitted(cohort, trained.jobs, submitted_CD, claimed_weights(self, trained), malicious_C, metrics)

    def view(self, trained: Trained) -> View:
        """What the attackers of a round know.

        Raises:
            ConfigError: the experiment has no attack.
        """
        return view_of(self, trained)

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
            metrics |= judged_figures(judged, sent.poisoned_C)
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
        return server_context(self, weights_C, clients_C)

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
        for label, defense in self._acting_at("after_step").items():
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
        repairing = self._acting_at("finish")
        for label, defense in repairing.items():
            context = self.context(self.state.global_D.new_ones(0))
            self.state.global_D = defense.finish(self.state.global_D, context, self.state.defenses[label])
        figures = self.evaluate() if repairing else {}
        return {f"final/{name.replace('global/', '').replace('/', '_')}": value for name, value in figures.items()}

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
        return {name: on_device(value, torch.device("cpu")) for name, value in saved.items()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        device = self.state.global_D.device
        moved = {name: on_device(value, device) for name, value in saved.items()}
        paired = moved.pop("paired", None)
        self.state = FederationState(**moved)
        if self.paired:
            self.paired.state = FederationState(**paired)
