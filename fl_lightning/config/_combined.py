"""Methods that are no component of their own but a combination of settings: what an experiment cites beside its components."""

from typing import TYPE_CHECKING, ClassVar

from fl_lightning.aggregators import TrimmedMean

if TYPE_CHECKING:
    from fl_lightning.config._experiment import Experiment


class Slsgd:
    """A trimmed mean, and a step of the server shorter than 1.

    References:
        Xie, Koyejo, Gupta, "SLSGD: Secure and Efficient Distributed On-device Machine Learning", ECML PKDD 2019, algorithm 1.
    """

    cites: ClassVar[tuple[str, ...]] = ("xie2019slsgd",)


def combined(experiment: "Experiment") -> tuple[type, ...]:
    """The methods that the settings of an experiment make together."""
    server = experiment.server
    slsgd = isinstance(experiment.aggregator, TrimmedMean) and server.optimizer == "sgd" and server.lr < 1
    return (Slsgd,) if slsgd else ()
