"""Triggers that are learnt, Chameleon's two stages, and what 3DFed's attackers read and change."""

import pytest
import torch

from fl_lightning.attacks import A3fl, Chameleon, Iba, Trigger, adapt, contrastive_loss, feedback
from fl_lightning.attacks._a3fl import place
from fl_lightning.attacks._flat_training import descend, features, head_coordinates, mean_loss
from fl_lightning.attacks._iba import Generator, generator_of, perturbed
from fl_lightning.attacks._three_dfed_adapt import masks
from fl_lightning.clients import Adam, Sgd
from fl_lightning.config import load
from fl_lightning.data import Samples
from fl_lightning.federation import Federation
from fl_lightning.randomness import generator
from fl_lightning.registry import ConfigError, registry
from fl_lightning.testing.attacks import play

SMALL = ["data.train_samples=200", "data.test_samples=100", "model.hidden=[8]", "aggregator=mean"]


def small(*changes: str) -> Federation:
    return Federation(load("digits", [*SMALL, *changes]))


# --- A3FL --------------------------------------------------------------------------------------------------------------


def test_the_place_of_the_trigger():
    assert place((1, 28, 28), None, 2) == (slice(2, 7), slice(2, 7))
    assert place((1, 8, 8), None, 2) == (slice(2, 4), slice(2, 4))
    with pytest.raises(ConfigError, match=r"attack.size: square of 7 at 2 does not fit into \(1, 8, 8\)"):
        small("attack={name: a3fl, size: 7}")


def test_the_search_changes_the_square_only_and_raises_success():
    attack = A3fl(outer=15, adversarial_epochs=1, refresh=5)
    first = play(attack)
    trigger = first.state["trigger"]
    assert trigger.min() >= 0
    assert trigger.max() <= 1
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:4, 2:4] = False
    assert (trigger[:, outside] == 0.5).all(), "never moved, never stamped"
    assert (trigger[:, 2:4, 2:4] != 0.5).all()
    federation = first.federation
    start = attack.success(federation.goal, {"trigger": torch.full((1, 8, 8), 0.5)})
    learnt = attack.success(federation.goal, first.state)
    flat, theta_D = federation.bench.flat, federation.initial_D
    assert start is not None
    assert learnt is not None
    assert flat.losses(theta_D, learnt).mean() < flat.losses(theta_D, start).mean()
    others = federation.data.test.y != 0
    assert torch.equal(learnt.x[..., outside], federation.data.test.x[others][..., outside])
    assert set(learnt.y.tolist()) == {0}


def test_without_a_state_the_objective_speaks():
    federation = small("attack=null")
    goal = Trigger().goal(federation.data, generator(0, "objective"))
    assert A3fl().success(goal, {}) is goal.success


def test_the_unlearnt_model_counts():
    """lam_0 = 0 is the search on the broadcast model alone."""
    settings = {"outer": 4, "adversarial_epochs": 2}
    with_it, without = play(A3fl(balance=5.0, **settings)), play(A3fl(balance=0.0, **settings))
    assert not torch.equal(with_it.state["trigger"], without.state["trigger"])


@pytest.mark.parametrize("setting", [{"pattern": "blend"}, {"mode": "clean_label"}, {"dba": True}])
@pytest.mark.parametrize("attack", ["a3fl", "iba"])
def test_only_the_label_of_the_objective_is_used(attack, setting):
    with pytest.raises(ConfigError, match=f"{attack} learns the trigger: of the objective only label can be set"):
        registry("attack").build({"name": attack, "objective": {"name": "trigger", **setting}})


# --- IBA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 7)])
def test_no_pixel_moves_further_than_allowed(shape):
    x = torch.rand(4, *shape, generator=generator(0, "x"))
    network = generator_of(shape[0], None, generator(0, "T"))
    low, high = torch.full((shape[0], 1, 1), -1.0), torch.full((shape[0], 1, 1), 3.0)
    moved = perturbed(4 * x - 1, network, 0.05, (low, high))
    assert moved.shape == x.shape
    assert (moved - (4 * x - 1)).abs().max() <= 0.05 * 4 + 1e-6
    assert moved.min() >= -1
    assert moved.max() <= 3
    state = torch.get_rng_state()
    Again = generator_of(shape[0], None, generator(0, "T"))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), Again.parameters(), strict=True))
    assert isinstance(network, Generator)


def test_the_generator_learns_and_is_kept():
    attack = Iba(generator_epochs=40, generator_lr=0.01, eps=0.5, eps_decay=0.5, test_eps=0.1)
    first = play(attack)
    second = play(attack, before=first)
    assert first.metrics["attack/eps"] == 0.5
    assert second.metrics["attack/eps"] == 0.25
    assert not torch.equal(first.state["weights"], second.state["weights"])
    federation = first.federation
    flat, theta_D = federation.bench.flat, federation.initial_D
    success = attack.success(federation.goal, first.state)
    assert success is not None
    others = federation.data.test.x[federation.data.test.y != 0]
    assert (success.x - others).abs().max() <= 0.1 + 1e-6
    plain = Samples(others, success.y)
    assert flat.losses(theta_D, success).mean() < flat.losses(theta_D, plain).mean()


