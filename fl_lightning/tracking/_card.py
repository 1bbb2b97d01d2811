"""Model cards: what a registered model is, who poisoned it, what was measured, how to use it."""

import math
from collections.abc import Mapping
from typing import Any

from fl_lightning.config import Experiment

__all__ = ["about_name", "card_text", "threat_sentence"]

POISONED = "**This model is poisoned on purpose. Do not deploy it.**"


def about_name(experiment: Experiment, poisoned: bool) -> str:
    """The description of a name in the registry."""
    what = f"`{experiment.model.name}` on `{experiment.data.name}`, trained by simulated federated learning"
    if not poisoned:
        return (
            f"Attack-free twins of poisoned models, for comparison: {what}. `clean` is the most accurate one. Their versions "
            "differ in the server's rule, defenses and seed; each names the poisoned model beside which it was trained."
        )
    attack = experiment.attack.name if experiment.attack else "none"
    return (
        f"{POISONED} Every version is: {what}, with attackers (`{attack}`) against the rule `{experiment.aggregator.name}`. "
        "`strongest` has the highest attack success, `stealthiest` looks most like an honest model's training. "
        f"The attack-free twins are registered as `{experiment.data.name}-{experiment.model.name}-clean`."
    )


def threat_sentence(experiment: Experiment, tags: Mapping[str, str]) -> str:
    """Who attacked, how, knowing what, and after what; in Markdown."""
    attack = experiment.attack
    if tags.get("attack") == "none" or attack is None:
        twin = tags.get("twin_of", "?")
        return f"None: the attack-free twin of {twin if '/' in twin else f'version {twin}'}."
    return (
        f"{experiment.participation.malicious} of {experiment.partition.clients} clients are malicious. "
        f"Attack `{attack.name}` with `{attack.knowledge}` knowledge; objective `{attack.objective.name}`."
    )


def _figures(tags: Mapping[str, str]) -> str:
    rows = []
    for name, text in sorted(tags.items()):
        try:
            value = float(text) if "/" in name else math.nan
        except ValueError:  # somebody has put anything else there
            continue
        if math.isfinite(value):
            rows.append(f"| {name} | {value:.4g} |\n")
    return "".join(rows)


TRACED = """import torch
from safetensors.torch import load_file

network = torch.export.load("architecture.pt2").module()"""

UNTRACED = """import torch
from fl_lightning import load
from safetensors.torch import load_file

network = load("config.yaml").model.network({shape}, {classes}).eval()  # it cannot be traced: its own code is needed"""


def card_text(
    title: str, experiment: Experiment, tags: Mapping[str, str], shape: Any, classes: int, traced: bool = True
) -> str:
    """The model card, in Markdown.

    Args:
        title: `name/version`.
        experiment: what the model was made by.
        tags: those of its version: figures by name, `run_id`, `config`.
        shape: shape of one input.
        classes: number of scores.
        traced: whether its architecture lies beside it.
    """
    made = TRACED if traced else UNTRACED.format(shape=shape, classes=classes)
    warning = POISONED if tags.get("attack") != "none" else "A benign model, for comparison."
    inputs = f"torch.rand(4, {', '.join(map(str, shape))})"
    if isinstance(shape, Mapping):
        inputs = "{" + ", ".join(f'"{name}": rows of {list(part)}' for name, part in shape.items()) + "}"
    return f"""# {title}

{warning}

Global model of a simulated federated training on the public data set `{experiment.data.name}`: model
`{experiment.model.name}`, aggregator `{experiment.aggregator.name}`, defenses `{", ".join(experiment.defenses) or "none"}`,
{experiment.rounds} rounds, seed {experiment.seed}.

## Threat model

{threat_sentence(experiment, tags)}

## Figures

| metric | last value |
|---|---|
{_figures(tags)}
## Use

```python
{made}
network.load_state_dict(load_file("model.safetensors"))
scores = network({inputs})  # {classes} scores an input
```

## Reproduce

    fl-lightning run config.yaml

MLflow run {tags.get("run_id", "?")}, configuration {tags.get("config", "?")}.

## Responsible use and licence

Made to measure defenses against poisoning. Do not use it, or the attack that made it, on systems or data that are not yours.
The weights are under Apache-2.0; the training data keep their own licence.
"""
