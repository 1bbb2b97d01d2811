"""Attacks that train: label flips, ascent, backdoors under constraints, critical layers."""

from types import SimpleNamespace

import pytest
import torch

from fl_lightning.aggregators import mean
from fl_lightning.attacks import (
    CriticalLayers,
    LabelFlip,
    LabelMap,
    ModelReplacement,
    Neurotoxin,
    Pga,
    Trigger,
    Untargeted,
    critical_layers,
    free_coordinates,
)
from fl_lightning.attacks._critical_layers import layers_of
from fl_lightning.attacks._label_flip import by_score, chosen
from fl_lightning.attacks._pga import of_length
from fl_lightning.config import load
from fl_lightning.data import Digits, Samples
from fl_lightning.federation import Federation
from fl_lightning.randomness import generator
from fl_lightning.registry import ConfigError, registry
from fl_lightning.testing.attacks import check_honest_at_zero, play, scene

DIGITS = Digits().load()


def bad(played):
    return played.submitted_CD[played.malicious_C]


# --- label flips -------------------------------------------------------------------------------------------------------


def test_no_flipped_sample_is_honest_training():
    for settings in ({}, {"flip": "static"}, {"flip": "pair"}, {"flip": "symmetric"}, {"flip": "dynamic"}):
        check_honest_at_zero(LabelFlip(share=0.0, **settings))


def test_classes_by_score():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    assert by_score(scores, torch.tensor([0, 1]), "dynamic").tolist() == [1, 0]
    assert by_score(scores, torch.tensor([0, 1]), "next_best").tolist() == [2, 2]
    assert by_score(scores, torch.tensor([1, 0]), "dynamic").tolist() == [2, 2], "never the right class"


def test_how_many_are_flipped():
    assert int(chosen(40, 0.3, False, generator(0, "x")).sum()) == 12
    drawn = int(chosen(4000, 0.3, True, generator(0, "x")).sum())
    assert drawn != 1200
    assert abs(drawn - 1200) < 5 * (4000 * 0.3 * 0.7) ** 0.5


def test_success_is_counted_for_the_map_that_is_flipped():
    assert LabelFlip().objective == LabelMap()
    assert LabelFlip(flip="static").objective == LabelMap(mapping="static")
    assert LabelFlip(flip="pair", objective=Untargeted()).objective == Untargeted()
    for flip in ("symmetric", "dynamic", "next_best"):
        built = registry("attack").build({"name": "label_flip", "flip": flip})
        assert built.objective == Untargeted()
        assert registry("attack").build(built.to_dict()) == built


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"objective": "untargeted"}, "flip 'objective' needs an objective with labels"),
        ({"flip": "static", "objective": "trigger"}, "flip 'static' serves any, relabel"),
    ],
)
def test_flips_that_contradict_their_objective(settings, match):
    with pytest.raises(ConfigError, match=match):
        registry("attack").build({"name": "label_flip", **settings})


def test_flips_need_classes():
    with pytest.raises(ConfigError, match=r"attack.flip: 'dynamic' needs classes, got regression"):
        Federation(
            load(
                {
                    "data": "house_prices",
                    "fast": True,
                    "model": "linear",
                    "partition": {"name": "iid", "clients": 3},
                    "participation": {"name": "full", "malicious": 1},
                    "attack": {"name": "label_flip", "flip": "dynamic"},
                }
            )
        )


def test_what_is_flipped_once_stays_flipped():
    """Drawn once a client and sample, whatever the round: the same labels, and the same ones of them."""
    attack = LabelFlip(flip="symmetric", share=0.5)
    seen: list[list[Samples]] = []

    def view(round):
        return SimpleNamespace(
            own_clients=torch.tensor([3, 5]),
            own_samples=[DIGITS.train[:60], DIGITS.train[60:120]],
            classes=10,
            generator=lambda purpose, *keys: generator(0, purpose, round, *keys),
            run_generator=lambda purpose, *keys: generator(0, purpose, *keys),
            train=lambda samples: seen.append(samples) or torch.zeros(2, 4),
            flat=SimpleNamespace(trained=4),
        )

    first, second = (attack.poison(view(round), {}) for round in (0, 7))
    assert torch.equal(seen[0][0].y, seen[1][0].y)
    assert torch.equal(seen[0][1].y, seen[1][1].y)
    shifts = (DIGITS.train.y[:60] - seen[0][0].y) % 10
    assert 15 < int((shifts > 0).sum()) < 45
    assert len(shifts.unique()) > 5
    assert first.metrics["flipped"] == second.metrics["flipped"]
    assert not first.state


def test_dynamic_flips_follow_the_model():
    attack = LabelFlip(flip="dynamic")
    first = play(attack)
    second = play(attack, before=first)
    assert first.metrics["attack/flipped"] == 1
    assert not first.state
    assert not torch.equal(bad(first), bad(second))


