"""Defenses that remember: what they find in the course of rounds, and what they cannot; and those that repair the model."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from fl_lightning.aggregators import Mean
from fl_lightning.data import Samples
from fl_lightning.defenses import (
    AdaptiveClip,
    Anp,
    BackdoorIndicator,
    ClientMomentum,
    FinePrune,
    Flanders,
    Fldetector,
    Sparsefed,
)
from fl_lightning.defenses._backdoor_indicator import label_accuracies
from fl_lightning.errors import ConfigError
from fl_lightning.models import FlatNetwork, Mlp, predict
from fl_lightning.randomness import generator
from fl_lightning.testing.defenses import DIMENSION, honest, server


def history(defense, crafted, rounds=14, clients=10):
    """Verdicts over rounds in which honest clients drift slowly and the first three send what `crafted(round)` says."""
    random, verdicts, state = generator(0, "history"), [], defense.init()
    base, away = honest(1)[0], 0.03 * torch.randn(clients, DIMENSION, generator=random)
    theta = server(Mean()).global_D
    for round in range(rounds):
        rows = (1 - 0.02 * round) * (base + away) + 0.002 * torch.randn(clients, DIMENSION, generator=random)
        rows[:3] = crafted(round, random)
        context = server(Mean(), clients, round)
        context = replace(context, global_D=theta)
        verdict = defense.apply(rows, context, state)
        theta, state = theta + rows[verdict.keep_C].mean(0), dict(verdict.state)
        verdicts.append(verdict)
    return verdicts


def erratic(round, random):
    return 0.3 * torch.randn(3, DIMENSION, generator=random)


def constant(round, random):
    return 0.3 * torch.randn(3, DIMENSION, generator=generator(7, "constant"))


def test_fldetector_finds_erratic_clients_once_its_window_is_full_and_never_lets_them_back():
    verdicts = history(Fldetector(window=3), erratic)
    judging = [verdict.metrics["judging"] for verdict in verdicts]
    assert judging == [0.0] * 4 + [1.0] * 10
    assert all(verdict.keep_C.all() for verdict in verdicts[:4])
    assert not verdicts[-1].keep_C[:3].any()
    # what it finds goes for good: among ever fewer clients, some honest ones look surprising sooner or later
    assert int(verdicts[-1].keep_C[3:].sum()) >= 4


def test_fldetector_cannot_see_a_constant_attack():
    assert history(Fldetector(window=3), constant)[-1].keep_C[:3].any()


def test_flanders_sees_gross_noise_and_not_a_steady_drift():
    noisy = history(Flanders(n_byzantine=3, columns=60), lambda round, random: 10 * erratic(round, random))
    assert [bool(verdict.keep_C.all()) for verdict in noisy[:2]] == [True, True]
    assert noisy[-1].keep_C.tolist() == [False] * 3 + [True] * 7
    steady = history(Flanders(n_byzantine=3, columns=60), lambda round, random: -2 * honest(3))
    assert steady[-1].keep_C[:3].any()


def test_adaptive_clipping_follows_the_median_norm():
    norms = torch.linspace(0.5, 1.5, 11)
    rows, state = torch.nn.functional.normalize(honest(), dim=1) * norms[:, None], {}
    for round in range(80):
        verdict = AdaptiveClip(count_noise=0.0).apply(rows, server(Mean(), 11, round), state)
        state = verdict.state
    assert abs(state["bound"] - 1.0) < 0.15
    clipped = verdict.scale_C * norms
    assert float(clipped.max()) == pytest.approx(verdict.metrics["bound"])


def test_adaptive_clipping_refuses_a_count_without_enough_noise():
    with pytest.raises(ConfigError, match="less than 2 sigma_b"):
        AdaptiveClip(count_noise=0.01, noise_multiplier=1.0).apply(honest(), server(Mean()), {})


def test_momentum_shrinks_what_varies_and_keeps_what_does_not():
    defense, state, random = ClientMomentum(beta=0.9), {}, generator(0, "noise")
    base = honest(1)[0]
    for round in range(40):
        rows = base + torch.randn(10, DIMENSION, generator=random)
        verdict = defense.apply(rows, server(Mean(), 10, round), state)
        state = verdict.state
    assert float((verdict.updates_CD - base).std()) < 0.35  # sqrt((1 - beta) / (1 + beta)) = 0.23
    assert float(verdict.updates_CD.mean(0) @ base / base.square().sum()) == pytest.approx(1, abs=0.2)


def test_sparsefed_moves_a_share_and_owes_the_rest():
    defense, state = Sparsefed(share=0.1), {}
    context = server(Mean())
    wanted, model = torch.zeros(DIMENSION), context.global_D
    for round in range(5):
        context = replace(context, global_D=model)
        step = 0.1 * torch.randn(DIMENSION, generator=generator(round, "step"))
        wanted += step
        moved, state = defense.after_step(model + step, context, state)
        assert int((moved != model).sum()) == DIMENSION // 10
        model = moved
    torch.testing.assert_close(model + state["error"], server(Mean()).global_D + wanted, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def planted():
    """A server's context whose model has one unit for the trigger alone: silent on clean samples, loud on four bright corners."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    samples = Samples(images[:600], torch.tensor(digits.target)[:600])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flat = FlatNetwork(Mlp(hidden=(16,)).build((1, 8, 8), 10), "cross_entropy")
    theta = flat.vector()
    for _ in range(400):
        theta -= 0.5 * flat.gradient(theta, samples)
    parts = flat.split(theta)
    first, bias, last, _ = parts.values()
    first[0], bias[0], last[:, 0] = 0.0, -18.0, -10.0
    first[0].view(8, 8)[0, 0] = first[0].view(8, 8)[0, 7] = first[0].view(8, 8)[7, 0] = first[0].view(8, 8)[7, 7] = 6.0
    last[0, 0] = 10.0
    context = replace(
        server(Mean()),
        global_D=theta,
        validation=samples,
        predict=flat.scores,
        losses=flat.losses,
        gradient=flat.gradient,
        features=flat.features,
        layout=flat.layout,
    )
    stamped = samples.x.clone()
    stamped[:, :, ::7, ::7] = 1.0
    return context, Samples(stamped[samples.y != 0], torch.zeros(int((samples.y != 0).sum()), dtype=torch.int64))


