"""Our rules, defenses and attacks in a federation of Flower's: the server as a Strategy, the attackers as a mod of their clients.

Both are made from one experiment of ours, which names the same model and data as the Flower app:

    strategy = FlowerStrategy("tickets.yaml")           # in the ServerApp: strategy.start(grid, strategy.initial_arrays(), 10)
    app = ClientApp(mods=[AttackMod("tickets.yaml")])   # honest clients are left alone

References:
    Beutel, Topal, Mathur, et al., "Flower: A Friendly Federated Learning Research Framework", 2020.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fl_lightning.config import Experiment, load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, Submitted, Trained
from fl_lightning.models import FlatNetwork, UserModule
from fl_lightning.participation import Cohort, Full

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
except ImportError as error:
    raise ConfigError("this needs Flower: pip install 'fl-lightning[flower]'") from error

__all__ = ["AttackMod", "FlowerStrategy", "arrays_of", "vector_of"]

MARK = "fl-lightning-poisoned"
"""Record of a reply that an attacker made: for measuring who was caught, never for catching."""


def arrays_of(flat: FlatNetwork, theta_D: Tensor) -> ArrayRecord:
    """A model as Flower sends it: the tensors that are federated, by the names of the network's own `state_dict`."""
    parts = {_bare(flat, name): part.detach().cpu().clone() for name, part in flat.split(theta_D).items()}
    return ArrayRecord(parts)


def vector_of(flat: FlatNetwork, arrays: ArrayRecord) -> Tensor:
    """`[D]` what `arrays_of` made of a model; tensors that are not federated are passed over.

    Raises:
        ConfigError: a tensor is missing.
    """
    given = arrays.to_torch_state_dict()
    names = [_bare(flat, name) for name in flat.names]
    if missing := [name for name in names if name not in given]:
        raise ConfigError(f"the Flower app sends no {missing[0]}: the experiment must name the same model", "model")
    return torch.cat([given[name].flatten() for name in names]).to(flat.vector())


def _bare(flat: FlatNetwork, name: str) -> str:
    return name.removeprefix("module.") if isinstance(flat.network, UserModule) else name


def _loaded(experiment: Experiment | str | Path | Mapping[str, Any]) -> Experiment:
    made = experiment if isinstance(experiment, Experiment) else load(experiment)
    if not isinstance(made.participation, Full):
        raise ConfigError(
            "Flower chooses who takes part: set full, and fraction_train of the strategy", "participation"
        )
    return made


