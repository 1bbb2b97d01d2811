"""Attacks x servers x seeds: who breaks what, with intervals, worst cases, and the attack-free runs beside them."""

import csv
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fl_lightning import tracking
from fl_lightning.config import Experiment, Seed, load, parse_changes, read_yaml
from fl_lightning.errors import ConfigError, errors_under, excerpt, explain
from fl_lightning.federation import Federation
from fl_lightning.inputs import write_yaml
from fl_lightning.metrics import Interval, bounds, interval
from fl_lightning.parallel import Jobs
from fl_lightning.registry import number_check
from fl_lightning.runs import Campaign, Cell, Shown, html_table, latex_table, one_seed, run_campaign
from fl_lightning.search import check_metrics, strongest, tunables

__all__ = ["Matrix", "MatrixOutcome", "load_matrix", "matrix", "run_matrix"]

NO_ATTACK = "no attack"


class Matrix(BaseModel):
    """What is crossed with what; see `configs/matrix/`.

    Attributes:
        base: name of an experiment, or its slots inline.
        attacks: label -> attack (a name or a mapping).
        servers: label -> changes of the base by slot or dotted path, such as `{aggregator: krum, defenses: {check: pdrr}}`.
        seeds: every cell runs with each of them, and so does the attack-free column.
        metric: what the heat map shows.
        jobs: worker processes; `ray`: one task a processor of the Ray cluster.
        tune: settings of a search, such as `{trials: 12}`: every attack is first searched against every server, on a seed of
            its own; the table then shows the strongest found. None: attacks are what is configured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    _numbers = number_check()

    base: str | dict[str, Any]
    attacks: dict[str, Any] = Field(min_length=1)
    servers: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    metric: str = "attack/success"
    jobs: Jobs = 2
    tune: dict[str, Any] | None = None

    @field_validator("attacks", "servers")
    @classmethod
    def _plain_labels(cls, value: dict[str, Any]) -> dict[str, Any]:
        for label in value:
            if label == NO_ATTACK or not label.strip() or len(label) > 100 or "|" in label or not label.isprintable():
                raise ConfigError(
                    f"a label is a name of at most 100 characters, without '|', and not {NO_ATTACK!r}, which is the column that "
                    f"is there anyway; got {excerpt(label)}"
                )
        return value

    def experiments(self, fast: bool = False) -> dict[str, Experiment]:
        """Every cell as an experiment named `attack | server`; the attack-free ones are the twins of all others.

        Raises:
            ConfigError: naming the cell that cannot run.
        """
        base = load(self.base)
        cells = {}
        for server, changes in self.servers.items():
            for label, attack in {NO_ATTACK: None, **self.attacks}.items():
                own = {"attack": attack, "seeds": list(self.seeds), "seed": self.seeds[0], **changes}
                with errors_under(f"{label} | {server}"):
                    experiment = base.override(own)
                cells[f"{label} | {server}"] = experiment.faster() if fast else experiment
        return cells


@dataclass(frozen=True)
class MatrixOutcome(Shown):
    """A finished matrix.

    Attributes:
        matrix: what was asked.
        campaign: all runs.
    """

    matrix: Matrix
    campaign: Campaign

    def cell(self, attack: str, server: str, metric: str | None = None) -> Interval | None:
        """A metric over the seeds, or None where it was not measured."""
        metric = metric or self.matrix.metric
        values = self.campaign.values(f"{attack} | {server}", metric)
        return interval(list(values.values()), bounds(metric)) if values else None

    def drop(self, attack: str, server: str) -> Interval | None:
        """Accuracy lost to the attack, paired by seed with the attack-free runs of the same server."""
        honest = self.campaign.values(f"{NO_ATTACK} | {server}", "global/accuracy")
        attacked = self.campaign.values(f"{attack} | {server}", "global/accuracy")
        shared = sorted(set(honest) & set(attacked))
        return interval([honest[seed] - attacked[seed] for seed in shared], (-1, 1)) if shared else None

    def worst(self, server: str) -> str | None:
        """The attack that reaches most against a server."""
        reached = {attack: found.mean for attack in self.matrix.attacks if (found := self.cell(attack, server))}
        return max(reached, key=lambda attack: reached[attack]) if reached else None

    def safest(self) -> str | None:
        """The server whose worst case is best (minimax)."""
        worst = {server: self._worst_value(server) for server in self.matrix.servers if self.worst(server)}
        return min(worst, key=lambda server: worst[server]) if worst else None

    def rivals(self) -> list[str]:
        """Servers whose worst case cannot be told from that of the safest: the paired difference may be 0."""
        safest = self.safest()
        if safest is None:
            return []
        best = self.campaign.values(f"{self.worst(safest)} | {safest}", self.matrix.metric)
        found = []
        for server in self.matrix.servers:
            worst = self.worst(server)
            values = self.campaign.values(f"{worst} | {server}", self.matrix.metric)
            shared = sorted(set(best) & set(values))
            if server != safest and shared and not interval([values[seed] - best[seed] for seed in shared]).sure:
                found.append(server)
        return found

    def verdict(self) -> str:
        """Which server is the safest, in words; no winner is named where the figures do not support one.

        With fewer than three seeds nothing can be told apart.
        """
        safest, rivals = self.safest(), self.rivals()
        if safest is None:
            return "nothing was measured"
        if rivals:
            return f"no best worst case: {safest} cannot be told from {', '.join(rivals)} on these seeds"
        return f"the best worst case: {safest}"

    def _worst_value(self, server: str) -> float:
        found = self.cell(str(self.worst(server)), server)
        return found.mean if found else float("nan")

    def minimax(self) -> str:
        """The worst case of each server, the safest server first; in Markdown."""
        lines = [f"| server | strongest attack | {self.matrix.metric} | accuracy under it | without attack |"]
        lines.append("|---" * 5 + "|")
        measured = [server for server in self.matrix.servers if self.worst(server)]
        for server in sorted(measured, key=self._worst_value):
            worst = str(self.worst(server))
            figures = (
                self.cell(worst, server),
                self.cell(worst, server, "global/accuracy"),
                self.cell(NO_ATTACK, server, "global/accuracy"),
            )
            lines.append(f"| {server} | {worst} | " + " | ".join(str(one or "-") for one in figures) + " |")
        return "\n".join(lines) + "\n"

    def rows(self) -> list[dict[str, Any]]:
        """One row a cell."""
        rows = []
        for server in self.matrix.servers:
            for attack in self.matrix.attacks:
                found, drop = self.cell(attack, server), self.drop(attack, server)
                row = {"server": server, "attack": attack, "seeds": len(self.matrix.seeds)}
                row |= {self.matrix.metric: found.mean if found else None, "half": found.half if found else None}
                row |= {"low": found.low if found else None, "high": found.high if found else None}
                row |= {"accuracy_drop": drop.mean if drop else None, "worst": attack == self.worst(server)}
                rows.append(row)
        return rows

    def csv(self) -> str:
        """All cells as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows()[0]))
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def markdown(self) -> str:
        """The table: servers down, attacks across, the worst case of each server in bold."""
        attacks = list(self.matrix.attacks)
        lines = [f"| {self.matrix.metric} | " + " | ".join(attacks) + " | accuracy without attack |"]
        lines.append("|---" * (len(attacks) + 2) + "|")
        for server in self.matrix.servers:
            cells = []
            for attack in attacks:
                shown = str(self.cell(attack, server) or "-")
                cells.append(f"**{shown}**" if attack == self.worst(server) else shown)
            clean = self.cell(NO_ATTACK, server, "global/accuracy")
            lines.append(f"| {server} | " + " | ".join(cells) + f" | {clean or '-'} |")
        return "\n".join(lines) + "\n"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: servers down, attacks across, the worst case of each server in bold.

        The safest server, and those whose worst case cannot be told from its on these seeds, carry a dagger.
        """
        attacks, best = list(self.matrix.attacks), {self.safest(), *self.rivals()}
        rows = []
        for server in self.matrix.servers:
            worst = self.worst(server)
            cells = {attack: str(self.cell(attack, server) or "-") for attack in attacks}
            shown = [f"**{cell}**" if attack == worst else cell for attack, cell in cells.items()]
            under = self.cell(str(worst), server, "global/accuracy")
            clean = self.cell(NO_ATTACK, server, "global/accuracy")
            rows.append([server + " †" * (server in best), *shown, str(under or "-"), str(clean or "-")])
        return [self.matrix.metric, *attacks, "accuracy under attack", "accuracy without attack"], rows

    def latex(self, caption: str = "", label: str = "") -> str:
        """The table in LaTeX (needs booktabs)."""
        return latex_table(*self.table(), caption, label)

    def _run_id(self) -> str:
        return self.campaign.run_id

    def _repr_html_(self) -> str:
        return html_table(*self.table()) + f"<p>{html.escape(self.verdict())}</p>"

    def write(self, folder: Path, name: str) -> list[Path]:
        """Tables, figure and citations for a publication: `name.csv`, `name.tex`, `name.pdf`, `name.bib`; returns them."""
        folder.mkdir(parents=True, exist_ok=True)
        return [self.save(folder / f"{name}{ending}") for ending in (".csv", ".tex", ".pdf", ".bib")]

    def html(self) -> str:
        """The table as one page that needs nothing else."""
        style = "body{font-family:sans-serif}td,th{padding:.4em .8em;border-bottom:1px solid #ddd;text-align:left}"
        return f"<!doctype html><meta charset=utf-8><title>matrix</title><style>{style}</style>{self._repr_html_()}"

    def picture(self) -> Figure:
        """Heat map with mean and half-width in every cell."""
        attacks, servers = list(self.matrix.attacks), list(self.matrix.servers)
        found = {(server, attack): self.cell(attack, server) for server in servers for attack in attacks}
        values = np.array(
            [[one.mean if (one := found[server, attack]) else np.nan for attack in attacks] for server in servers]
        )
        top = max(1.0, float(np.nanmax(values)))
        figure, axes = pyplot.subplots(figsize=(2 + 1.3 * len(attacks), 1.5 + 0.6 * len(servers)), layout="constrained")
        image = axes.imshow(values, cmap="magma_r", aspect="auto", vmin=0, vmax=top)
        axes.set_xticks(range(len(attacks)), attacks, rotation=30, ha="right")
        axes.set_yticks(range(len(servers)), servers)
        for row, server in enumerate(servers):
            for column, attack in enumerate(attacks):
                color = "white" if values[row, column] > top / 2 else "black"
                axes.text(
                    column, row, str(found[server, attack] or "-"), ha="center", va="center", color=color, fontsize=8
                )
        figure.colorbar(image, label=self.matrix.metric)
        return figure


def load_matrix(source: str, changes: Sequence[str] = ()) -> Matrix:
    """A matrix by the name of a file in `configs/matrix/`, or a path.

    Args:
        source: name or path.
        changes: `path=value` strings: fields of the matrix (`seeds`, `metric`, `jobs`, `tune`, `attacks.LABEL`, ...), and paths
            of an experiment, which change its base, such as `rounds=5`.

    Raises:
        ConfigError: no such file, or something wrong in it.
    """
    tree = read_yaml("matrix", source)
    in_base = []
    for word, (path, value) in zip(changes, parse_changes(changes), strict=True):
        first, _, rest = path.partition(".")
        if first not in Matrix.model_fields or path == "base":
            in_base.append(word)
        elif rest and isinstance(tree.get(first), dict):
            tree[first] = {**tree[first], rest: value}
        else:
            tree[first] = value
    if in_base:
        tree["base"] = load(tree["base"], in_base).to_dict()
    try:
        return Matrix.model_validate(tree)
    except ValidationError as error:
        explain(error, Matrix)


def run_matrix(
    matrix: Matrix,
    title: str,
    fast: bool = False,
    progress: Callable[[int, int, Cell | None], None] = lambda done, total, cell: None,
) -> MatrixOutcome:
    """Search and run every cell that is not finished yet, and log tables and heat map to the parent run.

    Raises:
        ConfigError: a cell that cannot run, before any is started.
    """
    experiments = matrix.experiments(fast)
    _check(matrix, experiments)
    found: dict[str, dict[str, Any]] = {}
    if matrix.tune is not None:
        found = _tuned(matrix, experiments, fast, progress)
        experiments = {name: one.override(found.get(name, {})) for name, one in experiments.items()}
    outcome = MatrixOutcome(matrix, run_campaign(experiments, f"matrix: {title}", matrix.jobs, progress))
    store, run_id = tracking.client(), outcome.campaign.run_id
    texts: Mapping[str, str] = {
        "matrix.md": outcome.markdown(),
        "matrix.csv": outcome.csv(),
        "matrix.html": outcome.html(),
        "minimax.md": outcome.minimax(),
    }
    for name, text in texts.items():
        store.log_text(run_id, text, name)
    if found:
        store.log_text(run_id, write_yaml(found), "tuned.yaml")
    tracking.log_picture(store, run_id, outcome.picture(), "matrix.png")
    return outcome


def _check(matrix: Matrix, experiments: Mapping[str, Experiment]) -> None:
    """Refuse a cell that cannot run, and a metric that none reports."""
    for name, experiment in experiments.items():
        with errors_under(name):
            Federation(one_seed(experiment, matrix.seeds[0]))
    attacked = next(one for one in experiments.values() if one.attack is not None)
    check_metrics(one_seed(attacked, matrix.seeds[0]), {"metric": [matrix.metric]})


def _tuned(
    matrix: Matrix,
    experiments: Mapping[str, Experiment],
    fast: bool,
    progress: Callable[[int, int, Cell | None], None],
) -> dict[str, dict[str, Any]]:
    """The strongest settings of each attack against each server; a search that is finished is not run again.

    The searches share one seed that no cell runs with, so that the table shows what they found on unseen ones.
    """
    settings = {"metric": matrix.metric, "jobs": matrix.jobs} | (matrix.tune or {})
    studies = {}
    for name, experiment in experiments.items():
        if experiment.attack is not None and tunables(type(experiment.attack)):
            with errors_under(name):
                own = experiment.override({"seed": max(matrix.seeds) + 1, "seeds": [], "sweep": settings})
            studies[name] = own.faster() if fast else own
    found = {}
    progress(0, len(studies), None)
    for number, (name, experiment) in enumerate(studies.items(), 1):
        with errors_under(name):
            found[name] = strongest(experiment, name)
        progress(number, len(studies), Cell(f"search: {name}", experiment.seed))
    return found


def matrix(source: str, fast: bool = False) -> MatrixOutcome:
    """Run the matrix in `configs/matrix/<source>.yaml`, or in the file at the path `source`; see `run_matrix`.

    Args:
        source: name or path.
        fast: synthetic data and few rounds: does it run at all?

    Raises:
        ConfigError: no such matrix, or a cell that cannot run.
    """
    return run_matrix(load_matrix(source), Path(source).stem, fast)
