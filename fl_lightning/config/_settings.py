"""Settings of an experiment that are no components: when it is evaluated, what is kept, what is searched."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fl_lightning.attacks import Choice, as_span
from fl_lightning.errors import ConfigError, errors_under, excerpt
from fl_lightning.parallel import Jobs
from fl_lightning.registry import Label, Settings, Slot, plain_fields

Direction = Literal["maximize", "minimize"]

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class WorstCase(Settings):
    """Which attacks a server is put to the test with, and how hard each tries.

    Attributes:
        attacks: label -> attack.
        draws: how often each attack runs: once as configured, then with values drawn anew, for this server, from the ranges of
            its tunable fields.
    """

    attacks: dict[Label, Annotated[Any, Slot("attack")]] = Field(min_length=1)
    draws: int = Field(default=3, ge=1)


class Evaluation(Settings):
    """When the global model is evaluated, and whether beside its attack-free twin.

    Attributes:
        every: rounds between evaluations; the last round is always evaluated.
        twin: run the same experiment without the attack in step and report the paired difference.
        after: rounds after the last one of `rounds` in which nobody attacks, to see how long an attack lasts.
        effect: beside the twin's exact difference of parameters report its first-order prediction, and how flat the loss is
            along it; costs a Hessian-vector product for every local step.
        layers: beside the whole updates compare how each layer's values are distributed, `stealth/distribution_layer0` and on.
        metrics: label -> a further figure of the global model, reported as `global/<label>`, such as
            `f1: {name: torchmetrics, metric: F1Score, args: {average: macro}}`.
        worst: of an experiment without an attack: what the strongest of some attacks, searched anew against its server, comes to
            after as many rounds; one run more for every attack and draw.
    """

    every: int = Field(default=1, ge=1)
    twin: bool = False
    after: int = Field(default=0, ge=0)
    effect: bool = False
    layers: bool = False
    metrics: dict[Label, Annotated[Any, Slot("metric")]] = Field(default_factory=dict)
    worst: WorstCase | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without `worst` where there is none, as configurations were before there was any."""
        return without_empty(self, "worst")


class Stop(Settings):
    """A figure that ends a run before its last round.

    Figures of the end of a run (`final/*`, whether a backdoor persists) are those of the round that it ended with.

    Attributes:
        metric: of a round, such as `attack/success`.
        above: the run ends where the figure is larger.
        below: the run ends where it is smaller; one of the two.
        rounds: evaluated rounds in a row in which it must be so.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    rounds: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> "Stop":
        if (self.above is None) == (self.below is None):
            raise ValueError(f"needs one of above and below, got above {self.above} and below {self.below}")
        return self

    def reason(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Why the last of some rounds is the last of all, or None.

        Example:
            >>> Stop(metric="attack/success", above=0.9).reason([{"attack/success": 0.5}, {"attack/success": 0.95}])
            'attack/success 0.95 > 0.9'
        """
        if not history or self.metric not in history[-1]:
            return None
        last = [figures[self.metric] for figures in history if self.metric in figures][-self.rounds :]
        sign, limit = (">", self.above) if self.below is None else ("<", self.below)
        within = [value > self.above if self.above is not None else value < (self.below or 0.0) for value in last]
        held = len(within) == self.rounds and all(within)
        return f"{self.metric} {last[-1]:.4g} {sign} {limit:g}" if held else None


