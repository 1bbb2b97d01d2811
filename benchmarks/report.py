"""Writes the speed table of docs/measured.md from the figures that the benchmarks left beside this file.

python benchmarks/report.py
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "measured.md"
TALL = 1_663_370


def figures(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    return found


def lines() -> list[str]:
    """Rows of the table: work and what was measured."""
    clients, rules, rounds = figures("clients"), figures("aggregators"), figures("rounds")
    rows = {row["model"]: row for row in clients["seconds"]}
    mlp, cnn = rows["mlp"], rows["wbc_fmnist_cnn"]

    def times(row: dict[str, Any], other: str, ours: str = "vectorized") -> str:
        return f"{row[other] / row[ours]:.1f}"

    table = [
        (
            "A round of 50 MLP clients x 600 samples, all in lock step",
            f"{mlp['vectorized']:.2f} s: {times(mlp, 'by hand')} times as fast as a loop by hand, {times(mlp, 'byzfl')} times as "
            f"byzfl's clients; {mlp['vectorized'] / mlp['matmul floor']:.2f} times the bare matrix products",
        ),
        ("The same for FL-WBC's CNN", f"{cnn['by hand'] / cnn['vectorized']:.2f} times as fast as by hand"),
        (
            "CNN clients one after the other in the shared Trainer",
            f"{cnn['sequential'] / cnn['by hand']:.2f} times the time of a loop by hand",
        ),
    ]
    own = ", ".join(
        f"{row['module loop'] / row['by hand']:.2f} ({row['module']})" for row in figures("modules")["seconds"]
    )
    table.append(
        ("Clients that are a user's LightningModules, over a Lightning loop by hand", f"{own} times its CPU time")
    )
    for row in rules["seconds"]:
        if row["dimension"] == TALL and row["rule"] != "mean":
            others = [
                f"{times(row, name, 'ours')} times as fast as {name}" for name in ("byzfl", "flwr") if name in row
            ]
            others = others or [f"{times(row, 'naive', 'ours')} times as fast as naive torch"]
            floor = f"; {row['ours'] / row['floor']:.1f} times the plain mean"
            table.append((f"{row['rule']} of {row['clients']} x {TALL:,}", ", ".join(others) + floor))
    table.append(
        ("Memory of a trimmed mean of 50 x 6,603,710 beyond its input", f"{rules['peak_memory_of_trimmed_mean']:.0%}")
    )
    table += [
        (
            f"PDRR with {row['rule']} on 50 x 6,603,710",
            f"{row['pdrr'] / row['aggregation']:.2f} times the plain aggregation, {row['pdrr'] / row['err']:.1%} of ERR",
        )
        for row in figures("pdrr")["seconds"]
    ]
    table += [
        (
            f"MLflow and a checkpoint in every round of {rounds['round']:.1f} s",
            f"{rounds['tracking_overhead_median']:+.1%} (median)",
        ),
        ("`fl-lightning --help`; a resume", f"{clients['help_seconds']:.2f} s; {rounds['resume_seconds']:.1f} s"),
    ]
    head = f"Measured on {clients['device']}, torch {clients['torch']}:"
    return [head, "", "| work | measured |", "|---|---|", *(f"| {work} | {measured} |" for work, measured in table)]


def main() -> None:
    """Replace what stands between the markers."""
    text = PAGE.read_text()
    between = "<!-- speed -->\n" + "\n".join(lines()) + "\n<!-- /speed -->"
    PAGE.write_text(re.sub(r"<!-- speed -->.*<!-- /speed -->", lambda _: between, text, flags=re.DOTALL))
    print(between)


if __name__ == "__main__":
    main()
