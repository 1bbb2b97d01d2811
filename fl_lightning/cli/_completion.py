"""The command `fl-lightning completion`: what a shell needs to complete our command line."""

import argparse

from fl_lightning.cli._parser import parser
from fl_lightning.errors import ConfigError
from fl_lightning.paths import config_names

__all__ = ["completion"]


def completion(options: argparse.Namespace) -> int:
    """Print the shell's program; returns the exit code.

    Raises:
        ConfigError: shtab, which writes it, is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError:
        raise ConfigError("needs shtab: pip install 'fl-lightning[completion]'") from None
    top = parser()
    for sub in _commands(top).values():
        for action in sub._actions:  # argparse has no public list of them; shtab reads the same one
            if action.dest in ("experiment", "matrix") and action.choices is None:
                action.complete = dict.fromkeys(("bash", "zsh"), f"_fl_lightning_{action.dest}")  # type: ignore[attr-defined]
    print(shtab.complete(top, options.shell, preamble=_preamble().get(options.shell, "")))
    return 0


def _commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = next(
        dict(action.choices) for action in top._actions if isinstance(action, argparse._SubParsersAction)
    )
    return found


def _preamble() -> dict[str, str]:
    """Shell functions that complete names of configurations, and of files."""
    bash, zsh = [], []
    for kind in ("experiment", "matrix"):
        names = " ".join(config_names(kind))
        bash.append(f'_fl_lightning_{kind}() {{ compgen -W "{names}" -- "$1"; compgen -f -X "!*.yaml" -- "$1"; }}')
        zsh.append(
            f'_fl_lightning_{kind}() {{ _alternative "names:{kind}:({names})" "files:file:_files -g \'*.yaml\'" }}'
        )
    return {"bash": "\n".join(bash), "zsh": "\n".join(zsh)}
