"""`pack` and `unpack`: one run, search or matrix in a file."""

import argparse
from pathlib import Path

from fl_lightning import search

__all__ = ["pack", "unpack"]


def pack(options: argparse.Namespace) -> int:
    """Write a file."""
    print(f"written: {search.pack(options.what, Path(options.file))}")
    return 0


def unpack(options: argparse.Namespace) -> int:
    """Take what is in a file."""
    got = search.unpack(Path(options.file))
    study = f", study {got.study} with {got.trials} trials" if got.study else ""
    print(
        f"unpacked: run {got.run_id}, {got.runs} runs in all, {got.models} models{study}; look closer: fl-lightning ui"
    )
    for there, here in got.renamed.items():
        print(f"{there} of the pack is {here} here: that number was taken")
    return 0
