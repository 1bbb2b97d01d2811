"""CRFL's certificate: how large a backdoor may be without changing what a smoothed linear model predicts.

References:
    Xie, Chen, Chen, Li, "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021, algorithm 2, theorem 1
    and the Lipschitz constant of multi-class logistic regression in its appendix.
"""

import csv
import io
from dataclasses import dataclass
from math import ceil, log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from fl_lightning import runs, tracking
from fl_lightning.aggregators import Mean
from fl_lightning.attacks import ModelReplacement
from fl_lightning.certificates._final import certifiable, check_classification, final_model
from fl_lightning.clients import Sgd
from fl_lightning.config import Experiment
from fl_lightning.defenses import Crfl, certified_radius
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.participation import Full, Once
from fl_lightning.randomness import generator
from fl_lightning.runs import Shown, Watch, no_observers

__all__ = [
    "Backdoor",
    "SmoothedCertificate",
    "certified_radii",
    "certify_smoothed",
    "linear_softmax_lipschitz",
    "probability_bounds",
]

LEVELS = 20
"""At how many radii the certified accuracy is told."""


class Backdoor(NamedTuple):
    """What the theorem lets attackers do: poison their batches in one round, and scale what they send.

    Attributes:
        round: t_adv, from 0.
        parts: for each attacker (weight p, scale gamma, local steps tau, learning rate eta, poisoned share q of a batch).
    """

    round: int
    parts: tuple[tuple[float, float, float, float, float], ...]


