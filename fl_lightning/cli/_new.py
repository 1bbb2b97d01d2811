"""`fl-lightning new`: the package of a method of one's own, with its entry point and its conformance tests."""

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from fl_lightning.cli._index import index
from fl_lightning.errors import ConfigError, excerpt
from fl_lightning.paths import config_names

__all__ = ["KINDS", "new"]

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{dashed}"
version = "0.1.0"
description = "{title} for fl-lightning."
requires-python = ">=3.11"
dependencies = ["fl-lightning"]

[project.entry-points."fl_lightning.{kind}"]
{name} = "{name}:{title}"

[tool.setuptools]
packages = ["{name}"]

[tool.setuptools.package-data]
{name} = ["references.bib"]
"""

BIB = """% The papers that this package comes from; keys are listed by `cites`.
"""

AGGREGATOR = '''"""{title}: the mean of the shortest updates. Replace it by your rule, and say which paper it comes from."""

from typing import ClassVar

import torch
from fl_lightning import Aggregate, Aggregator
from pydantic import Field
from torch import Tensor


class {title}(Aggregator):
    """Mean of the C - f shortest updates; weights are ignored."""

    name: ClassVar[str] = "{name}"
    translation_equivariant: ClassVar[bool] = False
    n_byzantine: int = Field(default=1, ge=0)

    def check(self, n_clients: int) -> None:
        """Refuse too few updates, before anything is trained."""
        if n_clients <= 2 * self.n_byzantine:
            raise ValueError(f"needs C > 2f, got C={{n_clients}}, f={{self.n_byzantine}}")

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None) -> Aggregate:
        """The new update `[D]`, which rows it is made of, and how suspicious each is."""
        norms_C = updates_CD.norm(dim=1)
        kept_C = torch.ones_like(norms_C, dtype=torch.bool)
        kept_C[norms_C.topk(self.n_byzantine).indices] = False
        return Aggregate(updates_CD[kept_C].mean(0), kept_C, norms_C)
'''

ATTACK = '''"""{title}: the honest update, reversed. Replace it by your attack, and say which paper it comes from."""

from typing import Annotated, ClassVar

from fl_lightning import Attack, Poisoned, Tunable, View
from pydantic import Field


class {title}(Attack):
    """Malicious clients send their own honest update, reversed and scaled."""

    name: ClassVar[str] = "{name}"
    serves: ClassVar[tuple[str, ...]] = ("any", "relabel")
    scale: Annotated[float, Tunable(0.1, 10, log=True)] = Field(default=1.0, ge=0)

    def poison(self, view: View, state: dict) -> Poisoned:
        """What the malicious clients submit, `[M, D]`; everything that an attacker knows is in the view."""
        return Poisoned(-self.scale * view.own_updates, state)
'''

DEFENSE = '''"""{title}: updates far longer than the median are thrown away. Replace it, and say where it comes from."""

from typing import ClassVar

from fl_lightning import Defense, ServerContext, Verdict
from fl_lightning.defenses import State
from pydantic import Field
from torch import Tensor


class {title}(Defense):
    """Keeps the updates that are at most `factor` times as long as the median."""

    name: ClassVar[str] = "{name}"
    factor: float = Field(default=2.0, ge=1)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Which rows stay; larger scores are more suspicious. The median row always stays."""
        norms_C = updates_CD.norm(dim=1)
        return Verdict(norms_C <= self.factor * norms_C.median(), context.weights_C, updates_CD, norms_C, state)
'''

TESTS = {
    "aggregator": '''"""The new rule does what every rule must do."""

import pytest
from fl_lightning.testing.aggregators import AGGREGATOR_CHECKS
from {name} import {title}


@pytest.mark.parametrize("check", AGGREGATOR_CHECKS.values(), ids=AGGREGATOR_CHECKS)
def test_conformance(check):
    check({title}(n_byzantine=2), "cpu")
''',
    "attack": '''"""The new attack does what every attack must do."""

import pytest
from fl_lightning.testing.attacks import ATTACK_CHECKS
from {name} import {title}


@pytest.mark.parametrize("check", ATTACK_CHECKS.values(), ids=ATTACK_CHECKS)
def test_conformance(check):
    check({title}())
