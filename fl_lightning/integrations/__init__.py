"""Neighbours: their configurations read, and our parts in their simulations.

* `read_foreign(path)`: configurations of ByzFL, FLPoison and BackFed as ours; the command is `fl-lightning import`.
* `fl_lightning.integrations.flower`: our rules, defenses and attacks in a simulation of Flower; needs `flwr`.
"""

from fl_lightning.integrations._foreign import Foreign, read_foreign

__all__ = ["Foreign", "read_foreign"]
