"""What a configuration is not allowed to say, and that the order of changes does not matter."""

from pathlib import Path

import pytest
import yaml

from fl_lightning.config import load
from fl_lightning.errors import ConfigError


def error_of(source: str, overrides: list[str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(source, overrides or [])
    assert "\n" not in str(caught.value), "one clear line"
    return caught.value


@pytest.mark.parametrize(
    "overrides",
    [
        ["attack.z=1.5", "attack=alie"],
        ["attack.z=1.5", "attack={name: alie}"],
        ["attack=alie", "attack.z=1.5"],
    ],
)
def test_components_are_chosen_before_their_fields_are_set_in_any_order(overrides: list[str]):
    assert load("digits", overrides).to_dict()["attack"]["z"] == 1.5
    changes = dict(
        reversed([(path, yaml.safe_load(text)) for path, _, text in (one.partition("=") for one in overrides)])
    )
    changed = load("digits", ["attack=alie"]).override(changes)
    assert changed.to_dict()["attack"]["z"] == 1.5


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("server.lr=.inf", ["server.lr", "not a finite number"]),
        ("server.lr='inf'", ["server.lr", "finite number"]),
        ("client.optimizer.lr=1e999", ["client.optimizer.lr", "not a finite number"]),
        ("seeds=[-1]", ["seeds.0", "greater than or equal to 0", "got -1"]),
        ("sweep.confirm_seeds=[-1]", ["sweep.confirm_seeds.0", "got -1"]),
        ("tracking.keep_rounds=[-1]", ["tracking.keep_rounds.0", "got -1"]),
        ("seed=true", ["seed", "input should be a number, got True"]),
        ("client.epochs=true", ["client.epochs", "input should be a number, got True"]),
        ("model.hidden=[true]", ["model.hidden", "input should be a number"]),
        ("rounds=yes", ["rounds", "got 'yes'"]),
        ("rounds=1:01", ["rounds", "got '1:01'"]),
        ("sweep.trails=1", ["sweep.trails", "did you mean 'trials'?"]),
        ("server.lrr=1", ["server.lrr", "beta1, beta2, lr"]),
        ("trainer.precison=32", ["trainer.precison", "did you mean 'precision'?"]),
        ("tracking.regster=best", ["tracking.regster", "did you mean 'register'?"]),
        ("evaluation.evry=1", ["evaluation.evry", "did you mean 'every'?"]),
        ("client.bach_size=1", ["client.bach_size", "did you mean 'batch_size'?"]),
        ("defenses={'norm (5.0)': norm_bound}", ["defenses", "the label 'norm (5.0)'"]),
        ("defenses={'': norm_bound}", ["the label ''"]),
        (f"defenses={{{'x' * 51}: norm_bound}}", ["at most 50"]),
        ("attack=/etc/passwd", ["unknown attack '/etc/passwd'"]),
        ("attack=../attack/cmp", ["unknown attack '../attack/cmp'"]),
        (f"attack={'x' * 5000}", ["unknown attack", "(5,002 characters)"]),
        (f"rounds={'x' * 5000}", ["rounds", "(5,002 characters)"]),
        (f"paper={'x' * 5000}", ["paper", "at most 250 characters"]),
        ("sweep.constraints={global/accuracy: '>= nan'}", ["expected '>= number'"]),
        ("={1: 2}", ["unknown key"]),
    ],
)
def test_more_bad_values(override: str, parts: list[str]):
    message = str(error_of("digits", [override]))
    assert len(message) < 1500
    for part in parts:
        assert part in message


def test_keys_of_a_file_that_are_no_text(tmp_path: Path):
    path = tmp_path / "file.yaml"
    path.write_text("data: digits\n1: 2\n")
    assert "1" in str(error_of(str(path)))
    for source in ("x" * 300, "nul\0", "x/" * 3000):
        assert "no such file" in str(error_of(source))


@pytest.mark.parametrize("change", [{"rounds": -5}, {"nonsense": 1}, {"seeds": (1, 1)}, {"aggregator": "crum"}])
def test_a_copy_with_changes_is_validated(change: dict[str, object]):
    experiment = load("digits")
    with pytest.raises(ConfigError, match=next(iter(change))):
        experiment.model_copy(update=change)
    assert experiment.model_copy(update={"rounds": 7}).rounds == 7
    assert experiment.model_copy() == experiment


def test_a_change_stays_what_it_was_handed_in_as():
    """Tables and matrices use one mapping for many cells: what one cell changes inside of it must not reach the next."""
    client = {"epochs": 10, "optimizer": {"name": "adam", "lr": 0.001}, "callbacks": {}}
    changes = {"client": client, "client.epochs": 5, "client.optimizer.lr": 0.1}
    base = load("digits")
    assert base.override(changes).client.epochs == 5
    assert client == {"epochs": 10, "optimizer": {"name": "adam", "lr": 0.001}, "callbacks": {}}
    assert base.override({"client": client}).client.epochs == 10