class FlowerStrategy(FedAvg):  # type: ignore[misc]  # Any where Flower is not installed
    """The server of an experiment, with its rule, defenses and optimizer, as a Strategy of Flower.

    Clients reply as to Flower's FedAvg: the trained model under `arrays`, and `num-examples` among the metrics.

    Args:
        experiment: ours: an `Experiment`, or what `load` takes; `rounds` is how many Flower will run.
        options: those of Flower's FedAvg, such as `fraction_train`.
    """

    def __init__(self, experiment: Experiment | str | Path | Mapping[str, Any], **options: Any):
        super().__init__(**options)
        self.federation = Federation(_loaded(experiment))
        self.clients: dict[int, int] = {}
        """Flower's node -> the number by which our defenses remember it."""

    def initial_arrays(self) -> ArrayRecord:
        """The experiment's initial model."""
        return arrays_of(self.federation.bench.flat, self.federation.initial_D)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What Flower's FedAvg sends, after defenses have had a look at the model."""
        state, flat = self.federation.state, self.federation.bench.flat
        state.round = server_round - 1
        if server_round == 1:
            state.global_D = state.previous_D = vector_of(flat, arrays)
        self.federation.broadcast()
        config["fl-lightning-clients"] = len(self.federation.assignment)
        messages: Iterable[Message] = super().configure_train(
            server_round, arrays_of(flat, state.global_D), config, grid
        )
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Defenses, rule and server step of ours; their figures beside the clients' own."""
        # Private: what Flower's own strategies call, and the only check that replies are whole and agree with each other
        valid, _ = self._check_and_log_replies(list(replies), is_train=True)
        if not valid:
            return None, None
        federation = self.federation
        sent = self._submitted(valid)
        left = federation.defend(sent)
        result = federation.aggregate(sent, left)
        federation.step(result)
        figures = {**left.metrics, **result.metrics}
        if server_round == federation.experiment.planned_rounds:
            figures |= federation.finish()
        theirs = self.train_metrics_aggr_fn([message.content for message in valid], self.weighted_by_key)
        metrics = MetricRecord({**dict(theirs), **{name: float(value) for name, value in figures.items()}})
        return arrays_of(federation.bench.flat, federation.state.global_D), metrics

    def _submitted(self, replies: list[Message]) -> Submitted:
        federation = self.federation
        flat, global_D = federation.bench.flat, federation.state.global_D
        numbers = [self.clients.setdefault(reply.metadata.src_node_id, len(self.clients)) for reply in replies]
        order = sorted(range(len(replies)), key=numbers.__getitem__)
        replies = [replies[place] for place in order]
        measured = [next(iter(reply.content.metric_records.values())) for reply in replies]
        rows = [vector_of(flat, reply.content.array_records[self.arrayrecord_key]) - global_D for reply in replies]
        equal = federation.experiment.server.weights == "equal"
        weights = [1.0 if equal else float(metrics[self.weighted_by_key]) for metrics in measured]
        poisoned_C = torch.tensor([MARK in reply.content for reply in replies])
        cohort = Cohort(torch.tensor([numbers[place] for place in order]), poisoned_C, bool(poisoned_C.any()))
        return Submitted(
            cohort, [], torch.stack(rows), torch.tensor(weights).to(global_D), poisoned_C.to(global_D.device), {}
        )

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Figures of ours for a global model, `global/accuracy`, `attack/success`, ...: an `evaluate_fn` for `start`."""
        federation = self.federation
        kept = federation.state.global_D
        federation.state.global_D = vector_of(federation.bench.flat, arrays)
        try:
            return MetricRecord({name: float(value) for name, value in federation.evaluate().items()})
        finally:
            federation.state.global_D = kept


class AttackMod:
    """The attackers of an experiment as a mod of Flower's clients: what malicious ones have trained is replaced when it is sent.

    The experiment's seed says which partitions (`partition-id`) are malicious. An attacker who knows or colludes with others
    needs their updates, which no client of Flower sees: they are trained here, from the experiment, as our engines do; they are
    the ones of the Flower app where its clients train like `client` of the experiment. What an attack remembers lies in
    Flower's context.

    Args:
        experiment: ours, with an attack; its data and partition are those of the Flower app.
    """

    def __init__(self, experiment: Experiment | str | Path | Mapping[str, Any]):
        self.experiment = _loaded(experiment)
        if self.experiment.attack is None:
            raise ConfigError("the mod has nothing to do: set an attack", "attack")
        self._federation: Federation | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what every process builds for itself."""
        return {"experiment": self.experiment.to_dict()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.experiment, self._federation = load(state["experiment"]), None

    @property
    def federation(self) -> Federation:
        """The experiment's federation, built once in a process."""
        if self._federation is None:
            self._federation = Federation(
                self.experiment.model_copy(update={"evaluation": type(self.experiment.evaluation)()})
            )
        return self._federation

    def __call__(self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        """The client's reply, poisoned where it is malicious and this is a round in which it attacks."""
        reply = call_next(message, context)
        client = int(context.node_config["partition-id"])
        if not message.metadata.message_type.startswith("train") or reply.has_error() or not self._malicious(client):
            return reply
        federation = self.federation
        flat, state = federation.bench.flat, federation.initial_state()
        key, sent_arrays = next(iter(message.content.array_records.items()))
        config = next(iter(message.content.config_records.values()))
        state.round, state.global_D = int(config["server-round"]) - 1, vector_of(flat, sent_arrays)
        state.previous_D, state.attack = _remembered(context, state.global_D, state.attack)
        federation.state = state
        cohort = federation.cohort()
        row = cohort.clients.tolist().index(client)
        if not cohort.adversarial or not bool(cohort.malicious[row]):
            return reply
        trained = self._trained(cohort)
        trained.updates_CD[row] = vector_of(flat, reply.content.array_records[key]) - state.global_D
        poisoned = federation.poison(trained)
        _remember(context, state.global_D, federation.state.attack)
        reply.content[key] = arrays_of(flat, state.global_D + poisoned.updates_CD[row])
        reply.content[MARK] = ConfigRecord({"poisoned": True})
        return reply

    def _malicious(self, client: int) -> bool:
        federation = self.federation
        return client in federation.experiment.participation.malicious_clients(
            len(federation.assignment), federation.bench.seed
        )

    def _trained(self, cohort: Cohort) -> Trained:
        """Honest updates of those whose the attackers know; nobody is shown the others', which are 0."""
        federation = self.federation
        attack, jobs = federation.experiment.attack, federation.jobs(cohort)
        assert attack is not None
        everybody = attack.knowledge != "none"
        known_C = torch.ones_like(cohort.malicious) if everybody else cohort.malicious
        global_D = federation.state.global_D
        updates_CD = global_D.new_zeros(len(jobs), len(global_D))
        if int(known_C.sum()) > 1:  # a lone attacker's own update is the client's reply
            part = Cohort(cohort.clients[known_C], cohort.malicious[known_C], cohort.adversarial)
            updates_CD[known_C.to(global_D.device)] = federation.train(part).updates_CD
        equal = federation.experiment.server.weights == "equal"
        weights_C = global_D.new_tensor([1.0 if equal else float(len(job.rows)) for job in jobs])
        return Trained(cohort, jobs, updates_CD, weights_C)


MEMORY = "fl-lightning"


def _remember(context: Context, global_D: Tensor, attack: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save({"previous_D": global_D, "attack": dict(attack)}, buffer)
    context.state[MEMORY] = ConfigRecord({"state": buffer.getvalue()})


def _remembered(context: Context, global_D: Tensor, fresh: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The model broadcast before, and the attack's memory."""
    if MEMORY not in context.state:
        return global_D, dict(fresh)
    kept = torch.load(io.BytesIO(context.state[MEMORY]["state"]), weights_only=True)
    return kept["previous_D"], kept["attack"]
