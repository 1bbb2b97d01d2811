"""What is done with a registered poisoned model: one report, a section a file, and the plain functions behind them."""

from fl_lightning.analysis._attributions import attributions
from fl_lightning.analysis._confusion import confusion_matrix, success_by_class
from fl_lightning.analysis._line import along
from fl_lightning.analysis._page import Section, page, picture, table, text
from fl_lightning.analysis._persistence import healing
from fl_lightning.analysis._report import SECTIONS, analyze, report
from fl_lightning.analysis._subject import Subject, subject
from fl_lightning.analysis._typical import typical_inputs
from fl_lightning.analysis._weights import densities

__all__ = [
    "SECTIONS",
    "Section",
    "Subject",
    "along",
    "analyze",
    "attributions",
    "confusion_matrix",
    "densities",
    "healing",
    "page",
    "picture",
    "report",
    "subject",
    "success_by_class",
    "table",
    "text",
    "typical_inputs",
]
