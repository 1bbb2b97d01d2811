"""The door for components of others: entry points, `module:Class`, instances, the user's own configurations."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback

from fl_lightning import cli, runs
from fl_lightning.aggregators import Aggregate, Aggregator, Mean
from fl_lightning.clients import CallbackConfig
from fl_lightning.config import dump, experiment_names, load
from fl_lightning.errors import ConfigError
from fl_lightning.registry import PluginError, foreign, import_class, name_of, registry
from fl_lightning.registry import _registry as module
from fl_lightning.runs import run_campaign

ACME = '''
from typing import ClassVar
import torch
from lightning.pytorch import Callback
from fl_lightning import Aggregate, Aggregator, component

class Ours(Aggregator):
    """The first row."""
    name: ClassVar[str] = "ours"
    row: int = 0
    def aggregate(self, updates_CD, weights_C):
        return Aggregate(updates_CD[self.row], torch.ones(len(updates_CD), dtype=torch.bool))

class Nameless(Aggregator):
    """No name."""
    def aggregate(self, updates_CD, weights_C):
        return Aggregate(updates_CD[0], None)

class Abstract(Aggregator):
    """No method."""
    name: ClassVar[str] = "abstract"

class Log(Callback):
    """Counts batches."""
    def __init__(self, every: int = 1):
        self.every = every
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Distributions with entry points on the import path, as an installer would leave them."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(distribution: str, slot: str, **entries: str) -> None:
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[fl_lightning.{slot}]\n{lines}")
        (info / "RECORD").write_text("acme_rules.py,,\n")
        (info / "top_level.txt").write_text("acme_rules\n")
        module.plugins.cache_clear()

    (tmp_path / "acme_rules.py").write_text(ACME)
    module.plugins.cache_clear()
    yield add
    module.plugins.cache_clear()
    for name in ("acme_rules", "acme_broken"):
        sys.modules.pop(name, None)


def test_an_entry_point_is_named_at_once_and_imported_when_it_is_asked_for(install: Any):
    install("acme", "aggregator", ours="acme_rules:Ours")
    assert "ours" in registry("aggregator").names()
    assert "acme_rules" not in sys.modules
    rule = registry("aggregator").build({"name": "ours", "row": 1})
    assert rule.to_dict() == {"name": "ours", "row": 1}
    assert registry("aggregator").build(rule.to_dict()) == rule
    assert rule(torch.eye(3), torch.ones(3)).update.tolist() == [0, 1, 0]


def test_a_broken_plugin_names_its_distribution_and_leaves_the_rest(
    install: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    install("acme", "aggregator", ours="acme_rules:Ours")
    install("other", "aggregator", broken="acme_broken:Rule", wrong="acme_rules:Log", half="acme_rules:Abstract")
    (Path(sys.path[0]) / "acme_broken.py").write_text("import a_package_that_is_missing\n")
    with pytest.raises(
        PluginError, match=r"aggregator 'broken' of other 1.2 cannot be loaded: ModuleNotFoundError.*a_pack"
    ):
        registry("aggregator").build("broken")
    with pytest.raises(PluginError, match=r"'wrong' of other 1.2 is not a aggregator: it must derive from Aggregator"):
        registry("aggregator").build("wrong")
    with pytest.raises(PluginError, match=r"'half' of other 1.2 does not define aggregate"):
        registry("aggregator").build("half")
    module._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "fl_lightning"):
        names = {cls.name for cls in registry("aggregator")}
    assert {"ours", "krum"} <= names
    assert sum("of other 1.2" in line for line in caplog.messages) == 3
    assert cli.main(["show", "digits"]) == 0
    assert cli.main(["list", "aggregator", "--plugins"]) == 0
    shown = capsys.readouterr().out
    assert "acme_rules:Ours" in shown
    assert "other 1.2" in shown
    assert "refused" in shown


def test_a_name_twice_is_refused_with_both_distributions(install: Any):
    install("acme", "aggregator", ours="acme_rules:Ours", krum="acme_rules:Ours")
    install("other", "aggregator", ours="acme_rules:Nameless")
    with pytest.raises(
        PluginError, match=r"aggregator 'ours' is defined by (acme 1.2 and by other|other 1.2 and by acme) 1.2"
    ):
        registry("aggregator").build("ours")
    with pytest.raises(PluginError, match=r"'krum' is defined by fl-lightning and by acme 1.2"):
        registry("aggregator").build({"name": "krum"})
    assert registry("aggregator").build("mean") == Mean()


def test_module_and_class_in_any_slot(install: Any):
    built = load("digits", ["aggregator={name: 'acme_rules:Ours', row: 2}", "client.callbacks.log=acme_rules:Log"])
    assert built.aggregator.to_dict() == {"name": "acme_rules:Ours", "row": 2}
    assert isinstance(built.client.callbacks["log"].build(), Callback)
    assert load(built.to_dict()) == built
    versions = foreign(built)
    assert set(versions) == {"acme_rules"}
    assert built.fingerprint() != built.fingerprint({})
    assert built.fingerprint(versions) == built.fingerprint()
    for wrong, said in {
        "acme_rules:Gone": "acme_rules:Gone cannot be loaded: AttributeError",
        "no_such_module:Rule": "no_such_module:Rule cannot be loaded: ModuleNotFoundError",
        "acme_rules:Log": "is not a aggregator",
        "acme_rules:Nameless": "has no name",
    }.items():
        with pytest.raises(ConfigError, match=said):
            load("digits", [f"aggregator={wrong}"])
    with pytest.raises(ConfigError, match="unknown callback"):
        CallbackConfig("no_such_callback")
    with pytest.raises(ConfigError, match="every client needs its own callback"):
        CallbackConfig.parse(import_class("acme_rules:Log")())


def test_the_working_folder_is_searched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("class JSONDecoder: pass\n")
    (tmp_path / "only_here_xyz.py").write_text("class Rule: pass\n")
    assert import_class("only_here_xyz:Rule").__name__ == "Rule"
    assert sys.path[-1] == str(tmp_path)
    assert import_class("json:JSONDecoder") is json.JSONDecoder
    sys.modules.pop("only_here_xyz")


def test_instances_are_accepted_and_written_as_module_and_class():
    class Last(Aggregator):
        """The last row."""

        name: ClassVar[str] = "last"

        def aggregate(self, updates_CD: torch.Tensor, weights_C: torch.Tensor | None) -> Aggregate:
            return Aggregate(updates_CD[-1], torch.ones(len(updates_CD), dtype=torch.bool))

    experiment = load({"data": "digits", "aggregator": Last()})
    assert experiment.to_dict()["aggregator"] == {"name": name_of(Last)}
    assert load(experiment.to_dict()).aggregator == Last()
    assert experiment.override({"rounds": 3}).aggregator == Last()
    for qualified in ("test.<locals>.Last", "Last"):
        Last.__qualname__, Last.__module__ = qualified, "__main__"
        with pytest.raises(
            ConfigError, match=r"ours: .* of __main__ cannot be imported by worker processes: move it into"
        ):
            run_campaign({"ours": experiment}, "two at once", jobs=2)


def test_the_users_configurations_are_searched_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for kind, name, text in (
        ("aggregator", "mean", "{name: trimmed_mean, n_byzantine: 1}"),
        ("aggregator", "house_rule", "{name: trimmed_mean, n_byzantine: 2}"),
        ("experiment", "ours", "# Our own.\n{data: digits, rounds: 3, client: quick}"),
        ("client", "quick", "{batch_size: 7}"),
        ("data", "broken", "{name: [}"),
    ):
        (tmp_path / "own" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / kind / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("FL_LIGHTNING_CONFIGS", str(tmp_path / "own"))
    assert load("ours", ["aggregator=house_rule"]).aggregator.to_dict()["n_byzantine"] == 2
    assert load("ours", ["aggregator=mean"]).aggregator.name == "trimmed_mean"
    assert load("ours").client.batch_size == 7
    assert {"ours", "digits"} <= set(experiment_names())
    with pytest.raises(ConfigError, match=r"broken.yaml is not YAML"):
        load("ours", ["data=broken"])
    (tmp_path / "own").rename(tmp_path / "configs")
    monkeypatch.delenv("FL_LIGHTNING_CONFIGS")
    monkeypatch.chdir(tmp_path)
    assert load("ours").rounds == 3


def test_a_run_records_the_versions_of_its_plugins(install: Any, store_folder: Path):
    install("acme", "aggregator", ours="acme_rules:Ours")
    small = ["aggregator=ours", "attack=null", "rounds=1", "partition.clients=4", "tracking.models=false"]
    experiment = load("digits", [*small, "partition.samples_per_client=10"])
    assert foreign(experiment) == {"acme": "1.2"}
    outcome = runs.run(experiment)
    from fl_lightning import tracking

    store = tracking.client()
    tags = tracking.find_run(store, outcome.run_id).data.tags
    assert json.loads(tags["fl.plugins"]) == {"acme": "1.2"}
    folder = Path(store.get_run(outcome.run_id).info.artifact_uri.removeprefix("file://"))
    assert json.loads((folder / "environment.json").read_text())["acme"] == "1.2"
    assert "name: ours" in dump(experiment)
