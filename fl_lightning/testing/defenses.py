"""What every defense must do.

A package that brings its own defense checks it with one line, or one test a check:

    check_defense(MyDetector())
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import grad

from fl_lightning.aggregators import Aggregator, Krum, Mean, Median, TrimmedMean
from fl_lightning.data import Samples
from fl_lightning.defenses import Defense, ServerContext, Verdict, applied
from fl_lightning.errors import ConfigError
from fl_lightning.models import cross_entropy
from fl_lightning.randomness import generator
from fl_lightning.testing._checks import configuration_round_trips, require, run_all

CLIENTS, INPUTS, CLASSES = 11, 40, 10
DIMENSION = INPUTS * CLASSES
RULES: tuple[Aggregator, ...] = (Mean(), Krum(n_byzantine=3), TrimmedMean(n_byzantine=3), Median())


def check_defense(defense: Defense) -> None:
    """Run every check of `DEFENSE_CHECKS` under each rule that the defense can work for.

    Raises:
        AssertionError: naming the defense, the check that failed, and why.

    Example:
        >>> from fl_lightning.defenses import NormBound
        >>> check_defense(NormBound(max_norm=1.0))
    """
    run_all(DEFENSE_CHECKS, repr(defense), defense)


def rules(defense: Defense) -> list[Aggregator]:
    """The rules that the defense accepts; at least one."""
    accepted = []
    for rule in RULES:
        try:
            defense.check(rule, validation=True)
        except ConfigError:
            continue
        accepted.append(rule)
    require(accepted, "no aggregator is accepted")
    return accepted


def server(aggregator: Aggregator, n_clients: int = CLIENTS) -> ServerContext:
    """A server with a linear classifier and validation samples."""
    random = generator(0, "conformance")
    inputs = torch.randn(64, INPUTS, generator=random)
    samples = Samples(inputs, torch.randint(CLASSES, (64,), generator=random))

    def predict(theta_D: Tensor, x: Tensor) -> Tensor:
        return x @ theta_D.view(INPUTS, CLASSES)

    def losses(theta_D: Tensor, samples: Samples) -> Tensor:
        return cross_entropy(predict(theta_D, samples.x), samples.y)

    return ServerContext(
        round=0,
        global_D=0.1 * torch.randn(DIMENSION, generator=random),
        previous_D=torch.zeros(DIMENSION),
        aggregator=aggregator,
        weights_C=torch.full((n_clients,), 600.0),
        validation=samples,
        predict=predict,
        losses=losses,
        gradient=lambda theta_D, samples: grad(lambda theta_D: losses(theta_D, samples).mean())(theta_D),
        generator=lambda purpose: generator(0, purpose),
    )


def honest(n_clients: int = CLIENTS) -> Tensor:
    """`[n, D]` updates that agree on average."""
    random = generator(1, "conformance")
    common_D = torch.randn(DIMENSION, generator=random)
    return 0.1 * (common_D + torch.randn(n_clients, DIMENSION, generator=random))


def shapes_kept(defense: Defense) -> None:
    """Shapes, dtypes and finiteness of the verdict, for several numbers of clients down to one."""
    for rule in rules(defense):
        for n_clients in (CLIENTS, 5, 1):
            try:
                rule.check(n_clients)
            except ValueError:
                continue
            updates_CD, context = honest(n_clients), server(rule, n_clients)
            verdict = defense.apply(updates_CD, context, defense.init())
            require(verdict.keep_C.shape == (n_clients,), f"keep_C has shape {list(verdict.keep_C.shape)}")
            require(verdict.keep_C.dtype == torch.bool, f"keep_C has dtype {verdict.keep_C.dtype}")
            after_CD = applied(verdict, updates_CD)
            require(after_CD.shape == updates_CD.shape, "the shape of the updates has changed")
            require(after_CD.dtype == updates_CD.dtype, "the dtype of the updates has changed")
            require(after_CD.isfinite().all(), "the updates are not finite")
            require(verdict.weights_C.shape == (n_clients,), f"weights_C has shape {list(verdict.weights_C.shape)}")
            if verdict.scores_C is not None:
                require(verdict.scores_C.shape == (n_clients,), f"scores_C has shape {list(verdict.scores_C.shape)}")
                require(not verdict.scores_C.isnan().any(), "scores_C holds NaN")


def input_untouched(defense: Defense) -> None:
    """Neither updates nor weights are modified in place."""
    for rule in rules(defense):
        updates_CD, context = honest(), server(rule)
        before_CD, weights_C = updates_CD.clone(), context.weights_C.clone()
        defense.apply(updates_CD, context, defense.init())
        require(torch.equal(updates_CD, before_CD), "the updates have changed")
        require(torch.equal(context.weights_C, weights_C), "the weights have changed")


def deterministic(defense: Defense) -> None:
    """Two calls give the same verdict and leave the global random state alone."""
    for rule in rules(defense):
        state = torch.get_rng_state()
        first, second = (defense.apply(honest(), server(rule), defense.init()) for _ in range(2))
        require(torch.equal(state, torch.get_rng_state()), "the global random state has changed")
        require(torch.equal(first.keep_C, second.keep_C), "two calls kept different rows")
        after = [applied(verdict, honest()) for verdict in (first, second)]
        require(torch.equal(*after), "two calls gave different updates")


def somebody_stays(defense: Defense) -> None:
    """Identical, zero, opposite, huge and nearly identical rows: never is everybody thrown away, never NaN."""
    one_D = honest()[0]
    alternating = torch.where(torch.arange(CLIENTS) % 2 == 0, 1.0, -1.0)[:, None]
    for rule in rules(defense):
        for rows_CD in (
            one_D.expand(CLIENTS, -1).clone(),
            torch.zeros(CLIENTS, DIMENSION),
            alternating * one_D,
            1e15 * honest(),
            one_D + 1e-6 * honest(),
        ):
            verdict: Verdict = defense.apply(rows_CD, server(rule), defense.init())
            require(verdict.keep_C.any(), "everybody was thrown away")
            require(applied(verdict, rows_CD).isfinite().all(), "the updates are not finite")
            require(verdict.scores_C is None or not verdict.scores_C.isnan().any(), "scores_C holds NaN")


def missing_validation_taught(defense: Defense) -> None:
    """Without validation samples the defense works, or both `check` and `apply` say what to set."""
    rule = rules(defense)[0]
    try:
        defense.check(rule, validation=False)
    except ConfigError as error:
        require("data.validation" in str(error), f"the refusal does not name data.validation: {error}")
        try:
            defense.apply(honest(), replace(server(rule), validation=None), defense.init())
        except ConfigError:
            return
        raise AssertionError("check() refuses a server without samples but apply() works") from None
    defense.apply(honest(), replace(server(rule), validation=None), defense.init())


DEFENSE_CHECKS: dict[str, Callable[[Defense], None]] = {
    check.__name__: check
    for check in (
        configuration_round_trips,
        shapes_kept,
        input_untouched,
        deterministic,
        somebody_stays,
        missing_validation_taught,
    )
}
"""Every check by name."""
