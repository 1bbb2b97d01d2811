"""LightningModules of users: trained by their own training step, with the right numbers in every engine."""

from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fl_lightning import ConfigError, Federation, load
from fl_lightning.models import FlatNetwork, Lightning, Model

DIGITS = {"name": "digits", "train_samples": 200, "test_samples": 100}
TABULAR: dict[str, Any] = {
    "name": "lightning",
    "module": "fl_lightning.examples.tabular:TabularClassifier",
    "args": {"features": 64, "classes": 10},
}
VIT = {"name": "lightning", "module": "fl_lightning.examples.vit:SmallViT", "args": {"classes": 10}}
FROZEN = {"name": "lightning", "module": "fl_lightning.examples.frozen:FrozenBackbone", "args": {"classes": 10}}


def experiment(model: Any, **slots: Any):
    base: dict[str, Any] = {
        "data": DIGITS,
        "rounds": 2,
        "partition": {"name": "iid", "clients": 4},
        "model": model,
        "client": {"loop": "module", "batch_size": 16},
        "participation": {"name": "full", "malicious": 1},
        "attack": "sign_flip",
        "aggregator": "mean",
    }
    return load(base | slots)


def test_the_same_seed_gives_the_same_model_and_resuming_ends_alike():
    made = experiment(TABULAR, rounds=3)
    whole = Federation(made)
    whole.run()
    half = Federation(made)
    half.round()
    torch.rand(7)  # the global random state plays no part
    rest = Federation(made)
    rest.load_state_dict(half.state_dict())
    rest.run()
    assert torch.equal(whole.state.global_D, rest.state.global_D)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_an_attack_that_never_starts_has_no_impact(engine: str):
    never = {"name": "full", "malicious": 1, "schedule": {"name": "from_round", "round": 99}}
    state = Federation(experiment(TABULAR, participation=never, engine=engine, evaluation={"twin": True})).run()
    impacts = [value for figures in state.history for name, value in figures.items() if name.startswith("impact/")]
    assert impacts
    assert set(impacts) == {0.0}


def test_what_modules_log_is_reported_and_attackers_stand_apart():
    report = Federation(experiment(TABULAR)).round()
    assert report.metrics["client/train_loss"] > 0
    assert report.metrics["client/attackers/train_loss"] != report.metrics["client/train_loss"]


def test_a_transformer_is_attacked_and_defended():
    rule = {"name": "trimmed_mean", "n_byzantine": 1}
    state = Federation(experiment(VIT, attack={"name": "label_flip"}, aggregator=rule)).run()
    assert 0 <= state.history[-1]["attack/success"] <= 1


def test_a_frozen_backbone_stays_and_only_the_head_is_sent():
    made = load({"data": DIGITS, "model": FROZEN, "client": {"loop": "module"}})
    flat = FlatNetwork(made.model.network((1, 32, 32), 10), "cross_entropy")
    assert flat.dim == flat.trained == 512 * 10 + 10
    network = flat.network
    before = {name: part.clone() for name, part in network.state_dict().items() if "backbone" in name}
    assert sum(part.numel() for part in before.values()) > 11_000_000
    network.train()(torch.rand(2, 1, 32, 32))
    after = network.state_dict()
    assert all(torch.equal(part, after[name]) for name, part in before.items())


class Frozen(Model):
    """The first layer stays as it came."""

    name: ClassVar[str] = "frozen_first"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        first = nn.Linear(64, 16).requires_grad_(False)
        return nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(16, classes))


class Dropped(Model):
    """A layer that draws from the global random state."""

    name: ClassVar[str] = "dropped"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, classes))


class Normed(Model):
    """Batch normalisation."""

    name: ClassVar[str] = "normed"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))


class Quiet(Model):
    """Dropout that drops nothing, and a norm over each sample alone."""

    name: ClassVar[str] = "quiet"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Dropout(0.0), nn.Linear(64, classes))


PLAIN: dict[str, Any] = {"client": {"batch_size": 16}, "attack": None}


@pytest.mark.parametrize("federate", ["trainable", "all"])
def test_frozen_parameters_stay_in_every_engine(federate: str):
    ends = []
    for engine in ("sequential", "vectorized"):
        federation = Federation(experiment(Frozen(federate=federate), engine=engine, **PLAIN))
        network = federation.bench.flat.network
        start = network[1].weight.clone()
        federation.run()
        assert torch.equal(federation.bench.flat.load_(federation.state.global_D)[1].weight, start)
        ends.append(federation.state.global_D)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-5)
    assert len(ends[0]) == (170 if federate == "trainable" else 170 + 64 * 16 + 16)