class Tracking(Settings):
    """What MLflow keeps.

    Attributes:
        experiment: name of the MLflow experiment.
        register: whether a poisoned model goes into the registry: `never`, `best` (only when it is stronger than every
            registered version) or `always`. `auto`: like `best` for runs of their own on real data; cells of a matrix or of a
            paper's table, and `--fast` runs, are not registered.
        checkpoint_every: rounds between checkpoints.
        keep_rounds: rounds, from 0, whose global model is kept for the report on a registered model; at most 30, and those that
            a run does not reach are not kept.
        models: whether models and pictures are kept beside the figures; they take longer than a small run. `winners`: of every
            run, but of a search only those of its winner; `all`, or true: of every trial, too; false: of none.
        system: whether the load of processors, memory, disk and GPU is kept, too (needs psutil).
    """

    experiment: str = Field(default="fl_lightning", min_length=1, max_length=250)
    register: Literal["auto", "never", "best", "always"] = "auto"
    checkpoint_every: int = Field(default=1, ge=1)
    keep_rounds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), max_length=30)
    models: bool | Literal["winners", "all"] = "winners"
    system: bool = False

    @model_validator(mode="after")
    def _something_to_register(self) -> "Tracking":
        if not self.models and (self.register not in ("auto", "never") or self.keep_rounds):
            raise ValueError("without models there is nothing to register and no rounds to keep: set register to never")
        return self


NOT_SEARCHED = ("seed", "seeds", "evaluation", "tracking", "sweep", "paper", "fast", "engine")
"""Settings that no search varies."""


THREAT = ("knowledge", "visible_updates", "objective", "inflate")
"""What every attack has: the threat model, and what it is after."""

ALL_ATTACKS = ("all", {"choice": "all"})
"""How a space says that every attack that fits is searched."""


def without_empty(settings: Settings, *names: str) -> dict[str, Any]:
    """The fields as plain values; those of the names that are None, 0 or empty are left out."""
    return {key: value for key, value in plain_fields(settings).items() if value or key not in names}