def test_a_backdoor_of_one_class_is_learnt_beside_the_clean_samples():
    """Trained on the stamped sevens alone, an attacker's model would know nothing but them."""
    one = play(LabelFlip(objective=Trigger(mode="one_to_one", source=7, label=1)))
    everything = play(LabelFlip(objective=Trigger(label=1)))
    honest = one.honest_CD[one.malicious_C]
    cosine = torch.cosine_similarity(bad(one), honest, dim=1)
    assert (cosine > torch.cosine_similarity(bad(everything), honest, dim=1)).all()


# --- ascent ------------------------------------------------------------------------------------------------------------


def test_ascent_sends_a_step_of_the_mean_honest_length():
    played = play(Pga())
    expected = played.honest_CD[played.malicious_C].norm(dim=1).mean()
    torch.testing.assert_close(bad(played).norm(dim=1), expected.repeat(3))
    assert played.metrics["attack/radius"] == pytest.approx(float(expected))
    assert torch.equal(bad(played)[0], bad(played)[2])
    apart = play(Pga(average=False, radius=2.0))
    torch.testing.assert_close(bad(apart).norm(dim=1), torch.full((3,), 2.0))
    assert not torch.equal(bad(apart)[0], bad(apart)[1])
    flat, start_D = played.federation.bench.flat, played.federation.initial_D
    test = played.federation.data.test
    assert flat.losses(start_D + bad(apart)[0], test).mean() > flat.losses(start_D, test).mean()
    assert of_length(torch.zeros(1, 2), 3.0).tolist() == [[0, 0]]


def test_ascent_knows_the_norm_bound_only_with_full_knowledge():
    def sent(knowledge):
        bound = "defenses={bound: {name: norm_bound, max_norm: 0.37}}"
        federated = Federation(load("digits", [f"attack={{name: pga, knowledge: {knowledge}}}", bound]))
        return federated.round().metrics["attack/radius"]

    assert sent("full") == 0.37
    assert sent("none") != 0.37


# --- backdoors ---------------------------------------------------------------------------------------------------------


def test_the_default_boost_counts_the_weights_that_the_server_uses():
    """Weights 20 .. 27: the attackers 1, 4, 6 hold 71 of 188; without knowledge equal weights are assumed."""
    assert play(ModelReplacement(knowledge="full")).metrics["attack/boost"] == pytest.approx(188 / 71)
    assert play(ModelReplacement()).metrics["attack/boost"] == pytest.approx(8 / 3)


def test_full_knowledge_replaces_the_model_under_unequal_weights():
    played = play(ModelReplacement(knowledge="full"))
    weights_C = torch.arange(8.0) + 20
    plain = play(ModelReplacement(boost=1.0))
    shares = weights_C[played.malicious_C] / weights_C[played.malicious_C].sum()
    rest = (weights_C[~played.malicious_C] / weights_C.sum()) @ played.submitted_CD[~played.malicious_C]
    torch.testing.assert_close(mean(played.submitted_CD, weights_C) - rest, shares @ bad(plain), atol=1e-5, rtol=1e-4)


def test_the_unsquared_pull_is_another_one():
    squared, plain = play(ModelReplacement(alpha=0.95)), play(ModelReplacement(alpha=0.95, anomaly="l2"))
    free = play(ModelReplacement())
    assert not torch.equal(bad(squared), bad(plain))
    assert (bad(plain).norm(dim=1) < bad(free).norm(dim=1)).all()
    assert torch.equal(bad(free), bad(play(ModelReplacement(anomaly="l2")))), "alpha 1 is no constraint, to the bit"


def test_pgd_with_replacement_keeps_what_is_submitted_in_the_ball():
    for boost in (1.0, 4.0):
        sent = bad(play(ModelReplacement(radius=0.03, boost=boost)))
        assert (sent.norm(dim=1) <= 0.03 * (1 + 1e-5)).all()
        assert (sent.norm(dim=1) > 0.029).all()


def test_attackers_without_the_class_that_they_need_are_counted():
    attack = ModelReplacement(objective=Trigger(mode="one_to_one", source=3, label=1), boost=1.0)
    played = play(attack, 8)
    federation, trained = scene()
    without = sum(not bool((federation.data.train.y[job.rows] == 3).any()) for job in trained.jobs)
    assert played.metrics.get("attack/honest", 0) == without


