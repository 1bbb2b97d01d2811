"""The threat model: every level of knowledge sees what it is granted, and nothing that can be written to."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fl_lightning.attacks import Attack, Knowledge, KnowledgeError, LabelMap, Poisoned, TargetSamples, View
from fl_lightning.attacks._view import LEAST, LEVELS
from fl_lightning.config import Experiment
from fl_lightning.data import Samples
from fl_lightning.defenses import State
from fl_lightning.federation import Federation, Trained
from fl_lightning.testing.views import VIEW_CHECKS


class Spy(Attack):
    """Hands the view to a test."""

    name = "spy"
    look: Any = None

    def poison(self, view: View, state: State) -> Poisoned:
        """Look, and submit the honest updates."""
        if self.look is not None:
            self.look(view)
        return Poisoned(view.own_updates)


@pytest.fixture
def view_of(tiny: Callable[..., Experiment]) -> Callable[..., View]:
    def build(knowledge: Knowledge = "none", objective: Any = None, rounds: int = 1, **settings: Any) -> View:
        seen: list[View] = []
        attack = Spy(look=seen.append, knowledge=knowledge, objective=objective or LabelMap(), **settings)
        participation = {"name": "full", "malicious": 2}
        experiment = tiny(rounds=rounds, participation=participation, server={"lr": 0.5}).model_copy(
            update={"attack": attack}
        )
        Federation(experiment).run()
        assert len(seen) == rounds
        return seen[-1]

    return build


# --- knowledge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", VIEW_CHECKS.values(), ids=VIEW_CHECKS)
def test_the_view_keeps_what_it_must_not_tell(check: Any):
    check(Federation)


class LeakyView(View):
    """A view with room for more."""

    __slots__ = ("more",)


def with_more(view: View, more: Any) -> View:
    made = object.__new__(LeakyView)
    for name in View.__slots__:
        object.__setattr__(made, name, getattr(view, name))
    object.__setattr__(made, "more", more)
    return made


def leaky(leak: Callable[[Federation, Trained], Any]) -> type[Federation]:
    """A federation whose views hold something that they should not."""

    class Leaky(Federation):
        def view(self, trained: Trained) -> View:
            return with_more(super().view(trained), leak(self, trained))

    return Leaky


LEAKS: dict[str, Callable[[Federation, Trained], Any]] = {
    "rows": lambda federation, trained: {"deep": [(trained.updates_CD,)]},
    "a copy of rows": lambda federation, trained: trained.updates_CD.clone(),
    "local models": lambda federation, trained: federation.state.global_D + trained.updates_CD,
    "closure": lambda federation, trained: lambda: trained.updates_CD,
    "bound method": lambda federation, trained: federation.defend,
    "partial": lambda federation, trained: partial(print, federation.experiment.aggregator),
    "defenses": lambda federation, trained: federation.experiment.defenses,
    "callbacks": lambda federation, trained: federation.experiment.client,
    "mask": lambda federation, trained: trained.cohort.malicious.clone(),
    "mask as a list": lambda federation, trained: trained.cohort.malicious.tolist(),
    "jobs": lambda federation, trained: trained.jobs,
    "success samples": lambda federation, trained: federation.goal.clean.x[:1].clone(),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
def test_a_leaky_view_is_found_out(leak: Any):
    with pytest.raises(AssertionError, match="none knowledge reaches"):
        VIEW_CHECKS["nothing_hidden_is_reached"](leaky(leak))


def test_a_view_that_shows_the_server_its_own_tensors_is_found_out():
    class Lent(Federation):
        def view(self, trained: Trained) -> View:
            return with_more(super().view(trained), self.data.train)

    with pytest.raises(AssertionError, match="writing changes what reached the server"):
        VIEW_CHECKS["writing_changes_nothing"](Lent)


@pytest.mark.parametrize("knowledge", LEVELS)
@pytest.mark.parametrize("name", sorted(name for name, least in LEAST.items() if least != "none"))
def test_asking_for_more_than_granted(view_of: Callable[..., View], name: str, knowledge: Knowledge):
    view = view_of(knowledge)
    if LEVELS.index(knowledge) >= LEVELS.index(LEAST[name]):
        getattr(view, name)
        return
    with pytest.raises(KnowledgeError, match=f"^{name} needs {LEAST[name]} knowledge, .* granted '{knowledge}'"):
        getattr(view, name)


@pytest.mark.parametrize("knowledge", LEVELS)
def test_what_everybody_knows(view_of: Callable[..., View], knowledge: Knowledge):
    view = view_of(knowledge, rounds=2)
    assert (view.n_clients, view.n_malicious, view.server_lr, view.round, view.classes) == (5, 2, 0.5, 1, 10)
    assert view.own_updates.shape == (2, view.flat.dim)
    assert view.own_weights.tolist() == [40.0, 40.0]
    assert [len(own) for own in view.own_samples] == [40, 40]
    assert not torch.equal(view.global_D, view.previous_D)


def test_known_updates_grow_with_knowledge(view_of: Callable[..., View]):
    none, partial = view_of("none"), view_of("partial", visible_updates=2)
    full = view_of("full")
    assert torch.equal(none.known_updates, none.own_updates)
    assert partial.known_updates.shape[0] == 4
    assert torch.equal(partial.known_updates[:2], partial.own_updates)
    assert torch.equal(full.known_updates, torch.cat([full.own_updates, full.benign_updates]))
    assert torch.equal(full.visible_updates, full.benign_updates)
    assert full.benign_updates.shape[0] == 3


def test_partial_knowledge_sees_as_many_benign_updates_as_granted(view_of: Callable[..., View]):
    everything = {tuple(row.tolist()) for row in view_of("full").benign_updates}
    for count in (0, 1, 3, 9):
        seen = view_of("partial", visible_updates=count).visible_updates
        assert len(seen) == min(count, 3)
        assert {tuple(row.tolist()) for row in seen} <= everything


def test_samples_are_those_of_the_clients(view_of: Callable[..., View]):
    view = view_of("full")
    assert len(view.own_clients) == 2
    assert torch.equal(view.own_clients, view.cohort.clients[view.cohort.malicious])
    assert torch.equal(view.benign_clients, view.cohort.clients[~view.cohort.malicious])
    own = {row.numpy().tobytes() for part in view.own_samples for row in part.x}
    benign = {row.numpy().tobytes() for part in view.benign_samples for row in part.x}
    assert len(view.benign_samples) == 3
    assert len(own) == 80
    assert not own & benign


def test_drawing_reaches_only_known_samples(view_of: Callable[..., View]):
    for knowledge, known in (("none", 80), ("partial", 80), ("full", 200)):
        view = view_of(knowledge)
        parts = view.own_samples + (view.benign_samples if knowledge == "full" else [])
        allowed = {row.numpy().tobytes() for part in parts for row in part.x}
        assert len(view.draw(10_000, torch.Generator().manual_seed(0))) == known
        few = view.draw(30, torch.Generator().manual_seed(1))
        drawn = [row.numpy().tobytes() for row in few.x]
        assert len(set(drawn)) == 30, "without replacement"
        assert set(drawn) <= allowed
        labels = {row.numpy().tobytes(): int(y) for part in parts for row, y in zip(part.x, part.y, strict=True)}
        assert [labels[row] for row in drawn] == few.y.tolist()
        again = view.draw(30, torch.Generator().manual_seed(1))
        assert torch.equal(again.x, few.x)


def test_targets_are_for_their_owner_only(view_of: Callable[..., View]):
    with pytest.raises(KnowledgeError, match="'label_map' are held out"):
        _ = view_of("full").targets
    view = view_of("none", objective=TargetSamples(count=3))
    assert len(view.targets) == 3
    assert all(torch.equal(dirty.x, view.targets.x) for dirty in view.dirty_samples)


def test_dirty_samples_are_made_by_the_objective(view_of: Callable[..., View]):
    view = view_of("none")
    for clean, dirty in zip(view.own_samples, view.dirty_samples, strict=True):
        assert torch.equal(dirty.x, clean.x)
        assert torch.equal(dirty.y, (clean.y - 1) % 10)


# --- nothing that is shown can be written to ---------------------------------------------------------------------------


def storages(value: Any) -> set[int]:
    if isinstance(value, Tensor):
        return {value.untyped_storage().data_ptr()}
    if isinstance(value, Samples):
        return storages(value.x) | storages(value.y)
    if isinstance(value, list | tuple):
        return set().union(*map(storages, value))
    return set()


@pytest.mark.parametrize("knowledge", LEVELS)
@pytest.mark.parametrize("objective", [LabelMap(), TargetSamples(count=2)])
def test_scribbling_over_everything_shown_changes_nothing(
    tiny: Callable[..., Experiment], knowledge: Knowledge, objective: Any
):
    """An attack that writes into all it was given ends like one that does not."""

    def scribble(view: View) -> None:
        shown: list[Any] = [view.own_updates, view.own_weights, view.global_D, view.previous_D, view.known_updates]
        shown += [view.own_samples, view.dirty_samples, view.draw(9, torch.Generator())]
        if isinstance(view.objective, TargetSamples):
            shown.append(view.targets)
        if knowledge != "none":
            shown.append(view.visible_updates)
        if knowledge == "full":
            shown += [view.benign_updates, view.benign_weights, view.benign_samples]
        for item in shown:
            spoil(item)

    def spoil(value: Any) -> None:
        if isinstance(value, Tensor):
            value.fill_(7)
        elif isinstance(value, Samples):
            spoil(value.x)
            spoil(value.y)
        elif isinstance(value, list):
            for item in value:
                spoil(item)

    ends = []
    for look in (None, scribble):
        attack = Spy(look=look, knowledge=knowledge, objective=objective)
        experiment = tiny(rounds=2, participation={"name": "full", "malicious": 2})
        federation = Federation(experiment.model_copy(update={"attack": attack}))
        state = federation.run()
        metrics = {name: value for name, value in state.history[-1].items() if not name.startswith("time/")}
        ends.append((state.global_D, metrics, federation.data.train.x.sum()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


def test_a_view_shows_copies_and_cannot_be_changed(view_of: Callable[..., View]):
    view = view_of("full", objective=TargetSamples(count=2))
    for name in (
        "own_updates",
        "benign_updates",
        "known_updates",
        "own_weights",
        "benign_weights",
        "global_D",
        "targets",
    ):
        assert not storages(getattr(view, name)) & storages(getattr(view, name)), name
    view.cohort.malicious[:] = True
    assert view.n_malicious == int(view.cohort.malicious.sum()) == len(view.own_updates)
    with pytest.raises(TypeError):
        view.defenses["another"] = None  # type: ignore[index]
    with pytest.raises(AttributeError, match="cannot be changed"):
        view.knowledge = "full"
    with pytest.raises(AttributeError, match="no attribute 'benign_update'"):
        _ = view.benign_update


def test_full_knowledge_costs_no_copy_of_the_rows(tiny: Callable[..., Experiment]):
    attack = Spy(knowledge="full")
    federation = Federation(tiny().model_copy(update={"attack": attack}))
    trained = federation.train(federation.cohort())
    assert storages(federation.view(trained)._rows_RD) == storages(trained.updates_CD)
    assert not storages(federation.poison(trained).updates_CD) & storages(trained.updates_CD)


def test_ranks_count_the_malicious_clients_of_the_population(tiny: Callable[..., Experiment]):
    participation = {"name": "k_of_n", "k": 3, "malicious": 4}
    federation = Federation(tiny(participation=participation).model_copy(update={"attack": Spy()}))
    everybody = federation.experiment.participation.malicious_clients(5, federation.bench.seed).tolist()
    for round in range(3):
        federation.state.round = round
        view = federation.view(federation.train(federation.cohort()))
        assert [everybody[rank] for rank in view.own_ranks.tolist()] == view.own_clients.tolist()


# --- training ----------------------------------------------------------------------------------------------------------


def test_honest_samples_train_to_the_honest_updates(view_of: Callable[..., View]):
    view = view_of("none")
    assert torch.equal(view.train(view.own_samples), view.own_updates)


def test_training_starts_where_asked(view_of: Callable[..., View]):
    view = view_of("none", rounds=2)
    here = view.train(view.own_samples)
    elsewhere = view.train(view.own_samples, start_D=view.previous_D)
    assert not torch.equal(here, elsewhere)
    assert torch.equal(view.train(view.own_samples, start_D=view.global_D), here)
    assert torch.equal(view.train_one(view.own_samples[0]), here[0])


def test_random_numbers_are_keyed_by_purpose_and_round(view_of: Callable[..., View]):
    first, second = view_of("none", rounds=1), view_of("none", rounds=2)
    draw = {
        name: tuple(torch.rand(2, generator=generator).tolist())
        for name, generator in {
            "a": first.generator("a"),
            "b": first.generator("b"),
            "a0": first.generator("a", 0),
            "later": second.generator("a"),
        }.items()
    }
    assert len(set(draw.values())) == 4
    assert tuple(torch.rand(2, generator=first.generator("a")).tolist()) == draw["a"]


def test_one_attacker_must_be_given_its_samples(view_of: Callable[..., View]):
    view = view_of("none")
    with pytest.raises(ValueError, match="zip"):
        view.train(view.own_samples[:1])