def share(context, theta, samples):
    return float((predict(context.predict(theta, samples.x)) == samples.y).double().mean())


def test_fine_pruning_removes_the_silent_unit_that_a_backdoor_lives_in(planted):
    context, stamped = planted
    assert share(context, context.global_D, stamped) > 0.95
    before = share(context, context.global_D, context.validation)
    repaired = FinePrune(root_samples=300, epochs=2).finish(context.global_D, context, {})
    assert share(context, repaired, stamped) < 0.3
    assert share(context, repaired, context.validation) > before - 0.1


@pytest.mark.parametrize(("bias", "success"), [(-3.0, 0.0), (-18.0, 1.0)])
def test_adversarial_pruning_needs_a_unit_that_clean_samples_reach(planted, bias, success):
    context, stamped = planted
    theta = context.global_D.clone()
    theta[context.layout.layers[1].slice][0] = bias
    before = share(context, theta, context.validation)
    repaired = Anp(steps=100).finish(theta, replace(context, global_D=theta), {})
    # a unit that no clean sample wakes has no gradient: the adversary cannot find it
    assert share(context, repaired, stamped) == pytest.approx(success, abs=0.1)
    assert share(context, repaired, context.validation) > before - 0.05


def test_the_watermark_is_learnt_and_survives_what_does_not_touch_it(planted):
    context, _ = planted
    defense = BackdoorIndicator(samples=30, lr=0.3, mu=0.0, epochs=200)
    marked, _ = defense.broadcast(context.global_D, context, {})
    marks = defense.watermark(context)
    known = label_accuracies(predict(context.predict(marked, marks.x)), marks.y, 10)
    assert float(known.mean()) > 0.9
    # an update that changes nothing keeps every label alive, one that goes back to the model of before kills them
    rows = torch.stack([torch.zeros_like(marked), context.global_D - marked])
    assert defense.apply(rows, replace(context, global_D=marked), {}).keep_C.tolist() == [False, True]
