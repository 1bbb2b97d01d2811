"""Is the installation sound? `python -m fl_lightning.doctor` imports what everything stands on and says what is wrong."""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

PACKAGES = ("torch", "torchvision", "torchmetrics", "lightning", "mlflow", "optuna")


def advice(package: str, error: BaseException) -> str:
    """What to do about a package that cannot be imported."""
    if "torchvision::" in str(error) or package == "torchvision":
        return (
            "torch and torchvision do not belong together, as when one is a CPU-only wheel and the other is not; "
            "install both anew from the same index: "
            f"{sys.executable} -m pip install --force-reinstall --no-deps torch torchvision -c constraints.txt"
        )
    return f"install it anew: {sys.executable} -m pip install --force-reinstall -c constraints.txt {package}"


def check(load: Callable[[str], ModuleType] = import_module) -> int:
    """Import every package, print its version, then the device; returns the exit code."""
    torch = None
    for package in PACKAGES:
        try:
            module = load(package)
        except Exception as error:  # a broken wheel raises anything
            print(f"error: cannot import {package}: {type(error).__name__}: {error}", file=sys.stderr)
            print(f"  {advice(package, error)}", file=sys.stderr)
            return 1
        print(f"{package} {getattr(module, '__version__', 'of unknown version')}")
        torch = module if package == "torch" else torch
    if torch is not None and torch.cuda.is_available():
        print(f"trains on {torch.cuda.get_device_name()}")
    else:
        print("trains on the CPU")
    return 0


if __name__ == "__main__":
    sys.exit(check())
