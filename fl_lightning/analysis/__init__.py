"""What is done with a registered poisoned model: one report, a section a file, and the plain functions behind them."""

from fl_lightning.analysis._attributions import attributions
from fl_lightning.analysis._confusion import confusion_matrix, success_by_class
from fl_lightning.analysis._line import along
from fl_lightning.analysis._page import SCRIPTED, Section, folded, page, picture, table, text, widget
from fl_lightning.analysis._panel import panel
from fl_lightning.analysis._persistence import healing
from fl_lightning.analysis._replay import Replayed, first_attacked, replayed
from fl_lightning.analysis._report import QUICK, SECTIONS, analyze, report
from fl_lightning.analysis._subject import Subject, subject
from fl_lightning.analysis._trigger import where_changed
from fl_lightning.analysis._typical import typical_inputs
from fl_lightning.analysis._weights import densities

__all__ = [
    "QUICK",
    "SCRIPTED",
    "SECTIONS",
    "Replayed",
    "Section",
    "Subject",
    "along",
    "analyze",
    "attributions",
    "confusion_matrix",
    "densities",
    "first_attacked",
    "folded",
    "healing",
    "page",
    "panel",
    "picture",
    "replayed",
    "report",
    "subject",
    "success_by_class",
    "table",
    "text",
    "typical_inputs",
    "where_changed",
    "widget",
]