def test_protected_coordinates_by_hand():
    gradient_D = torch.tensor([0.1, -0.5, 0.3, 0.5, -0.2, 0.0])
    assert free_coordinates(gradient_D, 0.34).int().tolist() == [1, 0, 0, 0, 1, 1]
    assert free_coordinates(gradient_D, 0.34, [3, 3]).int().tolist() == [1, 0, 0, 0, 0, 1]
    assert free_coordinates(torch.ones(4), 0.5).int().tolist() == [0, 0, 1, 1], "of equal ones the first are protected"


def test_neurotoxin_leaves_the_last_global_update_alone():
    attack = Neurotoxin(ratio=0.2, boost=3.0)
    first = play(attack)
    second = play(attack, before=first)
    moved_D = mean(first.submitted_CD, torch.arange(8.0) + 20)
    second_bad = bad(second)
    # play() hands on the first model as the one before
    free_D = free_coordinates(moved_D, 0.2)
    assert (second_bad[:, ~free_D] == 0).all()
    assert (second_bad[:, free_D] != 0).any()
    assert second.metrics["attack/protected"] == pytest.approx(0.2, abs=0.001)
    assert (bad(first) == 0).any(1).all(), "before the first global update: the own gradient"


def test_neurotoxin_without_protection_is_model_replacement():
    assert torch.equal(bad(play(Neurotoxin(ratio=0.0, boost=2.0))), bad(play(ModelReplacement(boost=2.0))))


def test_critical_layers_by_hand():
    parts = [0.05, 0.3, 0.6, 0.1]
    found = critical_layers(lambda layers: min(1, sum(parts[i] for i in layers)), 4, 0.8)
    assert found.layers == [1, 2]
    assert found.drops == pytest.approx([0, 0.25, 0.55, 0.05])
    assert critical_layers(lambda layers: 0.0, 3, 0.9).layers == []
    assert critical_layers(lambda layers: float(2 in layers), 3, 0.9).layers == [2]


def test_only_critical_layers_are_sent_dirty():
    attack = CriticalLayers(epochs=30, lr_factor=10.0, poison_fraction=0.5, tau=0.5)
    played = play(attack)
    assert played.metrics["attack/found"] > 0
    layer_D = layers_of(played.federation.bench.flat)
    assert layer_D.unique().tolist() == [0, 1], "weight and bias of a module are one layer"
    mean_D = played.honest_CD[played.malicious_C].mean(0)
    clients = played.malicious_C.nonzero().flatten().tolist()
    for client, sent_D, honest_D in zip(clients, bad(played), played.honest_CD[played.malicious_C], strict=True):
        layers = played.state["layers"][str(client)]
        if not layers:
            assert torch.equal(sent_D, honest_D)
            continue
        clean_D = ~torch.isin(layer_D, torch.tensor(layers))
        assert torch.equal(sent_D[clean_D], mean_D[clean_D])
        assert not torch.equal(sent_D[~clean_D], mean_D[~clean_D])


def test_nothing_found_is_honest():
    played = play(CriticalLayers(lr_factor=0.1, poison_fraction=0.05, objective=Trigger(size=1, offset=0, label=9)))
    assert played.metrics["attack/found"] == 0
    assert torch.equal(bad(played), played.honest_CD[played.malicious_C])


def test_an_adaptive_server_is_warned_of():
    changes = ["attack=model_replacement", "server={optimizer: adam, lr: 0.01}"]
    (caution,) = (experiment := load("digits", changes)).attack.cautions(experiment)
    assert "with adam at the server it means nothing" in caution
    momentum = [changes[0], "server={optimizer: momentum}"]
    (caution,) = (experiment := load("digits", momentum)).attack.cautions(experiment)
    assert "the server's momentum then repeats the boosted update" in caution
    for quiet in ([*changes, "attack.boost=5"], [*momentum, "attack.boost=5"], changes[:1]):
        experiment = load("digits", quiet)
        assert not experiment.attack.cautions(experiment)


def test_each_part_of_a_shared_trigger_is_counted_by_itself():
    changes = ["data.train_samples=200", "model.hidden=[8]", "attack=dba", "rounds=1"]
    figures = Federation(load("digits", changes)).round().metrics
    assert {f"attack/success_part_{part}" for part in range(4)} <= figures.keys()
    central = Federation(load("digits", [*changes, "attack.objective.dba=false"])).round().metrics
    assert not any("success_part" in name for name in central)


# --- in federations ----------------------------------------------------------------------------------------------------

ATTACKS = ("dba", "pga", "neurotoxin", "critical_layers")


@pytest.mark.parametrize("attack", ATTACKS)
def test_both_engines_agree(attack):
    changes = ["data.train_samples=200", "rounds=1", "model.hidden=[8]", "trainer.precision=64", f"attack={attack}"]
    models = [Federation(load("digits", [*changes, f"engine={name}"])) for name in ("sequential", "vectorized")]
    one, other = (federated.run().global_D for federated in models)
    torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
