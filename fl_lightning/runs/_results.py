"""What a finished run, search or matrix holds, as tables, figures and citations."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run

from fl_lightning import tracking
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.metrics import Interval, bounds, interval
from fl_lightning.references import bibtex
from fl_lightning.registry import parts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Results", "Shown", "latex_table", "open", "text_of"]

COLUMNS = ("run", "experiment", "seed", "round", "metric", "value")
HEADLINE = ("global/accuracy", "attack/success", "global/normalized_cost", "global/loss")
"""Metrics of a table that nobody has chosen columns for; those that were measured."""
PICTURES = (".pdf", ".png", ".svg")
SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
}


class Shown:
    """Tables, figures and citations of everything that has a run in the store."""

    def recorded(self) -> "Results":
        """The run as the store holds it."""
        return open(self._run_id())

    def _run_id(self) -> str:
        return str(getattr(self, "run_id"))  # noqa: B009 - a field of the class that this is mixed into

    def frame(self) -> "pd.DataFrame":
        """Every figure of every round: columns run, experiment, seed, round, metric, value."""
        return self.recorded().frame()

    def latex(self, caption: str = "", label: str = "") -> str:
        """The last figures, mean and 95 % interval over the seeds, as a LaTeX table (needs booktabs)."""
        return self.recorded().latex(caption, label)

    def bibtex(self) -> str:
        """The papers that the run used, exactly these."""
        return self.recorded().bibtex()

    def save(self, path: str | Path) -> Path:
        """Write a figure (.pdf, .png, .svg), a table (.csv, .tex, .html) or the citations (.bib); returns the path."""
        return write(self, Path(path))

    def picture(self) -> Figure:
        """Accuracy and success over the rounds."""
        return self.recorded().picture()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.recorded()._repr_html_()


class Results(Shown):
    """A run in the store, with the runs below it.

    Args:
        run_id: MLflow run of an experiment, a search or a matrix.

    Raises:
        ConfigError: there is no such run.
    """

    def __init__(self, run_id: str):
        self.run_id = run_id
        self.store = tracking.client()
        self.run = tracking.find_run(self.store, run_id)
        self.kind = self.run.data.tags.get("fl.kind", "run")

    def __repr__(self) -> str:
        return f"<{self.kind} {self.run_id}: {self.run.info.run_name}, {self.run.info.status.lower()}>"

    def recorded(self) -> "Results":
        """Itself."""
        return self

    def runs(self) -> list[Run]:
        """Those with rounds of their own: the run itself, or every one below it."""
        return list(leaves(self.store, self.run))

    def frame(self) -> "pd.DataFrame":
        """Every figure of every round: columns run, experiment, seed, round, metric, value."""
        import pandas as pd

        rows = [
            (run.info.run_id, run.data.tags.get("fl.experiment", ""), seed_of(run), point.step, metric, point.value)
            for run in self.runs()
            for metric in tracking.figures_of(run)
            for point in self.store.get_metric_history(run.info.run_id, metric)
        ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        return table.sort_values(["experiment", "seed", "run", "metric", "round"], ignore_index=True)

    def last(self, metrics: Sequence[str] = ()) -> dict[str, dict[str, Interval]]:
        """Experiment -> metric -> the last figure over its seeds; the headline metrics where none are chosen."""
        found: dict[str, dict[str, list[float]]] = {}
        for run in self.runs():
            of = found.setdefault(run.data.tags.get("fl.experiment", ""), {})
            for metric in metrics or HEADLINE:
                if metric in run.data.metrics:
                    of.setdefault(metric, []).append(run.data.metrics[metric])
        return {
            name: {metric: interval(values, bounds(metric)) for metric, values in figures.items()}
            for name, figures in found.items()
        }

    def table(self, metrics: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
        """Header and rows: an experiment a row, a metric a column."""
        figures = self.last(metrics)
        columns = list(dict.fromkeys(metric for row in figures.values() for metric in row))
        rows = [[name, *(str(row.get(metric, "-")) for metric in columns)] for name, row in figures.items()]
        return ["experiment", *columns], rows

    def latex(self, caption: str = "", label: str = "") -> str:
        """The last figures, mean and 95 % interval over the seeds, as a LaTeX table (needs booktabs)."""
        return latex_table(*self.table(), caption, label)

    def bibtex(self) -> str:
        """The papers that the run used, exactly these."""
        classes: list[type] = []
        for run in [self.run, *self.runs()]:
            try:
                classes += parts(load(text_of(self.store, run)))
            except ConfigError:
                continue  # a campaign's parent shows one of its experiments; one that cannot be read today has no classes
        return bibtex(classes)

    def picture(self) -> Figure:
        """Accuracy and success over the rounds, a line a run."""
        table = self.frame()
        names = [name for name in HEADLINE if name in set(table["metric"])][:2]
        figure = Figure(figsize=(4.5 * max(1, len(names)), 3.2), layout="constrained")
        for number, name in enumerate(names):
            axes = figure.add_subplot(1, len(names), number + 1, xlabel="round", ylabel=name)
            for (experiment, seed), part in table[table["metric"] == name].groupby(["experiment", "seed"]):
                axes.plot(part["round"], part["value"], label=f"{experiment}, seed {seed}")
            if len(axes.lines) <= 8:
                axes.legend(fontsize="small")
        return figure

    def _repr_html_(self) -> str:
        header, rows = self.table()
        return f"<p>{escape_html(repr(self))}</p>" + html_table(header, rows)


def open(run_id: str) -> Results:
    """A run of the store by its id: an experiment, a search or a matrix, with all that is below it.

    Raises:
        ConfigError: there is no such run.
    """
    return Results(run_id)


def leaves(store: MlflowClient, run: Run) -> Iterator[Run]:
    """The run itself where nothing is below it, else the leaves below."""
    below = tracking.nested(store, run.info.run_id)
    if not below:
        yield run
    for one in below:
        yield from leaves(store, one)


def seed_of(run: Run) -> int:
    """The seed that a run was started with."""
    return int(run.data.tags.get("fl.seed", -1))


def text_of(store: MlflowClient, run: Run) -> dict[str, Any]:
    """The configuration that a run recorded."""
    try:
        tree = yaml.safe_load(tracking.recorded_text(store, run.info.run_id) or "")
    except yaml.YAMLError:
        tree = None
    return tree if isinstance(tree, dict) else {}


def write(shown: Shown, path: Path) -> Path:
    """See `Shown.save`.

    Raises:
        ConfigError: an ending that stands for nothing.
    """
    if path.suffix in PICTURES:
        shown.picture().savefig(path, bbox_inches="tight", dpi=200)
    elif path.suffix == ".csv":
        shown.frame().to_csv(path, index=False)
    elif path.suffix in (".tex", ".html", ".bib"):
        text = {".tex": shown.latex, ".html": shown._repr_html_, ".bib": shown.bibtex}[path.suffix]
        path.write_text(text(), encoding="utf-8")
    else:
        endings = ", ".join((*PICTURES, ".csv", ".tex", ".html", ".bib"))
        raise ConfigError(f"{path}: results are written as {endings}, got {path.suffix or 'no ending'!r}")
    return path


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", label: str = "") -> str:
    r"""A table in LaTeX with booktabs; cells in `**` are bold.

    Example:
        >>> print(latex_table(["rule", "success"], [["krum_2", "**0.5 ± 0.1**"]], "C", "tab:c"))
        \begin{table}
          \centering
          \caption{C}
          \label{tab:c}
          \begin{tabular}{lr}
            \toprule
            rule & success \\
            \midrule
            krum\_2 & \textbf{0.5 $\pm$ 0.1} \\
            \bottomrule
          \end{tabular}
        \end{table}
    """

    def cell(text: str) -> str:
        plain = "".join(SPECIAL.get(character, character) for character in text.strip("*"))
        plain = plain.replace("±", r"$\pm$").replace("†", r"$^\dagger$")
        return rf"\textbf{{{plain}}}" if text.startswith("**") else plain

    lines = ["    " + " & ".join(map(cell, row)) + r" \\" for row in (header, *rows)]
    about = [f"  \\caption{{{cell(caption)}}}"] * bool(caption) + [f"  \\label{{{label}}}"] * bool(label)
    top = [
        r"\begin{table}",
        r"  \centering",
        *about,
        rf"  \begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"    \toprule",
    ]
    return "\n".join(
        [*top, lines[0], r"    \midrule", *lines[1:], r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML; cells in `**` are bold."""

    def cell(text: str) -> str:
        plain = escape_html(text.strip("*"))
        return f"<td><b>{plain}</b></td>" if text.startswith("**") else f"<td>{plain}</td>"

    head = "".join(f"<th>{escape_html(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def escape_html(text: str) -> str:
    """Text as HTML shows it."""
    import html

    return html.escape(text)
