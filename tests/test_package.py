"""What `import fl_lightning` gives, what it costs, and that every example in the documentation runs."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fl_lightning

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fl_lightning.__path__, "fl_lightning.")
    if not module.name.endswith("__main__")
)


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, fl_lightning; print([m for m in ('torch', 'lightning', 'mlflow', 'optuna') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_public_name_can_be_had_from_the_top():
    names = dir(fl_lightning)
    for name in (
        "Experiment",
        "Federation",
        "ClientModule",
        "ClientCohort",
        "Krum",
        "Cmp",
        "Pdrr",
        "FLWBC",
        "load",
        "run",
    ):
        assert name in names
    assert fl_lightning.Krum is importlib.import_module("fl_lightning.aggregators").Krum
    with pytest.raises(AttributeError, match="no attribute 'Crum'"):
        fl_lightning.Crum  # noqa: B018


def names_for_type_checkers() -> set[str]:
    """What the block for type checkers in `fl_lightning/__init__.py` gives."""
    tree = ast.parse(Path(fl_lightning.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    names: set[str] = set()
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        listed = {alias.name for alias in statement.names}
        names |= set(importlib.import_module(str(statement.module)).__all__) if listed == {"*"} else listed
    return names


def test_type_checkers_see_what_there_is():
    assert names_for_type_checkers() == set(dir(fl_lightning))


def test_every_name_of_the_front_door_is_there():
    for name in [*fl_lightning.__all__, *dir(fl_lightning)]:
        assert getattr(fl_lightning, name) is not None


def test_the_front_door_is_short():
    assert 10 <= len(fl_lightning.__all__) <= 25


def test_no_name_means_two_things():
    """A name that two modules offer is the same object in both, or is a verb of the front door."""
    seen: dict[str, object] = {}
    for module in map(importlib.import_module, (f"fl_lightning.{slot}" for slot in fl_lightning._SLOTS)):
        for name in module.__all__:
            thing = getattr(module, name)
            if name not in ("REGISTRIES", *fl_lightning.__all__):
                assert seen.setdefault(name, thing) is thing, name


@pytest.mark.slow
def test_a_misspelt_name_and_a_wrong_type_fail_under_a_type_checker(tmp_path: Path):
    program = tmp_path / "uses.py"
    program.write_text(
        "from fl_lightning import Krum, load, nonsense_name\n\nKrum(n_byzantine='three')\nload('digits').rounds.upper()\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", str(program)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert 'has no attribute "nonsense_name"' in found
    assert 'incompatible type "str"; expected "int"' in found
    assert '"int" has no attribute "upper"' in found


def test_callbacks_know_nothing_of_the_rest():
    program = (
        "import sys, fl_lightning.callbacks; "
        "print([m for m in sys.modules if m.startswith('fl_lightning.') and 'callbacks' not in m])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str):
    if name == "fl_lightning.integrations.flower":
        pytest.importorskip("flwr", reason="needs Flower: pip install 'fl-lightning[flower]'")
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0
