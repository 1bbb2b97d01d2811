"""The command `fl-lightning`."""

from fl_lightning.cli._main import main
from fl_lightning.cli._parser import parser

__all__ = ["main", "parser"]
