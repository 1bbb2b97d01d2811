"""The server's side of a round: verdicts one after the other, hooks, policies, and what is never touched."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from fl_lightning.aggregators import Geometry, Krum, Layer, Layout, Mean, Median, _blocks, _geometry
from fl_lightning.config import load
from fl_lightning.defenses import (
    Defense,
    NormBound,
    StatisticalCheck,
    Verdict,
    applied,
    clip,
    defended,
    detected,
    geometry_of,
)
from fl_lightning.defenses._noise import noised
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.randomness import generator
from fl_lightning.testing.defenses import CLIENTS, honest, server


class Nearest(Defense):
    """Reads the geometry only: keeps the rows in the larger half of the cosines, clipped to their median norm."""

    name: ClassVar[str] = "nearest"
    reads_rows: ClassVar[bool] = False

    def apply(self, updates_CD, context, state):
        geometry = geometry_of(updates_CD, context).trained
        towards_C = geometry.cosines.sum(1)
        keep_C = towards_C >= towards_C.median()
        factors_C = (geometry.norms.median() / geometry.norms).clamp(max=1)
        return Verdict(keep_C, context.weights_C, scale_C=factors_C)


class Paranoid(Defense):
    name: ClassVar[str] = "paranoid"

    def apply(self, updates_CD, context, state):
        return detected(updates_CD, context, torch.ones(len(updates_CD), dtype=torch.bool), None)


class Trusting(Defense):
    name: ClassVar[str] = "trusting"
    on_empty: ClassVar = "skip"

    def apply(self, updates_CD, context, state):
        return Verdict(torch.zeros(len(updates_CD), dtype=torch.bool), context.weights_C)


class Remembering(Defense):
    """Writes down who it saw, shifts what is broadcast, halves what comes out, and zeroes the final model."""

    name: ClassVar[str] = "remembering"
    stateful: ClassVar[bool] = True

    def init(self):
        return {"seen": torch.zeros(0, dtype=torch.long), "started": torch.zeros(0)}

    def broadcast(self, global_D, context, state):
        return global_D + 1, state

    def apply(self, updates_CD, context, state):
        started = torch.cat([state["started"], context.global_D[:1]])
        everybody = torch.ones(len(updates_CD), dtype=torch.bool)
        return Verdict(everybody, context.weights_C, state={"seen": context.clients_C, "started": started})

    def after_step(self, global_D, context, state):
        return context.global_D + (global_D - context.global_D) / 2, state

    def finish(self, global_D, context, state):
        return torch.zeros_like(global_D)


def everybody(updates_CD):
    return torch.ones(len(updates_CD), dtype=torch.bool)


def run(defenses, updates_CD, **more):
    context = replace(server(Mean(), len(updates_CD)), **more)
    states = {label: dict(defense.init()) for label, defense in defenses.items()}
    return defended(defenses, updates_CD, everybody(updates_CD), context, states)


def test_norm_bound_alone_gives_the_same_bits_as_clipping():
    updates_CD = honest()
    left = run({"bound": NormBound(max_norm=0.5)}, updates_CD)
    assert torch.equal(left.geometry.rows, clip(updates_CD, 0.5))
    assert torch.equal(Mean().on(left.geometry).update, Mean()(clip(updates_CD, 0.5)).update)


def test_a_chain_agrees_with_its_steps_by_hand():
    updates_CD = honest()
    bound, nearest = NormBound(max_norm=0.5), Nearest()
    left = run({"bound": bound, "nearest": nearest}, updates_CD)
    bounded_CD = applied(bound.apply(updates_CD, server(Mean()), {}), updates_CD)
    verdict = nearest.apply(bounded_CD, server(Mean()), {})
    expected = applied(verdict, bounded_CD)[verdict.keep_C]
    assert torch.equal(left.keep_C, verdict.keep_C)
    assert not left.geometry.made
    torch.testing.assert_close(Mean().on(left.geometry, left.weights_R).update, Mean()(expected).update)
    torch.testing.assert_close(left.geometry.rows, expected)


def test_passes_over_the_matrix_are_two(monkeypatch):
    counts = {"gram": 0, "sum": 0}

    def counted(name, function):
        def call(*args, **more):
            counts[name] += 1
            return function(*args, **more)

        return call

    for module in (_blocks, _geometry):
        monkeypatch.setattr(module, "gram", counted("gram", module.gram))
        monkeypatch.setattr(module, "weighted_sum", counted("sum", module.weighted_sum))
    monkeypatch.setattr(torch.linalg, "vector_norm", counted("gram", torch.linalg.vector_norm))
    left = run({"bound": NormBound(max_norm=0.5), "nearest": Nearest()}, honest())
    Mean().on(left.geometry, left.weights_R)
    assert counts == {"gram": 1, "sum": 1}
    assert not left.geometry.made


def test_what_all_flagged_means():
    updates_CD = honest()
    for policy, kept in (("method", CLIENTS), ("keep", CLIENTS), ("skip", 0)):
        context = server(Mean())
        left = defended({"p": Paranoid()}, updates_CD, everybody(updates_CD), context, {"p": {}}, policy)
        assert int(left.keep_C.sum()) == kept
        assert left.judged[0].metrics["flagged_all"] == 1
        assert left.judged[0].metrics.get("idle", 0) == (kept > 0)  # all flagged, and all stay: it decided nothing
    for policy, kept in (("method", 0), ("keep", CLIENTS)):
        left = defended({"t": Trusting()}, updates_CD, everybody(updates_CD), server(Mean()), {"t": {}}, policy)
        assert int(left.keep_C.sum()) == kept


def test_statistics_are_neither_noised_nor_scaled_up_nor_measured():
    layout = Layout((Layer("weight", slice(0, 300), (300,)), Layer("variance", slice(300, 400), (100,), trained=False)))
    model_D = torch.full((400,), 0.01)
    noisy_D = noised(model_D, 0.5, "gaussian", generator(0, "noise"), layout)
    assert torch.equal(noisy_D[300:], model_D[300:])
    assert float(noisy_D[:300].std()) > 0.3
    assert (noised(model_D, 0.5, "gaussian", generator(0, "noise"), None)[300:] < 0).any()  # as it was
    updates_CD = honest(3)
    context = replace(server(Mean(), 3), layout=layout)
    scores_C = NormBound().apply(updates_CD, context, {}).scores_C
    torch.testing.assert_close(scores_C, updates_CD[:, :300].norm(dim=1))
    scaled_CD = applied(
        Verdict(everybody(updates_CD), context.weights_C, scale_C=torch.tensor([2.0, 0.5, 1.0])), updates_CD, layout
    )
    torch.testing.assert_close(scaled_CD[0], torch.cat([2 * updates_CD[0, :300], updates_CD[0, 300:]]))
    torch.testing.assert_close(scaled_CD[1], updates_CD[1] / 2)


def test_hooks_in_a_federation(tiny):
    experiment = tiny(rounds=2, participation={"name": "k_of_n", "k": 3, "malicious": 0})
    federation = Federation(experiment.model_copy(update={"defenses": {"r": Remembering()}}))
    start_D = federation.state.global_D.clone()
    report = federation.round()
    memory = federation.state.defenses["r"]
    assert torch.equal(memory["seen"], report.cohort.clients)
    assert float(memory["started"][0]) == pytest.approx(float(start_D[0] + 1))  # what the clients started from
    assert torch.equal(federation.state.previous_D, start_D + 1)
    moved_D = federation.state.global_D - federation.state.previous_D
    torch.testing.assert_close(2 * moved_D, federation.state.past["reference_D"])
    assert not [name for name in report.metrics if name.startswith("final/")]
    report = federation.round()
    assert not federation.state.global_D.any()
    assert report.metrics["final/accuracy"] != report.metrics["global/accuracy"]


def test_what_the_server_knows(tiny):
    federation = Federation(tiny(data={"name": "digits", "train_samples": 200, "test_samples": 100, "validation": 60}))
    context = federation.context(torch.ones(5))
    dimension = len(federation.state.global_D)
    assert context.population == 5
    assert context.rounds == 3
    assert context.layout.trained == slice(0, dimension)
    weight, shape, bias = context.layout.classifier
    assert shape == (10, 8)
    assert (bias.stop, weight.stop - weight.start) == (dimension, 80)
    first_D = context.train(context.validation, "root")
    assert first_D.shape == (dimension,)
    assert torch.equal(first_D, context.train(context.validation, "root"))
    assert not torch.equal(first_D, context.train(context.validation, "other"))
    assert 0 < float(context.train(context.validation, "root", 1).norm()) < float(first_D.norm())
    features = context.features(context.global_D, context.validation.x)
    weights, biases = context.global_D[weight].view(shape), context.global_D[bias]
    torch.testing.assert_close(features @ weights.T + biases, context.predict(context.global_D, context.validation.x))
    past = federation.past()
    assert torch.equal(past.trusted(), past.trusted())
    assert past.reference_D is None


DIGITS = {
    "data": {"name": "digits", "train_samples": 300, "test_samples": 100, "validation": 100},
    "rounds": 2,
    "partition": {"name": "iid", "clients": 10},
    "model": {"name": "mlp", "hidden": [8]},
}


def test_too_few_rows_for_the_rule_skip_the_round():
    experiment = load(DIGITS | {"aggregator": {"name": "krum", "n_byzantine": 2}})
    federation = Federation(experiment.model_copy(update={"defenses": {"two": FirstTwo()}}))
    before_D = federation.state.global_D.clone()
    report = federation.round()
    assert report.metrics["server/skipped"] == report.metrics["server/too_few"] == 1
    assert torch.equal(federation.state.global_D, before_D)


class FirstTwo(Defense):
    name: ClassVar[str] = "first_two"

    def apply(self, updates_CD, context, state):
        return detected(updates_CD, context, torch.arange(len(updates_CD)) > 1, None)


def test_a_huge_row_does_not_open_the_gate():
    """One row a thousand times as long: the mean of the others turned every honest row suspicious, so that all stayed."""
    updates_CD = honest()
    updates_CD[4] = -1000 * updates_CD[4]
    verdict = StatisticalCheck(max_distance=5.0).apply(updates_CD, server(Mean()), {})
    assert (~verdict.keep_C).nonzero().flatten().tolist() == [4]
    as_printed = StatisticalCheck(max_distance=5.0, centre="mean").apply(updates_CD, server(Mean()), {})
    assert as_printed.flagged_C.all()
    assert as_printed.keep_C.all()


def test_what_would_do_nothing_is_refused_before_the_start():
    with pytest.raises(ConfigError, match=r"defenses.d.n_byzantine: needs f < C, got f=10, C=10"):
        load(DIGITS | {"defenses": {"d": {"name": "lfr", "n_byzantine": 10}}})
    with pytest.raises(ConfigError, match="aggregator: monna needs samples at the server"):
        load(DIGITS | {"data": "digits", "aggregator": "monna"})
    experiment = load(DIGITS | {"defenses": {"d": "lfr"}, "aggregator": "bulyan"})
    assert experiment.defenses["d"].n_byzantine == 2
    assert experiment.aggregator.n_byzantine == 1
    assert load(experiment.to_dict()) == experiment


def test_influence_counts_the_weights_that_were_used():
    updates_CD, weights_C = honest(3), torch.tensor([1.0, 1000.0, 1000.0])
    expected = (weights_C / weights_C.sum()).to(torch.float32)
    torch.testing.assert_close(Mean().influence(updates_CD, weights_C), expected)
    geometry = Geometry(updates_CD).scale(torch.ones(3))
    result = Mean().on(geometry, weights_C)
    torch.testing.assert_close(Mean().influence_on(geometry, weights_C, result).float(), expected)
    assert torch.equal(Median().influence(updates_CD, weights_C), Median().influence(updates_CD))
    assert Krum(n_byzantine=0).influence(updates_CD, weights_C).max() == 1