# --- Chameleon ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "expected"), [(0.07, 5.758973), (0.5, 1.426291)])
def test_contrastive_loss_by_hand(temperature, expected):
    rows = torch.tensor([[1, 0], [0.6, 0.8], [0, 1], [0.8, -0.6], [-1, 0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 0, 2])
    assert float(contrastive_loss(rows, labels, 0, 2.0, temperature)) == pytest.approx(expected, abs=1e-6)
    assert float(contrastive_loss(3 * rows, labels, 0, 2.0, temperature)) == pytest.approx(expected, abs=1e-6)


def test_a_lone_sample_has_a_finite_gradient():
    rows = torch.randn(3, 2, requires_grad=True)
    contrastive_loss(rows, torch.tensor([0, 1, 2]), 0, 2.0, 0.07).backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_the_encoder_and_the_head_move_in_their_own_stage():
    federation = small("attack=null")
    flat, start_D = federation.bench.flat, federation.initial_D
    head_D = head_coordinates(flat)
    assert int(head_D.sum()) == 8 * 10 + 10
    part = federation.data.train[:40]
    seen = features(flat, start_D, part.x)
    assert seen.shape == (40, 8)
    for optimizer in (Sgd(lr=0.5, momentum=0.9, weight_decay=0.1), Adam(weight_decay=0.1)):
        moved_D = descend(
            flat, start_D, [part] * 3, optimizer, lambda theta_D, own: mean_loss(flat, theta_D, own), head_D
        )
        assert torch.equal(moved_D[~head_D], start_D[~head_D])
        assert torch.equal(features(flat, moved_D, part.x), seen)
        assert not torch.equal(flat.scores(moved_D, part.x), flat.scores(start_D, part.x))


def test_plain_descent_is_what_the_engine_does():
    """One step of the own loop is one step of a client."""
    federation = small("attack=null", "client.optimizer.lr=0.3")
    flat, start_D = federation.bench.flat, federation.initial_D
    part = federation.data.train[:16]
    moved_D = descend(flat, start_D, [part], Sgd(lr=0.3), lambda theta_D, own: mean_loss(flat, theta_D, own))
    torch.testing.assert_close(moved_D, start_D - 0.3 * flat.gradient(start_D, part))


def test_dirty_samples_are_drawn_to_their_facilitators():
    """After the first stage, triggered images lie nearer to benign images of the wished class than after plain training."""
    attack = Chameleon(contrastive_epochs=20, contrastive_lr=0.05, temperature=0.5, objective=Trigger(label=3))
    played = play(attack)
    federation = played.federation
    flat, start_D = federation.bench.flat, federation.initial_D
    stamped = federation.goal.success.x
    wished = federation.data.test.x[federation.data.test.y == 3]

    def likeness(theta_D):
        far, near = (
            torch.nn.functional.normalize(features(flat, theta_D, x), dim=1).detach() for x in (stamped, wished)
        )
        return float((far @ near.T).mean())

    sent_D = played.submitted_CD[played.malicious_C][0]
    assert likeness(start_D + sent_D) > likeness(start_D)


@pytest.mark.parametrize(("model", "works"), [("linear", False), ("mlp", True), ("lenet5", True)])
def test_models_without_an_encoder_are_refused_before_training(model, works):
    experiment = load({"data": "mnist", "fast": True, "model": model, "partition": {"name": "iid", "clients": 4},
                       "participation": {"name": "full", "malicious": 1}, "attack": "chameleon"})  # fmt: skip
    if works:
        Federation(experiment)
        return
    with pytest.raises(
        ConfigError, match="attack: needs a model whose last layer is linear, with trained layers before it"
    ):
        Federation(experiment)


# --- 3DFed -------------------------------------------------------------------------------------------------------------


def test_feedback_by_hand():
    assert feedback([0.05, 0.049, 0.02, 0]).fates == ["accepted", "accepted", "clipped", "rejected"]
    assert feedback([0.05, 1.2]).noise
    assert feedback([0.05, -0.1]).noise
    assert feedback([1e-6, 0.01]).fates == ["rejected", "accepted"]
    assert feedback([]).fates == []


def test_adaptation():
    draw = generator(0, "adapt")
    yes, no = ["accepted"] * 5, ["rejected"] * 5
    assert adapt(yes, [], [0.4], 2, 0.1, draw) == ([0.4], 2)
    assert adapt(no, [], [0.4], 2, 0.1, draw).decoys == 3, "nobody was accepted: one decoy more"
    assert adapt(no, ["accepted"], [0.4], 2, 0.1, draw).decoys == 1, "an accepted decoy is no longer needed"
    assert adapt(["clipped", *no[1:]], [], [0.4], 0, 0.1, draw).decoys == 0
    for _ in range(20):
        (alpha,) = adapt(no, [], [0.4], 0, 0.3, draw).alphas
        assert 0.3 <= alpha <= 0.99
        both = adapt(yes + yes, [], [0.5, 0.2], 0, 0.1, draw).alphas
        assert all(0.2 <= alpha <= 0.5 for alpha in both)
        some = adapt(yes + no, [], [0.5, 0.2], 0, 0.1, draw).alphas
        assert all(0.5 <= alpha <= 0.6 for alpha in some)
    assert adapt([*yes[:4], "clipped"], [], [0.3], 0, 0.1, draw).alphas == [0.3], "80 % of a group suffice"


def test_masks_cancel_within_the_group():
    found = masks(torch.tensor([0.1, 0.2, 0.3]), 0.5, 4, 6, generator(0, "masks"))
    assert found.shape == (4, 3, 6)
    torch.testing.assert_close(found.sum(0), torch.zeros(3, 6), atol=1e-6, rtol=0)
    assert found.abs().sum() > 0
    loud = masks(torch.tensor([0.1, 0.2, 0.3]), 0.99, 4, 6, generator(0, "masks"))
    quiet = masks(torch.tensor([0.1, 0.2, 0.3]), 0.01, 4, 6, generator(0, "masks"))
    assert loud.norm() > quiet.norm()
    assert not masks(torch.ones(2), 0.5, 1, 3, generator(0, "masks")).any()
