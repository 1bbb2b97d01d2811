"""A server judged by the strongest of some attacks, and the search for the server whose worst case is best."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_lightning import tracking
from fl_lightning.attacks import Alie
from fl_lightning.cli._tables import print_sweep
from fl_lightning.config import Experiment, load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.federation._worst import redrawn
from fl_lightning.registry import Choice, Tunable, registry, tunables
from fl_lightning.search import sweep
from fl_lightning.search._first_trials import configured
from fl_lightning.search._space import changes

Tiny = Callable[..., Experiment]
ATTACKS = {"flip": {"name": "sign_flip", "scale": 3.0}, "noise": {"name": "gaussian", "std": 0.01}}


def test_the_worst_case_is_searched_against_the_server_at_hand(tiny: Tiny):
    """The strongest draw counts, and what the run itself reports stays what it is without attackers."""
    figures = Federation(tiny(rounds=1, evaluation={"worst": {"attacks": ATTACKS, "draws": 2}})).run().history[-1]
    alone = Federation(tiny(rounds=1, attack=ATTACKS["flip"])).run().history[-1]
    assert figures["worst/flip"] >= alone["attack/success"]
    assert figures["worst/success"] == max(figures["worst/flip"], figures["worst/noise"])
    assert figures["worst/accuracy"] <= alone["global/accuracy"]
    assert figures["server/seconds"] > 0
    assert figures["global/accuracy"] == Federation(tiny(rounds=1)).run().history[-1]["global/accuracy"]


def test_a_worst_case_needs_attackers_and_no_attack(tiny: Tiny):
    worst = {"evaluation": {"worst": {"attacks": {"flip": "sign_flip"}}}}
    assert "worst" not in tiny().to_dict()["evaluation"], "stored configurations stay what they were"
    assert load(tiny(**worst).to_dict()) == tiny(**worst)
    with pytest.raises(ConfigError, match="set attack to null"):
        tiny(**worst, attack="alie")
    with pytest.raises(ConfigError, match=r"set participation\.malicious"):
        tiny(**worst, participation={"name": "full", "malicious": 0})


def test_draws_lie_in_the_ranges_and_differ():
    coins = torch.Generator().manual_seed(0)
    spans = tunables(Alie)
    drawn = [redrawn(Alie(), coins) for _ in range(20)]
    for field, span in spans.items():
        values = [getattr(attack, field) for attack in drawn]
        assert all(span.holds(value) for value in values)
        assert len(set(values)) > 1


def test_every_range_of_a_defense_can_be_drawn():
    """Both ends of every range make a valid component beside the defaults, of a shipped setting."""
    for slot in ("pre_aggregator", "aggregator", "defense"):
        for cls in registry(slot):
            if cls.name in ("byzfl", "pyod"):  # need what may not be installed
                continue
            shipped = registry(slot).build(cls.name).to_dict()
            for field, span in tunables(cls).items():
                ends = span.values if isinstance(span, Choice) else (span.low, span.high)
                for value in ends:
                    assert not isinstance(span, Tunable) or not span.integer or value == int(value)
                    registry(slot).build(shipped | {field: value})


def test_a_chain_of_defenses_is_drawn_with_its_fields():
    space = {
        "aggregator": Choice(("median", "krum")),
        "aggregator.pre": Choice(("none", "arc + nnm")),
        "defenses.bound": Choice(("none", "norm_bound")),
    }
    wanted: dict[str, Any] = {"aggregator": "krum", "aggregator.pre": "arc + nnm", "defenses.bound": "norm_bound"}
    asked = []

    def ask(name: str, span: Any) -> Any:
        asked.append(name)
        return wanted.get(name, getattr(span, "low", None))

    drawn = changes(space, ask)
    assert asked == [
        *("aggregator", "aggregator.krum.n_byzantine"),
        *("aggregator.pre", "defenses.bound", "defenses.bound.norm_bound.max_norm"),
    ]
    chained = load("digits").override(drawn)
    assert chained.aggregator.name == "arc-nnm-krum"
    assert chained.aggregator.n_byzantine == 1  # 0.05 of ten, at least one
    assert chained.defenses["bound"].max_norm == 0.05
    own = {"aggregator.krum.n_byzantine": 0.1, "defenses.bound.norm_bound.max_norm": 0.05}
    assert configured(chained, space) == [wanted | own]
    wanted |= {"aggregator": "median", "defenses.bound": "none"}
    plain = load("digits").override(changes(space, ask))
    assert plain.aggregator.name == "arc-nnm-median"
    assert not plain.defenses
    wanted |= {"aggregator.pre": "none"}
    assert changes(space, ask) == {"aggregator": "median"}
    assert configured(load("digits").override({"aggregator": "median"}), space) == [wanted]


@pytest.mark.slow
def test_the_search_finds_a_server_that_withstands(store_folder: Any, tmp_path: Path, capsys: Any):
    """Against sign flips the mean loses; the front holds a server that does not, and its YAML runs as it is."""
    experiment = load("digits").override(
        {"attack": None, "data": {"name": "digits", "validation": 100}, "rounds": 5, "aggregator": "mean"}
    )
    settings = {
        "trials": 6,
        "metric": ["worst/success", "global/accuracy", "server/seconds"],
        "direction": ["minimize", "maximize", "minimize"],
        "worst": {"draws": 2, "attacks": {"flip": {"name": "sign_flip", "scale": 3.0}}},
        "space": {"aggregator": ["mean", "median", "trimmed_mean"], "aggregator.pre": ["none", "arc + nnm"]},
        "confirm_seeds": [1001],
    }
    light = {"tracking.models": False, "tracking.register": "never"}
    experiment = experiment.override(light | {"sweep": settings})
    outcome = sweep(experiment, "tiny")
    first = next(row for row in outcome.trials if row["number"] == 0)
    assert first["changes"] == {"aggregator": "mean"}, "what is configured is tried first"
    assert outcome.winner.get("aggregator") != "mean" or "aggregator.pre" in outcome.winner
    assert outcome.confirmed["worst/success"].mean < outcome.default["worst/success"].mean
    assert any(row["front"] for row in outcome.trials)
    artifacts = {item.path for item in tracking.client().list_artifacts(outcome.run_id)}
    assert {"search_pareto.png", "winner.yaml"} <= artifacts
    file = tracking.client().download_artifacts(outcome.run_id, "winner.yaml", str(tmp_path))
    again = load(file)
    assert again.sweep == type(again.sweep)()
    figures = Federation(again).run().history[-1]
    assert figures["worst/success"] == outcome.searched["worst/success"]  # type: ignore[index]
    print_sweep(outcome, experiment)
    assert "{'name'" not in capsys.readouterr().out
