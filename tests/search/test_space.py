"""What is searched: the space of an attack, and with which trials a search begins."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from searches import ATTACKED, searched

from fl_lightning.attacks import Choice, Tunable
from fl_lightning.errors import ConfigError
from fl_lightning.search._first_trials import configured, enqueue_first, fitted
from fl_lightning.search._space import changes, search_space, tunables


def test_the_space_is_the_attacks_own_unless_given(tiny):
    own = search_space(tiny(attack="model_replacement"))
    assert own
    assert all(path.startswith("attack.") for path in own)
    given = search_space(
        tiny(attack="gaussian", sweep={"space": {"attack.std": {"low": 1, "high": 2}, "rounds": [1, 2]}})
    )
    assert given == {"attack.std": Tunable(1, 2), "rounds": Choice((1, 2))}


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"attack": None}, "a sweep searches the strongest attack"),
        ({"attack": "gaussian", "sweep": {"space": {"attack.std": {"low": 3}}}}, "sweep.space.attack.std"),
    ],
)
def test_a_space_that_is_none_is_refused(tiny, slots, message):
    with pytest.raises(ConfigError, match=message):
        search_space(tiny(**slots))


def test_a_search_over_attacks_draws_only_what_the_drawn_attack_has(tiny):
    experiment = tiny(**ATTACKED | {"sweep": {"space": {"attack": {"choice": ["alie", "sign_flip"]}}}})
    asked: list[str] = []

    def ask(name: str, span: Any) -> Any:
        asked.append(name)
        return {"attack": "sign_flip", "sign_flip.of": "mean"}.get(name, 2.5)

    drawn = changes(search_space(experiment), ask)
    assert asked == ["attack", "sign_flip.scale", "sign_flip.of"]
    assert drawn == {"attack": "sign_flip", "attack.scale": 2.5, "attack.of": "mean"}
    changed = experiment.override(drawn)
    assert changed.attack.name == "sign_flip"  # type: ignore[union-attr]
    assert changed.attack.scale == 2.5  # type: ignore[union-attr]


def test_a_space_names_every_tunable_of_an_attack_with_its_own_type(tiny):
    from fl_lightning.registry import registry

    for attack in registry("attack"):
        for name, span in tunables(attack).items():  # type: ignore[arg-type]
            annotation = str(attack.__dataclass_fields__[name].type)  # type: ignore[attr-defined]
            if isinstance(span, Tunable):
                assert span.integer == ("int" in annotation and "float" not in annotation), (attack.name, name)


def test_a_search_over_attacks_begins_with_each_as_it_is_configured(tiny):
    experiment = tiny(sweep={"space": {"attack": ["fang_krum", "alie"]}})
    first = configured(experiment, search_space(experiment))
    fields = {"search": "halving", "epsilon": 1e-3, "retreat": True, "start": 1.0}
    assert first[0] == {"attack": "fang_krum", **{f"fang_krum.{field}": value for field, value in fields.items()}}
    assert [one["attack"] for one in first] == ["fang_krum", "alie"]


@pytest.mark.parametrize(("warm_start", "won"), [(0, []), (1, [3.0]), (2, [3.0, 2.0])])
def test_a_study_begins_with_the_winners_of_earlier_ones(tiny, store_folder: Path, warm_start: int, won: list[float]):
    storage = f"sqlite:///{store_folder / 'optuna.db'}"
    span = optuna.distributions.FloatDistribution(1e-4, 1e9, log=True)
    for name, direction, std, weak in [
        ("a-gaussian-vs-mean-1", "maximize", 2.0, 0.5),
        ("a-gaussian-vs-mean-2", "maximize", 1e8, 0.5),  # outside the space
        ("a-gaussian-vs-mean-3", "maximize", 3.0, 0.5),
        ("a-gaussian-vs-mean-4", "minimize", 4.0, 0.5),  # another end
        ("a-gaussian-vs-krum-5", "maximize", 5.0, 0.5),  # another rule
    ]:
        study = optuna.create_study(storage=storage, study_name=name, direction=direction)
        sign = 1 if direction == "maximize" else -1
        for value, figure in ((weak, 0.1), (std, 0.9)):
            params: dict[str, Any] = {"params": {"attack.std": value}, "distributions": {"attack.std": span}}
            study.add_trial(optuna.create_trial(value=sign * figure, **params))
    experiment = searched(tiny, warm_start=warm_start)
    study = optuna.create_study(storage=storage, study_name="a-gaussian-vs-mean-6", direction="maximize")
    enqueue_first(study, storage, experiment, search_space(experiment))
    first = [trial.system_attrs["fixed_params"]["attack.std"] for trial in study.trials]
    assert first[1:] == won
    assert first[0] == experiment.to_dict()["attack"]["std"]


def test_earlier_winners_that_do_not_fit_are_left_out(tiny):
    experiment = tiny(sweep={"space": {"attack": ["fang_krum", "alie"]}})
    space = search_space(experiment)
    won = {"attack": "alie", "alie.z": 2.0, "fang_krum.epsilon": 1e-3, "cmp.eta": 0.1}
    assert fitted(experiment, space, won) == {"attack": "alie", "alie.z": 2.0}
    assert fitted(experiment, space, {"attack": "cmp"}) == {}
