from types import ModuleType

import pytest

from fl_lightning.doctor import PACKAGES, check


def stand_in(package: str) -> ModuleType:
    module = ModuleType(package)
    module.__version__ = "1.2.3"
    module.cuda = type("cuda", (), {"is_available": staticmethod(lambda: False)})
    return module


def broken(at: str, error: Exception):
    def load(package: str) -> ModuleType:
        if package == at:
            raise error
        return stand_in(package)

    return load


def test_a_sound_installation_shows_versions_and_device(capsys):
    assert check(stand_in) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [*(f"{package} 1.2.3" for package in PACKAGES), "trains on the CPU"]


@pytest.mark.parametrize("at", ["torchvision", "torchmetrics", "lightning"])
def test_mismatched_torch_wheels_are_explained(at, capsys):
    assert check(broken(at, RuntimeError("operator torchvision::nms does not exist"))) == 1
    printed = capsys.readouterr().err
    assert f"cannot import {at}" in printed
    assert "from the same index" in printed


def test_a_missing_package_is_named(capsys):
    assert check(broken("optuna", ModuleNotFoundError("No module named 'optuna'"))) == 1
    assert "constraints.txt optuna" in capsys.readouterr().err