class SweepSettings(Settings):
    """The search for the strongest attack, or for the best defense.

    Attributes:
        trials: number of finished trials, pruned ones included.
        minutes: no trial begins after so much time, counted over all processes that searched, in durations of finished trials
            divided by the workers; null: no limit.
        jobs: worker processes; `ray`: one task a processor of the Ray cluster.
        sampler: Optuna's sampler; `bandit`: the first parameter, a choice, as arms of a bandit, the others by TPE in each arm.
        metric: a metric of the run, its mean over the last third of the evaluated rounds; several for a Pareto front.
        direction: whether `metric` is to be large or small; one word for all metrics, or one for each.
        constraints: metric -> bound, such as `global/accuracy: ">= 0.85"`.
        space: dotted path -> range (`{low, high, log}`) or list of choices; the attack's own tunables where empty.
            `attack: {choice: all}`: all attacks that fit.
        threat: `knowledge`, `visible_updates`, `objective`, `inflate` of every attack that is tried, instead of its own. Where
            all attacks are searched and this is empty: those of the configured attack, or full knowledge and any error.
        pruner: stops hopeless trials early; not where there are several metrics. `auto`: `wilcoxon` where a trial runs several
            seeds, `halving` elsewhere.
        seeds: every trial runs with each of them, one after the other, and its figure is their mean; empty: with `seed` alone.
        against: a registered model whose attack takes the place of the configured one, such as
            `mnist-mlp-cmp-vs-krum@strongest`: what a defense is searched against.
        worst: a server is searched: every trial runs without an attack and with this as `evaluation.worst`, so that a server is
            judged by the strongest attack on itself (`worst/success`, `worst/accuracy`), and by what it costs (`global/accuracy`,
            `server/seconds`).
        warm_start: after what is configured, the winners of so many earlier studies of the same attack, rule, model and data
            are tried, the newest first; 0: a study that does not depend on what was searched before.
        confirm_seeds: seeds on which the winner is run again; the search never sees them.
        runners_up: how many of the next best choices of the first parameter are run on them, too.
    """

    trials: int = Field(default=20, ge=1, le=1_000_000)
    minutes: float | None = Field(default=None, gt=0, le=1e6, allow_inf_nan=False)
    jobs: Jobs = 1
    sampler: Literal["tpe", "random", "gp", "cmaes", "nsga2", "bandit"] = "tpe"
    metric: str | tuple[str, ...] = "attack/success"
    direction: Direction | tuple[Direction, ...] = "maximize"
    constraints: dict[str, str] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)
    threat: dict[str, Any] = Field(default_factory=dict)
    pruner: Literal["auto", "halving", "median", "hyperband", "wilcoxon", "none"] = "auto"
    seeds: tuple[Seed, ...] = ()
    against: str | None = None
    worst: WorstCase | None = None
    warm_start: int = Field(default=1, ge=0)
    confirm_seeds: tuple[Seed, ...] = Field(default=(1001, 1002, 1003), min_length=1)
    runners_up: int = Field(default=0, ge=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without settings that are not used and that earlier searches did not have."""
        return without_empty(self, "worst", "minutes", "threat", "runners_up")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics searched for, one or several."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def directions(self) -> tuple[Direction, ...]:
        """One direction a metric."""
        return (self.direction,) * len(self.metrics) if isinstance(self.direction, str) else self.direction

    @property
    def chosen_pruner(self) -> str:
        """The pruner, `auto` resolved."""
        if self.pruner != "auto":
            return self.pruner
        return "wilcoxon" if self.seeds else "halving"

    @model_validator(mode="after")
    def _fits(self) -> "SweepSettings":
        if not self.metrics or len(self.directions) != len(self.metrics):
            raise ValueError(f"needs one direction for each metric, got {self.directions} for {self.metrics}")
        if len(self.metrics) > 1 and self.sampler == "cmaes":
            raise ValueError("the sampler cmaes knows one metric only; use tpe, gp, nsga2 or random")
        if self.chosen_pruner != "none" and (self.chosen_pruner == "wilcoxon") != bool(self.seeds):
            raise ValueError(
                f"wilcoxon compares the seeds of a trial, all others its rounds; got pruner {self.pruner} "
                f"and seeds {list(self.seeds)}"
            )
        both = sorted(set(self.seeds) & set(self.confirm_seeds))
        if both or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ from each other and from confirm_seeds, got {list(self.seeds)}")
        if len(set(self.confirm_seeds)) < len(self.confirm_seeds):
            raise ValueError(f"confirm_seeds must differ from each other, got {list(self.confirm_seeds)}")
        return self

    @field_validator("space")
    @classmethod
    def _ranges(cls, value: dict[str, Any]) -> dict[str, Any]:
        for path, given in value.items():
            with errors_under(path):
                if path.partition(".")[0] in NOT_SEARCHED:
                    raise ConfigError(
                        f"a search varies what changes the result of a run; {', '.join(NOT_SEARCHED)} say how it is "
                        "repeated, measured or kept"
                    )
                if path == "attack" and given in ALL_ATTACKS:
                    continue
                try:
                    span = as_span(given)
                except ValueError as error:
                    raise ConfigError(str(error)) from None
                names = isinstance(span, Choice) and all(isinstance(name, str) for name in span.values)
                if path == "attack" and not names:
                    raise ConfigError(f"an attack is chosen among names, got {excerpt(given)}")
        return value

    @field_validator("threat")
    @classmethod
    def _of_every_attack(cls, value: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(value) - set(THREAT)):
            raise ValueError(f"holds {', '.join(THREAT)}, got {', '.join(unknown)}")
        return value

    @field_validator("constraints")
    @classmethod
    def _bounds(cls, value: dict[str, str]) -> dict[str, str]:
        for metric, bound in value.items():
            parse_bound(metric, bound)
        return value


def parse_bound(metric: str, bound: str) -> tuple[int, float]:
    """`">= 0.85"` as (+1, 0.85), `"<= 2"` as (-1, 2.0).

    Raises:
        ConfigError: anything else.
    """
    word, _, text = bound.strip().partition(" ")
    try:
        sign, number = {">=": 1, "<=": -1}[word], float(text)
    except (KeyError, ValueError):
        sign, number = 0, float("nan")
    if not isfinite(number):
        raise ConfigError(f"expected '>= number' or '<= number', got {excerpt(bound)}", metric)
    return sign, number
