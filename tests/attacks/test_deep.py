"""Deep model poisoning and alternating minimisation: golden numbers, limits, and what the printed forms do."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.testing import assert_close

from fl_lightning.attacks import AlternatingMinimization, Deep, ModelReplacement, TargetSamples
from fl_lightning.attacks._adversarial_steps import BoostedSteps, JointGradient, MainThenAdversarial, row_sum
from fl_lightning.attacks._adversarial_task import AdversarialTask, endless
from fl_lightning.attacks._backdoor_training import boosted, start_model
from fl_lightning.attacks._deep import benign_update, curvature
from fl_lightning.callbacks import ProximalPull
from fl_lightning.clients import Sgd
from fl_lightning.config import load
from fl_lightning.data import Samples
from fl_lightning.federation import Federation
from fl_lightning.randomness import generator
from fl_lightning.testing.attacks import play, scene
from fl_lightning.testing.callbacks import fit_quietly


class TwoQuadratics(LightningModule):
    """Clean and dirty loss (theta - c)' diag(h) (theta - c) / 2; the batch says which."""

    CLEAN = (torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.5]))
    DIRTY = (torch.tensor([-1.0, 2.0]), torch.tensor([2.0, 2.0]))

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2))
        self.generators = [torch.Generator().manual_seed(0)]
        self.path = []

    def training_step(self, batch, batch_idx):
        dirty = isinstance(batch, tuple)
        self.path.append(("dirty" if dirty else "clean", self.theta.detach().clone()))
        centre, h = self.DIRTY if dirty else self.CLEAN
        # |theta - b|^2 / 2 in the golden example: h = 1
        h = h / 2 if dirty else h
        return (h * (self.theta - centre).square()).sum() / 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


DIRTY = Samples(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))


def fit(callbacks, steps):
    module = TwoQuadratics()
    fit_quietly(module, torch.utils.data.DataLoader(range(steps)), callbacks)
    return module


# --- deep, printed -------------------------------------------------------------------------------------------------------


def printed(steps, **changes):
    settings = {
        "main_weight": 0.05,
        "boost": 10 / 0.04,
        "rho1": 0.5,
        "rho2": 0.25,
        "benign_D": torch.tensor([0.3, -0.1]),
        "curvature_D": torch.tensor([2.0, 0.5]),
    }
    return fit([MainThenAdversarial(DIRTY, Sgd(lr=0.1), 1, **(settings | changes))], steps)


def test_golden_two_steps_of_the_printed_form():
    once, twice = (printed(steps, main_weight=1.0, boost=1.0).theta.detach() for steps in (1, 2))
    assert_close(once, torch.tensor([0.1226908, 0.1857698]), atol=1e-6, rtol=0)
    assert_close(twice, torch.tensor([0.2046447, 0.3156231]), atol=1e-6, rtol=0)
    main = printed(2, main_weight=1.0, boost=0.0).theta.detach()
    assert_close(main, torch.tensor([0.4493771, -0.0675116]), atol=1e-6, rtol=0)
    adversarial = printed(2, main_weight=0.0, boost=1.0).theta.detach()
    assert_close(adversarial, torch.tensor([-0.2447324, 0.3831347]), atol=1e-6, rtol=0)
    submitted = printed(2).theta.detach()
    assert_close(submitted, torch.tensor([-61.1606407, 95.7802963]), atol=1e-3, rtol=0)


def test_printed_form_alternates_main_first():
    assert [kind for kind, _ in printed(2).path] == ["clean", "dirty"] * 2


def test_the_pull_at_its_centre_is_zero():
    assert printed(1, benign_D=torch.zeros(2)).theta.isfinite().all()


def test_benign_update_is_divided_by_the_server_rate():
    assert_close(benign_update(torch.tensor([1.0]), torch.tensor([0.98]), 0.04), torch.tensor([0.5]))


# --- deep, working -------------------------------------------------------------------------------------------------------


def test_without_regularisers_it_is_model_replacement_to_the_bit():
    free = play(Deep(rho1=0.0, rho2=0.0)).submitted_CD
    assert torch.equal(free, play(ModelReplacement()).submitted_CD)


