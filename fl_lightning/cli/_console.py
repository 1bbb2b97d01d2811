"""Consoles as wide as what reads them, and figures in the units that people use."""

import sys

from rich.console import Console

__all__ = ["duration", "plain_console", "shown", "wide_console"]


def wide_console() -> Console:
    """Of the terminal's width; wide elsewhere, so that names can be copied from a file."""
    return Console(width=None if sys.stdout.isatty() else 200)


def plain_console() -> Console:
    """The same for texts of others, whose brackets are no markup."""
    return Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)


def duration(seconds: float) -> str:
    """A time that is left, in the units that a person would use.

    Example:
        >>> duration(7.2), duration(75), duration(7260)
        ('7 s', '1:15 min', '2:01 h')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def shown(size: int) -> str:
    """Bytes for people.

    Example:
        >>> shown(512), shown(3_400_000)
        ('512 B', '3.4 MB')
    """
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
