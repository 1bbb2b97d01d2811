"""What every defense of `matrix defenses_beyond` stops, and what it costs where nobody attacks: the figures of the gallery.

Runs the cells of the matrix without tracking, one after the other on one core, and writes each as a line; what is written
already is not run again. The attack-free cells, iid and Dirichlet 0.5, come first.

python benchmarks/bench_defenses.py --out cells.jsonl --seeds 3        # the cells, seed by seed
python benchmarks/bench_defenses.py --out cells.jsonl --table docs/defenses.json    # means over seeds
"""

import argparse
import datetime
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fl_lightning._matrix import NO_ATTACK, Matrix, load_matrix
from fl_lightning.config import load
from fl_lightning.federation import Federation

PARTITIONS: dict[str, dict[str, Any]] = {
    "iid": {"name": "iid", "clients": 20},
    "dirichlet": {"name": "dirichlet", "clients": 20, "alpha": 0.5},
}


class Work(NamedTuple):
    """One federation."""

    server: str
    attack: str
    partition: str
    seed: int


def works(matrix: Matrix, seeds: int) -> Iterator[Work]:
    """Attack-free cells first, then the attacks seed by seed, iid first, so that what is there when one stops can be used."""
    yield from (
        Work(server, NO_ATTACK, partition, seed)
        for seed, partition, server in itertools.product(range(seeds), PARTITIONS, matrix.servers)
    )
    yield from (
        Work(server, attack, partition, seed)
        for partition, seed, server, attack in itertools.product(
            PARTITIONS, range(seeds), matrix.servers, matrix.attacks
        )
    )


def measured(matrix: Matrix, work: Work) -> dict[str, float | None]:
    """Figures of the last round; shares of users who were dropped and of attackers who were not are means over the rounds."""
    attack = matrix.attacks.get(work.attack)
    own = {"attack": attack, "seed": work.seed, "partition": PARTITIONS[work.partition], **matrix.servers[work.server]}
    history = Federation(load(matrix.base).override(own)).run().history
    last = {name: value for figures in history for name, value in figures.items()}

    def mean(name: str) -> float | None:
        values = [figures[name] for figures in history if name in figures]
        values = [value for value in values if math.isfinite(value)]
        return sum(values) / len(values) if values else None

    figures = {
        # what a defense has made of the model in the end, where one does
        "accuracy": last.get("final/accuracy", last["global/accuracy"]),
        "success": last.get("final/attack_success", last.get("attack/success")),
        "false_alarms": mean("defense/false_alarm_rate"),
        "selected": mean("attack/selected"),
    }
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def table(lines: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Means over the seeds, cell by cell, with how many there were."""
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        cells[line["server"], line["attack"], line["partition"]].append(line)
    rows = []
    for (server, attack, partition), found in cells.items():
        row: dict[str, Any] = {"server": server, "attack": attack, "partition": partition, "seeds": len(found)}
        for name in ("accuracy", "success", "false_alarms", "selected"):
            values = [line[name] for line in found if line.get(name) is not None]
            row[name] = round(sum(values) / len(values), 3) if values else None
        rows.append(row)
    return {
        "command": "python benchmarks/bench_defenses.py",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "rounds": rounds,
        "rows": rows,
    }


def main() -> None:
    """Run the cells that are missing, or write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--only", nargs="*", help="servers of the matrix; all if not given")
    options.add_argument("--without", nargs="*", default=[], help="servers that are left out")
    options.add_argument("--table", type=Path)
    given = options.parse_args()
    matrix = load_matrix("defenses_beyond")
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if given.table:
        given.table.write_text(json.dumps(table(lines, load(matrix.base).rounds), indent=0) + "\n")
        return
    torch.set_num_threads(1)  # the products are small; threads would only wait for each other
    done = {Work(*(line[name] for name in Work._fields)) for line in lines}
    with given.out.open("a") as file:
        for work in works(matrix, given.seeds):
            chosen = (given.only is None or work.server in given.only) and work.server not in given.without
            if chosen and work not in done:
                file.write(json.dumps(work._asdict() | measured(matrix, work)) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
