"""The report about a registered poisoned model."""

from collections.abc import Callable
from pathlib import Path

from fl_lightning.analysis._attributions import explained
from fl_lightning.analysis._confusion import confusion, success
from fl_lightning.analysis._curves import rounds
from fl_lightning.analysis._judges import judges
from fl_lightning.analysis._line import line
from fl_lightning.analysis._page import Section, page
from fl_lightning.analysis._persistence import persists
from fl_lightning.analysis._replay import replays
from fl_lightning.analysis._subject import Subject, subject
from fl_lightning.analysis._summary import provenance, summary
from fl_lightning.analysis._trigger import trigger
from fl_lightning.analysis._typical import typical, typical_rounds
from fl_lightning.analysis._weights import weights
from fl_lightning.errors import ConfigError
from fl_lightning.tracking import client

SECTIONS: list[Callable[[Subject], Section]] = [
    summary,
    trigger,
    rounds,
    success,
    confusion,
    replays,
    judges,
    persists,
    weights,
    line,
    typical,
    typical_rounds,
    explained,
    provenance,
]
"""The parts of the report, in order; each answers one question about a `Subject`."""

QUICK = [summary, trigger, rounds, success, confusion, weights, line, provenance]
"""Those that train nothing."""

FOLDER = "analysis"
"""Where the tables and pictures of the report lie among the artifacts of a run."""


def sections(about: Subject, tell: Callable[[str], None] = lambda title: None, quick: bool = False) -> list[Section]:
    """The parts of the report that have something to say.

    Args:
        about: the models.
        tell: called with the title of every section that is done.
        quick: only those that train nothing.
    """
    done = []
    for section in QUICK if quick else SECTIONS:
        made = section(about)
        tell(made.title)
        if made.parts:
            done.append(made)
    return done


def report(about: Subject, tell: Callable[[str], None] = lambda title: None, quick: bool = False) -> str:
    """The report as one HTML page that asks for nothing outside of itself; see `sections`."""
    return page(f"Analysis of {about.model.title}", sections(about, tell, quick))


def analyze(
    reference: str,
    against: str | None = None,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda title: None,
    trusted: bool = False,
    quick: bool = False,
) -> Path:
    """Write the report about a registered model, and keep it beside its run in MLflow as `analysis.html`.

    Its tables as CSV and its pictures as SVG lie in a folder beside it (`<name>-files`), and among the artifacts in `analysis/`.

    Args:
        reference: `NAME` (its strongest version), `NAME@ALIAS` or `NAME/VERSION`.
        against: a model to compare with; None: the attack-free twin that was registered beside it, if there is one.
        out: the file; None: `analysis-NAME-VERSION.html` here.
        tell: called with the title of every section that is done.
        trusted: whether the model's configuration is the user's own; else what it may read, import and train is bounded.
        quick: only the parts that train nothing.

    Returns:
        The file.

    Raises:
        ConfigError: no such model, one that is not poisoned, two that cannot be compared, or a file that cannot be written.
    """
    if out is not None and (out.is_dir() or not out.resolve().parent.is_dir()):
        raise ConfigError(f"cannot write {out}: " + ("it is a folder" if out.is_dir() else "there is no such folder"))
    about = subject(reference, against, trusted)
    version = about.model.version
    file = out or Path(f"analysis-{version.name}-{version.version}.html")
    made = sections(about, tell, quick)
    shown = page(f"Analysis of {about.model.title}", made)
    beside = file.with_name(f"{file.stem}-files")
    try:
        file.write_text(shown, encoding="utf-8")
        beside.mkdir(exist_ok=True)
        written = [beside / name for section in made for name in section.files()]
        for path, content in zip(written, (text for one in made for text in one.files().values()), strict=True):
            path.write_text(content, encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None
    store = client()
    store.log_text(str(version.run_id), shown, f"{FOLDER}.html")
    for path in written:
        store.log_artifact(str(version.run_id), str(path), FOLDER)
    return file
