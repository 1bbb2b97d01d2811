import pickle

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn

from fl_lightning.callbacks import CALLBACKS, FLWBC, HessianRegularizer, ProximalPull
from fl_lightning.callbacks.fl_wbc import laplace, perturb
from fl_lightning.clients import CallbackConfig
from fl_lightning.config import load
from fl_lightning.federation import Federation
from fl_lightning.testing.callbacks import CALLBACK_CHECKS, check_callback, fit_quietly

SETTINGS = {
    "fl_wbc": lambda: FLWBC(std=0.4),
    "proximal_pull": lambda: ProximalPull(rho=0.1),
    "hessian_regularizer": lambda: HessianRegularizer(rho=0.1, h="hutchinson"),
}


@pytest.mark.parametrize("check", CALLBACK_CHECKS.values(), ids=CALLBACK_CHECKS)
@pytest.mark.parametrize("name", SETTINGS)
def test_conformance(name, check):
    check(SETTINGS[name])


def test_registered():
    assert set(SETTINGS) == set(CALLBACKS)
    assert CallbackConfig("fl_wbc", std=0.4).build().std == 0.4
    with pytest.raises(ValueError, match="at least 0, got -1"):
        FLWBC(std=-1)


class Moves(Callback):
    """Moves the first parameter after every batch; what each broken callback spoils."""

    def step(self):
        return 0.1

    def on_train_batch_end(self, trainer, pl_module, *args):
        with torch.no_grad():
            next(pl_module.parameters()).add_(self.step())


class Explodes(Moves):
    def step(self):
        return float("nan")


class Forgetful(Moves):
    """Keeps counting over fits."""

    steps = 0

    def step(self):
        self.steps += 1
        return self.steps


class Global(Moves):
    """Draws from the global generator."""

    def step(self):
        return torch.rand(1)


class Loner(Moves):
    """All instances have the same key for their state."""

    state_key = "loner"

    def state_dict(self):
        return {"moved": True}


class Bound(Moves):
    """Holds what no other process can have."""

    def __init__(self):
        self.size = lambda: 0.1


class Drops(Moves):
    """Loads nothing of what it has saved."""

    def __init__(self):
        self.past = []

    def step(self):
        self.past.append(0.1)
        return 0.1

    def state_dict(self):
        return {"past": list(self.past)}


BROKEN = {
    "works_in_any_trainer": Explodes,
    "repeatable": Forgetful,
    "global_random_state_untouched": Global,
    "two_can_be_attached": Loner,
    "pickles": Bound,
    "state_round_trips": Drops,
}


def test_a_sound_callback_passes():
    check_callback(Moves)


@pytest.mark.parametrize("check", CALLBACK_CHECKS)
def test_a_broken_callback_fails_its_check(check):
    with pytest.raises((AssertionError, AttributeError, pickle.PicklingError, RuntimeError)):
        CALLBACK_CHECKS[check](BROKEN[check])
    with pytest.raises(AssertionError, match=f"{BROKEN[check].__name__} fails the check"):
        check_callback(BROKEN[check])


class Quadratic(LightningModule):
    """F = w' diag(h) w / 2 with one weight and one bias."""

    def __init__(self, start, h, lr, optimizer=torch.optim.SGD):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))
        self.bias = nn.Parameter(torch.zeros(1))
        self.h, self.lr, self.optimizer = torch.tensor(h), lr, optimizer
        self.generators = [torch.Generator().manual_seed(0)]
        self.path = []

    def training_step(self, batch, batch_idx):
        self.path.append(self.weight.detach().clone())
        return (self.h * self.weight.square()).sum() / 2 + self.bias.sum() * 0

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr)


class Fixed(FLWBC):
    def __init__(self, noise, **options):
        super().__init__(**options)
        self.given = torch.tensor(noise)

    def _noise(self, parameter, module):
        return self.given[: parameter.numel()].view_as(parameter)


def fit(module, callback, steps=2):
    fit_quietly(module, torch.utils.data.DataLoader(range(steps)), [callback])
    return module.weight.detach()


