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
from fl_lightning.analysis._subject import Subject, subject
from fl_lightning.analysis._summary import summary
from fl_lightning.analysis._typical import typical, typical_rounds
from fl_lightning.analysis._weights import weights
from fl_lightning.errors import ConfigError
from fl_lightning.tracking import client

SECTIONS: list[Callable[[Subject], Section]] = [
    summary,
    confusion,
    success,
    rounds,
    weights,
    line,
    persists,
    judges,
    typical,
    typical_rounds,
    explained,
]
"""The parts of the report, in order; each answers one question about a `Subject`."""


def report(about: Subject, tell: Callable[[str], None] = lambda title: None) -> str:
    """The report as one HTML page that asks for nothing outside of itself.

    Args:
        about: the models.
        tell: called with the title of every section that is done.
    """
    done = []
    for section in SECTIONS:
        done.append(section(about))
        tell(done[-1].title)
    return page(f"Analysis of {about.model.title}", done)


def analyze(
    reference: str,
    against: str | None = None,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda title: None,
    trusted: bool = False,
) -> Path:
    """Write the report about a registered model, and keep it beside its run in MLflow as `analysis.html`.

    Args:
        reference: `NAME` (its strongest version), `NAME@ALIAS` or `NAME/VERSION`.
        against: a model to compare with; None: the attack-free twin that was registered beside it, if there is one.
        out: the file; None: `analysis-NAME-VERSION.html` here.
        tell: called with the title of every section that is done.
        trusted: whether the model's configuration is the user's own; else what it may read, import and train is bounded.

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
    text = report(about, tell)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None
    client().log_text(str(version.run_id), text, "analysis.html")
    return file
