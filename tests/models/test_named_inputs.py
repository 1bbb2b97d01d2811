"""Modules that take several inputs by name: trained, attacked, defended; and what a module of a user's own asks of methods."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fl_lightning import Experiment, Federation, load
from fl_lightning.attacks import AttributeTrigger, TokenTrigger, Trigger
from fl_lightning.attacks._backdoor_training import boosted
from fl_lightning.attacks._known_rows import scaled
from fl_lightning.clients import Client, merging_lone
from fl_lightning.data import Dataset, Named, Samples, alike, chosen_rows, differing, random_inputs
from fl_lightning.errors import ConfigError
from fl_lightning.models import FlatNetwork
from fl_lightning.randomness import generator
from fl_lightning.registry import name_of, registry


class Tickets(LightningModule):
    """Attention over an LSTM's states; batches are dictionaries."""

    def __init__(self, vocabulary: int = 40, classes: int = 3):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.Linear(8, 1)
        self.head = nn.Linear(8, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = F.dropout(self.lstm(self.embedding(ids))[0], 0.2, self.training)
        weights = self.attention(states).squeeze(-1).masked_fill(~mask, -1e9).softmax(-1)
        scores: Tensor = self.head((states * weights.unsqueeze(-1)).sum(1))
        return scores

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["tokens"], batch["mask"]), batch["label"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Table(LightningModule):
    """Batch normalisation before and after a dense layer; the first dense layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Linear(64, 16).requires_grad_(False)
        self.net = nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.net(x))
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.05)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    lines = ["client,tokens,label"]
    for row in range(120):
        label = draw.randrange(3)
        words = [str(draw.randrange(1 + 12 * label, 13 + 12 * label)) for _ in range(draw.randint(1, 7))]
        lines.append(f"{row % 4},{' '.join(words)},{label}")
    path = tmp_path_factory.mktemp("texts") / "tickets.csv"
    path.write_text("\n".join(lines))
    return path


TOKENS = TokenTrigger(token=(38, 39), label=0)
TRIGGER = TOKENS.to_dict()


def tickets(path: Path, **slots: Any) -> Experiment:
    base: dict[str, Any] = {
        "data": {
            "name": "frame",
            "path": str(path),
            "owner": "client",
            "target": "label",
            "tokens": "tokens",
            "mask": True,
        },
        "partition": {"name": "natural", "clients": "all"},
        "model": {
            "name": "lightning",
            "module": f"{__name__}:Tickets",
            "batch": "dict",
            "target": "label",
            "inputs": {"ids": "tokens", "mask": "mask"},
        },
        "client": {"loop": "module", "batch_size": 16},
        "participation": {"name": "full", "malicious": 2},
        "attack": {"name": "model_replacement", "objective": TRIGGER},
        "rounds": 2,
    }
    return load(base | slots)


def table(**slots: Any) -> Experiment:
    base: dict[str, Any] = {
        "data": {"name": "digits", "train_samples": 120, "test_samples": 60, "validation": 30},
        "partition": {"name": "iid", "clients": 4},
        "model": {"name": "lightning", "module": f"{__name__}:Table"},
        "client": {"loop": "module", "batch_size": 16},
        "participation": {"name": "full", "malicious": 2},
        "rounds": 2,
    }
    return load(base | slots)


def test_rows_of_named_inputs_are_taken_like_those_of_a_tensor():
    x = Named(ids=torch.arange(12).view(4, 3), mask=torch.ones(4, 3, dtype=torch.bool))
    samples = Samples({"ids": x["ids"], "mask": x["mask"]}, torch.arange(4))
    assert isinstance(samples.x, Named)
    assert len(x) == 4
    assert alike(samples[torch.tensor([2, 0])].x, Named(ids=x["ids"][[2, 0]], mask=x["mask"][:2]))
    changed = x.clone()
    changed["ids"][1, 0] = 99
    assert int(x["ids"][1, 0]) == 3
    assert differing(x, changed).tolist() == [False, True, False, False]
    assert alike(chosen_rows(differing(x, changed), changed, x), changed)
    drawn = random_inputs(x, 50, generator(0, "noise"))
    assert drawn["ids"].dtype == torch.int64
    assert set(drawn["ids"].flatten().tolist()) <= set(range(12))
    assert bool(drawn["mask"].all())


def test_a_trigger_of_tokens_shows_through_the_mask(texts: Path):
    data = tickets(texts).data.load()
    goal = TOKENS.goal(data, generator(0, "objective"))
    assert goal.success is not None
    stamped = goal.success.x
    assert (stamped["tokens"][:, :2] == torch.tensor([38, 39])).all()
    assert bool(stamped["mask"][:, :2].all())
    short = data.test.x["mask"].sum(1) == 1
    assert bool(short.any())  # texts whose second token was not there
    with pytest.raises(ConfigError, match=r"input: trigger is stamped on the input 'image', the data has tokens, mask"):
        Trigger().goal(data, generator(0, "objective"))
    assert registry("objective").build(TOKENS.to_dict()) == TOKENS
    assert "input" not in TOKENS.to_dict()


def test_attributes_that_are_no_input_make_a_semantic_backdoor():
    x, y = torch.randn(40, 3, generator=generator(0, "x")), torch.arange(40) % 2
    colour = {"green": (torch.arange(40) % 3 == 0).float()}
    part = Samples(x, y, attributes=colour)
    data = Dataset(part, part, "classification", 2)
    objective = AttributeTrigger(where={"green": (1, 1), 0: (-1.0, 9.0)}, label=1)
    goal = objective.goal(data, generator(0, "objective"))
    assert goal.success is not None
    wanted = colour["green"].bool() & (x[:, 0] >= -1)
    assert torch.equal(goal.success.x, x[wanted & (y != 1)])
    assert torch.equal(objective.dirty(part, goal, 2).x, x[wanted])
    assert AttributeTrigger(where={"0": (0, 1)}).where == {0: (0.0, 1.0)}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="where: no such attribute"):
        AttributeTrigger(where={"red": (1, 1)}).goal(data, generator(0, "objective"))


def test_a_module_with_named_inputs_is_attacked_by_tokens_and_by_labels(texts: Path):
    replaced = Federation(tickets(texts, rounds=4)).run().history[-1]
    assert replaced["attack/success"] > 0.6
    assert replaced["client/loss"] > 0
    flipped = Federation(tickets(texts, attack="label_flip")).run().history[-1]
    assert 0 <= flipped["attack/success"] <= 1


def test_a_twin_of_an_attack_that_never_starts_is_the_same_model(texts: Path):
    never = {"name": "full", "malicious": 1, "schedule": {"name": "from_round", "round": 99}}
    state = Federation(tickets(texts, participation=never, evaluation={"twin": True})).run()
    assert {value for name, value in state.history[-1].items() if name.startswith("impact/")} == {0.0}


def test_gradients_leave_running_statistics_alone():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    flat = FlatNetwork(network, "cross_entropy")
    samples = Samples(torch.randn(9, 3, generator=generator(0, "x")).double(), torch.arange(9) % 2)
    gradient_D = flat.gradient(flat.vector(), samples)
    network.eval()
    F.cross_entropy(network(samples.x), samples.y).backward()
    expected = torch.cat([part.grad.flatten() for part in network.parameters() if part.grad is not None])
    torch.testing.assert_close(gradient_D[: flat.trained], expected)
    assert not bool(gradient_D[flat.trained :].any())
    _, product_D = flat.hessian_product(flat.vector(), samples, torch.ones(flat.dim).double())
    assert not bool(product_D[flat.trained :].any())


@pytest.mark.parametrize(
    "attack",
    [
        {"name": "alternating_minimization", "form": "joint", "null_space": 0.1},
        {"name": "alternating_minimization", "stealth_steps": 2, "boost": 2.0},
        {"name": "deep", "form": "printed"},
        "neurotoxin",
    ],
    ids=["joint", "boosted", "deep", "neurotoxin"],
)
def test_attacks_that_step_beside_training_do_so_beside_a_module_that_freezes_layers(attack: Any):
    state = Federation(table(attack=attack)).run()
    assert 0 <= state.history[-1]["attack/success"] <= 1


@pytest.mark.parametrize(
    "attack",
    [
        {"name": "label_flip", "boost": 50.0},
        {"name": "sign_flip", "scale": 50.0},
        {"name": "gaussian", "std": 5.0},
        {"name": "model_replacement", "boost": 50.0},
        {"name": "fang_trimmed_mean"},
        {"name": "cmp", "knowledge": "full"},
    ],
    ids=lambda attack: attack["name"],
)
def test_no_attack_pushes_a_running_variance_below_zero(attack: Any):
    federation = Federation(table(attack=attack, rounds=1))
    start_D = federation.state.global_D
    sent = federation.submitted()
    flat = federation.bench.flat
    assert flat.trained < flat.dim
    for update_D in sent.updates_CD[sent.poisoned_C]:
        variances = flat.split(start_D + update_D)["module.net.2.running_var"]
        assert float(variances.min()) > 0


def test_scaling_leaves_running_statistics():
    updates_MD = torch.tensor([[1.0, 2.0, -0.1], [1.0, 0.0, 0.2]])
    assert scaled(updates_MD, 3.0, 3).equal(3 * updates_MD)
    assert scaled(updates_MD, torch.tensor([[4.0], [0.5]]), 2).equal(torch.tensor([[4.0, 8.0, -0.1], [0.5, 0.0, 0.1]]))
    short_MD = boosted(updates_MD, 10.0, max_norm=float(updates_MD[1].norm()), trained=2)
    assert short_MD[1].equal(updates_MD[1])


def test_attackers_samples_that_leave_a_batch_of_one_are_merged():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    samples = Samples(torch.randn(17, 3), torch.zeros(17, dtype=torch.long))
    assert merging_lone(Client(batch_size=8), network, [samples]).last_batch == "merge"
    assert merging_lone(Client(batch_size=8), network, [samples[:16]]).last_batch == "keep"
    assert merging_lone(Client(batch_size=8), nn.Linear(3, 4), [samples]).last_batch == "keep"


def objective_of(cls: type, trigger: dict[str, Any]) -> dict[str, Any]:
    """A fitting objective, or none where the attack knows better."""
    serves = getattr(cls, "serves", ())
    if "backdoor" in serves:
        return {"objective": trigger}
    if "trigger" in serves:
        return {"objective": {"name": "trigger", "label": 1}}
    return {"objective": {"name": "label_map", "mapping": {0: 1}}} if "relabel" in serves else {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "table"])
@pytest.mark.parametrize("name", sorted(map(name_of, registry("attack"))))
def test_every_attack_whose_objective_fits(name: str, kind: str, texts: Path):
    attack = {
        "name": name,
        **objective_of(registry("attack")[name], TRIGGER if kind == "text" else {"name": "trigger"}),
    }
    try:
        made = tickets(texts, attack=attack) if kind == "text" else table(attack=attack)
        state = Federation(made).run()
    except ConfigError as error:
        assert "image" in str(error)  # attacks that learn a trigger of pixels # noqa: PT017
        return
    assert not state.stopped
    assert 0 <= state.history[-1]["attack/success"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(map(name_of, registry("defense"))))
def test_every_defense(name: str, texts: Path):
    aggregator = {"name": "krum", "n_byzantine": 1} if name == "pdrr" else "mean"
    data = tickets(texts).data.to_dict() | {"validation": 12}
    made = tickets(texts, attack="label_flip", defenses={"d": name}, aggregator=aggregator, data=data)
    assert not Federation(made).run().stopped
