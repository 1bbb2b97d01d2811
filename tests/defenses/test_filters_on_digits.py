"""What each filter stops, and what it does not: twenty clients on digits, six of them malicious, in the third round.

All judge the same rows: the first two rounds were honest, then each attack was made once. Negative controls are what a method
cannot see by its construction, or what its paper leaves out.
"""

from dataclasses import replace

import pytest
import torch

from fl_lightning.config import load
from fl_lightning.defenses import (
    Afa,
    Alignins,
    Auror,
    ClippedClustering,
    Crfl,
    Deepsight,
    Flame,
    Flare,
    Fltrust,
    Foolsgold,
    Freqfed,
    MultiMetrics,
    ResidualReweighting,
    Rflbat,
    Sageflow,
    Signguard,
    ThreeSigma,
    Zeno,
    Zenopp,
)
from fl_lightning.federation import Federation

SCENE = {
    "data": {"name": "digits", "validation": 200},
    "rounds": 20,
    "partition": {"name": "iid", "clients": 20},
    "model": {"name": "mlp", "hidden": [16]},
    "engine": "vectorized",
    "client": {"batch_size": 16, "epochs": 3, "optimizer": {"name": "sgd", "lr": 0.3}},
    "participation": {"name": "full", "malicious": 6},
}
BACKDOOR = {"name": "model_replacement", "objective": {"name": "trigger", "label": 0}, "poison_fraction": 0.5}
ATTACKS = {
    "sign": {"name": "sign_flip", "scale": 3.0},
    "noise": {"name": "gaussian", "std": 1.0},
    "ipm": {"name": "ipm", "epsilon": 0.5},
    "alie": {"name": "alie", "z": 1.5},
    "labels": {"name": "label_flip"},
    "boosted": BACKDOOR | {"boost": 3.0},
    "plain": BACKDOOR | {"boost": 1.0},
}


@pytest.fixture(scope="module")
def scenes():
    """For each attack the federation before its third round's defenses, and what was sent."""
    honest = Federation(load(SCENE))
    honest.round()
    honest.round()
    made = {}
    for name, attack in ATTACKS.items():
        federation = Federation(load(SCENE | {"attack": attack}))
        federation.state.global_D = honest.state.global_D.clone()
        federation.state.previous_D = honest.state.previous_D.clone()
        federation.state.round = 2
        made[name] = federation, federation.submitted()
    return made


def judged(defense, scene, state=None):
    """The verdict, and the mean weight of a malicious row in units of an honest one's."""
    federation, sent = scene
    context = federation.context(sent.weights_C, sent.cohort.clients)
    verdict = defense.apply(sent.updates_CD, context, defense.init() if state is None else state)
    weights_C = verdict.weights_C * verdict.keep_C
    return verdict, float(weights_C[sent.poisoned_C].mean() / weights_C[~sent.poisoned_C].mean().clamp(min=1e-12))


STOPPED = [
    (Fltrust(), ["sign", "ipm", "labels"]),
    (Foolsgold(), ["ipm", "alie"]),
    (Flame(), ["sign", "noise", "alie", "labels", "boosted", "plain"]),
    (Flame(of="updates"), ["sign", "noise", "ipm", "alie", "boosted"]),
    (Signguard(), ["noise", "alie", "boosted"]),
    (MultiMetrics(), ["sign", "noise", "ipm", "labels", "boosted"]),
    (Alignins(), ["sign", "noise", "ipm", "alie", "labels", "boosted", "plain"]),
    (ClippedClustering(), ["sign", "ipm", "alie", "labels", "boosted"]),
    (Freqfed(), ["sign", "noise", "labels", "boosted"]),
    (Zeno(n_byzantine=6), ["sign", "noise", "ipm", "labels"]),
    (Zenopp(), ["sign", "noise", "ipm", "labels"]),
    (Rflbat(), ["sign", "labels", "boosted"]),
    (Auror(), ["sign", "alie", "labels", "boosted"]),
    (Afa(), ["sign", "noise", "labels", "boosted"]),
]


@pytest.mark.parametrize(("defense", "attacks"), STOPPED, ids=lambda case: getattr(case, "name", ""))
def test_who_is_stopped(scenes, defense, attacks):
    for attack in attacks:
        _, weight = judged(defense, scenes[attack])
        assert weight == 0, f"{defense} keeps attackers of {attack}"


WEIGHED_DOWN = [
    (Flare(), ["sign", "noise", "ipm", "alie", "boosted"], 0.6),
    (Sageflow(), ["sign", "noise", "labels", "boosted"], 0.3),
    (ResidualReweighting(), ["sign", "noise"], 0.6),
]


@pytest.mark.parametrize(("defense", "attacks", "most"), WEIGHED_DOWN, ids=lambda case: getattr(case, "name", ""))
def test_who_loses_weight(scenes, defense, attacks, most):
    for attack in attacks:
        _, weight = judged(defense, scenes[attack])
        assert weight < most, f"{defense} gives attackers of {attack} a weight of {weight}"


PASSED = [
    (Fltrust(), "alie"),  # trust is not detection: whoever points roughly the right way keeps some
    (Foolsgold(), "noise"),  # independent noise looks most diverse of all
    (Signguard(), "plain"),  # a backdoor of honest length has honest signs
    (Zenopp(), "plain"),
    (Afa(), "ipm"),  # compares models, from which short updates hardly differ
    (Deepsight(inputs=100), "sign"),  # looks for one-sided labels only
    (ResidualReweighting(), "plain"),
]


