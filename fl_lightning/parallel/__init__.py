"""Work side by side: processes on this machine, tasks on a Ray cluster, locks between them."""

from fl_lightning.parallel._endings import begin_worker, interruptible, settings, tied
from fl_lightning.parallel._processes import Jobs, Submit, exclusive, in_turn, share_cores, shared, side_by_side

__all__ = [
    "Jobs",
    "Submit",
    "begin_worker",
    "exclusive",
    "in_turn",
    "interruptible",
    "settings",
    "share_cores",
    "shared",
    "side_by_side",
    "tied",
]
