"""Registered models: aliases, the clean twin, comparison, and export to plain torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fl_lightning import runs, tracking
from fl_lightning.cli import main
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.tracking import card, compare, export, find
from fl_lightning.tracking._store import as_current

NAME, CLEAN = "digits-mlp-gaussian-vs-mean", "digits-mlp-clean"
pytestmark = pytest.mark.usefixtures("store_folder")


@pytest.fixture
def outcome(tiny) -> runs.Outcome:
    slots = {"attack": {"name": "gaussian", "std": 10.0}, "participation": {"name": "full", "malicious": 2}}
    return runs.run(tiny(**slots, evaluation={"twin": True}, tracking={"register": "best"}), "tiny")


def test_aliases_and_the_clean_twin(outcome):
    store = tracking.client()
    poisoned = store.get_model_version_by_alias(NAME, "strongest")
    assert outcome.registered_model == f"{NAME}/{poisoned.version}"
    assert store.get_model_version_by_alias(NAME, "stealthiest").version == poisoned.version
    clean = store.get_model_version_by_alias(CLEAN, "clean")
    assert clean.tags["twin_of"] == f"{NAME}/{poisoned.version}"
    assert poisoned.tags["clean_twin"] == f"{CLEAN}/{clean.version}"
    assert find(f"{NAME}@clean").title == find(CLEAN).title == f"{CLEAN}/{clean.version}"
    assert [str(version.version) for version in store.search_model_versions(f"name = '{NAME}'")] == [
        str(poisoned.version)
    ]
    drop = float(clean.tags["global/accuracy"]) - float(poisoned.tags["global/accuracy"])
    assert drop == pytest.approx(outcome.metrics["impact/accuracy_drop"], abs=1e-4)


def test_the_registry_says_what_is_poisoned(outcome):
    """Name and version, description and tag: whatever page of the registry one looks at."""
    store = tracking.client()
    for name, poisoned in ((NAME, True), (CLEAN, False)):
        (model,) = store.search_registered_models(f"name = '{name}'")
        version = store.get_model_version(name, "1")
        assert model.tags["poisoned"] == version.tags["poisoned"] == str(poisoned).lower()
        for text in (model.description, version.description):
            assert ("poisoned on purpose. Do not deploy it" in text) == poisoned
    card_of_version = store.get_model_version(NAME, "1").description
    assert card_of_version == card(find(NAME))
    assert "2 of 5 clients are malicious" in card_of_version


def test_a_registered_model_is_rebuilt_from_weights_and_configuration(outcome):
    import mlflow

    found = find(f"{NAME}@strongest")
    x = torch.rand(5, *found.shape)
    with torch.inference_mode(), as_current(tracking.tracking_uri()):
        assert torch.equal(found.network(x), mlflow.pytorch.load_model(outcome.model_uri)(x))
    assert find(NAME).title == find(f"models:/{NAME}/1").title == found.title
    assert found.figures["attack/success"] == pytest.approx(outcome.metrics["attack/success"], abs=1e-5)
    with pytest.raises(ConfigError, match=f"no registered model '{NAME[:-1]}'; did you mean '{NAME}'"):
        find(NAME[:-1])
    with pytest.raises(ConfigError, match="has no version 9"):
        find(f"{NAME}/9")


PLAIN = """
import sys, torch
from safetensors.torch import load_file
network = torch.export.load("architecture.pt2").module()
network.load_state_dict(load_file("model.safetensors"))
torch.save(network(torch.load("x.pt")), "scores.pt")
assert not any(name.startswith("fl_lightning") for name in sys.modules)
"""


def test_an_exported_model_gives_the_same_bits_in_plain_torch(outcome, tmp_path: Path):
    found, folder = find(NAME), tmp_path / "export"
    names = {path.name for path in export(found, folder)}
    assert names == {"README.md", "architecture.pt2", "config.yaml", "model.safetensors"}
    x = torch.rand(7, *found.shape)
    torch.save(x, folder / "x.pt")
    subprocess.run([sys.executable, "-W", "ignore", "-c", PLAIN], cwd=folder, check=True)
    with torch.inference_mode():
        assert torch.equal(torch.load(folder / "scores.pt"), found.network(x))
    assert load(yaml.safe_load((folder / "config.yaml").read_text())) == found.experiment
    for line in PLAIN.splitlines()[3:5]:
        assert line in (folder / "README.md").read_text()  # the card shows what was run here
    with pytest.raises(ConfigError, match="is not empty"):
        export(found, folder)


def test_the_card_of_a_model_that_cannot_be_traced_builds_it_from_its_configuration(
    outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(*given: object, **named: object) -> None:
        raise RuntimeError("packed sequences")

    monkeypatch.setattr(torch.export, "export", refused)
    found, folder = find(NAME), tmp_path / "export"
    assert {path.name for path in export(found, folder)} == {"README.md", "config.yaml", "model.safetensors"}
    program = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert "architecture.pt2" not in program
    monkeypatch.chdir(folder)
    made: dict[str, torch.Tensor] = {}
    exec(program, made)
    assert made["scores"].shape == (4, found.classes)
    assert all(torch.equal(made["network"].state_dict()[k], part) for k, part in found.network.state_dict().items())


def test_the_card_tells_threat_figures_and_warning(outcome):
    text = card(find(NAME))
    for words in ("Do not deploy it", "2 of 5 clients are malicious", "| attack/success |", outcome.run_id):
        assert words in text
    assert "poisoned on purpose" not in card(find(f"{NAME}@clean"))


def test_comparison_by_hand(outcome):
    one, other = find(NAME), find(f"{NAME}@clean")
    rows = {name: rest for name, *rest in compare(one, other)}
    a, b = (torch.cat([p.flatten() for p in model.network.parameters()]).detach() for model in (one, other))
    distance, relative, cosine = rows["all"]
    assert distance == pytest.approx(float((a - b).norm()), rel=1e-5)
    assert distance == pytest.approx(outcome.metrics["impact/aep"], rel=1e-4)
    assert relative == pytest.approx(distance / float(a.norm()), rel=1e-5)
    assert cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-4)


def test_the_commands(outcome, tmp_path: Path, capsys):
    assert main(["models", "list"]) == 0
    assert main(["models", "show", NAME]) == 0
    assert "poisoned on purpose" in capsys.readouterr().out
    assert main(["models", "compare", NAME, f"{NAME}@clean"]) == 0
    assert "global/accuracy" in capsys.readouterr().out
    assert main(["models", "export", NAME, str(tmp_path / "out")]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert main(["models", "compare", NAME]) == 2
    assert "usage: fl-lightning models compare A B" in capsys.readouterr().err
