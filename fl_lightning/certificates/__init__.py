"""What can be proved about a trained model: against how many malicious clients, or how large a backdoor, a prediction stands."""

from fl_lightning.certificates._smoothing import (
    Backdoor,
    SmoothedCertificate,
    certified_radii,
    certify_smoothed,
    linear_softmax_lipschitz,
    probability_bounds,
)
from fl_lightning.certificates._votes import Attacked, VoteCertificate, certified_accuracy, certify_votes

__all__ = [
    "Attacked",
    "Backdoor",
    "SmoothedCertificate",
    "VoteCertificate",
    "certified_accuracy",
    "certified_radii",
    "certify_smoothed",
    "certify_votes",
    "linear_softmax_lipschitz",
    "probability_bounds",
]
