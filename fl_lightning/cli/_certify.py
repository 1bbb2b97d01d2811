"""The command `fl-lightning certify`: what can be proved about the models of an experiment."""

import argparse
import os
from dataclasses import asdict

from rich.table import Table

from fl_lightning.certificates import SmoothedCertificate, VoteCertificate, certify_smoothed, certify_votes
from fl_lightning.cli._console import wide_console
from fl_lightning.cli._progress import CampaignProgress
from fl_lightning.config import load
from fl_lightning.defenses import Crfl
from fl_lightning.errors import ConfigError
from fl_lightning.inputs import strict_json

__all__ = ["certify"]


def certify(options: argparse.Namespace) -> int:
    """Print the certified accuracy; returns the exit code.

    Raises:
        ConfigError: neither groups are asked for nor is there a `crfl`, or the theorem does not cover the experiment.
    """
    experiment = load(options.experiment, options.overrides)
    experiment = experiment.faster() if options.fast else experiment
    name = os.path.splitext(os.path.basename(options.experiment))[0]
    found: VoteCertificate | SmoothedCertificate
    if options.groups is not None:
        progress = [] if options.quiet else [CampaignProgress(f"certify {name}")]
        found = certify_votes(experiment, options.groups, name, options.jobs, *progress)
        table = Table("malicious clients", "certified accuracy", box=None)
        rows = [(str(count), value) for count, value in enumerate(found.certified)]
        lines = votes_in_words(found)
    elif any(isinstance(defense, Crfl) for defense in experiment.defenses.values()):
        found = certify_smoothed(experiment, name, options.copies, options.alpha)
        table = Table("norm of the backdoor", "certified accuracy", box=None)
        rows = [(f"{radius:.3g}", value) for radius, value in zip(found.radii, found.certified, strict=True)]
        lines = [f"L = {found.lipschitz:.3g}; undecided on {found.abstained:.1%} of the samples"]
    else:
        raise ConfigError("give --groups G (FLCert), or an experiment with the defense crfl (CRFL): nothing to certify")
    for label, value in rows:
        table.add_row(label, f"{value:.3f}")
    console = wide_console()
    console.print(table)
    for line in [*lines, f"run {found.run_id}; look closer: fl-lightning ui"]:
        console.print(line, soft_wrap=True, highlight=False)
    if options.json:
        print(strict_json(asdict(found)))
    return 0


def votes_in_words(found: VoteCertificate) -> list[str]:
    """The groups' own accuracies, and what the attack did."""
    low, high = min(found.accuracies), max(found.accuracies)
    lines = [f"{len(found.accuracies)} groups, each alone: {low:.3f} to {high:.3f}"]
    if found.attacked:
        hit = found.attacked
        lines.append(
            f"under the attack of {hit.malicious} malicious clients in {hit.groups} groups the vote is right on "
            f"{hit.accuracy:.3f}; of what is certified against so many it changed {hit.broken:.1%}"
        )
    return lines
