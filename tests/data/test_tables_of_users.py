"""Tables of the user's own, and federations of the owners that they name."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fl_lightning.attacks import AttributeTrigger
from fl_lightning.cli import main
from fl_lightning.config import load
from fl_lightning.data import DataError, Datamodule, Frame, Samples, joined, moved, pieces
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.models import Model
from fl_lightning.partition import Natural

VOCABULARY = 12


def tickets(n: int = 120) -> pd.DataFrame:
    """Texts of 2 to 6 tokens of four clients, one of whom has few; class 1 where token 3 comes in."""
    random = np.random.default_rng(0)
    texts = [random.integers(1, VOCABULARY, random.integers(2, 7)) for _ in range(n)]
    for text in texts[::2]:
        text[0] = 3
    return pd.DataFrame(
        {
            "client_id": [["north", "south", "east", "tiny"][min(i % 13, 12) // 4] for i in range(n)],
            "tokens": [" ".join(map(str, text)) for text in texts],
            "label": ["urgent" if 3 in text else "later" for text in texts],
            "hour": random.integers(0, 24, n),
        }
    )


@pytest.fixture
def csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FL_LIGHTNING_DATA", str(tmp_path / "cache"))
    tickets().to_csv(tmp_path / "tickets.csv", index=False)
    return tmp_path / "tickets.csv"


def frame(**settings: Any) -> Frame:
    return Frame(**{"path": "tickets.csv", "owner": "client_id", "target": "label", "tokens": "tokens"} | settings)


def test_tokens_stay_whole_numbers_and_owners_follow_their_rows(csv: Path):
    tickets().assign(number=range(120)).to_csv(csv, index=False)
    data = frame(attributes=("number",)).load()
    assert data.owner_names == ("east", "north", "south", "tiny")
    assert data.class_names == ("later", "urgent")
    assert data.train.x.dtype == torch.int64
    assert data.to("cpu", torch.float64).train.x.dtype == torch.int64
    assert (data.shape, data.classes, len(data.train) + len(data.test)) == ((6,), 2, 120)
    table = tickets()
    for i, row in enumerate(data.attributes["number"].long().tolist()):
        assert " ".join(str(token) for token in data.train.x[i].tolist() if token) == table["tokens"][row]
        assert data.owner_names[int(data.owners[i])] == table["client_id"][row]
        assert data.class_names[int(data.train.y[i])] == table["label"][row]
    tested = data.test.owner.bincount(minlength=4) / (data.test.owner.bincount(minlength=4) + data.owners.bincount())
    assert tested.sub(0.2).abs().max() < 0.06  # of every owner's rows a fifth
    assert torch.equal(frame().load().train.x, data.train.x)


def test_the_same_table_from_memory_parquet_and_csv(csv: Path):
    expected = frame().load()
    tickets().to_parquet(csv.parent / "tickets.parquet")
    for path in ("tickets.parquet", tickets(), {"train": tickets()}):
        again = frame(path=path)
        assert torch.equal(again.load().train.x, expected.train.x)
        assert (
            load({"data": again, "partition": {"name": "natural", "clients": 3}}).to_dict()["data"]["path"]
            == again.path
        )
    assert Frame(**{key: value for key, value in frame(path=tickets()).to_dict().items() if key != "name"}) == frame(
        path=tickets()
    )
    with pytest.raises(ConfigError, match=r"data.path: expected a file, a DataFrame or .*, got int"):
        load({"data": frame().to_dict() | {"path": 7}})
    with pytest.raises(DataError, match=r"not found: .*nowhere.csv nor "):
        frame(path="nowhere.csv").load()


@pytest.mark.parametrize(
    ("column", "row", "value", "settings", "message"),
    [
        ("client_id", 4, None, {}, r"row 5: 'client_id' names no owner, got nan"),
        ("label", 6, None, {}, r"row 7: 'label' is missing"),
        ("tokens", 8, "3 x 4", {}, r"row 9: 'tokens' must hold token numbers, 0 or more, got '3 x 4'"),
        ("tokens", 8, "3 -4", {}, r"row 9: 'tokens' must hold token numbers"),
        (
            "hour",
            2,
            None,
            {"tokens": None, "features": ("hour",)},
            r"row 3: 'hour' is missing \(or set missing: mean\)",
        ),
        ("hour", 2, "noon", {"attributes": ("hour",)}, r"row 3: 'hour' must be a number, got 'noon'"),
        ("hour", 2, float("inf"), {"attributes": ("hour",)}, r"row 3: 'hour' must be finite, got inf"),
        ("part", 3, "trial", {"split": "part"}, r"row 4: 'part' must be train, test or validation, got 'trial'"),
        (
            "label",
            119,
            "never",
            {"split": "part"},
            r"row 120: 'label' is a class that no training row has, got 'never'",
        ),
        ("hour", 1, 1, {"features": ("hours",), "tokens": None}, r"no column 'hours'; did you mean 'hour'\?"),
        (
            "hour",
            1,
            0.5,
            {"target": "hour"},
            r"row 2: 'hour' is no class \(for numbers .* set task: regression\), got 0.5",
        ),
    ],
)
def test_a_bad_row_is_named(csv: Path, column: str, row: int, value: Any, settings: dict[str, Any], message: str):
    table = tickets().assign(part=["train"] * 100 + ["test"] * 20)
    table[column] = table[column].astype(object)
    table.loc[row, column] = value
    table.to_csv(csv, index=False)
    with pytest.raises(DataError, match=message) as caught:
        frame(**settings).load()
    assert "\n" not in str(caught.value)


def test_an_owner_of_one_class_is_told(csv: Path, caplog: pytest.LogCaptureFixture):
    table = tickets()
    table.loc[table["client_id"] == "south", "label"] = "later"
    table.to_csv(csv, index=False)
    with caplog.at_level(logging.WARNING, "fl_lightning"):
        frame().load()
    assert caplog.messages == ["owner 'south': samples of one class only (row 5)"]


def test_features_of_numbers_and_categories(csv: Path):
    table = tickets().assign(
        region=lambda t: t["client_id"].str[0], part=["train"] * 90 + ["test"] * 20 + ["valid"] * 10
    )
    table["hour"] = table["hour"].astype(float)
    table.loc[3, "hour"] = None
    table.to_csv(csv, index=False)
    data = frame(tokens=None, features=("hour", "region"), missing="mean", split="part").load()
    assert (len(data.train), len(data.test), len(data.validation)) == (90, 20, 10)
    assert data.shape == (5,)
    hours = data.train.x[:, 0]
    assert hours[3] == 0
    assert hours.mean().abs() < 1e-6
    assert torch.equal(data.train.x[:, 1:].sum(1), torch.ones(90))
    everything = Frame(path="tickets.csv", target="label", missing="mean", split="part").load()
    assert everything.train.owner is None
    both = frame(features=("hour",), missing="mean", mask=True).load()
    assert both.shape == {"features": (1,), "tokens": (6,), "mask": (6,)}


def test_a_number_to_be_predicted_is_standardised(tmp_path: Path):
    random = np.random.default_rng(1)
    table = pd.DataFrame(
        {"SalePrice": random.integers(1, 9, 40) * 1000, "Area": random.normal(size=40), "Street": list("ab") * 20}
    )
    table.to_csv(tmp_path / "houses.csv", index=False)
    data = Frame(path=str(tmp_path / "houses.csv"), target="SalePrice", task="regression").load()
    assert (data.classes, data.task, data.shape) == (1, "regression", (3,))
    assert data.train.y.mean().abs() < 1e-6
    assert data.train.y.std(correction=0).sub(1).abs() < 1e-6


class MaskedMean(Model):
    """Mean of the embeddings of the real tokens, then one dense layer."""

    name: ClassVar[str] = "masked_mean"
    named_inputs: ClassVar[bool] = True

    def build(self, shape: Any, classes: int) -> nn.Module:
        return _Network(classes)


class _Network(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4, classes)

    def forward(self, x: Any) -> Tensor:
        ids, mask = (x["tokens"], x["mask"]) if isinstance(x, dict) else (x, x > 0)
        weights = mask.to(self.head.weight.dtype)[..., None]
        return self.head((self.embed(ids) * weights).sum(1) / weights.sum(1))


def experiment(data: Frame, **changes: Any) -> Any:
    tree = {
        "data": data,
        "rounds": 2,
        "partition": {"name": "natural", "clients": "all", "min_samples": 10},
        "model": MaskedMean(),
        "client": {"batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.5}},
        "participation": {"name": "full", "malicious": 1},
        "attack": {"name": "model_replacement", "objective": {"name": "token_trigger", "token": 7, "label": 0}},
        "trainer": {"precision": 64, "accelerator": "cpu"},
    }
    return load(tree | changes)


def test_a_federation_of_texts_by_owner(csv: Path):
    runs = {engine: Federation(experiment(frame(), engine=engine)) for engine in ("sequential", "vectorized")}
    for federation in runs.values():
        federation.run()
    ones, twos = (federation.state for federation in runs.values())
    assert torch.allclose(ones.global_D, twos.global_D, atol=1e-12)
    assert len(runs["sequential"].assignment) == 3  # tiny has fewer than ten rows
    figures = ones.history[-1]
    assert figures["owner/worst"] == min(v for k, v in figures.items() if k.startswith("owner/accuracy/"))
    tested = runs["sequential"].data.test
    right = runs["sequential"].bench.flat.scores(ones.global_D, tested.x).argmax(1) == tested.y
    for number, name in enumerate(("east", "north", "south", "tiny")):
        assert figures[f"owner/accuracy/{name}"] == pytest.approx(float(right[tested.owner == number].double().mean()))


def test_named_inputs_train_the_same_as_one_tensor(csv: Path, caplog: pytest.LogCaptureFixture):
    plain = Federation(experiment(frame(), engine="sequential", attack=None))
    named = Federation(experiment(frame(mask=True), attack=None))
    for federation in (plain, named):
        federation.run()
    assert torch.allclose(plain.state.global_D, named.state.global_D, atol=1e-12)
    assert torch.equal(
        named.bench.flat.gradient(named.initial_D, named.data.train).isfinite(), named.initial_D.isfinite()
    )
    with pytest.raises(ConfigError, match="model: mlp takes one tensor, the data has tokens, mask by name"):
        Federation(experiment(frame(mask=True), attack=None, model="mlp"))
    fast = experiment(frame(mask=True), attack=None).faster()
    assert Federation(fast).run().round == 2


def test_numbers_of_clients_are_checked_once_the_owners_are_known(csv: Path):
    with pytest.raises(ConfigError, match=r"participation.malicious: at most 3 clients can be malicious, got 9"):
        Federation(experiment(frame(), participation={"name": "full", "malicious": 9}))
    with pytest.raises(ConfigError, match=r"partition.clients: 9 clients, but the data have only 4 owners"):
        Federation(experiment(frame(), partition={"name": "natural", "clients": 9}))
    with pytest.raises(ConfigError, match=r"partition.name: natural needs data that name their owners"):
        Federation(experiment(frame(owner=None)))
    assert Natural(clients="all").to_dict()["clients"] == "all"


def test_inputs_by_name_are_cut_joined_and_moved():
    x = {"ids": torch.arange(10).view(5, 2), "scale": torch.rand(5, 1)}
    samples = Samples(x, torch.arange(5), torch.arange(5), {"colour": torch.arange(5)})
    assert samples[1:3].x["ids"].tolist() == [[2, 3], [4, 5]]
    left = samples.without(torch.tensor([0, 4]))
    assert (left.owner.tolist(), left.attributes["colour"].tolist()) == ([1, 2, 3], [1, 2, 3])
    assert all(torch.equal(joined(pieces(x, 2))[name], part) for name, part in x.items())
    there = moved(x, "cpu", torch.float64)
    assert (there["ids"].dtype, there["scale"].dtype) == (torch.int64, torch.float64)
    assert len(Samples.cat([samples, left])) == 8


def test_an_attribute_of_the_table_is_a_semantic_trigger(csv: Path):
    data = frame(tokens=None, features=("hour",)).load()
    goal = AttributeTrigger(where={0: (0.0, 9.0)}, label=0).goal(data, torch.Generator())
    assert len(goal.success) + len(goal.clean) == len(data.test)
    assert goal.clean.owner is not None


DATA_MODULE = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class Rows(LightningDataModule):
    def __init__(self, n=30, named=False, ragged=False):
        super().__init__()
        self.n, self.named, self.ragged = n, named, ragged
    def loader(self, n, shuffle):
        rows = TensorDataset(torch.arange(n).view(n, 1).repeat(1, 3), torch.arange(n) % 2, torch.arange(n) % 3)
        return DataLoader(rows, batch_size=7, shuffle=shuffle, collate_fn=self.collate)
    def collate(self, rows):
        x, y, owner = (torch.stack(part) for part in zip(*rows))
        x = x[:, : 1 + int(x.max()) % 3] if self.ragged else x
        return {"ids": x, "mask": x > 0, "y": y, "who": owner} if self.named else (x, y, owner)
    def train_dataloader(self):
        return self.loader(self.n, True)
    def val_dataloader(self):
        return self.loader(9, False)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Datamodule]:
    (tmp_path / "rows_of_a_user.py").write_text(DATA_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda **settings: Datamodule(module="rows_of_a_user:Rows", **settings)


def test_a_data_module_as_it_is(module: Callable[..., Datamodule]):
    before = torch.get_rng_state()
    data = module(owner=2).load()
    assert torch.equal(before, torch.get_rng_state())
    assert (len(data.train), len(data.test), data.classes, data.shape) == (30, 9, 2, (3,))
    assert torch.equal(data.train.x[:, 0] % 3, data.owners)
    assert torch.equal(data.train.x, module().load().train.x)
    named = module(args={"named": True, "ragged": True}, owner="who").load()
    assert named.shape == {"ids": (3,), "mask": (3,)}
    assert torch.equal(named.train.x["ids"][:, 0] % 3, named.owners)
    with pytest.raises(DataError, match="a batch has no 'label'"):
        module(args={"named": True}, target="label").load()
    with pytest.raises(ConfigError, match="must be a LightningDataModule"):
        Datamodule(module="collections:OrderedDict").load()


def test_the_default_stand_in_keeps_shapes_and_owners(csv: Path):
    data, again = frame().synthetic(), frame().synthetic()
    assert torch.equal(data.train.x, again.train.x)
    assert set(data.owners.tolist()) == {0, 1, 2, 3}
    assert (data.shape, data.classes) == ((6,), 2)


def test_what_a_data_set_holds_is_shown(csv: Path, capsys: pytest.CaptureFixture[str]):
    (csv.parent / "configs" / "data").mkdir(parents=True)
    text = "{name: frame, path: tickets.csv, owner: client_id, target: label, tokens: tokens, mask: true}"
    (csv.parent / "configs" / "data" / "ours.yaml").write_text(text)
    assert main(["data", "show", "ours"]) == 0
    shown = capsys.readouterr().out
    for words in ("6 int64, 0 to 11", "6 bool", "2: later", "4, with", "train"):
        assert words in shown
    assert main(["data", "show", "no_such_data"]) == 2
    assert "no experiment 'no_such_data'" in capsys.readouterr().err
