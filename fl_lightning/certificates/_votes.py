"""FLCert: the groups of an experiment's clients train a global model each, and what few attackers can change of their votes.

References:
    Cao, Zhang, Jia, Gong, "FLCert: Provably Secure Federated Learning Against Poisoning Attacks", IEEE Transactions on
    Information Forensics and Security 2022, theorem 1 (FLCert-D: disjoint groups; FLCert-P, random subsets, is not here).
"""

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fl_lightning import tracking
from fl_lightning.certificates._final import certifiable, check_classification, final_model
from fl_lightning.config import Experiment
from fl_lightning.defenses import voted
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.parallel import Jobs
from fl_lightning.runs import Cell, Shown, run_campaign

__all__ = ["Attacked", "VoteCertificate", "certified_accuracy", "certify_votes"]


class Attacked(NamedTuple):
    """The same ensemble under the experiment's attack.

    Attributes:
        malicious: number of malicious clients in the population.
        groups: in how many groups there are any.
        accuracy: of the vote.
        broken: share of the samples that are certified against so many and yet got another label; 0, or the proof is wrong.
    """

    malicious: int
    groups: int
    accuracy: float
    broken: float


@dataclass(frozen=True)
class VoteCertificate(Shown):
    """What FLCert proves.

    Attributes:
        run_id: MLflow parent of the groups' runs.
        accuracies: of each group's model alone.
        certified: for m = 0, 1, ... the share of test samples that are classified rightly whichever m clients are malicious.
        attacked: what the experiment's attack did to the vote; None without an attack.
    """

    run_id: str
    accuracies: tuple[float, ...]
    certified: tuple[float, ...]
    attacked: Attacked | None = None

    def csv(self) -> str:
        """The certified accuracy by number of malicious clients."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["malicious", "certified_accuracy"])
        writer.writerows(enumerate(self.certified))
        return text.getvalue()


def certified_accuracy(labels_n: Tensor, withstood_n: Tensor, y_n: Tensor, groups: int) -> tuple[float, ...]:
    """For m = 0 to floor(G / 2) the share of samples whose label is right and withstands m malicious clients.

    Args:
        labels_n: `[n]` int64, the vote.
        withstood_n: `[n]` how many malicious clients each withstands.
        y_n: `[n]` int64, what is right.
        groups: G.

    Example:
        >>> certified_accuracy(torch.tensor([1, 0, 2]), torch.tensor([2, 0, 1]), torch.tensor([1, 0, 0]), 5)
        (0.6666666666666666, 0.3333333333333333, 0.3333333333333333)
    """
    right_n = labels_n == y_n
    return tuple(float((right_n & (withstood_n >= m)).double().mean()) for m in range(groups // 2 + 1))


def certify_votes(
    experiment: Experiment,
    groups: int,
    name: str = "experiment",
    jobs: Jobs = 1,
    progress: Callable[[int, int, Cell | None], None] = lambda done, total, cell: None,
) -> VoteCertificate:
    """Train one model for each of `groups` disjoint groups of the clients, and certify their majority on the test samples.

    The certificate is that of the ensemble without an attack. If the experiment has one, the groups in which there are malicious
    clients are trained under it, too, which shows what of the bound the attack makes use of.

    Args:
        experiment: what every group runs, by itself; its aggregator must suit the size of a group.
        groups: G, from 2 to the number of clients.
        name: what the experiment is called in tables.
        jobs: worker processes, or `ray`.
        progress: told how many runs are done, and which one was last.

    Raises:
        ConfigError: too many groups, a rule that cannot work in a group, or data without labels.
        RuntimeError: a group's run failed.
    """
    experiment = certifiable(experiment)
    whole = Federation(experiment)
    check_classification(whole)
    if whole.goal.withheld is not None:
        raise ConfigError("keeps samples from the clients, so that there is no ensemble without it", "attack.objective")
    clients = len(whole.assignment)
    if not 2 <= groups <= clients:
        raise ConfigError(f"must be from 2 to the number of clients, {clients}, got {groups}", "groups")
    participation = experiment.participation
    fraction = participation.per_round(clients) / clients
    bad = set(participation.malicious_clients(clients, experiment.seed).tolist()) if experiment.attack else set()
    work: dict[str, Experiment] = {}
    for group in range(groups):
        member = {"name": "group", "groups": groups, "group": group, "fraction": fraction}
        member |= {"malicious": participation.malicious, "schedule": participation.schedule.to_dict()}
        own = experiment.override({"participation": member})
        work[f"group {group}"] = own.override({"attack": None})
        if bad & set(own.participation.eligible(clients, experiment.seed).nonzero().flatten().tolist()):
            work[f"group {group}, attacked"] = own
    campaign = run_campaign(work, f"certify: {name}", jobs, progress)
    if campaign.failures:
        raise RuntimeError(next(iter(campaign.failures.values())))
    test, flat = whole.data.test, whole.bench.flat
    predictions = {
        cell.name: flat.scores(final_model(whole, outcome.run_id), test.x).argmax(1).cpu()
        for cell, outcome in campaign.outcomes.items()
    }
    certificate = _certificate(predictions, groups, test.y.cpu(), whole.data.classes, campaign.run_id, len(bad))
    store = tracking.client()
    now, curve = time.time(), enumerate(certificate.certified)
    points = [tracking.Point("certified/accuracy", value, count, now) for count, value in curve]
    tracking.log_missing(store, campaign.run_id, points)  # the same command again comes to the same run
    store.log_text(campaign.run_id, certificate.csv(), "certificate.csv")
    return certificate


def _certificate(
    predictions: dict[str, Tensor], groups: int, y_n: Tensor, classes: int, run_id: str, malicious: int
) -> VoteCertificate:
    clean_Gn = torch.stack([predictions[f"group {group}"] for group in range(groups)])
    labels_n, withstood_n = voted(clean_Gn, classes)
    attacked = None
    if malicious:
        names = [f"group {group}" for group in range(groups)]
        hit = [f"{name}, attacked" for name in names if f"{name}, attacked" in predictions]
        under_Gn = torch.stack([predictions.get(f"{name}, attacked", predictions[name]) for name in names])
        turned_n = voted(under_Gn, classes)[0]
        broken_n = (turned_n != labels_n) & (withstood_n >= malicious)
        attacked = Attacked(
            malicious, len(hit), float((turned_n == y_n).double().mean()), float(broken_n.double().mean())
        )
    accuracies = tuple((clean_Gn == y_n).double().mean(1).tolist())
    return VoteCertificate(run_id, accuracies, certified_accuracy(labels_n, withstood_n, y_n, groups), attacked)