def test_large_penalties_shrink_the_displacement():
    norms = [
        play(Deep(rho1=0.0, rho2=rho2, epochs=8, curvature_samples=24)).metrics["attack/displacement"]
        for rho2 in (0.0, 0.01, 0.1)
    ]
    assert norms[0] > norms[1] > norms[2]


def test_curvature_is_estimated_at_the_global_model_with_mean_one():
    federation, trained = scene()
    jobs = trained.jobs
    samples = jobs[0].samples[jobs[0].rows]
    flat = federation.bench.flat
    for h in ("ggn", "fisher", "hutchinson"):
        h_D = curvature(flat, federation.initial_D, samples, h, generator(0, "signs"))
        assert h_D.shape == federation.initial_D.shape
        assert float(h_D.mean()) == pytest.approx(1, abs=1e-4)
        assert (h_D >= 0).all()
    # pixels that are 0 in every sample have no effect on the loss
    dead = samples.x.flatten(1).abs().sum(0) == 0
    assert dead.any()
    h_D = curvature(flat, federation.initial_D, samples, "ggn", generator(0, "signs"))
    first = next(iter(flat.split(h_D).values()))
    assert (first[:, dead] == 0).all()


# --- model replacement: constrain-and-scale, train-and-scale ----------------------------------------------------------------


def test_constrain_and_scale_stays_nearer():
    norms = [
        float(play(ModelReplacement(boost=1.0, epochs=8, alpha=alpha)).submitted_CD[1].norm())
        for alpha in (1.0, 0.5, 0.1)
    ]
    assert norms[0] > norms[1] > norms[2]


def test_train_and_scale_submits_just_the_allowed_norm():
    played = play(ModelReplacement(boost=100.0, max_norm=0.7))
    assert_close(played.submitted_CD[played.malicious_C].norm(dim=1), torch.full((3,), 0.7))
    assert_close(boosted(torch.zeros(1, 2), 3.0, 1.0), torch.zeros(1, 2))


# --- model replacement: anticipated benign updates ---------------------------------------------------------------------------


def test_the_foreseen_start_is_where_the_benign_updates_lead():
    """Two attackers, two benign clients, server rate 0.5."""
    seen = SimpleNamespace(
        global_D=torch.tensor([1.0, 0.0]),
        server_lr=0.5,
        n_clients=4,
        n_malicious=2,
        own_weights=torch.ones(2),
        benign_weights=torch.ones(2),
        benign_updates=torch.tensor([[1.0, 0.0], [3.0, 2.0]]),
        own_updates=torch.tensor([[2.0, 0.0], [0.0, 2.0]]),
        known_updates=torch.tensor([[2.0, 0.0], [0.0, 2.0]]),
    )
    full, blind = (SimpleNamespace(**vars(seen), knowledge=level) for level in ("full", "none"))
    assert_close(start_model(full, "foreseen"), torch.tensor([1.5, 0.25]))
    assert_close(start_model(blind, "foreseen"), torch.tensor([1.25, 0.25]))
    assert torch.equal(start_model(full, "global"), seen.global_D)


@pytest.mark.parametrize("attack", [ModelReplacement(), Deep(rho1=0.0, rho2=0.0)], ids=["replacement", "deep"])
def test_with_the_benign_updates_known_the_mean_becomes_what_the_attackers_trained(attack, monkeypatch):
    tree = {
        "data": "digits",
        "partition": {"name": "iid", "clients": 6, "samples_per_client": 20},
        "model": {"name": "mlp", "hidden": [8]},
        "client": {"steps": 5, "batch_size": 10},
        "participation": {"name": "full", "malicious": 2},
        "server": {"lr": 0.5, "weights": "equal"},
        "attack": replace(attack, start="foreseen", knowledge="full").to_dict(),
    }
    federation = Federation(load(tree))
    engine, fits = type(federation.experiment.engine), []
    train = engine.train

    def spy(self, bench, local):
        fits.append((local.start_D, train(self, bench, local)))
        return fits[-1][1]

    monkeypatch.setattr(engine, "train", spy)
    federation.round()
    (global_D, honest_CD), (start_D, trained_MD) = fits
    benign_CD = honest_CD[~federation.experiment.participation.sample(0, 6, 0).malicious]
    assert_close(start_D, global_D + 0.5 * benign_CD.sum(0) / 6)
    assert_close(federation.state.global_D, start_D + trained_MD.mean(0), atol=1e-6, rtol=0)


