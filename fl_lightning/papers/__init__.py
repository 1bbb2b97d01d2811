"""The papers' tables and figures, run again and judged."""

from fl_lightning.papers._claims import (
    SIZES,
    VERDICTS,
    Bound,
    Claim,
    Order,
    PaperTable,
    Printed,
    Reading,
    Size,
    SizeName,
    TableCell,
    Verdict,
    discovery_rates,
    measured,
    p_value,
    verdict,
)
from fl_lightning.papers._records import Record, Records, digest
from fl_lightning.papers._reproduce import reproduce
from fl_lightning.papers._tables import experiments, find_tables
from fl_lightning.papers._verdicts import (
    Judged,
    Reproduction,
    TableRuns,
    check_markers,
    judge,
    plain,
    write_verdicts,
)

__all__ = [
    "SIZES",
    "VERDICTS",
    "Bound",
    "Claim",
    "Judged",
    "Order",
    "PaperTable",
    "Printed",
    "Reading",
    "Record",
    "Records",
    "Reproduction",
    "Size",
    "SizeName",
    "TableCell",
    "TableRuns",
    "Verdict",
    "check_markers",
    "digest",
    "discovery_rates",
    "experiments",
    "find_tables",
    "judge",
    "measured",
    "p_value",
    "plain",
    "reproduce",
    "verdict",
    "write_verdicts",
]
