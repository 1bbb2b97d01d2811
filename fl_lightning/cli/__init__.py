"""The command `fl-lightning`."""

from fl_lightning.cli._main import main, parser

__all__ = ["main", "parser"]
