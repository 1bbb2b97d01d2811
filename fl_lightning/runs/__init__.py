"""Tracked runs that can be killed and continued: one, one a seed, or a campaign of many."""

from fl_lightning.runs._campaign import Campaign, run_campaign
from fl_lightning.runs._cells import Cell
from fl_lightning.runs._checkpoint import Checkpoint, end_abandoned, run_folder, write_atomically
from fl_lightning.runs._results import Results, Shown, html_table, latex_table, open, text_of
from fl_lightning.runs._run import Outcome, Under, Watch, no_observers, one_seed, reason
from fl_lightning.runs._seeds import resume, run
from fl_lightning.runs._warmup import attack_start

__all__ = [
    "Campaign",
    "Cell",
    "Checkpoint",
    "Outcome",
    "Results",
    "Shown",
    "Under",
    "Watch",
    "attack_start",
    "end_abandoned",
    "html_table",
    "latex_table",
    "no_observers",
    "one_seed",
    "open",
    "reason",
    "resume",
    "run",
    "run_campaign",
    "run_folder",
    "text_of",
    "write_atomically",
]