''',
    "defense": '''"""The new defense does what every defense must do."""

import pytest
from fl_lightning.testing.defenses import DEFENSE_CHECKS
from {name} import {title}


@pytest.mark.parametrize("check", DEFENSE_CHECKS.values(), ids=DEFENSE_CHECKS)
def test_conformance(check):
    check({title}())
''',
}

EXPERIMENT = """# {title}: a table with an owner column, attacked and defended; change what follows.
data:
  name: frame
  path: {name}.csv        # a row an event; here 240 made-up ones of six owners
  owner: owner
  target: label
rounds: 5
partition: {{name: natural, clients: all}}
model: {{name: mlp, hidden: [16]}}
client: {{batch_size: 16, optimizer: {{name: sgd, lr: 0.1}}}}
participation: {{name: full, malicious: 1}}
attack: sign_flip
aggregator: median
"""

EXPERIMENT_TEST = '''"""The experiment loads and runs."""

from pathlib import Path

from fl_lightning import Federation, load


def test_it_runs(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    federation = Federation(load("{name}", ["rounds=1"]))
    assert "owner/worst" in federation.run().history[-1]
'''

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST = 60
"""Characters of a name."""

METHODS = {"aggregator": AGGREGATOR, "attack": ATTACK, "defense": DEFENSE}
KINDS = (*METHODS, "experiment")


def new(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the files of a method or an experiment into `folder/name`; returns them.

    Args:
        kind: aggregator, attack, defense or experiment.
        name: in lower case with underscores, as configurations will write it.
        folder: where the new folder goes.

    Raises:
        ConfigError: a name that is none, or a folder that is there.
    """
    if not NAME.fullmatch(name) or len(name) > LONGEST or keyword.iskeyword(name):
        raise ConfigError(
            f"a name has lower-case letters, digits and underscores between them, at most {LONGEST}, and is no word of "
            f"Python's; got {excerpt(name)}"
        )
    root = folder / name
    if root.exists():
        raise ConfigError(f"{root} is there already")
    _refuse_taken(kind, name)
    words = {"kind": kind, "name": name, "title": title_of(name), "dashed": name.replace("_", "-")}
    if kind == "experiment":
        files = {
            f"configs/experiment/{name}.yaml": EXPERIMENT.format(**words),
            f"{name}.csv": made_up(),
            f"tests/test_{name}.py": EXPERIMENT_TEST.format(**words),
        }
    else:
        files = {
            "pyproject.toml": PROJECT.format(**words),
            f"{name}/__init__.py": METHODS[kind].format(**words),
            f"{name}/references.bib": BIB,
            f"tests/test_{name}.py": TESTS[kind].format(**words),
        }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return [root / path for path in files]


def _refuse_taken(kind: str, name: str) -> None:
    """Refuse what would hide, or be hidden by, something that is there already."""
    if kind == "experiment":
        if name in config_names("experiment"):
            raise ConfigError(f"there is an experiment {name} already; choose another name")
        return
    if name in index()[kind]:
        raise ConfigError(f"{kind} {name} is shipped with fl-lightning; choose another name")
    if name in sys.stdlib_module_names or find_spec(name):
        raise ConfigError(
            f"a module {name} is installed already, and one of the two would hide the other; choose another name"
        )
    imports = " ".join(re.findall(r"^from .* import (.*)$", METHODS[kind], re.MULTILINE))
    if (title := title_of(name)) in re.findall(r"\w+", imports):
        raise ConfigError(
            f"its class would be called {title} as one of fl-lightning's own; choose another name, got {name!r}"
        )


def title_of(name: str) -> str:
    """`shortest_mean` as `ShortestMean`."""
    return "".join(part.capitalize() for part in name.split("_"))


def made_up() -> str:
    """A table of 240 rows of six owners, whose label can be learnt."""
    rows = ["owner,amount,hour,label"]
    for row in range(240):
        label, wobble = row // 6 % 2, (row * 37 % 41) / 41
        rows.append(f"owner{row % 6},{label + wobble:.3f},{row * 7 % 24},{'fraud' if label else 'fine'}")
    return "\n".join(rows) + "\n"