def test_golden_masked_step():
    change = torch.tensor([0.15, 0.2, 0.3, -0.05]) - torch.tensor([0.10, 0.2, -0.3, 0.0])
    noise = torch.tensor([0.06, -0.01, 0.5, 0.04])
    moved = torch.tensor([0.5, -0.2, 0.3, 0.0]) + 0.1 * perturb(change, noise)
    torch.testing.assert_close(moved, torch.tensor([0.506, -0.201, 0.3, 0.0]))


def test_golden_two_steps_perturb_the_flat_direction_only():
    module = Quadratic([1.0, 1.0], [2.0, 0.0], 0.1)
    callback = Fixed([0.3, 0.3])
    torch.testing.assert_close(fit(module, callback), torch.tensor([0.64, 1.03]))
    torch.testing.assert_close(module.path[1], torch.tensor([0.8, 1.0]))
    assert callback.density == 0.5
    assert module.bias.item() == 0


def test_mask_forced_to_one_perturbs_everything():
    callback = Fixed([0.3, 0.3], mask=False)
    torch.testing.assert_close(fit(Quadratic([1.0, 1.0], [2.0, 0.0], 0.1), callback), torch.tensor([0.67, 1.03]))
    assert callback.density == 1


def test_golden_noise_statistics():
    drawn = laplace(torch.empty(2_000_000), 0.4 / 2**0.5, torch.Generator().manual_seed(0)).double()
    assert float(drawn.std()) == pytest.approx(0.4, abs=2e-3)
    passed = drawn.abs() >= 0.2
    assert float(passed.double().mean()) == pytest.approx(0.49306869, abs=2e-3)
    assert float((drawn.square() * passed).mean()) == pytest.approx(0.15439809, abs=2e-3)


def test_no_noise_is_no_change_and_one_step_is_never_perturbed():
    plain = fit(Quadratic([1.0, 1.0], [2.0, 0.5], 0.1), FLWBC(std=0.0), steps=4)
    torch.testing.assert_close(plain, torch.tensor([0.8**4, 0.95**4]))
    torch.testing.assert_close(
        fit(Quadratic([1.0, 1.0], [2.0, 0.5], 0.1), FLWBC(std=9.0), 1), torch.tensor([0.8, 0.95])
    )


def test_scale_is_a_factor_of_root_two():
    narrow = fit(Quadratic([1.0, 1.0], [0.0, 0.0], 0.1), FLWBC(std=0.4))
    wide = fit(Quadratic([1.0, 1.0], [0.0, 0.0], 0.1), FLWBC(std=0.4, scale=True))
    torch.testing.assert_close(wide - 1, (narrow - 1) * 2**0.5)


@pytest.mark.parametrize(
    "optimizer", [{"name": "sgd", "lr": 0.1}, {"name": "sgd", "lr": 0.1, "momentum": 0.9}, {"name": "adam", "lr": 0.01}]
)
def test_stacked_clients_get_the_same_numbers(optimizer):
    vectors = []
    for engine in ("sequential", "vectorized"):
        experiment = load(
            {
                "data": "digits",
                "rounds": 2,
                "partition": {"name": "iid", "clients": 6},
                "model": {"name": "mlp", "hidden": [8]},
                "client": {
                    "batch_size": 100,
                    "optimizer": optimizer,
                    "callbacks": {"wbc": {"name": "fl_wbc", "std": 0.4}},
                },
                "engine": engine,
                "trainer": {"accelerator": "cpu", "precision": 64},
            }
        )
        federation = Federation(experiment)
        federation.run()
        vectors.append(federation.state.global_D)
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_density_is_a_metric_of_the_round(engine, tiny):
    def run(**options):
        callbacks = {"wbc": {"name": "fl_wbc", **options}}
        client = {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.2}, "callbacks": callbacks}
        return Federation(tiny(client=client, engine=engine)).round().metrics["client/wbc/density"]

    few, most, every = run(std=0.01), run(std=1.0), run(std=1.0, mask=False)
    assert 0 < few < 0.9 * most
    assert most < every == 1