def after_two_attacked_rounds(alpha, **attack):
    """Figures of the second of two rounds in which one of ten clients replaces the model; Dirichlet with this alpha."""
    tree = {
        "seed": 2,
        "data": "digits",
        "rounds": 7,
        "partition": {"name": "dirichlet", "clients": 10, "alpha": alpha, "min_samples": 20},
        "model": {"name": "mlp", "hidden": [32]},
        "client": {"epochs": 5, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.003}},
        "participation": {"name": "full", "malicious": 1, "schedule": {"name": "from_round", "round": 5}},
        "server": {"weights": "equal"},
        "attack": {"name": "model_replacement", "epochs": 10, **attack}
        | {"objective": {"name": "trigger", "label": 7, "size": 2, "offset": 0}},
    }
    return Federation(load(tree)).run().history[-1]


def test_anticipating_the_honest_clients_saves_the_second_attacked_round():
    """They all undo what the first one left; on seeds 0-2 the second success is 0.59, 0.91, 0.58 against 1.0, 1.0, 0.94."""
    assert after_two_attacked_rounds(1.0, start="foreseen")["attack/success"] > 0.85
    assert after_two_attacked_rounds(1.0, start="global")["attack/success"] < 0.75


def test_an_attacker_of_few_classes_spares_the_others_by_rehearsing():
    """Accuracy after two attacked rounds on seeds 0-3: 0.36, 0.48, 0.22, 0.11 without, 0.58, 0.54, 0.74, 0.31 with."""
    without, rehearsing = (
        after_two_attacked_rounds(0.1, start="foreseen", poison_fraction=0.5, rehearsal=copies) for copies in (0, 6)
    )
    assert rehearsing["global/accuracy"] > without["global/accuracy"] + 0.3
    assert rehearsing["attack/success"] > 0.95


# --- alternating minimisation ------------------------------------------------------------------------------------------------


def test_row_sum_is_the_sum_over_a_dense_hessian_times_delta():
    start = torch.randn(4, generator=generator(0, "test"), dtype=torch.float64)
    theta = (start + 0.3 * torch.arange(4)).requires_grad_()

    def loss(w):
        return (w.sin() * w.flip(0)).sum() + w.prod()

    delta = theta.detach() - start
    dense = torch.func.jacrev(torch.func.jacrev(loss))(theta).detach()
    ours = row_sum(loss(theta), [theta], [start])
    assert_close(ours.detach(), (dense @ delta).sum())
    # differentiated through both H and delta: against central differences
    (gradient,) = torch.autograd.grad(ours, theta)
    for r in range(4):
        step = torch.zeros(4).double()
        step[r] = 1e-5
        high, low = (
            row_sum(loss(moved), [moved], [start]).detach()
            for moved in ((theta.detach() + sign * step).requires_grad_() for sign in (1, -1))
        )
        assert float(gradient[r]) == pytest.approx(float((high - low) / 2e-5), abs=1e-6)


def test_joint_gradient_weighs_clean_and_dirty():
    for alpha in (0.0, 0.25, 1.0):
        moved = fit([JointGradient(DIRTY, 1, alpha)], 1).theta.detach()
        clean, dirty = torch.tensor([-2.0, 0.0]), torch.tensor([1.0, -2.0])
        assert_close(moved, -0.1 * (alpha * clean + (1 - alpha) * dirty))


def test_null_space_term_acts_from_the_second_step():
    """H of the clean loss is diag(2, .5), so |sum H delta| = |2 d_0 + .5 d_1| with gradient sign * (2, .5)."""
    free = [fit([JointGradient(DIRTY, 1, 0.0)], steps).theta.detach() for steps in (1, 2)]
    held = [fit([JointGradient(DIRTY, 1, 0.0, 0.5)], steps).theta.detach() for steps in (1, 2)]
    assert_close(free[0], held[0])
    sign = torch.sign(2 * free[0][0] + 0.5 * free[0][1])
    assert_close(free[1] - held[1], 0.1 * 0.5 * sign * torch.tensor([2.0, 0.5]))