def test_random_layers_of_any_kind_follow_from_the_seed():
    ends = []
    for _ in range(2):
        torch.rand(3)
        federation = Federation(experiment(Dropped(), **PLAIN))
        federation.run()
        ends.append(federation.state.global_D)
    assert torch.equal(*ends)


@pytest.mark.parametrize(("buffers", "statistics"), [("average", 32), ("local", 0), ("freeze", 0)])
def test_statistics_follow_their_policy_in_every_model(buffers: str, statistics: int):
    federation = Federation(experiment(Normed(buffers=buffers), **PLAIN))
    flat = federation.bench.flat
    assert flat.dim - flat.trained == statistics
    norm = flat.network[2]
    federation.run()
    if buffers == "freeze":
        assert torch.equal(norm.running_mean, torch.zeros(16))
    if buffers == "local":
        assert norm.running_mean is None


class Clip(Callback):
    """Clips the gradient of whatever it sees as one: right for one client, wrong for a stack."""

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        nn.utils.clip_grad_norm_(module.parameters(), 0.01)


class ClaimsToStack(Clip):
    """The same, but says that it could."""

    stackable = True


@pytest.mark.parametrize("callback", [Clip, ClaimsToStack])
def test_a_callback_is_stackable_only_if_it_says_so_and_is_right(callback: type[Callback]):
    client = {"batch_size": 16, "callbacks": {"clip": {"name": f"{__name__}:{callback.__name__}"}}}
    ends = []
    for engine in ("sequential", "vectorized"):
        federation = Federation(experiment("mlp", engine=engine, attack=None, client=client))
        federation.run()
        ends.append(federation.state.global_D)
    assert torch.equal(*ends)


@pytest.mark.parametrize("model", [Dropped(), Normed()])
def test_the_probe_says_why_clients_train_one_by_one(model: Model):
    federation = Federation(experiment(model, **PLAIN))
    federation.round()
    (reason,) = federation.bench.tried.values()
    assert reason is not None
    assert "stacked" in reason


@pytest.mark.parametrize("model", [Quiet(), Frozen()])
def test_layers_that_are_quiet_train_in_lock_step(model: Model):
    federation = Federation(experiment(model, **PLAIN))
    federation.round()
    assert list(federation.bench.tried.values()) == [None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"client": {"loop": "federation"}}, "client.loop: TabularClassifier is a LightningModule"),
        ({"model": "mlp"}, "client.loop: needs model"),
        ({"model": TABULAR | {"module": "nowhere:Nothing"}}, "nowhere:Nothing cannot be loaded"),
        ({"model": TABULAR | {"args": {"features": 64}}}, "model.args: .*missing 1 required positional argument"),
        (
            {"model": TABULAR | {"args": {"features": 63, "classes": 10}}},
            "model.inputs: .*cannot take the data's inputs",
        ),
        ({"model": TABULAR | {"args": {"features": 64, "classes": 7}}}, r"gives \[2, 7\] .* \[B, 10\] scores"),
    ],
)
def test_modules_that_do_not_fit_are_refused_before_training(change: dict[str, Any], message: str):
    slots = dict(change)
    with pytest.raises(ConfigError, match=message):
        Federation(experiment(slots.pop("model", TABULAR), **slots))


def test_a_class_may_stand_for_its_name():
    from fl_lightning.examples.vit import SmallViT

    assert Lightning(module=SmallViT, args={"classes": 10}).module == "fl_lightning.examples.vit:SmallViT"


def noisy(x: Tensor) -> Tensor:
    """An augmentation that draws from the global random state."""
    return x + torch.randn_like(x)


def halved(x: Tensor) -> Tensor:
    """What no model of whole images can take."""
    return x[..., :4]


def test_batches_go_through_a_transform_in_training_only():
    ends = []
    for engine in ("sequential", "vectorized"):
        torch.rand(3)
        client = {"batch_size": 16, "transform": noisy}
        federation = Federation(experiment("mlp", engine=engine, attack=None, client=client))
        assert load(federation.experiment.to_dict()) == federation.experiment
        federation.run()
        ends.append(federation.state.global_D)
    assert torch.equal(*ends)
    plain = Federation(experiment("mlp", attack=None, client={"batch_size": 16}))
    plain.run()
    assert not torch.equal(ends[0], plain.state.global_D)
    with pytest.raises(ConfigError, match=r"client.transform: .*halved does not fit"):
        Federation(experiment("mlp", client={"transform": halved}))
    with pytest.raises(ConfigError, match=r"client.transform: .*nowhere cannot be loaded"):
        Federation(experiment("mlp", client={"transform": f"{__name__}:nowhere"}))
