"""What the attackers' view must keep to itself, tried by force.

A federation of one's own (a subclass that shows attackers something else) is checked with one line:

    check_view(MyFederation)

Reached is whatever attributes, slots, containers, bound methods, closures and partial functions lead to from a view;
frames, modules and the garbage collector are not followed: Python has no walls there.
"""

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.attacks import (
    Attack,
    Goal,
    Knowledge,
    KnowledgeError,
    Objective,
    Poisoned,
    Services,
    TargetSamples,
    View,
)
from fl_lightning.attacks._view import LEAST, LEVELS, grants
from fl_lightning.clients import CallbackConfig
from fl_lightning.config import Experiment, load
from fl_lightning.data import Dataset, Samples
from fl_lightning.defenses import Defense, State
from fl_lightning.engines import Bench, Engine, Job, SharedTrainer
from fl_lightning.federation import Federation, Trained
from fl_lightning.registry import registry
from fl_lightning.testing._checks import require, run_all, same

SETTINGS: dict[str, Any] = {
    "rounds": 2,
    "data": {"name": "digits", "train_samples": 120, "test_samples": 40},
    "partition": {"name": "iid", "clients": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "client": {"steps": 2, "batch_size": 8, "callbacks": {"wbc": {"name": "fl_wbc", "std": 0.1}}},
    "participation": {"name": "full", "malicious": 2},
    "aggregator": {"name": "trimmed_mean", "n_byzantine": 2},
    "defenses": {"bound": {"name": "norm_bound"}},
}
OBJECTIVES = ({"name": "label_map"}, {"name": "trigger", "size": 2}, {"name": "target_samples", "count": 3})
ALWAYS_HIDDEN = (Federation, Experiment, Dataset, Bench, SharedTrainer, Engine, Job, Goal, Services)


class Onlooker(Attack):
    """Does something with the view, and submits the honest updates."""

    name = "onlooker"
    look: Any = None

    def poison(self, view: View, state: State) -> Poisoned:
        """Look, and submit the honest updates."""
        own_MD = view.own_updates
        if self.look is not None:
            self.look(view)
        return Poisoned(own_MD)


class Scene(NamedTuple):
    """A view, and what it was made of.

    Attributes:
        view: what the attackers are shown.
        federation: whose round it is.
        trained: the clients' honest updates.
    """

    view: View
    federation: Federation
    trained: Trained


def check_view(federation: type[Federation] = Federation) -> None:
    """Run every check of `VIEW_CHECKS`.

    Args:
        federation: the class whose `view` is attacked.

    Raises:
        AssertionError: naming the check that failed, and what was reached.
    """
    run_all(VIEW_CHECKS, federation.__name__, federation)


@cache
def _base(cls: Any, objective: int, level: Knowledge, look: Any = None) -> Federation:
    """A federation of this class before its first round, attacked by an onlooker."""
    aim = cast(Objective, registry("objective").build(OBJECTIVES[objective]))
    visible = 2 if level == "partial" else 0
    attack = Onlooker(look=look, knowledge=level, objective=aim, visible_updates=visible)
    made: Federation = cls(load(SETTINGS).model_copy(update={"attack": attack}))
    return made


def scene(cls: type[Federation], objective: int, level: Knowledge) -> Scene:
    """The second round, in which the models of two rounds differ."""
    federation = copy(_base(cast(Any, cls), objective, level))
    federation.state = federation.initial_state()
    federation.round()
    trained = federation.train(federation.cohort())
    return Scene(federation.view(trained), federation, trained)


def scenes(cls: type[Federation]) -> Iterator[tuple[Knowledge, Scene]]:
    """Every level of knowledge with every kind of objective."""
    for level in LEVELS:
        for objective in range(len(OBJECTIVES)):
            yield level, scene(cls, objective, level)


def reached(start: Any) -> Iterator[Any]:
    """Everything that attributes, containers, methods, closures and partial functions lead to, each thing once."""
    seen: set[int] = set()
    kept: list[Any] = []  # else an object that was made on the way would make room for another of the same number
    waiting = [start, *_attributes(start, dir(start))]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType | str | bytes | int | float | None):
            continue
        seen.add(id(thing))
        kept.append(thing)
        yield thing
        waiting.extend(_inside(thing))