@dataclass(frozen=True)
class SmoothedCertificate(Shown):
    """What CRFL proves.

    Attributes:
        run_id: MLflow run.
        accuracy: of the smoothed model, samples on which it abstains counted as wrong.
        abstained: share of the samples whose first class cannot be told from the second.
        lipschitz: L, see `linear_softmax_lipschitz`.
        radii: L2 norms of a backdoor's pattern.
        certified: for each radius the share of test samples that are classified rightly under any such backdoor.
    """

    run_id: str
    accuracy: float
    abstained: float
    lipschitz: float
    radii: tuple[float, ...]
    certified: tuple[float, ...]

    def csv(self) -> str:
        """The certified accuracy by radius."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["radius", "certified_accuracy"])
        writer.writerows(zip(self.radii, self.certified, strict=True))
        return text.getvalue()


def linear_softmax_lipschitz(rho: float, input_norm: float = 1.0) -> float:
    r"""L of the cross-entropy's gradient of a linear softmax model, as a function of the input: $\sqrt{2 + 2 \rho + \rho^2}$.

    The printed constant holds for inputs of norm at most 1. For norms up to B >= 1 it is $\sqrt{2 + 2 \rho B + \rho^2 B^2}$ here:
    the gradient is $(p - y) x^T$ with $|p - y| \le \sqrt 2$, and p moves by at most $\rho / 2$ times the input.

    Args:
        rho: bound of the model's norm.
        input_norm: B; below 1 it is taken for 1.

    Example:
        >>> round(linear_softmax_lipschitz(3.0), 4)
        4.1231
    """
    reach = rho * max(1.0, input_norm)
    return sqrt(2 + 2 * reach + reach**2)


def probability_bounds(counts_nK: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """The class with most votes, a lower bound on its probability and an upper bound on that of every other.

    Hoeffding's bound for all K classes at once, each at alpha / K, so that together they hold with probability 1 - alpha although
    first and second class are picked from the same votes.

    Args:
        counts_nK: `[n, K]` votes of M noised copies.
        alpha: probability that a sample's bounds do not hold, in (0, 1).

    Returns:
        `[n]` int64 first class (ties: the smaller), `[n]` p_A, `[n]` p_B.

    Example:
        >>> label, low, high = probability_bounds(torch.tensor([[900, 60, 40]]), 0.01)
        >>> label, round(float(low), 4), round(float(high), 4)
        (tensor([0]), 0.8466, 0.1134)
    """
    copies = int(counts_nK[0].sum())
    width = sqrt(log(counts_nK.shape[1] / alpha) / (2 * copies))
    order_nK = counts_nK.sort(dim=1, descending=True, stable=True)
    shares_nK = order_nK.values.double() / copies
    high_n = (shares_nK[:, 1] + width).clamp(max=1)
    return order_nK.indices[:, 0], (shares_nK[:, 0] - width).clamp(min=0), high_n


def certified_radii(
    low_n: Tensor, high_n: Tensor, backdoor: Backdoor, crfl: Crfl, rounds: int, input_norm: float = 1.0
) -> Tensor:
    """`[n]` radii of theorem 1: 0 where the first class cannot be told from the second.

    Args:
        low_n: `[n]` lower bounds p_A.
        high_n: `[n]` upper bounds p_B.
        backdoor: what the attackers may do.
        crfl: bounds of the model and noise of the rounds.
        rounds: T.
        input_norm: largest norm of an input, with the backdoor's pattern in it.
    """

    def bound(round: int) -> float:
        return crfl.rho0 + crfl.rho_slope * round

    later = [(bound(round), crfl.sigma) for round in range(backdoor.round + 1, rounds)]
    lipschitz = linear_softmax_lipschitz(bound(backdoor.round), input_norm)
    pairs = zip(low_n.tolist(), high_n.tolist(), strict=True)
    return torch.tensor(
        [certified_radius(low, high, crfl.sigma, later, backdoor.parts, lipschitz) for low, high in pairs],
        dtype=torch.float64,
    )


def certify_smoothed(
    experiment: Experiment,
    name: str = "experiment",
    copies: int = 1000,
    alpha: float = 0.001,
    watch: Watch = no_observers,
) -> SmoothedCertificate:
    """Run the experiment without its attack under `crfl`, and certify the votes of noised copies of the final model.

    The attack is what is certified against: `model_replacement` with the schedule `once`; its boost, share of poisoned samples,
    local steps and learning rate, and the number of malicious clients go into the radius, its trigger does not. The constant L
    takes the largest norm of a sample in the data, which a sample with the trigger must not exceed; the paper's own constant
    takes 1, which pixels in [0, 1] do not keep to. As the theorem does, it takes local models for no longer than the bound rho.

    Args:
        experiment: a linear softmax model, plain SGD, the mean, one defense, `crfl`, and the attack.
        name: what the experiment is called in tables.
        copies: M noised copies of the final model.
        alpha: probability that the bounds of a sample do not hold.
        watch: makes observers of the run.

    Raises:
        ConfigError: the theorem does not cover the experiment.
    """
    if copies < 1 or not 0 < alpha < 1:
        raise ConfigError(f"needs copies >= 1 and 0 < alpha < 1, got {copies} and {alpha:g}")
    experiment = certifiable(experiment)
    crfl = check_covered(experiment)
    federation = Federation(experiment)
    check_classification(federation)
    check_linear(federation)
    backdoor = backdoor_of(federation)
    outcome = runs.run(experiment.override({"attack": None}), name, watch, under=runs.Under(title=f"certify: {name}"))
    theta_D, test = final_model(federation, outcome.run_id), federation.data.test
    counts_nK = _votes(federation, theta_D, crfl.sigma, copies)
    labels_n, low_n, high_n = probability_bounds(counts_nK, alpha)
    norm = max(float(part.x.flatten(1).norm(dim=1).max()) for part in (federation.data.train, test))
    radii_n = certified_radii(low_n, high_n, backdoor, crfl, experiment.rounds, norm)
    right_n, sure_n = labels_n == test.y.cpu(), radii_n > 0
    largest = max((radius for radius in radii_n.tolist() if radius < float("inf")), default=0.0)
    radii = tuple(largest * step / LEVELS for step in range(LEVELS + 1))
    certified = tuple(float((right_n & sure_n & (radii_n >= radius)).double().mean()) for radius in radii)
    lipschitz = linear_softmax_lipschitz(crfl.rho0 + crfl.rho_slope * backdoor.round, norm)
    found = SmoothedCertificate(
        outcome.run_id, certified[0], float((~sure_n).double().mean()), lipschitz, radii, certified
    )
    store = tracking.client()
    store.log_metric(outcome.run_id, "certified/accuracy", found.accuracy)
    store.log_text(outcome.run_id, found.csv(), "certificate.csv")
    return found


def check_covered(experiment: Experiment) -> Crfl:
    """The experiment's `crfl`, if the theorem covers everything else.

    Raises:
        ConfigError: with what it does not cover.
    """
    defenses = list(experiment.defenses.values())
    if len(defenses) != 1 or not isinstance(defenses[0], Crfl):
        names = ", ".join(one.name for one in defenses) or "none"
        raise ConfigError(f"the certificate needs crfl and no other defense, got {names}", "defenses")
    if defenses[0].sigma == 0:
        raise ConfigError("without noise nothing is certified, got 0", "defenses.crfl.sigma")
    if type(experiment.aggregator) is not Mean:
        raise ConfigError(f"the certificate is that of the mean, got {experiment.aggregator.name}", "aggregator")
    if experiment.server.optimizer != "sgd" or experiment.server.lr != 1:
        raise ConfigError("the certificate is that of a plain step, optimizer sgd with lr 1", "server")
    optimizer, client = experiment.client.optimizer, experiment.client
    if not isinstance(optimizer, Sgd) or not optimizer.plain or client.scheduler or client.callbacks:
        raise ConfigError("the certificate is that of plain SGD: no momentum, decay, scheduler, callbacks", "client")
    if not isinstance(experiment.participation, Full):
        raise ConfigError("the certificate needs everybody in every round: name full", "participation")
    attack, schedule = experiment.attack, experiment.participation.schedule
    if not isinstance(attack, ModelReplacement) or attack.boost is None:
        raise ConfigError("name what is certified against: model_replacement with a boost", "attack")
    if not isinstance(schedule, Once) or schedule.round >= experiment.rounds or not experiment.participation.malicious:
        raise ConfigError(
            f"the certificate is one against malicious clients that attack once, before round {experiment.rounds}: "
            "schedule {name: once, round: t}, malicious >= 1",
            "participation",
        )
    return defenses[0]


def check_linear(federation: Federation) -> None:
    """Refuse models whose Lipschitz constant is not known.

    Raises:
        ConfigError: it is no linear softmax model with cross-entropy.
    """
    layout = federation.bench.flat.layout
    classes, inputs = layout.classifier.shape
    features = federation.data.train.x[0].numel()
    expected = classes * (inputs + (layout.classifier.bias is not None))
    if federation.bench.flat.loss != "cross_entropy" or inputs != features or federation.bench.flat.dim != expected:
        raise ConfigError(
            "the certificate's constant is known for a linear softmax model with cross-entropy only, such as "
            "{name: mlp, hidden: []}",
            "model",
        )


def backdoor_of(federation: Federation) -> Backdoor:
    """The experiment's attack in the theorem's terms."""
    experiment = federation.experiment
    attack, participation = experiment.attack, experiment.participation
    assert isinstance(attack, ModelReplacement)
    assert attack.boost is not None
    assert isinstance(participation.schedule, Once)
    round = participation.schedule.round
    sizes = [len(rows) for rows in federation.assignment]
    equal = experiment.server.weights == "equal"
    client = experiment.client
    lr = attack.lr_factor * client.optimizer.at(round).lr
    parts = []
    for number in participation.malicious_clients(len(sizes), experiment.seed).tolist():
        weight = 1 / len(sizes) if equal else sizes[number] / sum(sizes)
        samples = ceil(
            sizes[number] / (1 - attack.poison_fraction)
        )  # its clean ones, and as many dirty ones as asked for
        epochs = attack.epochs or (None if client.steps else client.epochs)
        steps = epochs * ceil(samples / client.batch_size) if epochs else client.steps
        assert steps is not None
        parts.append((weight, attack.boost, float(steps), lr, attack.poison_fraction))
    return Backdoor(round, tuple(parts))


def _votes(federation: Federation, theta_D: Tensor, sigma: float, copies: int) -> Tensor:
    """`[n, K]` how often each class wins among noised copies of the model."""
    flat, x, classes = federation.bench.flat, federation.data.test.x, federation.data.classes
    coins = generator(federation.experiment.seed, "certificate")
    counts_nK = torch.zeros(len(federation.data.test), classes, dtype=torch.int64)
    for _ in range(copies):
        noise_D = torch.randn(len(theta_D), generator=coins, dtype=torch.float64)
        labels_n = flat.scores(theta_D + sigma * noise_D.to(theta_D), x).argmax(1).cpu()
        counts_nK += torch.nn.functional.one_hot(labels_n, classes)
    return counts_nK
