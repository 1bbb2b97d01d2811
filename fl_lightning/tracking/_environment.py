"""What figures were made with: revision of the source, versions, device."""

import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from fl_lightning.errors import masked


def git_revision() -> str:
    """Revision of the source, with `+` when it has local changes; `unknown` outside a repository."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command() -> str:
    """The command line that this process was started by; empty where that was none of this package."""
    program = Path(sys.argv[0])
    ours = program.stem == "fl-lightning" or program.parts[-3:-1] == ("fl_lightning", "cli")
    return masked(shlex.join(["fl-lightning", *sys.argv[1:]])) if ours else ""


def environment() -> dict[str, str]:
    """What the figures were made with."""
    packages = ("fl-lightning", "torch", "torchvision", "lightning", "torchmetrics", "mlflow", "optuna", "numpy")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device,
        "cpu": processor(),
        "threads": str(torch.get_num_threads()),
        **{package: version(package) for package in packages},
    }


def processor() -> str:
    """Kind of processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
