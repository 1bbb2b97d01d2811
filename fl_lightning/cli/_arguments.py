"""How the command line is read: options anywhere, one line for what is wrong."""

import argparse
from typing import Any, Literal, NoReturn

LONGEST = 100
"""Characters of an argument that a message repeats."""


class Parser(argparse.ArgumentParser):
    """Takes options before, between and after the changes, and tells errors in one line."""

    _sorting = False

    def error(self, message: str) -> NoReturn:
        """One line, and exit code 2."""
        words = (word if len(word) <= LONGEST else f"{word[:LONGEST]}..." for word in message.split())
        self.exit(2, f"error: {' '.join(words)}; see `{self.prog} --help`\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Options and positional arguments in any order; the latter go to the command, whose own parser sorts them."""
        # Private: argparse says nowhere else whether a parser has commands, which intermixed arguments do not go with
        if self._subparsers is not None or self._sorting:
            return super().parse_known_args(args, namespace)
        self._sorting = True  # argparse sorts by calling this method twice
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._sorting = False


def jobs(text: str) -> "int | Literal['ray']":
    """`ray`, or a number of processes."""
    return "ray" if text == "ray" else _whole(text, 1, 1024)


def count(text: str) -> int:
    """A number of things."""
    return _whole(text, 1, 1_000_000)


def port(text: str) -> int:
    """A port to listen on."""
    return _whole(text, 1, 65535)


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"expected a number from {least} to {most}, got {text!r}")
    return int(text)