@pytest.mark.parametrize(("defense", "attack"), PASSED, ids=lambda case: getattr(case, "name", case))
def test_negative_controls(scenes, defense, attack):
    verdict, weight = judged(defense, scenes[attack])
    assert verdict.keep_C[scenes[attack][1].poisoned_C].any()
    assert weight > 0.5


@pytest.mark.parametrize(
    ("defense", "least", "most"),
    [
        (Fltrust(), 0.0, 0.05),
        (Foolsgold(), 0.0, 0.2),
        (Signguard(), 0.0, 0.3),
        (Afa(), 0.0, 0.3),
        (Flame(), 0.1, 0.45),  # more than half of the rows make a cluster: hardly more stay
        (Alignins(), 0.2, 0.7),  # a third fails either criterion of two
        (MultiMetrics(), 0.7, 0.7),  # seven tenths go by definition
        (ClippedClustering(), 0.05, 0.5),  # it always makes two clusters
    ],
    ids=lambda case: getattr(case, "name", ""),
)
def test_false_alarms_without_an_attack(scenes, defense, least, most):
    federation, sent = scenes["sign"]
    honest_CD = federation.train(federation.cohort()).updates_CD
    verdict = defense.apply(honest_CD, federation.context(sent.weights_C, sent.cohort.clients), defense.init())
    assert least <= float((~verdict.keep_C).double().mean()) <= most


def test_zenopp_without_slack_is_fltrust_with_equal_weights(scenes):
    for attack in ("sign", "noise", "boosted"):
        trusted, _ = judged(Fltrust(root_samples=100), scenes[attack])
        tested, _ = judged(Zenopp(rho=0.0, root_samples=100), scenes[attack])
        # both train on the same samples, in batches of their own
        agree = float((trusted.keep_C == tested.keep_C).double().mean())
        assert agree >= 0.85


def test_a_transform_of_all_frequencies_leaves_the_angles(scenes):
    every = Freqfed(of="updates", shape="flat", low=1.0)
    for attack in ("sign", "alie", "plain"):
        assert torch.equal(
            judged(every, scenes[attack])[0].keep_C, judged(Flame(of="updates"), scenes[attack])[0].keep_C
        )


def test_sybils_lose_their_weight_and_a_single_attacker_does_not(scenes):
    federation, sent = scenes["ipm"]
    context = federation.context(sent.weights_C, sent.cohort.clients)
    assert not Foolsgold().apply(sent.updates_CD, context, {}).keep_C[sent.poisoned_C].any()
    single_C = ~sent.poisoned_C
    single_C[sent.poisoned_C.nonzero()[0]] = True
    context = replace(context, weights_C=context.weights_C[single_C], clients_C=context.clients_C[single_C])
    alone = Foolsgold().apply(sent.updates_CD[single_C], context, {})
    assert alone.keep_C[sent.poisoned_C[single_C]].all()


def test_deepsight_finds_clients_of_a_single_label(scenes):
    federation, sent = scenes["sign"]
    rows_CD = federation.train(federation.cohort()).updates_CD.clone()
    weight, shape, bias = federation.bench.flat.layout.classifier
    for row in rows_CD[:6]:
        changed = row[weight].view(shape)
        changed[1:] *= 0.01
        changed[0] *= 20
        row[bias][1:] *= 0.01
        row[bias][0] *= 20
    verdict = Deepsight(inputs=200).apply(rows_CD, federation.context(sent.weights_C, sent.cohort.clients), {})
    assert not verdict.keep_C[:6].any()
    assert verdict.keep_C[6:].all()


def test_afa_blocks_after_six_bad_rounds_and_then_judges_no_more(scenes):
    state = {}
    for bad_rounds in range(1, 8):
        verdict, _ = judged(Afa(), scenes["sign"], state)
        state = verdict.state
        assert verdict.metrics["blocked"] == (6 if bad_rounds >= 6 else 0)


def test_three_sigma_sees_who_leaves_the_centre_of_earlier_rounds(scenes):
    federation, sent = scenes["noise"]
    context = federation.context(sent.weights_C, sent.cohort.clients)
    honest_CD = federation.train(federation.cohort()).updates_CD
    state = ThreeSigma().apply(honest_CD, context, {}).state
    verdict, _ = judged(ThreeSigma(), scenes["noise"], state)
    assert not verdict.keep_C[sent.poisoned_C].any()
    assert judged(ThreeSigma(), scenes["noise"])[
        0
    ].keep_C.all()  # in the first round nobody of twenty is three deviations off


def test_crfl_bounds_the_model_and_leaves_the_last_one_without_noise(scenes):
    federation, sent = scenes["sign"]
    context = federation.context(sent.weights_C, sent.cohort.clients)
    huge_D = 100 * context.global_D
    noisy_D, state = Crfl(rho0=2.0, sigma=0.01).after_step(huge_D, context, {})
    assert abs(float(noisy_D.norm()) - 2.2) < 0.1  # 2 + 0.1 * 2, and a little noise
    assert state["clipped"] == 1.0
    last_D, _ = Crfl(rho0=2.0, sigma=0.01).after_step(huge_D, replace(context, round=19), {})
    assert float(last_D.norm()) == pytest.approx(2 + 0.1 * 19, rel=1e-5)
