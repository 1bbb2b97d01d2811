"""The papers' tables and figures, run again and judged."""

from fl_lightning.papers._claims import (
    VERDICTS,
    Bound,
    Claim,
    Order,
    PaperTable,
    Printed,
    Reading,
    Size,
    TableCell,
    Verdict,
    verdict,
)
from fl_lightning.papers._reproduce import (
    Judged,
    Reproduction,
    experiments,
    find_tables,
    plain,
    reproduce,
    write_verdicts,
)

__all__ = [
    "VERDICTS",
    "Bound",
    "Claim",
    "Judged",
    "Order",
    "PaperTable",
    "Printed",
    "Reading",
    "Reproduction",
    "Size",
    "TableCell",
    "Verdict",
    "experiments",
    "find_tables",
    "plain",
    "reproduce",
    "verdict",
    "write_verdicts",
]