def test_boosted_steps_come_first_and_every_few_steps():
    module = fit([BoostedSteps(DIRTY, Sgd(lr=0.1), 1, boost=5.0, stealth_steps=2)], 4)
    assert [kind for kind, _ in module.path] == ["dirty", "clean", "clean", "dirty", "clean", "clean"]
    assert_close(module.path[1][1], -0.5 * torch.tensor([1.0, -2.0]))


def test_the_pull_does_not_touch_adversarial_steps():
    boosted_steps = BoostedSteps(DIRTY, Sgd(lr=0.1), 1, boost=1.0, stealth_steps=1)
    far = ProximalPull(100.0, squared=False, offset=torch.tensor([9.0, 9.0]))
    module = fit([far, boosted_steps], 1)
    assert_close(module.path[1][1], -0.1 * torch.tensor([1.0, -2.0]))


def test_alpha_one_is_honest_and_alpha_zero_ignores_clean_data():
    honest = play(AlternatingMinimization(alpha=1.0, boost=1.0))
    assert_close(honest.submitted_CD, honest.honest_CD)
    played = play(AlternatingMinimization(boost=1.0))
    rows = played.submitted_CD[played.malicious_C]
    assert_close(rows[0], rows[1])  # one shared target: all attackers send the same
    assert played.metrics["attack/boost"] == 1.0


@pytest.mark.parametrize("form", ["joint", "alternate"])
def test_the_target_is_misread_after_the_aggregation(form):
    attack = AlternatingMinimization(form=form, steps=20, objective=TargetSamples(count=1))
    played = play(attack)
    theta_D = played.federation.state.global_D + played.submitted_CD.mean(0)
    success = played.federation.goal.success
    assert played.federation.bench.flat.accuracy(theta_D, success) == 1.0


def test_endless_batches_cover_every_sample_once_a_pass():
    samples = Samples(torch.arange(5.0)[:, None], torch.arange(5))
    batches = endless(samples, 2, torch.Generator().manual_seed(0))
    passes = [torch.cat([next(batches).y for _ in range(3)]).sort().values for _ in range(2)]
    assert all(torch.equal(one, torch.arange(5)) for one in passes)


def test_a_task_leaves_no_gradient_behind():
    module = TwoQuadratics()
    task = AdversarialTask(module, DIRTY, 1)
    moved_D = task.step(torch.optim.SGD(module.parameters(), lr=0.1))
    assert_close(moved_D, -0.1 * torch.tensor([1.0, -2.0]))
    assert module.theta.grad is None


# --- claims, on real MNIST: LeNet, 10 of 20 clients, one attacker, twelve clean rounds before --------------------------------


def from_one_clean_start(name, rounds, *variants):
    """What follows the twelfth round under each variant of an experiment."""
    saved = None
    for changes in variants:
        federation = Federation(load(name, [f"rounds={rounds}", *changes]))
        if saved is None:
            for _ in range(12):
                federation.round()
            saved = federation.state_dict()
        federation.load_state_dict(saved)
        yield federation.run().history[11:]


@pytest.mark.paper
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1, 2])  # seed 2's attacker holds next to none of five classes
def test_claim_every_attacked_round_succeeds(seed):
    common = [f"seed={seed}"]
    replacement = [*common, "attack.rho2=0"]
    for (clean, *attacked), loss in zip(
        from_one_clean_start("mnist_deep", 15, replacement, common), (0.02, 0.03), strict=True
    ):
        assert min(one["attack/success"] for one in attacked) >= 0.9
        assert min(one["global/accuracy"] for one in attacked) >= clean["global/accuracy"] - loss


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_claim_a_single_shot_fades_faster_with_a_larger_penalty():
    """The paper claims the opposite. 600 samples a client."""
    common = ["partition.samples_per_client=600", "attack.epochs=15", "attack.poison_fraction=0.5"]
    variants = ([*common, f"attack.rho2={rho2}"] for rho2 in (0, 0.1, 1))
    shots, after = zip(
        *[
            (shot["attack/success"], one["attack/success"])
            for _, shot, one in from_one_clean_start("mnist_deep_once", 14, *variants)
        ],
        strict=True,
    )
    assert min(shots) >= 0.9
    assert after[0] > after[1] > after[2]
