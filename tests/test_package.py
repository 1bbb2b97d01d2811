"""What `import fl_lightning` gives, what it costs, and that every example in the documentation runs."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import fl_lightning

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


def test_callbacks_know_nothing_of_the_rest():
    program = (
        "import sys, fl_lightning.callbacks; "
        "print([m for m in sys.modules if m.startswith('fl_lightning.') and 'callbacks' not in m])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0
