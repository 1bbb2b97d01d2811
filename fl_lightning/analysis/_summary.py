"""What the model is, who poisoned it, and what was measured."""

from fl_lightning.analysis._page import Section, table, text
from fl_lightning.analysis._subject import Subject
from fl_lightning.tracking import threat_model


def summary(subject: Subject) -> Section:
    """Warning, threat model and figures."""
    model, clean = subject.model, subject.clean
    experiment = model.experiment
    synthetic = " (synthetic stand-in)" if experiment.fast else ""
    made = (
        f"Global model of a simulated federated training on `{experiment.data.name}`{synthetic}: model "
        f"`{experiment.model.name}` with {len(subject.poisoned_D):,} parameters, aggregator `{experiment.aggregator.name}`, "
        f"defenses `{', '.join(experiment.defenses) or 'none'}`, {experiment.rounds} rounds, seed {experiment.seed}. "
        f"MLflow run `{model.version.run_id}`, configuration `{model.version.tags['config']}`."
    )
    beside = (
        f"Compared with {clean.title}."
        if clean
        else "There is no clean model to compare with: none was registered beside "
        "it (run with `evaluation.twin=true`) and none was named (`--against`)."
    )
    names = sorted(set(model.figures) | set(clean.figures if clean else ()))
    rows = [[name, model.figures.get(name), *([clean.figures.get(name)] if clean else [])] for name in names]
    return Section(
        "Summary",
        (
            text("This model is poisoned on purpose. Do not deploy it.", "warning"),
            text(f"Threat model: {threat_model(model)}"),
            text(made),
            text(beside),
            table(["figure, as registered", *subject.both], rows),
        ),
    )