def _inside(thing: Any) -> Iterable[Any]:
    """What one step leads to."""
    if isinstance(thing, Tensor):
        return [thing.grad] if thing.is_leaf and thing.grad is not None else []
    parts: list[Any] = []
    if isinstance(thing, Mapping):
        parts += [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        parts += list(thing)
    if isinstance(thing, partial):
        parts += [thing.func, thing.args, thing.keywords]
    if isinstance(thing, types.FunctionType):
        parts += [cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()]
        parts += [thing.__defaults__, thing.__kwdefaults__]
    if isinstance(thing, property):
        parts += [thing.fget, thing.fset]
    parts.append(getattr(thing, "__self__", None))
    parts.append(getattr(thing, "__func__", None))
    parts.append(getattr(thing, "__wrapped__", None))
    names = dir(thing) if type(thing).__module__.startswith("fl_lightning.") else _slots(thing)
    return parts + _attributes(thing, names)


def _slots(thing: Any) -> list[str]:
    """Names of what an object holds by itself."""
    slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
    return [*getattr(thing, "__dict__", {}), *slots]


def _attributes(thing: Any, names: Iterable[str]) -> list[Any]:
    """The values of attributes; those that refuse are left out."""
    values = []
    for name in names:
        if name.startswith("__") and name.endswith("__"):
            continue
        try:
            values.append(getattr(thing, name))
        except (KnowledgeError, AttributeError, RuntimeError, ValueError):
            continue
    return values


def _rows(values: Iterable[Tensor]) -> dict[int, set[bytes]]:
    """Rows of matrices by their length, as bytes."""
    found: dict[int, set[bytes]] = {}
    for value in values:
        matrix = value.detach().cpu().double().reshape(len(value), -1)
        found.setdefault(matrix.shape[1], set()).update(row.numpy().tobytes() for row in matrix)
    return found


def _secret_rows(level: Knowledge, at: Scene) -> dict[int, set[bytes]]:
    """Rows that a view may not hold: benign updates and models beyond its level, benign data, held-out samples."""
    federation, trained, view = at.federation, at.trained, at.view
    bad_C = trained.cohort.malicious
    test = federation.goal.clean.x
    secrets = [test]
    success = federation.goal.success
    if success is not None and not isinstance(view.objective, TargetSamples):
        secrets.append(success.x)
    if level != "full":
        benign = [job.samples.x[job.rows] for job, bad in zip(trained.jobs, bad_C.tolist(), strict=True) if not bad]
        secrets += [*benign, trained.updates_CD[~bad_C], federation.state.global_D + trained.updates_CD[~bad_C]]
    found = _rows(secrets)
    allowed = _rows([view.known_updates, *(own.x for own in view.own_samples)])
    return {width: rows - allowed.get(width, set()) for width, rows in found.items()}


def _holds(tensor: Tensor, secrets: Mapping[int, set[bytes]]) -> bool:
    """Whether a tensor holds a secret row."""
    if not tensor.is_floating_point() or not tensor.numel():
        return False
    for width, rows in secrets.items():
        if tensor.numel() % width == 0 and any(rows & found for found in _rows([tensor.reshape(-1, width)]).values()):
            return True
    return False


def table_is_complete(cls: type[Federation]) -> None:
    """Every public name has a least level in `LEAST`; below it asking raises `KnowledgeError`, which names both levels."""
    for level in LEVELS:
        view = scene(cls, 0, level).view
        public = {name for name in dir(view) if not name.startswith("_")}
        granted = {name for name in LEAST if grants(level, name)}
        require(granted <= public <= set(LEAST), f"decide which knowledge {sorted(public - set(LEAST))} need, in LEAST")
        for name in LEAST:
            try:
                getattr(view, name)
            except KnowledgeError as error:
                told = f"'{level}'" in str(error) and LEAST[name] in str(error) and name in str(error)
                require((not grants(level, name) and told) or name == "targets", f"{level} is refused {name}: {error}")
                continue
            require(grants(level, name), f"{level} is shown {name}, which needs {LEAST[name]}")


def nothing_hidden_is_reached(cls: type[Federation]) -> None:
    """From a view nothing leads to benign rows, data, rule, defenses, callbacks or masks beyond its level."""
    for level, at in scenes(cls):
        hidden: tuple[type, ...] = ALWAYS_HIDDEN
        if level != "full":
            hidden += (Defense, Callback, CallbackConfig, type(at.trained.cohort))
        if level == "none":
            hidden += (Aggregator,)
        experiment, mask_C = at.federation.experiment, at.trained.cohort.malicious
        live = [experiment.aggregator, experiment.defenses, *experiment.defenses.values(), experiment.client.callbacks]
        server = [at.federation.state.global_D, at.trained.weights_C, at.federation.data.train.x, mask_C]
        server += [at.trained.updates_CD] if level != "full" else []
        pointers = {tensor.untyped_storage().data_ptr() for tensor in server}
        secrets = _secret_rows(level, at)
        for thing in reached(at.view):
            what = f"{level} knowledge reaches {type(thing).__name__}"
            require(not isinstance(thing, hidden), f"{what}: {thing!r:.80}")
            require(not any(thing is part for part in live), f"{what}, and it is the server's own")
            if isinstance(thing, Tensor):
                require(thing.untyped_storage().data_ptr() not in pointers, f"{what} that the server computes with")
                require(not _holds(thing, secrets), f"{what} with a row of a benign client or a held-out sample")
                same = (
                    thing.shape == mask_C.shape
                    and torch.equal(thing.bool().cpu(), mask_C)
                    and thing.dtype == torch.bool
                )
                require(level == "full" or not same, f"{what} that says who is malicious")
            if level != "full" and isinstance(thing, list | tuple):
                require(list(thing) != mask_C.tolist(), f"{what} that says who is malicious")


def _replaced(view: Any) -> None:
    assert replace(view, knowledge="full").benign_updates is not None


def _set(view: Any) -> None:
    view.knowledge = "full"
    assert view.benign_updates is not None


def _forced(view: Any) -> None:
    object.__setattr__(view, "knowledge", "full")
    assert view.benign_updates is not None


def _duplicated(view: Any) -> None:
    assert copy(view).benign_updates is not None


def nothing_is_gained_by_force(cls: type[Federation]) -> None:
    """Neither copies with another level nor changed attributes show more."""
    for level in LEVELS[:-1]:
        for attempt in (_replaced, _set, _forced, _duplicated):
            try:
                attempt(scene(cls, 0, level).view)
            except (KnowledgeError, AttributeError, TypeError, ValueError):
                continue
            raise AssertionError(f"{attempt.__name__.strip('_')}: {level} knowledge has become more")


def _scribble(view: View) -> None:
    """Write into every tensor that is reached, and empty every dictionary and list that is shown."""
    for thing in list(reached(view)):
        if isinstance(thing, Tensor):
            with torch.no_grad():
                thing.fill_(1)
    for name in LEAST:
        try:
            shown = getattr(view, name)
        except KnowledgeError:
            continue
        for part in (shown, getattr(shown, "callbacks", None), getattr(shown, "mapping", None)):
            if isinstance(part, dict | list):
                part.clear()
            elif isinstance(part, Tensor):
                part.fill_(1)
            elif isinstance(part, Samples):
                part.x.fill_(1)
                part.y.fill_(1)


def _outcome(cls: type[Federation], level: Knowledge, look: Any) -> dict[str, Any]:
    """What two rounds leave behind: rows that reached the server, figures, model, data, success samples, configuration."""
    federation = copy(_base(cast(Any, cls), 1, level, look))
    federation.state = federation.initial_state()
    sent = []
    for _ in range(2):
        submitted = federation.submitted()
        federation.step(federation.aggregate(submitted, left := federation.defend(submitted)))
        sent.append((submitted.updates_CD, submitted.weights_C, submitted.metrics, left.metrics, federation.evaluate()))
        federation.state.round += 1
    data, goal = federation.data, federation.goal
    experiment = federation.experiment.model_copy(update={"attack": None})
    return {
        "what reached the server": sent,
        "the model": federation.state.global_D,
        "the data": [data.train.x.clone(), data.train.y.clone(), goal.clean.x.clone()],
        "the success samples": goal.success and [goal.success.x.clone(), goal.success.y.clone()],
        "the configuration": experiment.to_dict(),
    }


def writing_changes_nothing(cls: type[Federation]) -> None:
    """Two rounds in which the attackers write into everything that they are shown are as if they had not."""
    for level in LEVELS:
        untouched, scribbled = (_outcome(cls, level, look) for look in (None, _scribble))
        for what, value in untouched.items():
            require(same(value, scribbled[what]), f"with {level} knowledge an attacker's writing changes {what}")


VIEW_CHECKS: dict[str, Callable[[type[Federation]], None]] = {
    check.__name__: check
    for check in (
        table_is_complete,
        nothing_hidden_is_reached,
        nothing_is_gained_by_force,
        writing_changes_nothing,
    )
}
"""Every check by name."""
