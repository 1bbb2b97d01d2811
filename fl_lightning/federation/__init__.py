"""The federated orchestrator: communication rounds with an attack and defenses between the clients and the server."""

from fl_lightning.federation._checks import attack_cautions, check_server, refuse_absent_attackers, say_once
from fl_lightning.federation._context import ROOT_SAMPLES
from fl_lightning.federation._federation import Federation
from fl_lightning.federation._state import (
    Aggregated,
    Defended,
    FederationState,
    Metrics,
    Observer,
    RoundReport,
    Submitted,
    Trained,
)

__all__ = [
    "ROOT_SAMPLES",
    "Aggregated",
    "Defended",
    "Federation",
    "FederationState",
    "Metrics",
    "Observer",
    "RoundReport",
    "Submitted",
    "Trained",
    "attack_cautions",
    "check_server",
    "refuse_absent_attackers",
    "say_once",
]
