"""Configurations of neighbours: recognised by what they hold, read, and written as ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.inputs import read_yaml_file, write_yaml
from fl_lightning.integrations._backfed import backfed
from fl_lightning.integrations._byzfl_json import byzfl
from fl_lightning.integrations._flpoison import flpoison
from fl_lightning.integrations._hydra import composed
from fl_lightning.integrations._source import Study


class Foreign(NamedTuple):
    """A configuration of a neighbour as one of ours.

    Attributes:
        origin: `ByzFL`, `FLPoison` or `BackFed`.
        kind: `experiment`, or `matrix` where theirs crosses several attacks, servers or seeds.
        config: what `load`, or `matrix`, takes.
        unknown: what could not be translated, or is not quite the same here.
    """

    origin: str
    kind: str
    config: dict[str, Any]
    unknown: list[str]

    def yaml(self) -> str:
        """The file, what was not translated in comments on top."""
        lines = [f"# {self.kind}, from a configuration of {self.origin}."]
        if self.unknown:
            lines += [
                "# Not translated, or not quite the same:",
                *(f"#   {' '.join(one.split())}" for one in self.unknown),
            ]
        return "\n".join(lines) + "\n" + write_yaml(self.config)


def read_foreign(path: Path, *, every: bool = False) -> Foreign:
    """Read a configuration of ByzFL (JSON), FLPoison (YAML) or BackFed (YAML for Hydra, with the files that it names).

    Args:
        path: the file.
        every: of FLPoison all attacks and defenses that are listed, as its benchmark runs them, not the chosen pair.

    Raises:
        ConfigError: it cannot be read, or is none of these.
    """
    values = read_yaml_file(path)  # JSON is YAML
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds no mapping")
    if "benchmark_config" in values:
        origin, study = "ByzFL", byzfl(values)
    elif "num_adv" in values or {"attacks", "defenses"} & set(values):
        origin, study = "FLPoison", flpoison(values, every=every)
    elif {"defaults", "aggregator", "client_config", "atk_config"} & set(values):
        origin, study = "BackFed", backfed(composed(path))
    else:
        raise ConfigError(f"{path} is no configuration of ByzFL, FLPoison or BackFed that this reader knows")
    study = _possible(study)
    return Foreign(origin, *_written(study), study.unknown)


def _possible(study: Study) -> Study:
    """Without the servers and attacks that are refused here, each named with the reason; all stay where the base itself is."""
    if (len(study.attacks) <= 1 and len(study.servers) == 1) or _refusal({**study.base, "attack": None}):
        return study
    servers, attacks = dict(study.servers), dict(study.attacks)
    for label, server in study.servers.items():
        if reason := _refusal({**study.base, "attack": None, **server}):
            study.unknown.append(f"{label}: refused here: {reason}")
            del servers[label]
    for label, attack in study.attacks.items():
        server = next(iter(servers.values()), {})
        if attack is not None and (reason := _refusal({**study.base, **server, "attack": attack})):
            study.unknown.append(f"{label}: refused here: {reason}")
            del attacks[label]
    return study._replace(servers=servers, attacks=attacks)


def _refusal(config: dict[str, Any]) -> str | None:
    try:
        load(config)
    except ConfigError as error:
        return str(error)
    return None


def _written(study: Study) -> tuple[str, dict[str, Any]]:
    """An experiment where there is one attack at most, one server and one seed; else a matrix."""
    attacks = {label: attack for label, attack in study.attacks.items() if attack is not None}
    if len(study.attacks) <= 1 and len(study.servers) == 1:
        ((_, server),) = study.servers.items()
        attack = next(iter(attacks.values()), None)
        seeds = {"seed": study.seeds[0]} if len(study.seeds) == 1 else {"seeds": study.seeds}
        return "experiment", {**seeds, **study.base, "attack": attack, **server}
    if not attacks:
        raise ConfigError("several servers, and none of the attacks is known here", "attacks")
    return "matrix", {"base": study.base, "attacks": attacks, "servers": study.servers, "seeds": study.seeds}
